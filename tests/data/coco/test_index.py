import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from coco_file import coco_dict, small_index, write_coco
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.faults import describe
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.errors import UserError

BAD_IMAGES = {"missing.jpg", "zero_byte.jpg", "wrong_size.jpg", "../outside_of_the_folder.jpg"}
BAD_ANNOTATIONS = {12, 14, 16, 18, 20, 22, 24, 28}


@pytest.fixture(scope="module")
def corrupt(test_data: Path) -> tuple[Path, Path]:
    return test_data / "corrupt/annotations/instances_corrupt.json", test_data / "corrupt/images"


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_ground_truth_is_the_json_to_the_last_digit(test_data: Path, split: str):
    file = test_data / f"coco_mini/annotations/instances_{split}.json"
    raw = json.loads(file.read_text())
    index = read_index(file, test_data / "coco_mini" / split, "error")
    truth = index.coco_ground_truth()
    assert not index.faults
    assert len(index) == len(raw["images"])
    assert sorted(c["id"] for c in truth["categories"]) == sorted(
        c["id"] for c in raw["categories"]
    )
    assert [a["id"] for a in truth["annotations"]] == [
        a["id"] for a in raw["annotations"]
    ]  # and in this order
    for ours, theirs in zip(truth["annotations"], raw["annotations"], strict=True):
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert ours[key] == theirs[key]
        if isinstance(theirs["segmentation"], list):
            assert ours["segmentation"] == theirs["segmentation"]
        else:
            size = theirs["segmentation"]["size"]
            expected = coco_mask.frPyObjects(theirs["segmentation"], *size)["counts"].decode()
            assert ours["segmentation"] == {"size": size, "counts": expected}


def test_compressed_rle_comes_back_as_it_was(test_data: Path):
    file = test_data / "nuclei/annotations/instances_val.json"
    raw = {a["id"]: a["segmentation"] for a in json.loads(file.read_text())["annotations"]}
    index = read_index(file, test_data / "nuclei/val", "error", take=20)
    truth = index.coco_ground_truth()["annotations"]
    assert len(truth) > 100
    assert all(a["segmentation"] == raw[a["id"]] for a in truth)


def test_an_image_tells_boxes_labels_and_shapes(tmp_path: Path):
    index = small_index(tmp_path)
    assert [c.name for c in index.categories] == [
        "ant",
        "mole",
        "zebra",
    ]  # by name, whatever the ids
    assert index.file_names[4] == "04.jpg"
    assert index.size(4) == (100, 80)
    assert Path(index.where(4)).is_file()
    found = index.annotations(4)
    assert found["boxes"].shape == (4, 4)
    assert found["boxes"].dtype == np.float64
    assert found["crowd"].sum() == 1
    raw = {a["id"]: a for a in coco_dict()["annotations"]}
    for j, number in enumerate(found["ids"]):
        entry = raw[int(number)]
        x, y, w, h = entry["bbox"]
        assert found["boxes"][j].tolist() == [x, y, x + w, y + h]
        assert index.categories[found["labels"][j] - 1].id == entry["category_id"]
        shape = index.segmentation(4, j)
        if isinstance(shape, list):
            assert [part.ravel().tolist() for part in shape] == entry["segmentation"]
        else:
            assert coco_mask.area(shape) == entry["area"]
    assert len(index.annotations(0)["boxes"]) == 0


def test_boxes_are_clipped_to_the_image(tmp_path: Path):
    content = coco_dict(2)
    content["annotations"][0]["bbox"] = [-5.0, 3.0, 500.0, 10.5]
    index = read_index(*write_coco(tmp_path, content), "error")
    assert index.annotations(1)["boxes"].tolist() == [[0.0, 3.0, 95.0, 13.5]]
    assert index.coco_ground_truth()["annotations"][0]["bbox"] == [-5.0, 3.0, 500.0, 10.5]


def test_an_area_that_is_missing_is_that_of_the_shape(tmp_path: Path):
    content = coco_dict(3)
    for annotation in content["annotations"]:
        annotation["iscrowd"], annotation["old"] = 0, annotation.pop("area")
    index = read_index(*write_coco(tmp_path, content), "error")
    for ours, theirs in zip(
        index.coco_ground_truth()["annotations"], content["annotations"], strict=True
    ):
        assert ours["area"] == pytest.approx(theirs["old"], rel=0.15)


