import json
import re
from pathlib import Path

import numpy as np
import pytest
from coco_file import small_index
from plain_coco import api
from pycocotools import mask as rle_tools

from maskrcnn_lit.data.coco.classes import read_choice
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.results import (
    check_results,
    choose_results,
    mask_rle,
    of_categories,
    read_results,
    write_results,
)
from maskrcnn_lit.evaluation.coco.scores import to_coco_results

pytest_plugins = ("tiny_commands",)

ENTRY = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [0, 0, 3, 4]}


def test_what_is_written_is_read_one_entry_a_line(tmp_path: Path) -> None:
    for results in ([], [ENTRY], [ENTRY, ENTRY | {"score": 0.1}]):
        write_results(tmp_path / "detections.json", results)
        assert read_results(tmp_path / "detections.json") == results
    assert len((tmp_path / "detections.json").read_text().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "the results file"),
        ("{", "cannot be read as JSON"),
        ("{}", "does not contain a list"),
        ("[" * 200_000 + "]" * 200_000, "cannot be read as JSON"),
        ('[{"segmentation":' * 200_000, "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_results_json_is_named(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert "give a COCO results json" in str(error.value)


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"image_id": 1}, "entry 1 of the results has no 'bbox', 'category_id', 'score'"),
        ("box", "entry 1 of the results has no 'bbox', 'category_id', 'image_id', 'score'"),
        (ENTRY | {"score": "high"}, "entry 1 of the results has score 'high'"),
        (ENTRY | {"bbox": None}, "entry 1 of the results has bbox None"),
        (ENTRY | {"image_id": [1]}, "entry 1 of the results has image_id [1]: give a number"),
        (ENTRY | {"category_id": {}}, "entry 1 of the results has category_id {}: give a number"),
    ],
)
def test_a_bad_entry_is_named(entry: object, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check_results([ENTRY, entry], [1], [2], "bbox")


def test_unknown_ids_are_named_and_long_lists_are_cut() -> None:
    check_results([ENTRY], [1], [2], "bbox")
    results = [ENTRY | {"image_id": number} for number in range(10, 20)]
    with pytest.raises(UserError) as error:
        check_results(results, range(3), [2], "bbox")
    assert "image ids that the ground truth does not have, 10, 11, 12, 13, 14 and 5 more" in str(
        error.value
    )
    assert "(it has 0, 1, 2)" in str(error.value)


def test_every_form_of_mask_becomes_compressed_rle() -> None:
    image = {"height": 5, "width": 7}
    mask = np.zeros((5, 7), np.uint8)
    mask[1:4, 2:6] = 1
    compressed = rle_tools.encode(np.asfortranarray(mask))
    forms = [
        compressed,
        json.loads(json.dumps(compressed | {"counts": compressed["counts"].decode()})),
        {"size": [5, 7], "counts": [11, 3, 2, 3, 2, 3, 2, 3, 6]},
        [[2, 1, 6, 1, 6, 4, 2, 4]],
    ]
    for form in forms:
        assert (
            rle_tools.decode(mask_rle({"image_id": 1, "segmentation": form}, image)) == mask
        ).all()


def formatted(entry: dict) -> bool:
    """What COCO's server asks of an entry (cocodataset.org, "Results format"): whole ids, a score,
    a box of four finite numbers, a mask as RLE with whole sizes and its counts as ASCII text; and
    no more.
    """
    mask = entry["segmentation"]
    counts = mask["counts"]
    return (
        set(entry) == {"image_id", "category_id", "bbox", "score", "segmentation"}
        and all(type(entry[key]) is int for key in ("image_id", "category_id"))
        and type(entry["score"]) is float
        and 0 <= entry["score"] <= 1
        and len(entry["bbox"]) == 4
        and all(type(side) is float and np.isfinite(side) for side in entry["bbox"])
        and min(entry["bbox"]) >= 0
        and set(mask) == {"size", "counts"}
        and len(mask["size"]) == 2
        and all(type(side) is int for side in mask["size"])
        and isinstance(counts, str)
        and counts.isascii()
        and rle_tools.decode(mask).shape == tuple(mask["size"])
    )


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_our_results_are_accepted_by_pycocotools_and_by_the_format_of_the_server(
    tmp_path: Path,
) -> None:
    mask = np.zeros((40, 30), np.uint8)
    mask[3:20, 5:28] = 1
    found = {
        "image_id": np.int64(7),
        "boxes": np.array([[5, 3, 28, 20], [0.5, 0, 30, 40]], np.float32),
        "scores": np.array([0.9, 1 / 3], np.float32),
        "labels": np.array([1, 2]),
        "masks": [rle_tools.encode(np.asfortranarray(mask)) for _ in range(2)],
    }
    path = tmp_path / "detections.json"
    write_results(path, to_coco_results([found], [Category(90, "ant"), Category(2, "bee")]))
    entries = json.loads(path.read_text(), parse_constant=refuse)
    assert len(entries) == 2
    assert all(map(formatted, entries))
    truth = {"images": [{"id": 7, "height": 40, "width": 30}], "annotations": []}
    truth |= {"categories": [{"id": 90, "name": "ant"}, {"id": 2, "name": "bee"}]}
    boxes = api(truth).loadRes(str(path))  # with the box, pycocotools takes its area
    assert [a["area"] for a in boxes.loadAnns(boxes.getAnnIds())] == pytest.approx(
        [23 * 17, 29.5 * 40]
    )
    path.write_text(
        json.dumps([{k: v for k, v in entry.items() if k != "bbox"} for entry in entries])
    )
    masks = api(truth).loadRes(str(path))
    assert [int(a["area"]) for a in masks.loadAnns(masks.getAnnIds())] == [23 * 17] * 2
    assert (masks.annToMask(masks.anns[1]) == mask).all()
    for change in ({"image_id": 7.0}, {"score": 1}, {"bbox": [1.0, 2.0, 3.0]}, {"id": 1}):
        assert not formatted(entries[0] | change)


def test_the_results_of_a_run_have_the_format(trained: Path) -> None:
    entries = json.loads((trained / "detections.json").read_text(), parse_constant=refuse)
    assert entries
    assert all(map(formatted, entries))


def test_results_are_given_the_ids_of_chosen_classes(tmp_path: Path):
    choice = read_choice(["ant", {"zebra": "beast", "mole": "beast"}])  # ids 2, and 1 and 3
    packed = small_index(tmp_path, classes=choice).packed
    entries = [ENTRY | {"category_id": number} for number in (1, 2, 3, 3.0)]
    assert [e["category_id"] for e in choose_results(entries, packed)] == [1, 2, 1, 1]
    assert choose_results(choose_results(entries, packed), packed) == choose_results(
        entries, packed
    )
    strange = [7, {}, ENTRY | {"category_id": [1]}, ENTRY | {"category_id": True}]
    assert choose_results(strange, packed) == strange
    alone = small_index(tmp_path, classes=read_choice({"mole": None})).packed
    assert [e["category_id"] for e in choose_results(entries, alone)] == [1, 2]
    assert choose_results(entries, small_index(tmp_path).packed) == entries


def test_detections_of_classes_that_the_data_lack_are_counted():
    table = (Category(1, "ant"), Category(2, "bee"), Category(3, "cat"))
    entries = [ENTRY | {"category_id": number} for number in (1, 2, 3, 2)]
    listed = [category._asdict() for category in table]
    kept, told = of_categories(entries, table, listed[:1])
    assert kept == entries[:1]
    assert told is not None
    assert "left out 3 of 4 detections" in told
    assert "(bee, cat)" in told
    assert of_categories(entries, table, listed) == (entries, None)
