"""The page of `export format=web`: exported models, a runtime for browsers and the code that draws
what they detect, all in one HTML file.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.metadata import Metadata
from maskrcnn_lit.export.web_runtime import VERSION, WebRuntime
from maskrcnn_lit.report.draw import PALETTE
from maskrcnn_lit.report.elements import render_page

MAX_BYTES = 256 * 2**20  # of all models: a browser cannot take a text of much more
NAMED = 8  # classes in the title


def check_models_fit(count: int) -> None:
    """Raise UserError where models of `count` bytes together are too large for a page."""
    if count > MAX_BYTES:
        raise UserError(
            f"the models of the page would have {count / 2**20:.0f} MB, and a browser takes up to "
            f"{MAX_BYTES / 2**20:.0f} MB: give one size with sizes=[HEIGHTxWIDTH], precision=int8, "
            "or a smaller model (model=mask_rcnn_edge)"
        )


def web_page(models: Sequence[tuple[Metadata, bytes]], runtime: WebRuntime) -> str:
    """The page as HTML. models: ONNX files of one run, one for each padded size.

    Raises: UserError: they are too large for a page.
    """
    check_models_fit(sum(len(content) for _, content in models))
    about = models[0][0]
    names = [f"model_{height}x{width}" for height, width in (own.size for own, _ in models)]
    data = {
        "models": [
            {"name": name, "about": asdict(own)}
            for name, (own, _) in zip(names, models, strict=True)
        ],
        "colors": [f"rgb({r}, {g}, {b})" for r, g, b in PALETTE],
    }
    classes = [name for _, name in about.classes]
    more = f" and {len(classes) - NAMED} more classes" if len(classes) > NAMED else ""
    return render_page(
        "web.html",
        title="Mask R-CNN in the browser",
        lead=f"It finds {', '.join(classes[:NAMED])}{more}.",
        data=json.dumps(data).replace("<", "\\u003c"),  # no class name ends the script
        library=_packed(runtime.library),
        wasm=_packed(runtime.wasm),
        models={name: _packed(content) for name, (_, content) in zip(names, models, strict=True)},
        facts=[
            ("precision", about.precision),
            ("sizes", ", ".join(f"{h} x {w}" for h, w in (own.size for own, _ in models))),
            ("config_sha256", about.config_sha256),
            ("commit", str(about.commit)),
            ("onnxruntime-web", VERSION),
            *about.versions.items(),
        ],
    )


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