def test_skip_leaves_out_what_is_faulty_and_nothing_else(corrupt: tuple[Path, Path]):
    index = read_index(*corrupt, "skip")
    raw = json.loads(corrupt[0].read_text())
    names = {image["id"]: image["file_name"] for image in raw["images"]}
    assert set(index.file_names) == set(names.values()) - BAD_IMAGES
    kept = [a["id"] for a in index.coco_ground_truth()["annotations"]]
    sound = [a["id"] for a in raw["annotations"] if names.get(a["image_id"]) not in BAD_IMAGES]
    expected = [n for n in sound if n not in BAD_ANNOTATIONS]
    assert expected.count(25) == 2  # both stay, and the second has a number of its own
    expected[expected.index(25)] = 12  # the first number that is free
    assert sorted(kept) == sorted(expected)
    assert len(kept) == 26
    assert [tuple(change) for change in index.changes] == [
        (
            "duplicate annotation id",
            "duplicate_annotation_id.jpg",
            12,
            "an earlier annotation has id 25; it is 12 here",
            23,
        )
    ]
    assert {f.image for f in index.faults if f.annotation is None} == BAD_IMAGES
    assert {f.annotation for f in index.faults} - {None} == BAD_ANNOTATIONS
    assert len(index.faults) == 12


def test_error_counts_every_kind_and_names_each(corrupt: tuple[Path, Path]):
    with pytest.raises(UserError) as caught:
        read_index(*corrupt, "error")
    message = str(caught.value)
    assert "12 faults" in message
    assert "data.on_bad=skip" in message
    for said in (
        "1 x missing file (missing.jpg",
        "1 x empty file (zero_byte.jpg",
        "1 x size differs (wrong_size.jpg: the json says 200 x 100, the file is 160 x 120",
        "1 x file name outside of the folder (../outside_of_the_folder.jpg",
        "1 x box without area (annotation 12 of bbox_zero_width.jpg",
        "1 x negative box (annotation 14 of bbox_negative.jpg",
        "1 x box outside of the image (annotation 16 of bbox_outside.jpg",
        "1 x box not finite (annotation 18 of bbox_nan.jpg",
        "1 x polygon under 3 points (annotation 20 of polygon_two_points.jpg",
        "1 x RLE of another size (annotation 22 of rle_size_mismatch.jpg",
        "1 x unknown category (annotation 24 of unknown_category.jpg",
        "1 x unknown image (annotation 28",
    ):
        assert said in message


def test_only_the_first_few_of_a_kind_are_named(tmp_path: Path):
    content = coco_dict()
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    index = read_index(*write_coco(tmp_path, content), "skip")
    (line,) = describe(index.faults)
    assert line.startswith("15 x box without area (annotation 1 of 01.jpg")
    assert line.count("annotation") == 3
    assert line.endswith("; ...)")


def test_a_name_never_leaves_the_folder(tmp_path: Path):
    content = coco_dict(1)
    annotations, images = write_coco(tmp_path, content)
    outside = tmp_path / "outside.jpg"
    outside.write_bytes((images / "00.jpg").read_bytes())
    for name in ("../outside.jpg", str(outside), "a/../../outside.jpg", "..\\outside.jpg", "", "."):
        content["images"] = [{"id": 1, "file_name": name, "height": 60, "width": 100}]
        annotations.write_text(json.dumps(content))
        with pytest.raises(UserError, match="file name outside of the folder"):
            read_index(annotations, images, "error")
    content["images"][0]["file_name"] = "a/../00.jpg"  # roundabout, but inside
    (images / "a").mkdir()
    annotations.write_text(json.dumps(content))
    assert Path(read_index(annotations, images, "error").where(0)).samefile(images / "00.jpg")


