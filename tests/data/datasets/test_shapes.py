"""The synthetic set: the same pixels everywhere, exact annotations, what it promises to hold, whole
or absent.
"""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.datasets import shapes
from maskrcnn_lit.data.datasets.shape_drawing import Dice
from maskrcnn_lit.data.datasets.shapes import FIRST_IMAGE_ID, NAMES, draw_scene, write_shapes
from maskrcnn_lit.errors import UserError

SMALL: dict[str, Any] = {"train_images": 6, "val_images": 2, "size": 64, "seed": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root=root, train_images=150, val_images=10, size=128, seed=0)
    return root


@pytest.fixture(scope="module")
def train(root: Path) -> COCO:
    return COCO(root / "annotations" / "instances_train.json")


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def scenes(count: int, split: str = "train") -> list[shapes.Scene]:
    return [draw_scene(Dice(0, FIRST_IMAGE_ID[split], position), 128) for position in range(count)]


def test_the_pixels_are_the_same_on_every_machine_with_this_pillow(tmp_path: Path) -> None:
    """If this fails although the set was meant to change: raise VERSION, so that sets on disk are
    drawn again.
    """
    write_shapes(root=tmp_path / "shapes", train_images=24, val_images=2, size=64, seed=1)
    drawn = files(tmp_path / "shapes")
    entries = json.loads(drawn["annotations/instances_train.json"])["annotations"]
    assert (
        len({(entry["iscrowd"], type(entry["segmentation"])) for entry in entries}) == 3
    )  # every kind is in it
    digest = hashlib.sha256()
    for name, content in drawn.items():
        if name.endswith(".png"):  # the compressor differs between builds of zlib
            content = Image.open(io.BytesIO(content)).tobytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    wanted = "19d1918ba05a07c1931a4ec2eb3e7655e1c8cf2ba99209de4681343fc46b3b8e"
    reason = f"constraints.txt has Pillow 13.0.0, whose pixels these are; here is {PIL.__version__}"
    assert digest.hexdigest() == wanted, reason


def test_a_set_drawn_twice_is_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shapes(root=tmp_path / name, **SMALL)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.long
def test_annotations_are_the_visible_pixels(train: COCO) -> None:
    for position, scene in enumerate(scenes(60)):
        entries = train.imgToAnns[FIRST_IMAGE_ID["train"] + position]
        assert len(entries) == len(scene.instances)
        for entry, instance in zip(entries, scene.instances, strict=True):
            assert NAMES[entry["category_id"] - 1] == instance.name
            np.testing.assert_array_equal(train.annToMask(entry).astype(bool), instance.mask)
            rows, columns = instance.mask.nonzero()
            x, y, width, height = entry["bbox"]
            assert (x, y, x + width, y + height) == (
                *(columns.min(), rows.min()),
                *(columns.max() + 1, rows.max() + 1),
            )
            assert entry["area"] == len(rows)


def test_later_shapes_hide_earlier_ones_but_never_over_three_quarters() -> None:
    shares = []
    for scene in scenes(60):
        assert np.sum([instance.mask for instance in scene.instances], axis=0).max(initial=0) <= 1
        shares += [instance.mask.sum() / instance.whole for instance in scene.instances]
    assert min(shares) >= 0.25
    assert (
        0.05 < np.mean(np.array(shares) < 0.9) < 0.5
    )  # occlusion there is, but most shapes can be seen


def test_the_set_holds_what_it_promises(train: COCO) -> None:
    objects = [entry for entry in train.anns.values() if not entry["iscrowd"]]
    names = Counter(train.cats[entry["category_id"]]["name"] for entry in objects)
    assert (
        sorted(names)
        == sorted(NAMES)
        == ["circle", "cross", "rectangle", "ring", "star", "triangle"]
    )
    assert min(names.values()) > 0.5 * max(names.values())
    areas = np.array([entry["area"] for entry in objects])
    small, large = (areas < 32**2).mean(), (areas > 96**2).mean()
    assert 0.3 < small < 0.8
    assert 0.002 < large < 0.05
    counts = Counter(len(train.imgToAnns[image]) for image in train.imgs)
    assert 0.01 < counts[0] / len(train.imgs) < 0.12
    assert max(counts) <= 7
    assert 0.01 < sum(entry["iscrowd"] for entry in train.anns.values()) / len(train.imgs) < 0.12


