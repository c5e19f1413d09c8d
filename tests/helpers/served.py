"""A model of a few weights behind the web application, and pictures to send."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from exported import HEIGHT, WIDTH, lively
from omegaconf import OmegaConf
from PIL import Image

from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.model.fuse import for_inference
from maskrcnn_lit.predictor import Predictor

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


def bomb(side: int = 30_000) -> bytes:
    """A PNG of side x side pixels of one color, some 100 kB in all."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()