def test_subsets_are_nested_seeded_and_whole(tmp_path: Path):
    index = small_index(tmp_path, 20)
    chosen = {n: set(index.subset(n, "random", seed=3).image_ids.tolist()) for n in (1, 5, 12, 20)}
    assert [len(ids) for ids in chosen.values()] == [1, 5, 12, 20]
    assert chosen[1] < chosen[5] < chosen[12] < chosen[20]
    assert chosen[5] != set(index.subset(5, "random", seed=4).image_ids.tolist())
    first = index.subset(4, "first")
    assert list(first.file_names) == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]
    part = index.subset(5, "random", seed=3)
    own = {a["image_id"] for a in part.coco_ground_truth()["annotations"]}
    assert own <= chosen[5]
    assert len(part.coco_ground_truth()["images"]) == 5
    for i, name in enumerate(part.file_names):
        whole = list(index.file_names).index(name)
        assert np.array_equal(part.annotations(i)["boxes"], index.annotations(whole)["boxes"])


def test_reading_a_part_is_the_subset_of_the_whole(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(12))
    whole = read_index(annotations, images, "error")
    part = read_index(annotations, images, "error", take=5, seed=7)
    assert part.image_ids.tolist() == whole.subset(5, "random", seed=7).image_ids.tolist()


def test_a_part_looks_at_no_other_files_and_replaces_faulty_ones(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(12))
    chosen = read_index(annotations, images, "error", take=4, seed=7)
    for name in {f"{k:02}.jpg" for k in range(12)} - set(chosen.file_names):
        (images / name).rename(images / f"hidden_{name}")
    assert list(read_index(annotations, images, "error", take=4, seed=7).file_names) == list(
        chosen.file_names
    )
    for name in chosen.file_names:
        (images / name).unlink()
    for file in images.glob("hidden_*"):
        file.rename(images / file.name.removeprefix("hidden_"))
    other = read_index(annotations, images, "skip", take=4, seed=7)
    assert len(other) == 4
    assert not set(other.file_names) & set(chosen.file_names)
    assert len(other.faults) == 4


@pytest.mark.parametrize("n", [0, 7])
def test_a_subset_of_an_impossible_size(tmp_path: Path, n: int):
    with pytest.raises(UserError, match=f"{n} images were requested, but .* has 6"):
        small_index(tmp_path).subset(n)
    with pytest.raises(UserError, match=f"{n} images were requested, but .* has 6"):
        small_index(tmp_path, take=n)
    with pytest.raises(UserError, match=r"data\.subset=last is unknown: use first or random"):
        small_index(tmp_path, take=2, how="last")


def test_images_without_annotations_are_kept_or_not(tmp_path: Path):
    assert "00.jpg" in small_index(tmp_path).file_names
    assert list(small_index(tmp_path, keep_empty=False).file_names) == [
        f"{k:02}.jpg" for k in range(1, 6)
    ]


def test_labels_follow_the_training_table_by_name(tmp_path: Path):
    index = small_index(tmp_path)
    table = [Category(70, "zebra"), Category(71, "ant"), Category(72, "mole")]
    other = index.with_categories(table)
    assert [c.name for c in other.categories] == ["zebra", "ant", "mole"]
    assert {c.name: c.id for c in other.categories} == {
        c.name: c.id for c in index.categories
    }  # its own ids
    for i in range(len(index)):
        before = [index.categories[label - 1] for label in index.annotations(i)["labels"]]
        assert [other.categories[label - 1] for label in other.annotations(i)["labels"]] == before
    assert other.coco_ground_truth()["annotations"] == index.coco_ground_truth()["annotations"]
    with pytest.raises(UserError, match=r"objects of zebra.*ant, mole, zebra.*ant, bee, mole"):
        index.with_categories([Category(1, "ant"), Category(2, "bee"), Category(3, "mole")])


def test_faults_are_for_users(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(2))
    with pytest.raises(UserError, match="no annotation file"):
        read_index(tmp_path / "none.json", images, "error")
    with pytest.raises(
        UserError,
        match=r"image folder .*nowhere nor .*nowhere\.zip exists: check the path in data\.",
    ):
        read_index(annotations, tmp_path / "nowhere", "error")
    with pytest.raises(UserError, match=r"data\.on_bad=ignore is unknown: use error or skip"):
        read_index(annotations, images, "ignore")  # type: ignore[arg-type]  # what a user may type
    annotations.write_text(json.dumps({**coco_dict(), "images": [], "annotations": []}))
    with pytest.raises(UserError, match=r"has 0 usable images, but 1 are needed"):
        read_index(annotations, images, "error")
    annotations.write_text(json.dumps(coco_dict(2)))
    for file in images.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"has 0 usable images, but 1 are needed.*2 x missing file"):
        read_index(annotations, images, "skip")


