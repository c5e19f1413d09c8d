import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from coco_file import NAMES, coco_dict, write_coco
from hf_files import (
    FORMS,
    class_label,
    mask_of,
    png,
    several,
    write_form,
    write_parquet,
)
from pyarrow import parquet
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.index import AnnotationIndex, read_index
from maskrcnn_lit.data.coco.reading import ALL, Part, located
from maskrcnn_lit.data.coco.split import Split
from maskrcnn_lit.data.datasets.hf_parquet import HfParquet
from maskrcnn_lit.errors import UserError

BOXES = pa.list_(pa.list_(pa.float32()))


def noise(seed: int = 0, size: tuple[int, int] = (20, 30)) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def read(root: Path, cache: Path, part: str = ALL, **options: Any) -> Part:
    return HfParquet(**options).read_into(root, part, cache / "pictures", 1.0)


def index_of(root: Path, cache: Path, part: str = ALL, **options: Any) -> AnnotationIndex:
    one = located(HfParquet(**options), root, part, cache)[part]
    return read_index(one.annotations, one.images, "skip", cache=cache)


def objects_of(index: AnnotationIndex, i: int) -> list[tuple[str, bool, bytes]]:
    """Class, crowd and pixels of each object of an image."""
    own = index.annotations(i)
    names = [category.name for category in index.categories]
    return [
        (
            names[own["labels"][j] - 1],
            bool(own["crowd"][j]),
            coco_mask.decode(index.rle(i, j)).tobytes(),
        )
        for j in range(len(own["ids"]))
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_objects_of_the_coco_json(form: str, tmp_path: Path):
    content = coco_dict(8)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for entry in content["annotations"]:  # exact pixels, which polygons are not
        mask = mask_of(entry, sizes[entry["image_id"]])
        rle = coco_mask.encode(np.asfortranarray(mask))
        entry["segmentation"] = rle | {"counts": rle["counts"].decode()}
    annotations, images = write_coco(tmp_path / "coco", content)
    own = read_index(annotations, images, "error", cache=tmp_path / "cache")
    write_form(tmp_path / "hf" / "data" / "train-00000-of-00001.parquet", form, content, images)
    assert HfParquet().parts(tmp_path / "hf") == ["train"]
    read = index_of(tmp_path / "hf", tmp_path / "cache", "train")
    assert len(read) == len(own) == 8
    assert read.faults == ()
    assert [category.name for category in read.categories] == sorted(NAMES)
    for i in range(8):
        assert objects_of(read, i) == objects_of(own, i)
        assert read.read(i) == own.read(i)  # the bytes as they are
    assert read.file_name(3) == "data/train-00000-of-00001/000003-03.jpg"


def test_polygons_are_those_of_the_coco_json(tmp_path: Path):
    content = coco_dict(8)
    polygons = [e for e in content["annotations"] if isinstance(e["segmentation"], list)]
    content["annotations"] = polygons
    annotations, images = write_coco(tmp_path / "coco", content)
    own = read_index(annotations, images, "error", cache=tmp_path / "cache")
    rows = [[e for e in polygons if e["image_id"] == k + 1] for k in range(8)]
    points = [[np.reshape(part, (-1, 2)).tolist() for part in e["segmentation"]] for e in polygons]
    pairs = iter(points)
    nested = pa.list_(pa.list_(pa.list_(pa.list_(pa.float64()))))
    for name, shapes, kind in (
        ("flat", [[e["segmentation"] for e in row] for row in rows], nested.value_type),
        ("points", [[next(pairs) for _ in row] for row in rows], nested),
    ):
        columns = {
            "image": [(images / f"{k:02}.jpg").read_bytes() for k in range(8)],
            "category": pa.array(
                [[e["category_id"] - 1 for e in row] for row in rows], pa.list_(pa.int64())
            ),
            "segmentation": pa.array(shapes, kind),
        }
        write_parquet(
            tmp_path / name / "a.parquet", columns, {"category": several(class_label(NAMES))}
        )
        index = index_of(tmp_path / name, tmp_path / "cache")
        for i in range(8):
            assert [o[0::2] for o in objects_of(index, i)] == [o[0::2] for o in objects_of(own, i)]


@pytest.mark.parametrize(
    ("box_format", "box"),
    [("xywh", [6, 4, 12, 8]), ("xyxy", [6, 4, 18, 12]), ("yolo", [0.4, 0.4, 0.4, 0.4])],
)
def test_boxes_without_masks(box_format: str, box: list[float], tmp_path: Path):
    objects = pa.array(
        [{"bbox": [box], "category": [1]}, {"bbox": [], "category": []}],
        pa.struct([("bbox", BOXES), ("category", pa.list_(pa.int64()))]),
    )
    features = {"objects": {"category": [class_label(["cat", "dog"])], "bbox": several({})}}
    columns = {"image": [noise(1), noise(2)], "objects": objects}
    write_parquet(tmp_path / "hf" / "a.parquet", columns, features)
    part = read(tmp_path / "hf", tmp_path, box_format=box_format)
    (entry,) = part.content["annotations"]
    assert entry["bbox"] == pytest.approx([6, 4, 12, 8], abs=1e-5)
    assert "segmentation" not in entry
    assert part.content["categories"][entry["category_id"] - 1]["name"] == "dog"
    assert part.faults == []
    assert len(part.content["images"]) == 2


def test_corners_as_width_and_height_are_refused(tmp_path: Path):
    columns = {"image": [noise()], "bbox": pa.array([[[18, 12, 28, 18]]], BOXES)}
    write_parquet(tmp_path / "hf" / "a.parquet", columns)
    with pytest.raises(UserError, match=r"1 of 1 boxes .*give data\.reader\.box_format=xyxy"):
        read(tmp_path / "hf", tmp_path)
    (entry,) = read(tmp_path / "hf", tmp_path, box_format="xyxy").content["annotations"]
    assert entry["bbox"] == [18, 12, 10, 6]
    with pytest.raises(UserError, match=r"data\.reader\.box_format=cxcywh"):
        read(tmp_path / "hf", tmp_path, box_format="cxcywh")


def test_a_label_image(tmp_path: Path):
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 3:9], labels[10:18, 5:25], labels[12:14, 8:11] = 1, 700, 0
    columns = {"picture": [noise()], "mask": [png(labels)], "other": [png(labels)]}
    write_parquet(tmp_path / "hf" / "a.parquet", columns)
    for option in ({}, {"image": "picture", "mask": "other"}):
        part = read(tmp_path / "hf", tmp_path, class_name="cell", **option)
        rles = [entry["segmentation"] for entry in part.content["annotations"]]
        masks = [coco_mask.decode({**rle, "counts": rle["counts"].encode()}) for rle in rles]
        np.testing.assert_array_equal(masks, [labels == 1, labels == 700])
        assert part.content["categories"] == [{"id": 1, "name": "cell"}]


