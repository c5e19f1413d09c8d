import json
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco_results import check_results, mask_rle, read_results, write_results

ENTRY = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [0, 0, 3, 4]}


def test_what_is_written_is_read_one_entry_a_line(tmp_path: Path) -> None:
    for results in ([], [ENTRY], [ENTRY, ENTRY | {"score": 0.1}]):
        write_results(tmp_path / "detections.json", results)
        assert read_results(tmp_path / "detections.json") == results
    assert len((tmp_path / "detections.json").read_text().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]


@pytest.mark.parametrize(
    "text, said", [(None, "there is no results file"), ("{", "cannot be read as json"), ("{}", "holds no list")]
)
def test_a_file_that_is_no_results_json_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_results(path)
    assert str(path) in str(error.value) and "give a COCO results json" in str(error.value)


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"image_id": 1}, "entry 1 of the results has no 'bbox', 'category_id', 'score'"),
        ("box", "entry 1 of the results has no 'bbox', 'category_id', 'image_id', 'score'"),
        (ENTRY | {"score": "high"}, "entry 1 of the results has score 'high'"),
        (ENTRY | {"bbox": None}, "entry 1 of the results has bbox None"),
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
    assert "image ids that the ground truth does not have: 10, 11, 12, 13, 14 and 5 more" in str(error.value)
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
        assert (rle_tools.decode(mask_rle({"image_id": 1, "segmentation": form}, image)) == mask).all()


@pytest.mark.parametrize("mask, said", [("x", "give RLE: size and counts"), ({"counts": "1"}, "give RLE")])
def test_a_mask_that_is_none_is_named(mask: object, said: str) -> None:
    with pytest.raises(UserError, match=f"a mask of image 3 is .*{said}"):
        mask_rle({"image_id": 3, "segmentation": mask}, {"height": 5, "width": 7})
