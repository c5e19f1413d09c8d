import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from coco_file import coco_dict

import maskrcnn_lit.data.coco.arrays as module
from maskrcnn_lit.data.coco.arrays import (
    BLOCK,
    Arrays,
    Names,
    Packed,
    doubtful_masks,
    open_json,
    open_packed,
    pack,
    write_packed,
)
from maskrcnn_lit.data.coco.parse import Instances, read_instances
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sources import Folder


def test_names_are_strings_in_one_array():
    text = "aßc.jpgb.png".encode()
    names = Names(np.frombuffer(text, np.uint8), np.array([[8, 13], [0, 8]]))
    assert list(names) == ["b.png", "aßc.jpg"]
    assert names[-1] == "aßc.jpg"
    assert len(names) == 2
    assert list(names[1:]) == ["aßc.jpg"]
    assert "b.png" in names


def instances(images: list[tuple[int, str]], annotations: list[tuple[int, int, float]]) -> bytes:
    """images: id, name; annotations: id, image id, x."""
    return json.dumps(
        {
            "images": [
                {"id": number, "file_name": name, "height": 40, "width": 40}
                for number, name in images
            ],
            "annotations": [
                {
                    "id": n,
                    "image_id": i,
                    "category_id": 7,
                    "bbox": [x, 0, 2, 2],
                    "segmentation": [[x] * 6],
                    "area": 1,
                }
                for n, i, x in annotations
            ],
            "categories": [{"id": 7, "name": "ant"}],
        }
    ).encode()


def test_images_stand_by_name_and_annotations_by_box():
    data = instances([(5, "z"), (6, "a"), (7, "k")], [(10, 5, 7.0), (11, 6, 5.0), (12, 5, 3.0)])
    arrays = pack(read_instances(data, "a.json"))
    assert arrays.image_ids.tolist() == [6, 7, 5]
    assert list(Names(arrays.name_text, arrays.name_spans)) == [
        "a",
        "k",
        "z",
    ]
    assert arrays.spans.tolist() == [[0, 1], [1, 1], [1, 3]]
    assert arrays.ids.tolist() == [11, 12, 10]
    assert arrays.order.tolist() == [1, 2, 0]
    assert arrays.image_order.tolist() == [1, 2, 0]
    assert arrays.doubtful.all()  # shapes of one point
    for n, x in enumerate((5.0, 3.0, 7.0)):  # the shapes stay with their annotations
        ((begin, end),) = arrays.coordinate_spans[slice(*arrays.part_spans[n])]
        assert arrays.coordinates[begin:end].tolist() == [x] * 6


@pytest.mark.parametrize("images", [[], [(1, "a")]])
def test_a_json_without_annotations_or_images(tmp_path: Path, images: list[tuple[int, str]]):
    write_packed(tmp_path / "key", read_instances(instances(images, []), "a.json"))
    arrays = open_packed(tmp_path / "key").arrays
    assert arrays.spans.tolist() == [[0, 0]] * len(images)
    assert arrays.boxes.shape == (0, 4)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "data" / "a.json"
    file.parent.mkdir()
    file.write_text(json.dumps(coco_dict()))
    return file


def opened(file: Path, cache: Path) -> Packed:
    return open_json(Folder(file.parent), file.name, cache)