def test_classes_without_names_are_numbers(tmp_path: Path):
    columns = {
        "image": [noise()],
        "bbox": pa.array([[[1, 1, 5, 5], [9, 9, 5, 5]]], BOXES),
        "category": pa.array([[10, 2]], pa.list_(pa.int64())),
    }
    write_parquet(tmp_path / "hf" / "a.parquet", columns)
    part = read(tmp_path / "hf", tmp_path)
    assert [c["name"] for c in part.content["categories"]] == ["2", "10"]
    (change,) = part.changes
    assert change.kind == "classes without names"
    assert "data.reader.names=" in change.what
    part = read(tmp_path / "hf", tmp_path, names=[f"class {n}" for n in range(11)])
    numbers = [entry["category_id"] for entry in part.content["annotations"]]
    assert part.changes == []
    assert numbers == [11, 3]


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "three numbers": ({"bbox": [[1, 2, 3]]}, "broken box", "not 4 numbers"),
    "not a number": ({"bbox": [[1, 2, 3, float("nan")]]}, "broken box", "not 4 numbers"),
    "class number": ({"category": [2]}, "unknown class", "class 2 of 0 to 1"),
    "no class": ({"category": [None]}, "unknown class", "None, neither number nor text"),
    "another length": ({"category": [0, 1]}, "lists of different", "1 of bbox, 2 of category"),
    "no picture": ({"image": b"text"}, "not an image", "unknown format"),
    "cut picture": ({"image": noise()[:20]}, "not an image", "unknown format"),
    "a path alone": ({"image": (None, "a.jpg")}, "no picture", "only the path 'a.jpg'"),
    "no bytes": ({"image": (None, None)}, "no picture", "no bytes"),
    "broken text": ({"segmentation": ["[[1, 2"]}, "broken segmentation", "is not JSON"),
    "mask size": ({"mask": [png(np.ones((9, 9), np.uint8))]}, "mask of another size", "9 x 9"),
    "mask": ({"mask": [b"text"]}, "mask cannot be used", "unknown format"),
    "empty mask": ({"mask": [png(np.zeros((20, 30), np.uint8))]}, "mask cannot", "no pixel over 0"),
    "no mask": ({"mask": [None]}, "no mask", "no bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_faulty_is_counted(name: str, tmp_path: Path):
    bad, kind, what = BAD[name]
    columns: dict[str, Any] = {
        "image": [noise(1), bad.get("image", noise(2))],
        "bbox": pa.array([[[1, 2, 3, 4]], bad.get("bbox", [[1, 2, 3, 4]])], BOXES),
        "category": pa.array([[0], bad.get("category", [0])], pa.list_(pa.int64())),
    }
    if "segmentation" in bad:
        columns["segmentation"] = pa.array([[""], bad["segmentation"]], pa.list_(pa.string()))
    if "mask" in bad:
        sound = [png(np.ones((20, 30), np.uint8))]
        columns["mask"] = pa.array([sound, bad["mask"]], pa.list_(pa.binary()))
    features = {"category": several(class_label(["cat", "dog"]))}
    write_parquet(tmp_path / "hf" / "a.parquet", columns, features)
    part = read(tmp_path / "hf", tmp_path)
    (fault,) = part.faults
    assert fault.kind.startswith(kind)
    assert what in fault.what
    assert fault.image == ("a.parquet, row 1" if "image" in bad else "a/000001.png")
    assert len(part.content["annotations"]) == 1  # of the other image
    assert len(part.content["images"]) == len(list((tmp_path / "pictures").rglob("*.png")))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, r"has the columns text \(string\): expected are a column image"),
        ({"image": [noise()], "label": [3]}, r"image \(struct.*label \(int64\): expected are"),
        ({"image": [[noise()]], "mask": [noise()]}, "expected are a column image"),
        ({"image": [noise()], "bbox": ["1 2 3 4"]}, "expected are a column image"),
    ],
)
def test_other_columns_are_refused(columns: dict[str, Any], message: str, tmp_path: Path):
    write_parquet(tmp_path / "hf" / "a.parquet", columns)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "hf", tmp_path)
    with pytest.raises(UserError, match=r"no column data\.reader\.mask=none: give one of"):
        read(tmp_path / "hf", tmp_path, mask="none")


