import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.reading import ALL
from maskrcnn_lit.data.datasets.labelme import LabelMe
from maskrcnn_lit.errors import UserError

SQUARE = [[2, 3], [12, 3], [12, 9], [2, 9]]


def shape(label: str | None = "cat", points: Any = None, **more: Any) -> dict[str, Any]:
    points = SQUARE if points is None else points
    return {"label": label, "points": points, "shape_type": "polygon", "group_id": None, **more}


def write(root: Path, stem: str, *shapes: Any, **more: Any) -> None:
    path = root / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / f"{stem}.png")
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imageData": None}
    size = {"imagePath": path.with_suffix(".png").name, "imageHeight": 30, "imageWidth": 40}
    path.write_text(json.dumps(content | size | more))


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(entry: dict[str, Any]) -> np.ndarray:
    rle = entry["segmentation"]
    return coco_mask.decode({**rle, "counts": rle["counts"].encode()})


def test_every_kind_of_shape(tmp_path: Path):
    ring = np.ones((4, 5), bool)
    ring[1:3, 1:3] = False
    write(
        tmp_path / "sub",
        "a",
        shape(),
        shape("dog", [[30, 20], [10, 5]], shape_type="rectangle"),
        shape("dog", [[20, 15], [20, 10]], shape_type="circle"),
        shape("ant", [[8, 6], [12, 9]], shape_type="mask", mask=png(ring)),
    )
    part = LabelMe().read(tmp_path, ALL)
    polygon, box, circle, mask = part.content["annotations"]
    assert [entry["name"] for entry in part.content["categories"]] == ["ant", "cat", "dog"]
    assert part.content["images"][0]["file_name"] == "sub/a.png"
    assert not part.faults
    assert polygon["segmentation"] == [[2, 3, 12, 3, 12, 9, 2, 9]]
    assert box["bbox"] == [10, 5, 20, 15]
    assert "segmentation" not in box
    assert circle["bbox"] == pytest.approx([15, 10, 10, 10])
    full = np.zeros((30, 40), bool)
    full[6:10, 8:13] = ring
    np.testing.assert_array_equal(decoded(mask), full)


def test_a_group_is_one_object(tmp_path: Path):
    far = [[20, 20], [25, 20], [25, 25]]
    write(
        tmp_path,
        "a",
        shape(group_id=1),
        shape(points=far, group_id=1),
        shape("dog", far, group_id=1),
        shape("ant", far, group_id=2),
        shape(
            "ant", [[0, 0], [1, 1]], group_id=2, shape_type="mask", mask=png(np.ones((2, 2)) > 0)
        ),
    )
    two, one, mixed = LabelMe().read(tmp_path, ALL).content["annotations"]
    assert len(two["segmentation"]) == 2
    assert len(one["segmentation"]) == 1
    mask = decoded(mixed)
    assert mask[:2, :2].all()
    assert mask[21, 23] == 1
    assert mask.sum() == 4 + coco_area(far)


def coco_area(points: list[list[int]]) -> int:
    flat = [[float(value) for point in points for value in point]]
    return int(coco_mask.area(coco_mask.frPyObjects(flat, 30, 40))[0])


def test_parts_and_images_that_are_not_labeled(tmp_path: Path):
    for part in ("train", "val"):
        write(tmp_path / part, "a", shape())
    Image.new("RGB", (4, 3)).save(tmp_path / "val" / "new.png")
    assert LabelMe().parts(tmp_path) == ["train", "val"]
    (change,) = LabelMe().read(tmp_path, "val").changes
    assert (change.kind, change.image) == ("image without annotations", "new.png")
    assert len(LabelMe().read(tmp_path, ALL).content["images"]) == 2


def test_paths_of_other_systems(tmp_path: Path):
    write(tmp_path, "a", shape(), imagePath="..\\pictures\\a.png")
    write(tmp_path, "b", shape(), imagePath="other_name.jpg")
    write(tmp_path, "Zelle_\u00e4", shape(), imagePath="Zelle_a\u0308.png")
    write(tmp_path, "Zelle_\u00f6", shape(), imagePath="lost.png")
    (tmp_path / "Zelle_\u00f6.json").rename(tmp_path / "Zelle_o\u0308.json")
    names = [one["file_name"] for one in LabelMe().read(tmp_path, ALL).content["images"]]
    assert sorted(names) == ["Zelle_\u00e4.png", "Zelle_\u00f6.png", "a.png", "b.png"]


BAD: dict[str, tuple[Any, str, str]] = {
    "one point": (shape(points=[[1, 1]]), "polygon under 3 points", "shape 1: 1 points"),
    "no points": (shape(points=5), "polygon under 3 points", "0 points"),
    "a point of one number": (shape(points=[[1, 1], [5], [5, 5]]), "broken shape", "a point is"),
    "a line": (shape(shape_type="linestrip"), "shape without an area", "linestrip"),
    "no label": (shape(None), "no label", "shape 1"),
    "text": ("cat", "no label", "cat"),
    "a mask beyond the image": (
        shape(points=[[38, 0], [50, 9]], shape_type="mask", mask=png(np.ones((9, 9)) > 0)),
        "mask of another size",
        "at 38, 0",
    ),
    "a mask without data": (
        shape(points=[[0, 0], [1, 1]], shape_type="mask", mask="x"),
        "broken shape",
        "not a png",
    ),
    "an empty mask": (
        shape(points=[[0, 0], [1, 1]], shape_type="mask", mask=png(np.zeros((2, 2)) > 0)),
        "broken shape",
        "no pixel",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_shape_is_named_by_file_and_number(name: str, tmp_path: Path):
    bad, kind, what = BAD[name]
    write(tmp_path, "a", shape(), bad)
    part = LabelMe().read(tmp_path, ALL)
    (fault,) = part.faults
    assert (fault.kind, fault.image) == (kind, "a.json")
    assert what in fault.what
    assert len(part.content["annotations"]) == 1


def test_files_that_do_not_match(tmp_path: Path):
    write(tmp_path, "a", shape())
    write(tmp_path, "b", shape(), imagePath="a.png")
    write(tmp_path, "c", shape(), imageHeight=300)
    write(tmp_path, "d", shape())
    (tmp_path / "d.png").unlink()
    (tmp_path / "e.json").write_text("{")
    (tmp_path / "f.json").write_text('{"images": []}')
    part = LabelMe().read(tmp_path, ALL)
    assert [(fault.kind, fault.image) for fault in part.faults] == [
        ("two files for one image", "b.json"),
        ("size differs", "c.png"),
        ("missing file", "d.png"),
        ("not a json of LabelMe", "e.json"),
        ("not a json of LabelMe", "f.json"),
    ]
    assert len(part.content["annotations"]) == 1


def test_a_folder_without_jsons(tmp_path: Path):
    with pytest.raises(UserError, match="has no json of LabelMe"):
        LabelMe().read(tmp_path, ALL)