def test_a_json_is_parsed_once(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = opened(written, tmp_path / "cache")
    parsed, real = [], module.read_instances
    monkeypatch.setattr(
        module,
        "read_instances",
        lambda data, where, measure: parsed.append(where) or real(data, where, measure),
    )
    assert opened(written, tmp_path / "cache").key == first.key
    os.utime(written, (1, 1))  # copied, say: the content counts
    copy = written.with_name("b.json")
    copy.write_bytes(written.read_bytes())
    assert (
        opened(written, tmp_path / "cache").key == opened(copy, tmp_path / "cache").key == first.key
    )
    assert parsed == []
    content = coco_dict()
    content["annotations"][0]["bbox"][0] += 1
    copy.write_text(json.dumps(content))
    other = opened(copy, tmp_path / "cache")
    assert parsed == [str(copy)]
    assert other.key != first.key
    assert not np.array_equal(other.arrays.boxes, first.arrays.boxes)


def test_every_array_is_mapped_and_travels_as_its_path(written: Path, tmp_path: Path):
    packed = opened(written, tmp_path / "cache")
    sent = pickle.dumps(packed)
    again = pickle.loads(sent)
    assert len(sent) < 500
    assert again.categories == packed.categories
    for name in ("boxes", "coordinates", "runs", "image_ids"):
        ours, theirs = getattr(packed.arrays, name), getattr(again.arrays, name)
        assert np.array_equal(ours, theirs)
        assert not ours.flags.writeable
        assert not ours.flags.owndata


def test_an_interrupted_write_leaves_nothing_that_counts(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = np.save

    def interrupted(file: object, array: np.ndarray) -> None:
        if array.dtype == np.uint32:
            raise KeyboardInterrupt
        real(file, array)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(written, tmp_path / "cache")
    assert list((tmp_path / "cache" / "index").iterdir()) == []
    monkeypatch.undo()
    assert len(opened(written, tmp_path / "cache").arrays.ids) == len(coco_dict()["annotations"])


def test_two_that_write_at_once_leave_one_folder(written: Path, tmp_path: Path):
    found = read_instances(written.read_bytes(), str(written))
    for _ in range(2):
        write_packed(tmp_path / "key", found)
    assert [path.name for path in tmp_path.iterdir() if "key" in path.name] == ["key"]
    assert open_packed(tmp_path / "key").categories == found.categories


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.json", "there is no annotation file .*none.json"),
        ("folder", "folder is a folder: give the path of the COCO json"),
    ],
)
def test_what_is_no_file_is_told(written: Path, tmp_path: Path, name: str, said: str):
    (written.parent / "folder").mkdir()
    with pytest.raises(UserError, match=said):
        open_json(Folder(written.parent), name, tmp_path / "cache")


def with_coordinates(count: int) -> Instances:
    """One image, one annotation, and `count` coordinates: 8 bytes each."""
    found = read_instances(instances([(1, "a")], [(1, 1, 3.0)]), "a.json")
    found.annotations.coordinates.frombytes(bytes(8 * (count - len(found.annotations.coordinates))))
    return found


@pytest.mark.process
def test_a_process_that_opens_a_large_index_has_little_of_its_own(tmp_path: Path):
    """40 MB of coordinates: a reader maps them, and its own memory grows by what it touches of them
    only.
    """
    write_packed(tmp_path / "key", with_coordinates(5_000_000))
    code = (
        "import sys, pathlib\nfrom maskrcnn_lit.data.coco.arrays import open_packed\n"
        "lines = lambda: open('/proc/self/smaps_rollup')\n"
        "own = lambda: sum(int(line.split()[1]) for line in lines() if "
        "line.startswith('Anonymous'))\n"
        "before = own()\npacked = open_packed(pathlib.Path(sys.argv[1]))\n"
        "total = packed.arrays.coordinates[:].sum()\nprint(own() - before)"
    )
    grown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "key")], capture_output=True, check=True
    )
    assert int(grown.stdout) < 10_000  # kB


