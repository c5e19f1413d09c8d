"""Writes a COCO json and its images as a Hugging Face parquet file, in the forms of the hub."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as coco_mask

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def class_label(names: Sequence[str]) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def several(feature: Any) -> dict[str, Any]:
    return {"feature": feature, "_type": "Sequence"}


def write_parquet(
    file: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, group: int = 100
) -> Path:
    """columns: name -> pyarrow array, or bytes or (bytes, path) of pictures; features: as
    `datasets` writes them; group: rows of a row group.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {name: pictures(own) if _are_pictures(own) else own for name, own in columns.items()}
    )
    if features is not None:
        info = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, file, row_group_size=group)
    return file


def _are_pictures(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], (bytes, tuple))


def pictures(values: Sequence[Any]) -> pa.Array:
    pairs = [value if isinstance(value, tuple) else (value, None) for value in values]
    return pa.array([{"bytes": data, "path": path} for data, path in pairs], PICTURE)


def png(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "PNG")
    return file.getvalue()


def mask_of(entry: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """H W, 0 or 1: the mask of a COCO annotation."""
    shape = entry["segmentation"]
    if isinstance(shape, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
    elif isinstance(shape["counts"], list):
        rle = coco_mask.frPyObjects(shape, *size)
    else:
        rle = {**shape, "counts": shape["counts"].encode()}
    return coco_mask.decode(rle)


def rows_of(content: dict[str, Any], images: Path) -> list[dict[str, Any]]:
    """name, data, size, and the objects of each image."""
    return [
        {
            "name": image["file_name"],
            "data": (images / image["file_name"]).read_bytes(),
            "size": (image["height"], image["width"]),
            "objects": [e for e in content["annotations"] if e["image_id"] == image["id"]],
        }
        for image in content["images"]
    ]


def write_form(file: Path, form: str, content: dict[str, Any], images: Path) -> Path:
    """A COCO dict with category ids from 1, in one of the forms of FORMS."""
    names = [category["name"] for category in content["categories"]]
    rows = rows_of(content, images)
    picture = [(row["data"], row["name"]) for row in rows]
    boxes = [[e["bbox"] for e in row["objects"]] for row in rows]
    numbers = [[e["category_id"] - 1 for e in row["objects"]] for row in rows]
    crowd = [[e["iscrowd"] for e in row["objects"]] for row in rows]
    masks = [[mask_of(e, row["size"]) for e in row["objects"]] for row in rows]
    rles = [[_rle(mask) for mask in own] for own in masks]
    one = {
        "bbox": pa.list_(pa.float32()),
        "category": pa.int64(),
        "iscrowd": pa.int64(),
    }
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if form in ("struct of lists", "text of JSON", "classes by name"):
        text = form == "text of JSON"
        shapes = [[json.dumps(rle) for rle in own] for own in rles] if text else rles
        rle = (
            pa.string()
            if text
            else pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])
        )
        kinds = one | {"segmentation": rle}
        if form == "classes by name":
            kinds["category"] = pa.string()
            numbers = [[names[number] for number in own] for own in numbers]
        struct = pa.struct([(name, pa.list_(kind)) for name, kind in kinds.items()])
        values = [
            {"bbox": b, "category": c, "iscrowd": i, "segmentation": s}
            for b, c, i, s in zip(boxes, numbers, crowd, shapes, strict=True)
        ]
        features["objects"] = several({"category": class_label(names), "bbox": several({})})
        if form == "classes by name":
            features = {}
        return write_parquet(
            file, {"image": picture, "objects": pa.array(values, struct)}, features
        )
    if form == "list of structs":
        struct = pa.struct([*one.items(), ("mask", PICTURE)])
        lists = [
            [
                {
                    **{"bbox": b, "category": c, "iscrowd": i},
                    "mask": {"bytes": png(m * 255), "path": None},
                }
                for b, c, i, m in zip(*own, strict=True)
            ]
            for own in zip(boxes, numbers, crowd, masks, strict=True)
        ]
        features["annotations"] = [{"category": class_label(names)}]
        columns = {"image": picture, "annotations": pa.array(lists, pa.list_(struct))}
        return write_parquet(file, columns, features)
    kind = pa.list_(PICTURE)  # columns of their own
    columns = {
        "image": picture,
        "instances": pa.array([[{"bytes": png(m)} for m in own] for own in masks], kind),
        "categories": pa.array(numbers, pa.list_(pa.int64())),
        "is_crowd": pa.array(crowd, pa.list_(pa.int64())),
        "caption": pa.array(["a"] * len(rows)),
    }
    features["categories"] = several(class_label(names))
    return write_parquet(file, columns, features)


FORMS = (
    "struct of lists",
    "text of JSON",
    "classes by name",
    "list of structs",
    "columns of their own",
)


def _rle(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