def boxes_file(file: Path, count: int = 2, **options: Any) -> Path:
    columns = {
        "image": [noise(n) for n in range(count)],
        "bbox": pa.array([[[1, 2, 3, 4]]] * count, BOXES),
    }
    return write_parquet(file, columns, **options)


def test_files_that_are_damaged(tmp_path: Path):
    with pytest.raises(UserError, match="has no parquet file"):
        HfParquet().parts(tmp_path)
    file = boxes_file(tmp_path / "hf" / "a.parquet")
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[4:60] = bytes(56)  # the head of a page
    for content, message in (
        (whole[: len(whole) // 2], r"a\.parquet cannot be read as parquet \(.*download it again"),
        (b"", "cannot be read as parquet"),
        (bytes(damaged), "cannot be read as parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS.*git lfs pull"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path / "hf", tmp_path)
        assert "\n" not in str(error.value)


def test_files_that_differ(tmp_path: Path):
    boxes_file(tmp_path / "hf" / "a.parquet")
    write_parquet(tmp_path / "hf" / "b.parquet", {"image": [noise()], "mask": [noise()]})
    with pytest.raises(UserError, match=r"b\.parquet and .*a\.parquet differ in their columns"):
        read(tmp_path / "hf", tmp_path)


def test_the_names_of_files_state_their_part(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def has(*names: str) -> dict[str, int]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            boxes_file(root / name)
        reader = HfParquet()
        own = reader.parts(root) or [ALL]
        assert len(reader.sources(root)) == len(names) - sum("/." in name for name in names)
        return {p: len(read(root, tmp_path, p).content["images"]) for p in own}

    shards = [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
    assert has(*shards) == {"train": 4}
    assert list(has("train-a.parquet", "validation-a.parquet", "test-a.parquet")) == [
        "train",
        "val",
    ]
    assert list(has("default/train/0000.parquet", "default/test/0000.parquet")) == ["train", "val"]
    assert list(has("val.parquet", "data/.cache/train.parquet")) == ["val"]
    assert list(has("0000.parquet", "trainer.parquet")) == [ALL]
    with caplog.at_level(logging.WARNING):
        has("train-00001-of-00003.parquet")
    assert "1 of 3 files are here; only these are used" in caplog.text


def test_row_groups_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count = 40
    columns = {
        "image": [noise(n, (300, 300)) for n in range(count)],
        "bbox": pa.array([[[1, 2, 3, 4]]] * count, BOXES),
    }
    file = write_parquet(tmp_path / "hf" / "a.parquet", columns, group=2)
    del columns
    group = file.stat().st_size // (count // 2)  # bytes
    assert parquet.ParquetFile(file).num_row_groups == count // 2
    assert group > 500_000
    groups, memory = list[list[int]](), list[int]()
    whole = parquet.ParquetFile.iter_batches

    def spy(self: Any, *given: Any, **options: Any) -> Any:
        groups.append(options["row_groups"])
        for batch in whole(self, *given, **options):
            memory.append(pa.total_allocated_bytes() - before)
            yield batch

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the whole table was read")

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    for name in ("read", "read_row_groups"):
        monkeypatch.setattr(parquet.ParquetFile, name, refuse)
    before = pa.total_allocated_bytes()
    part = read(tmp_path / "hf", tmp_path)
    assert len(part.content["images"]) == count
    assert groups == [[n] for n in range(count // 2)]
    assert 0 < max(memory) < 6 * group < file.stat().st_size / 3


def test_pictures_lie_in_the_cache_alone(tmp_path: Path):
    names = ["../../../out.png", "/etc/out.png", "C:\\a\\out.png", "..", "a\0b.png", "x" * 5000]
    columns = {
        "image": [(noise(n), name) for n, name in enumerate(names)],
        "bbox": pa.array([[[1, 2, 3, 4]]] * len(names), BOXES),
    }
    file = write_parquet(tmp_path / "hf" / "a.parquet", columns)
    before = (sorted((tmp_path / "hf").rglob("*")), file.stat().st_mtime_ns)
    index = index_of(tmp_path / "hf", tmp_path / "cache")
    assert len(index) == len(names)
    assert index.faults == ()
    assert [index.file_name(i) for i in range(5)] == [
        *(f"a/00000{n}-out.png" for n in range(3)),
        *("a/000003.png", "a/000004-a_b.png"),
    ]
    assert (sorted((tmp_path / "hf").rglob("*")), file.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "hf"]
    assert len(list((tmp_path / "cache" / "pictures").rglob("*.png"))) == len(names)


def test_pictures_are_written_once_and_again_where_they_are_missing(tmp_path: Path):
    boxes_file(tmp_path / "hf" / "a.parquet", count=6)
    cache = tmp_path / "cache"

    def written() -> dict[str, int]:
        files = (cache / "pictures").rglob("*.png")
        return {path.name: path.stat().st_mtime_ns for path in files}

    index_of(tmp_path / "hf", cache)
    first = written()
    parts = located(HfParquet(), tmp_path / "hf", ALL, cache, Split(0.5))
    index_of(tmp_path / "hf", cache, class_name="cell")
    assert written() == first
    assert len(first) == 6  # neither a split nor an option copies them
    assert parts["train"].images == parts["val"].images
    next((cache / "pictures").rglob("*3.png")).unlink()
    assert index_of(tmp_path / "hf", cache).faults == ()
    assert list(written()) == list(first)
    boxes_file(tmp_path / "hf" / "a.parquet", count=4)
    assert len(index_of(tmp_path / "hf", cache)) == len(written()) == 4


def test_pictures_are_bounded(tmp_path: Path):
    boxes_file(tmp_path / "hf" / "a.parquet")
    with pytest.raises(UserError, match=r"need 0\.01 GB .* data\.cache_gb=1e-06 .*raise it"):
        located(HfParquet(), tmp_path / "hf", ALL, tmp_path / "cache", cache_gb=1e-6)
    assert not (tmp_path / "cache" / "pictures").exists()


def test_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    boxes_file(tmp_path / "hf" / "a.parquet")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pyarrow, .*pip install 'maskrcnn_lit\[hf\]'"):
        read(tmp_path / "hf", tmp_path)