def test_segmentations_are_polygons_unless_there_is_a_hole_or_a_crowd(train: COCO) -> None:
    kinds: Counter[str] = Counter()
    for entry in train.anns.values():
        shape = entry["segmentation"]
        if entry["iscrowd"]:
            assert isinstance(shape["counts"], list)
            kinds["crowd"] += 1
        elif isinstance(shape, dict):
            assert isinstance(shape["counts"], str)
            kinds[train.cats[entry["category_id"]]["name"]] += 1
        else:
            kinds["parts" if len(shape) > 1 else "polygon"] += 1
    assert min(kinds[kind] for kind in ("crowd", "ring", "parts", "polygon")) >= 3
    assert kinds["ring"] > 5 * sum(
        kinds[name] for name in NAMES if name != "ring"
    )  # e.g. a star on a large circle


def test_pictures_are_readable_and_match_their_entries(root: Path) -> None:
    index = read_index(root / "annotations" / "instances_val.json", root / "val", on_bad="error")
    assert (len(index), index.faults) == (10, ())
    for i, scene in enumerate(scenes(10, "val")):
        with Image.open(index.where(i)) as image:
            np.testing.assert_array_equal(np.array(image), scene.picture)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    write_shapes(root=tmp_path / "few", **SMALL)
    write_shapes(root=tmp_path / "many", **SMALL | {"train_images": 9})
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert all(many[name] == content for name, content in few.items() if name.endswith(".png"))
    short, long = (json.loads(found["annotations/instances_train.json"]) for found in (few, many))
    assert long["images"][:6] == short["images"]
    assert long["annotations"][: len(short["annotations"])] == short["annotations"]
    assert few["annotations/instances_val.json"] == many["annotations/instances_val.json"]


def test_seeds_and_splits_differ(tmp_path: Path) -> None:
    write_shapes(root=tmp_path / "one", **SMALL)
    write_shapes(root=tmp_path / "other", **SMALL | {"seed": 1})
    pictures = [content for name in ("one", "other") for content in files(tmp_path / name).values()]
    pictures = [content for content in pictures if content.startswith(b"\x89PNG")]
    assert len(set(pictures)) == len(pictures) == 16


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 100, 200])
def test_other_sizes_scale_the_scene(tmp_path: Path, size: int) -> None:
    write_shapes(root=tmp_path / "shapes", **SMALL | {"size": size, "train_images": 30})
    train = COCO(tmp_path / "shapes" / "annotations" / "instances_train.json")
    assert {(entry["height"], entry["width"]) for entry in train.imgs.values()} == {(size, size)}
    sides = np.array([max(entry["bbox"][2:]) for entry in train.anns.values()]) / size
    assert 0.2 < np.median(sides) < 0.4


def test_a_set_that_is_there_is_left_alone(tmp_path: Path) -> None:
    write_shapes(root=tmp_path, **SMALL)
    picture = tmp_path / "train" / "000000.png"
    picture.write_bytes(b"touched")
    write_shapes(root=tmp_path, **SMALL)
    write_shapes(root=tmp_path, **SMALL | {"train_images": 3, "val_images": 1})
    assert picture.read_bytes() == b"touched"
    write_shapes(root=tmp_path, **SMALL | {"train_images": 8, "val_images": 1})
    assert picture.read_bytes() != b"touched"
    assert len(list((tmp_path / "train").iterdir())) == 8
    assert len(list((tmp_path / "val").iterdir())) == 2  # it grows and does not shrink
    write_shapes(root=tmp_path, **SMALL | {"seed": 5})
    assert len(list((tmp_path / "train").iterdir())) == 6


