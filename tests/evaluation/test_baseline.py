"""Which results `against=` stands for."""

import json
import os
import re
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.baseline import (
    DIGEST,
    Baseline,
    baseline_on_same_images,
    candidate_evaluations,
    ids_digest,
    read_baseline,
)
from maskrcnn_lit.evaluation.coco.results import write_results
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.storage.sealed import write_sealed_json


def evaluation(folder: Path, checkpoint: str, ids: list[int], age: int) -> Path:
    """Of a folder of evaluations, so many seconds old."""
    folder.mkdir(parents=True)
    record = {"checkpoint": checkpoint, "images": len(ids), "image_ids_sha256": ids_digest(ids)}
    (folder / "evaluation.json").write_text(json.dumps(record))
    os.utime(folder / "evaluation.json", (10**9 - age, 10**9 - age))
    return folder / "detections.json"


def test_of_a_run_the_newest_evaluation_of_the_same_weights_and_images_is_taken(
    tmp_path: Path,
) -> None:
    (tmp_path / "detections.json").write_text("[]")  # of the last weights: never taken
    made = {
        name: evaluation(tmp_path / "evaluations" / name, checkpoint, ids, age)
        for name, checkpoint, ids, age in (
            ("z", "best", [1, 2], 9),
            ("b", "best", [2, 1], 5),
            ("c", "best", [1, 3], 3),
            ("d", "last", [1, 2], 1),
        )
    }
    assert [other.results for other in candidate_evaluations(tmp_path, "best")] == [
        made["c"],
        made["b"],
        made["z"],
    ]
    assert (
        baseline_on_same_images(candidate_evaluations(tmp_path, "best"), [1, 2]).results
        == made["b"]
    )
    assert (
        baseline_on_same_images(candidate_evaluations(tmp_path, "last"), [1, 2]).results
        == made["d"]
    )
    with pytest.raises(UserError) as error:
        baseline_on_same_images(candidate_evaluations(tmp_path, "best"), [1, 2, 3])
    said = (
        f"{tmp_path}/evaluations/c/evaluation.json scored 2 images, but these are 3 other "
        "images: evaluate both"
    )
    assert said in str(error.value)


def test_a_run_without_such_an_evaluation_is_told(tmp_path: Path) -> None:
    evaluation(tmp_path / "evaluations" / "a", "last", [1], 0)
    said = (
        f"{tmp_path} has no evaluation of its best weights: run `maskrcnn-lit evaluate "
        f"run={tmp_path}` first"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        candidate_evaluations(tmp_path, "best")
    with pytest.raises(
        UserError, match=f"of its last weights: .* run={tmp_path}/none checkpoint=last` first"
    ):
        (tmp_path / "none").mkdir()
        candidate_evaluations(tmp_path / "none", "last")


def test_an_evaluation_is_taken_by_its_folder_and_its_file_whatever_the_weights(
    tmp_path: Path,
) -> None:
    results = evaluation(tmp_path / "a", "last", [1, 2], 0)
    for source in (tmp_path / "a", tmp_path / "a" / "evaluation.json"):
        (other,) = candidate_evaluations(source, "best")
        assert other.results == results
        assert baseline_on_same_images([other], [1, 2]) == other
        with pytest.raises(UserError, match="scored 2 images, but these are 1"):
            baseline_on_same_images([other], [1])


def test_a_file_of_another_tool_is_taken_as_it_is(tmp_path: Path) -> None:
    (other,) = candidate_evaluations(tmp_path / "found.json", "best")
    assert other == Baseline(tmp_path / "found.json", None)
    assert baseline_on_same_images([other], [7]) == other


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "has a list instead of an object"),
        ("", "is empty"),
        ("[" * 200_000, "is not JSON"),
        ('{"sha256": "0", "images": 1}', "does not match its checksum"),
    ],
)
def test_a_broken_evaluation_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=said):
        candidate_evaluations(tmp_path, "best")


def test_detections_that_are_not_those_that_were_evaluated_are_told(tmp_path: Path):
    results = tmp_path / "detections.json"
    write_results(results, [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 3, 4]}])
    record = {"images": 1, DIGEST: file_digest(results, "sha256")}
    write_sealed_json(tmp_path / "evaluation.json", record)
    (other,) = candidate_evaluations(tmp_path, "best")
    assert len(read_baseline(other)) == 1
    results.write_text(results.read_text().replace("0.5", "0.9"))
    with pytest.raises(UserError, match=r"detections\.json does not match its checksum"):
        read_baseline(other)
    results.unlink()
    with pytest.raises(UserError, match="the results file"):
        read_baseline(other)
