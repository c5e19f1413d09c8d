import json
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.json_lines import frame_line, read_json_lines
from maskrcnn_lit.evaluation.coco.results import read_results

RESULTS = [
    {"image_id": 58, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5},
    {"image_id": 58, "category_id": 4, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.25, "track_id": 9},
]


def line(results: list, index: int = 57) -> str:
    names = ["cat", "dog"][: len(results)]
    content = frame_line(
        image_id=58,
        file_name="a.mp4",
        index=index,
        time=1.9,
        size=(4, 6),
        results=results,
        names=names,
    )
    return json.dumps(content)


def test_a_line_reads_back_as_coco_results(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line(RESULTS)}\n{line([])}\n\n{line(RESULTS[:1])}\n")
    first = json.loads(path.read_text().splitlines()[0])
    assert {key: first[key] for key in first if key != "detections"} == {
        "image_id": 58,
        "file_name": "a.mp4",
        "index": 57,
        "time": 1.9,
        "height": 4,
        "width": 6,
    }
    expected = [RESULTS[0] | {"category": "cat"}, RESULTS[1] | {"category": "dog"}]
    assert read_json_lines(path) == [*expected, expected[0]]
    assert read_results(path) == read_json_lines(path)


@pytest.mark.parametrize(
    "damaged", ['{"detections": [', "[]", '{"image_id": 3}', '{"detections": 5}', "\xff"]
)
def test_a_damaged_line_is_named(damaged: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{line(RESULTS)}\n".encode() + damaged.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is not a line of detections"):
        read_results(path)


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"the results file .*a\.jsonl does not exist"):
        read_results(tmp_path / "a.jsonl")
