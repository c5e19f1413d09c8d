"""A model of a few weights behind the web application, and pictures to send."""

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import browser
import numpy as np
import uvicorn
from exported import HEIGHT, WIDTH, lively
from omegaconf import OmegaConf
from PIL import Image

from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.predictor import Predictor
from maskrcnn_lit.serve.server import listen

CATEGORIES = (Category(7, "circle"), Category(9, "square"), Category(11, "triangle"))


def predictor(threshold: float = 0.3, **options: Any) -> Predictor:
    """Random weights, which detect something everywhere."""
    config = OmegaConf.create({"data": {"image_size": [HEIGHT, WIDTH]}})
    thresholds = np.full(len(CATEGORIES), threshold)
    return Predictor(for_inference(lively(**options)), CATEGORIES, config, thresholds)


def png(size: Sequence[int] = (HEIGHT, WIDTH), seed: int = 0) -> bytes:
    """Noise of height x width, as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def bomb(side: int = 30_000) -> bytes:
    """A PNG of side x side pixels of one color, some 100 kB in all."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a web application that runs in a thread of this process."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


def wait(page: browser.Page, script: str, until: Callable[[Any], bool] = bool) -> Any:
    """The value of `script` as soon as `until` holds of it, or after a minute."""
    end = time.monotonic() + 60
    while True:
        value = page.evaluate(script)
        if until(value) or time.monotonic() > end:
            return value
        time.sleep(0.05)
