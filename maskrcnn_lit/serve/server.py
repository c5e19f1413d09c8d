"""Runs the web application until someone ends it."""

import socket
import sys

import uvicorn
from starlette.applications import Starlette

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.serve.app import LOCAL

SPARE = 100  # connections beside those of the queue: the page, metrics, refusals


def allowed_hosts(host: str, hosts: list[str] | None) -> list[str] | None:
    """The names that requests may ask for; None: any."""
    if hosts is not None:
        return hosts
    return list(LOCAL) if host in LOCAL else None


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to.

    Raises:
        UserError: the address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"host={host} port={port} cannot be used ({_reason(error)}): give a host of this "
            "machine and another port, or port=0 for any that is free"
        ) from error


def _reason(error: OSError | OverflowError) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).partition(" (while attempting")[0]  # Python repeats the address there


def run_server(app: Starlette, listener: socket.socket, *, queue: int) -> None:
    """Serve `app` until Ctrl-C or SIGTERM. Requests that run get five seconds to end."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=4 * queue + SPARE,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    print(f"http://{shown}:{port}/  (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
