import json
import math
from pathlib import Path

import pytest
import torch

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.provenance import describe_data, describe_machine, package_versions
from maskrcnn_lit.runs.result import (
    FILES,
    RunResult,
    config_fault,
    file_digests,
    file_fault,
    read_result,
    write_result,
)
from maskrcnn_lit.storage.files import config_digest


def test_a_result_comes_back_as_it_was_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "run/result.json"
    result = RunResult(
        status="finished",
        metrics={"val/mask_ap": 0.1 + 0.2, "val/mask_ap_small": math.nan},
        overrides=["seed=1"],
        command=["maskrcnn-lit", "train", "seed=1"],
        versions=package_versions(),
        commit={"hash": "abc", "dirty": True, "diff": "-a\n+b\n", "untracked": ["c.py"]},
        machine=describe_machine(torch.device("cpu"), 2),
        data=describe_data(
            name="shapes", subset_ids={"train": [1], "val": []}, categories=[(1, "ant")]
        ),
        cost={"seconds": 1.5},
        seed=1,
    )
    write_result(path, result)
    assert json.loads(path.read_text())["metrics"] == {
        "val/mask_ap": 0.1 + 0.2,
        "val/mask_ap_small": None,
    }
    again = read_result(path)
    assert math.isnan(again.metrics.pop("val/mask_ap_small"))
    assert result.metrics.pop("val/mask_ap_small")
    assert again == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_status_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'done'; expected one of running, finished, failed, interrupted"
    ):
        RunResult(status="done")


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"metrics": {}}', '{"status": "done"}', '{"metrics": 3}']
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="give the folder of a run") as error:
        read_result(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"), [('"status": "finished"', '"status": "failed"'), ("0.5", "0.7"), ("}", "")]
)
def test_a_damaged_result_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "result.json"
    write_result(path, RunResult(status="finished", metrics={"val/mask_ap": 0.5}))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match="or is damaged"):
        read_result(path)


def test_another_config_than_that_of_the_run_is_told() -> None:
    config = {"seed": 1, "data": {"root": "a"}}
    result = RunResult(status="finished", config_sha256=config_digest(config))
    assert config_fault(config, result) is None
    assert config_fault(config, RunResult(status="running")) is None
    fault = config_fault({**config, "seed": 2}, result)
    assert fault is not None
    assert "does not match its checksum" in fault


def test_another_file_than_that_of_the_run_is_told(tmp_path: Path):
    for name in FILES:
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "other.txt").write_text("other")
    result = RunResult(status="finished", files=file_digests(tmp_path))
    assert set(result.files) == set(FILES)
    for name in FILES:
        file = tmp_path / name
        assert file_fault(file, result) is None
        assert file_fault(file, RunResult(status="running")) is None
        file.write_text(f"Content of {name}")
        fault = file_fault(file, result)
        assert fault is not None
        assert fault.startswith(f"{file} does not match its checksum")
        file.unlink()
        assert file_fault(file, result) is None
