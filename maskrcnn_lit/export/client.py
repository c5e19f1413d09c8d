"""python client.py MODEL.onnx IMAGE [IMAGE ...] > coco_results.json (no torch is needed)"""

import json
import sys
from functools import cache

import numpy as np
from PIL import Image, ImageOps

NAMES = ["boxes", "scores", "labels", "valid", "masks"]  # without masks the first four
core = cache(lambda: __import__("openvino").Core())  # one: after two, a signal may crash Python


def load(path):  # what the file says of itself, and a function of its inputs by name
    if path.endswith(".xml"):
        model = core().read_model(path)
        run = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        about = json.loads(model.get_rt_info("maskrcnn_lit").astype(str))
        return about, lambda feed: [run(feed)[n] for n in NAMES[: 4 + (about["mask_side"] > 0)]]
    session = __import__("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["maskrcnn_lit"])
    return about, lambda feed: session.run(NAMES[: 4 + (about["mask_side"] > 0)], feed)


def resize(image, about):  # pixels B 3 H W padded with zeros, their sizes B 2, and the scale, x y
    rule, sides = about["image_size"], np.array([image.height, image.width])
    factor = np.min(rule / (sides.max() if isinstance(rule, int) else np.sort(sides)))
    size = np.maximum(np.rint(sides * factor), 1).astype(int)
    if (size > about["size"]).any():
        raise SystemExit(f"an image is {size} pixels after the resize, over {about['size']}")
    pixels = np.zeros((about["batch_size"], 3, *about["size"]), np.uint8)
    small = image.convert("RGB").resize(size[::-1].tolist(), Image.Resampling.BILINEAR)
    pixels[0, :, : size[0], : size[1]] = np.asarray(small).transpose(2, 0, 1)
    return {"images": pixels, "image_sizes": np.tile(size, (len(pixels), 1))}, (size / sides)[::-1]


def rle(mask, box, height, width):  # a mask, stretched over its box and cut at 0.5
    side, middle = len(mask) + 2, (box[:2] + box[2:]) / 2
    half = (box[2:] - box[:2]) / 2 * side / len(mask)  # with a ring of zeros around the mask
    axes = []
    for start, stop, end in zip(middle - half, middle + half, (width, height), strict=True):
        pixels = np.arange(max(int(start), 0), min(int(stop) + 1, end))
        share = side / max(int(stop) - int(start) + 1, 1)
        nodes = np.clip((pixels - int(start) + 0.5) * share - 0.5, 0, side - 1)
        low = np.minimum(nodes.astype(int), side - 2)
        axes.append((pixels, low, (nodes - low).astype(np.float32)))
    (xs, x, dx), (ys, y, dy), ring = *axes, np.pad(mask, 1)
    rows = ring[y] * (1 - dy)[:, None] + ring[y + 1] * dy[:, None]
    image = np.zeros((width, height), np.int8)  # COCO counts along columns
    image[np.ix_(xs, ys)] = (rows[:, x] * (1 - dx) + rows[:, x + 1] * dx).T > 0.5
    changes = np.flatnonzero(np.diff(image.ravel(), prepend=np.int8(0)))
    counts, text = np.diff(changes, prepend=0, append=image.size).tolist(), ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 if more else bits))
    return {"size": [height, width], "counts": text}


def detect(about, run, file, image_id):
    with open(file, "rb") as data:  # not by its name: Pillow 13 turns a mapped TIFF the wrong way
        image = ImageOps.exif_transpose(Image.open(data))
    if image.mode[0] == "I":  # more than 8 bits: those of the training, or as few as hold them
        bits = about["bits"] or next(b for b in (8, 10, 12, 14, 16, 24, 32) if np.max(image) < 2**b)
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8))
    feed, scale = resize(image, about)
    for box, score, label, valid, *mask in zip(*(values[0] for values in run(feed)), strict=True):
        if valid:
            x, y, right, bottom = box = np.clip(box / np.tile(scale, 2), 0, np.tile(image.size, 2))
            result = {"image_id": image_id, "category_id": about["classes"][label - 1][0]}
            result |= {"bbox": [x, y, right - x, bottom - y], "score": float(score)}
            yield result | ({"segmentation": rle(*mask, box, *image.size[::-1])} if mask else {})


if __name__ == "__main__":
    model, files = load(sys.argv[1]), enumerate(sys.argv[2:], 1)
    print(json.dumps([r for n, file in files for r in detect(*model, file, n)]))