def test_it_survives_the_way_to_another_process(tmp_path: Path):
    index = small_index(tmp_path)
    again = pickle.loads(pickle.dumps(index))
    assert again.coco_ground_truth() == index.coco_ground_truth()


def test_only_the_images_with_given_ids(tmp_path: Path):
    annotations, images = write_coco(tmp_path, coco_dict(4))
    ids = read_index(annotations, images, "error").image_ids.tolist()
    chosen = read_index(annotations, images, "error", image_ids=[ids[2], ids[0]])
    assert chosen.image_ids.tolist() == [ids[0], ids[2]]
    with pytest.raises(
        UserError, match=r"data\.image_ids has 987654, which is not an image id of the json"
    ):
        read_index(annotations, images, "error", image_ids=[ids[0], 987654])


@pytest.mark.parametrize("written", ["images\\{}", "images/{}", ".\\{}"])
def test_names_for_another_system_or_folder_are_found(tmp_path: Path, written: str):
    content = coco_dict(4)
    annotations, images = write_coco(tmp_path, content)
    for image in content["images"]:
        image["file_name"] = written.format(image["file_name"])
    annotations.write_text(json.dumps(content))
    index = read_index(annotations, images, "error", cache=tmp_path / "cache")
    assert [index.read(i) for i in range(4)] == [
        file.read_bytes() for file in sorted(images.iterdir())
    ]
    assert [change.kind for change in index.changes] == ["file name"] * 4
    assert index.changes[0].what == "the file is 00.jpg"


def test_a_json_without_sizes_is_read_with_those_of_the_files(tmp_path: Path):
    content = coco_dict(4)
    annotations, images = write_coco(tmp_path, content)
    expected = read_index(annotations, images, "error").coco_ground_truth()
    for image in content["images"]:
        del image["width"]
    annotations.write_text(json.dumps(content))
    for _ in range(2):
        index = read_index(annotations, images, "error", cache=tmp_path / "cache")
        assert index.coco_ground_truth() == expected
        assert [change.kind for change in index.changes] == ["no image size"] * 4
    (images / "01.jpg").unlink()  # what is kept from before is not taken for the file's size
    with pytest.raises(
        UserError, match=r"1 x incomplete image entry \(01\.jpg: no height and width"
    ):
        read_index(annotations, images, "error", cache=tmp_path / "cache")


def test_an_ignored_region_is_a_crowd_region_of_the_ground_truth(tmp_path: Path):
    content = coco_dict(2)
    content["annotations"][0]["ignore"] = 1
    index = read_index(*write_coco(tmp_path, content), "error")
    assert index.annotations(1)["crowd"].tolist() == [True]
    assert index.coco_ground_truth()["annotations"][0]["iscrowd"] == 1


def test_the_depth_of_samples_may_be_given(tmp_path: Path):
    content = coco_dict(2)
    annotations, images = write_coco(tmp_path, content)
    samples = []
    for image, top in zip(content["images"], (1000, 4000), strict=True):
        height, width = image["height"], image["width"]
        values = np.arange(height * width, dtype=np.uint16).reshape(height, width) % top
        samples.append(values)
        image["file_name"] = image["file_name"].replace("jpg", "png")
        Image.fromarray(values).save(images / image["file_name"])
    annotations.write_text(json.dumps(content))
    by_file = read_index(annotations, images, "error")
    assert np.array_equal(by_file.decode(0)[0][..., 0], samples[0] >> 2)
    index = read_index(annotations, images, "error", bits=12)
    for i, values in enumerate(samples):
        assert np.array_equal(index.decode(i)[0][..., 0], values >> 4)
    assert index.pixels_key != by_file.pixels_key