def test_only_masks_that_may_be_empty_are_doubtful():
    content = coco_dict(2)
    (one,) = content["annotations"]
    full = {"size": [70, 95], "counts": [70 * 20 + 10, 30, 40, 30, 70 * 73 + 30]}
    cases = [
        ([10, 10, 40, 40], [[10, 10, 50, 10, 50, 50, 10, 50]], False),
        ([10, 10, 40, 40], [[10, 10, 50, 50, 50, 51]], True),  # thin
        ([10, 10, 40, 40], [[10, 10, 50, 50, 30, 30]], True),  # a line
        ([10, 10, 10, 10], [[10, 10, 50, 10, 50, 50, 10, 50]], True),  # it reaches beyond the box
        ([10, 10, 40, 40], [[10, 10, 50, 50, 50, 51], [10, 10, 30, 10, 30, 30]], False),
        ([20, 10, 2, 30], full, False),
        ([30, 10, 2, 30], full, True),
        ([10, 10, 40, 40], {"size": [70, 95], "counts": [70 * 95]}, True),
    ]
    content["annotations"] = [
        one | {"id": n, "bbox": box, "segmentation": shape}
        for n, (box, shape, _) in enumerate(cases)
    ]
    found = read_instances(json.dumps(content).encode(), "a.json")
    assert found.faults == []
    assert doubtful_masks(found.annotations).tolist() == [doubtful for *_, doubtful in cases]


def same(one: Packed, other: Packed) -> bool:
    return (one.categories, one.faults) == (other.categories, other.faults) and all(
        np.array_equal(getattr(one.arrays, field.name), getattr(other.arrays, field.name))
        for field in fields(Arrays)
    )


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with a flipped bit, a part of zeros, or without its end."""
    kind, begin = rng.integers(3), int(rng.integers(len(content)))
    if kind == 0:
        flipped = content[begin] ^ 1 << int(rng.integers(8))
        return content[:begin] + bytes([flipped]) + content[begin + 1 :]
    if kind == 1:
        return content[:begin]
    end = min(begin + int(rng.integers(1, 600)), len(content))
    return content[:begin] + bytes(end - begin) + content[end:]


@pytest.mark.long
def test_a_damaged_index_is_made_again(written: Path, tmp_path: Path):
    """Flips, cuts and zeros in every file of the cache: the data are always those of the json."""
    cache, rng = tmp_path / "cache", np.random.default_rng(0)
    right = opened(written, cache)
    shutil.copytree(cache, tmp_path / "kept")
    files = [path for path in sorted((tmp_path / "kept").rglob("*")) if path.is_file()]
    assert len(files) == len(fields(Arrays)) + 2
    for file in files * 4:
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "kept", cache)
        content = file.read_bytes()
        (cache / file.relative_to(tmp_path / "kept")).write_bytes(damaged(content, rng))
        assert same(opened(written, cache), right), file.name


@pytest.mark.parametrize("gone", ["boxes.npy", "meta.json"])
def test_a_missing_file_of_an_index_is_made_again(written: Path, tmp_path: Path, gone: str):
    right = opened(written, tmp_path / "cache")
    (right.folder / gone).unlink()
    assert same(opened(written, tmp_path / "cache"), right)


def test_large_arrays_are_checked_block_by_block(tmp_path: Path):
    """Of a damaged block nothing is returned, and its folder is made again by the next run; what
    lies in other blocks is read as ever.
    """
    folder = tmp_path / "key"
    write_packed(folder, with_coordinates(1_000_000))
    with open(folder / "coordinates.npy", "r+b") as file:
        file.seek(2 * BLOCK + 77)
        file.write(b"\x01")
    coordinates = open_packed(folder).arrays.coordinates
    first = 2 * BLOCK // 8 - 16  # of the damaged block, behind the 128 bytes of the header
    assert coordinates[:first].sum() == 18
    assert coordinates[first - 1] == 0
    assert coordinates[first + BLOCK // 8 :].sum() == 0
    assert coordinates[-1] == 0
    for read in (
        lambda: coordinates[first - 1 : first + 1],
        lambda: coordinates[first + 5],
        lambda: coordinates[first - 1_000_000],
        lambda: coordinates[[0, first]],
        lambda: coordinates[::2],
        lambda: np.asarray(coordinates),
    ):
        with pytest.raises(UserError, match=r"coordinates\.npy does not match its checksum"):
            read()
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_told(written: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"data\.cache_dir=DIR"):
        opened(written, tmp_path / "cache")
