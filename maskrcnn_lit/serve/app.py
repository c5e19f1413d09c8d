"""The addresses of the server: the page, /predict, /healthz, /metrics, /openapi.json.

Every request is counted. One of a page of another server is refused, and with `hosts` one for
another name (DNS rebinding), so no page that a browser shows can use a server of this machine.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskrcnn_lit.serve.metrics import Metrics
from maskrcnn_lit.serve.openapi import openapi
from maskrcnn_lit.serve.pictures import Refused
from maskrcnn_lit.serve.service import Limits, Service, Task

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")  # names of this machine

LONGEST_NAME = 255  # characters of file_name

PARAMETERS = ("model", "score_threshold", "image_id", "file_name")

_log = logging.getLogger(__name__)


def build_app(
    service: Service, *, page: str, hosts: Sequence[str] | None, more: Sequence[Route] = ()
) -> Starlette:
    """The web application around `service`.

    Args:
        service: answers pictures.
        page: HTML of /.
        hosts: the names in the address that requests may ask for; None: any.
        more: further addresses.
    """
    document = openapi(list(service.models), service.limits)
    routes = [
        Route("/", partial(_fixed, HTMLResponse(page))),
        Route("/predict", partial(_predict, service), methods=["POST"]),
        Route("/healthz", partial(_health, service)),
        Route("/metrics", partial(_metrics, service.metrics)),
        Route("/openapi.json", partial(_fixed, JSONResponse(document))),
        *more,
    ]
    middleware = [
        Middleware(Counted, metrics=service.metrics, paths=[route.path for route in routes]),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts or ["*"]), www_redirect=False),
        Middleware(SameOrigin),
    ]
    handlers: Mapping[Any, Any] = {
        Refused: _refused,
        HTTPException: _http_error,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Counted:
    """Counts answers by path and status, and adds HEADERS to them. An exception is an answer with
    status 500, and a line of the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, set(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        began = False

        async def counted(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
                own = [(key.lower().encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            _log.exception(f"{scope['method']} {scope['path']} failed")
            if began:
                raise
            answer = _error(500, "the server failed on this request; its log has the reason")
            await answer(scope, receive, counted)


class SameOrigin:
    """Refuses requests that a page of another server sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Request(scope).headers
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                answer = _error(403, f"requests of pages of {origin[:100]} are not answered")
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _fixed(response: Response, request: Request) -> Response:
    return response


async def _predict(service: Service, request: Request) -> Response:
    started = time.perf_counter()
    model, threshold, task = _parameters(service, request)
    with service.slot():
        body = await _body(request, service.limits)
        answer = await service.predict(model, threshold, task._replace(data=body))
    service.metrics.seconds.observe(time.perf_counter() - started)
    return Response(answer, media_type="application/json")


def _parameters(service: Service, request: Request) -> tuple[str, float | None, Task]:
    """The model, the threshold, and the task without its bytes."""
    given = request.query_params
    unknown = [name for name in given if name not in PARAMETERS]
    if unknown:
        raise Refused(400, f"there is no parameter {unknown[0][:100]}: use {', '.join(PARAMETERS)}")
    names = list(service.models)
    model = given.get("model", names[0])
    if model not in names:
        raise Refused(404, f"there is no model {model[:100]}: use {' or '.join(names)}")
    threshold = _number("score_threshold", given.get("score_threshold"), float)
    if threshold is not None and not 0 <= threshold <= 1:
        raise Refused(400, f"score_threshold={threshold:g} must be a number from 0 to 1")
    image_id = _number("image_id", given.get("image_id"), int)
    name = given.get("file_name", "picture")[:LONGEST_NAME]
    return model, threshold, Task(b"", name, 1 if image_id is None else image_id)


def _number(name: str, text: str | None, kind: Callable[[str], Any]) -> Any:
    try:
        return None if text is None else kind(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise Refused(400, f"{name}={(text or '')[:100]} must be {noun}") from None


async def _body(request: Request, limits: Limits) -> bytes:
    """The bytes of a request within the limits."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refused(
            415,
            "the body is a form: send the content of the image file alone, as "
            "`curl --data-binary @photo.jpg ADDRESS/predict` does",
        )
    closing = {"Connection": "close"}  # the rest of the body is not read
    large = Refused(
        413, f"the body has more than {limits.max_bytes:,} bytes: send a smaller file", closing
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise large
    except TimeoutError:
        raise Refused(
            408, f"the body did not come within {limits.seconds:g} seconds: send it again", closing
        ) from None
    except ClientDisconnect:
        raise Refused(400, "the connection ended before the body did", closing) from None
    return bytes(body)


async def _health(service: Service, request: Request) -> Response:
    works = service.works
    content = {"status": "ok" if works else "failed", "models": list(service.models)}
    return JSONResponse(content, 200 if works else 503)


async def _metrics(metrics: Metrics, request: Request) -> Response:
    return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