@pytest.mark.parametrize("before", [False, True])
def test_a_killed_run_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    root = tmp_path / "shapes"
    if before:
        write_shapes(root=root, **SMALL)
    old = files(root)

    def killed(mask: np.ndarray, crowd: bool) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "annotate", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(root=root, **SMALL | {"seed": 1})
    assert files(root) == old
    assert [path.name for path in tmp_path.iterdir()] == (["shapes"] if before else [])


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        UserError, match=r"No space left on device; free 1 MB there, or give .* data\.root=DIR"
    ):
        write_shapes(root=tmp_path / "shapes", **SMALL)


@pytest.mark.parametrize("drawn", [False, True])
def test_other_files_are_never_replaced(tmp_path: Path, drawn: bool) -> None:
    if drawn:
        write_shapes(root=tmp_path, **SMALL)
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(
        UserError, match=r"has 'my_photos', which is not part .* give an empty or a new folder"
    ):
        write_shapes(root=tmp_path, **SMALL | {"seed": 3})
    assert (tmp_path / "my_photos").is_dir()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_images": 0}, "data.train_images=0 .* 1 or more"),
        ({"val_images": None}, "data.val_images=None .* data.val_images=100"),
        ({"size": 16}, "data.prepare.size=16 .* 64 or more"),
        ({"seed": -1}, "data.prepare.seed=-1 .* 0 or more"),
    ],
)
def test_impossible_numbers_are_refused(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_shapes(root=tmp_path / "shapes", **SMALL | wrong)
    assert not list(tmp_path.iterdir())


def test_a_set_with_an_overlap_has_visible_and_whole_masks(tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    write_shapes(root=root, **SMALL | {"size": 128}, overlap=0.5)
    train = COCO(root / "annotations" / "instances_train.json")
    entries = list(train.anns.values())
    hidden = []
    for below, above in zip(entries[::2], entries[1::2], strict=True):
        assert below["image_id"] == above["image_id"]
        assert below["category_id"] == above["category_id"]
        visible, whole = (
            train.annToMask(below | {"segmentation": below[key]}).astype(bool)
            for key in ("segmentation", "amodal_segmentation")
        )
        upper = train.annToMask(above).astype(bool)
        np.testing.assert_array_equal(visible, whole & ~upper)
        np.testing.assert_array_equal(
            upper,
            train.annToMask(above | {"segmentation": above["amodal_segmentation"]}).astype(bool),
        )
        hidden.append(1 - visible.sum() / whole.sum())
    np.testing.assert_allclose(hidden, 0.5, atol=0.04)
    index = read_index(
        root / "annotations" / "instances_train.json", root / "train", on_bad="error"
    )
    truth = {entry["id"]: entry for entry in index.coco_ground_truth()["annotations"]}
    for entry in entries:
        whole = train.annToMask(entry | {"segmentation": entry["amodal_segmentation"]})
        assert truth[entry["id"]]["amodal_area"] == whole.sum()


def test_two_colors_of_a_pair_differ() -> None:
    for position in range(30):
        scene = shapes.draw_overlapping(Dice(0, 1, position), 128, 0.0)
        for below, above in zip(scene.instances[::2], scene.instances[1::2], strict=True):
            means = [scene.picture[one.mask].mean(0) for one in (below, above)]
            assert np.abs(means[0] - means[1]).sum() > 40


def test_a_set_of_another_overlap_is_drawn_again(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    drawn = []
    for overlap in (None, 0.5, 0.25, None):
        write_shapes(root=root, **SMALL, overlap=overlap)
        drawn.append(files(root))
        marker = json.loads(drawn[-1]["shapes.json"])
        assert marker.get("overlap") == overlap
    name = "annotations/instances_val.json"
    assert b"overlap 0.5" in drawn[1][name]
    assert b"overlap" not in drawn[0][name]
    assert drawn[0] == drawn[3]
    assert len({one["val/000000.png"] for one in drawn}) == 3


@pytest.mark.parametrize("overlap", [-0.1, 0.91, float("nan"), "half", True])
def test_an_impossible_overlap_is_refused(tmp_path: Path, overlap: Any) -> None:
    with pytest.raises(UserError, match=r"data\.overlap=.* must be a number from 0 .* to 0\.9"):
        write_shapes(root=tmp_path / "shapes", **SMALL, overlap=overlap)
