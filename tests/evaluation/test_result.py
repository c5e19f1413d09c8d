import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from maskrcnn_lit import __version__
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.result import (
    RunResult,
    describe_data,
    package_commit,
    package_versions,
    read_result,
    write_result,
)


def test_a_result_comes_back_as_it_was_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "run/result.json"
    result = RunResult(
        status="finished",
        metrics={"val/mask_ap": 0.1 + 0.2, "val/mask_ap_small": math.nan},
        overrides=["seed=1"],
        command=["maskrcnn-lit", "train", "seed=1"],
        versions=package_versions(),
        commit={"hash": "abc", "dirty": True},
        data=describe_data(name="shapes", subset_ids={"train": [1], "val": []}, categories=[(1, "ant")]),
        cost={"seconds": 1.5},
        seed=1,
    )
    write_result(path, result)
    assert json.loads(path.read_text())["metrics"] == {"val/mask_ap": 0.1 + 0.2, "val/mask_ap_small": None}
    again = read_result(path)
    assert math.isnan(again.metrics.pop("val/mask_ap_small")) and result.metrics.pop("val/mask_ap_small")
    assert again == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_status_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'done'; expected one of running, finished, failed, interrupted"):
        RunResult(status="done")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"metrics": {}}', '{"status": "done"}', '{"metrics": 3}'])
def test_what_is_no_result_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="give the folder of a run") as error:
        read_result(path)
    assert str(path) in str(error.value)


def test_versions_are_those_that_run() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__ and versions["maskrcnn_lit"] == __version__
    assert set(versions) == {
        "python", "torch", "torchvision", "lightning", "hydra", "pycocotools", "maskrcnn_lit"
    }  # fmt: skip


def test_commit_is_of_the_folder_of_the_code_and_tells_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    package, other = tmp_path / "checkout/package", tmp_path / "checkout/.venv/package"
    for folder in (package, other):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (tmp_path / "checkout/.gitignore").write_text(".venv\n")
    assert package_commit(package) is None  # no checkout

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path / "checkout", check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert package_commit(package) is None  # no commit
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert package_commit(package) == {"hash": git("rev-parse", "HEAD"), "dirty": False}
    assert package_commit(other) is None  # installed inside of somebody's checkout
    (package / "new.py").write_text("")
    assert package_commit(package) == {"hash": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert package_commit(package) is None  # no git


def test_data_digest_is_of_the_choice_of_images_and_not_of_their_order() -> None:
    def describe(ids: list[int]) -> dict:
        return describe_data(name="coco2017", subset_ids={"train": ids}, categories=[(90, "ant"), (1, "bee")])

    data = describe([3, 1, 2])
    assert data["name"] == "coco2017" and data["categories"] == [[90, "ant"], [1, "bee"]]
    assert data["train"]["images"] == 3 and len(data["train"]["ids_sha256"]) == 64
    assert describe([1, 2, 3]) == data != describe([1, 2, 4])
