"""`maskrcnn-lit reproduce`: the same run again, and what it says of one that does not come out the
same.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_commands import (
    MODEL,
    checkpoint,
    coco_data,
    ground_truth,
    metric_rows,
    printed_by,
    refused,
    result,
    run_command,
    run_script,
    same,
    save_ground_truth,
)

from maskrcnn_lit.cli import reproduce
from maskrcnn_lit.cli.reproduce import Difference, differing, distance, origin
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.storage.files import file_digest

pytest_plugins = ("tiny_commands",)

SHORT = (
    "trainer.epochs=1",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=4.0e-3",
)

TORCHRUN = {  # what it tells the only process that it starts
    **{
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
    },
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"},
}


@pytest.fixture(scope="module")
def reproduced(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """The folder of a reproduction of `trained`, and what was printed."""
    folder = tmp_path_factory.mktemp("reproduced")
    arguments = ["reproduce", f"run={trained}", f"run_dir={folder}/run"]
    with patch.object(sys, "argv", ["maskrcnn-lit", *arguments]):
        printed = printed_by(*arguments)
    yield folder / "run", printed
    shutil.rmtree(folder)


def tampered(trained: Path, folder: Path, **changes: Any) -> Path:
    """A run folder, its checkpoints left out, whose result.json says something else."""
    folder.mkdir()
    shutil.copy(trained / "config.yaml", folder)
    write_result(
        folder / "result.json", RunResult(**vars(read_result(trained / "result.json")) | changes)
    )
    return folder


def rows(printed: str) -> dict[str, list[str]]:
    """Lines of tables by their first word."""
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}


def test_the_same_weights_and_metrics_to_the_last_bit(trained: Path, reproduced: tuple[Path, str]):
    run_dir, printed = reproduced
    assert same(checkpoint(trained)["state_dict"], checkpoint(run_dir)["state_dict"])
    assert metric_rows(trained) == metric_rows(run_dir)
    assert "is unchanged: config, commit, versions, machine and data" in printed
    count = len(result(trained)["metrics"]) - 1
    assert (
        f"\n{count} of {count} metrics are bit-identical; the largest difference is 0.\n" in printed
    )
    assert printed.endswith("Reproduced: the tolerance is 0.\n")


def test_the_new_folder_is_a_run_of_its_own(trained: Path, reproduced: tuple[Path, str]):
    run_dir, _ = reproduced
    told = result(run_dir)
    assert told["status"] == "finished"
    assert told["overrides"] == result(trained)["overrides"]
    assert told["seed"] == 1
    assert told["command"][1:] == ["reproduce", f"run={trained}", f"run_dir={run_dir}"]
    names, own = (
        {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
        for folder in (trained, run_dir)
    )
    assert own == names | {"reproduction.json"}
    assert len(list(run_dir.glob("events.out.*"))) == len(list(trained.glob("events.out.*"))) > 0
    record = json.loads((run_dir / "reproduction.json").read_text())
    expected = {
        "run": str(trained),
        "equal": True,
        "tolerance": 0,
        "largest_difference": 0,
        "differences": [],
    }
    assert record == expected


def test_again_in_the_same_folder_it_only_compares(
    trained: Path, reproduced: tuple[Path, str], capsys: pytest.CaptureFixture
):
    run_dir, _ = reproduced
    before = file_digest(run_dir / "metrics.csv", "sha256")
    run_command("reproduce", f"run={trained}", f"run_dir={run_dir}")
    assert file_digest(run_dir / "metrics.csv", "sha256") == before
    printed = capsys.readouterr().out
    assert "Reproduced: the tolerance is 0." in printed
    assert "resumes from step" not in printed


def test_a_result_that_was_tampered_with(
    trained: Path, reproduced: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    run_dir, _ = reproduced
    metrics = read_result(trained / "result.json").metrics
    run = tampered(
        trained,
        tmp_path / "run",
        metrics=metrics | {"val/roi_accuracy": metrics["val/roi_accuracy"] + 0.02},
    )
    run_command("reproduce", f"run={run}", f"run_dir={run_dir}", code=1)
    printed = capsys.readouterr().out
    assert (
        "the largest difference is 0.02, of val/roi_accuracy.\nNot reproduced: the tolerance is 0."
        in printed
    )
    assert rows(printed)["val/roi_accuracy"][-1] == "-0.02"
    assert json.loads((run_dir / "reproduction.json").read_text())["equal"] is False
    run_command("reproduce", f"run={run}", f"run_dir={run_dir}", "tolerance=0.021")
    assert "\nReproduced: the tolerance is 0.021." in capsys.readouterr().out


def test_a_metric_that_is_missing_is_not_reproduced_within_any_tolerance(
    trained: Path, reproduced: tuple[Path, str], tmp_path: Path
):
    metrics = read_result(trained / "result.json").metrics
    run = tampered(trained, tmp_path / "run", metrics=metrics | {"val/other": 0.5})
    run_command("reproduce", f"run={run}", f"run_dir={reproduced[0]}", "tolerance=0.5", code=1)


def test_other_versions_are_told_before_and_widen_the_tolerance(
    trained: Path, reproduced: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    before = read_result(trained / "result.json")
    commit = {"hash": "0" * 40, "dirty": True, "diff": "-a\n+b\n" * 20, "untracked": ["new.py"]}
    versions, machine = before.versions | {"torch": "1.0"}, before.machine | {"device": "abacus"}
    run = tampered(trained, tmp_path / "run", versions=versions, commit=commit, machine=machine)
    run_command("reproduce", f"run={run}", f"run_dir={reproduced[0]}")
    printed = capsys.readouterr().out
    assert f"Compared with {run}, this differs:\n" in printed
    found = rows(printed)
    assert found["versions.torch"] == ["1.0", torch.__version__]
    assert found["machine.device"][0] == "abacus"
    assert found["commit.diff"][1:3] == ["(120", "characters)"]
    assert "commit.untracked" in found
    assert printed.endswith("Reproduced: the tolerance is 0.03.\n")


def test_a_config_that_was_tampered_with_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run = tampered(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 1", "seed: 2"))
    monkeypatch.setattr(reproduce, "_train", lambda folder, trust: 3)
    run_command("reproduce", f"run={run}", f"run_dir={tmp_path}/again", code=3)  # that of the run
    assert "config_sha256" in rows(capsys.readouterr().out)


@pytest.fixture
def elsewhere(strange: Path, trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run and its data, both at another place, with one box smaller than it was."""
    root = shutil.copytree(strange, tmp_path / "data")
    run = tampered(trained, tmp_path / "moved")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(strange), str(root)))
    content = ground_truth(root, "train")
    content["annotations"][0]["bbox"][2] -= 1
    save_ground_truth(root, content, "train")
    return run, root


def test_other_data_are_refused(
    elsewhere: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    run, _ = elsewhere
    said = refused("reproduce", f"run={run}", f"run_dir={tmp_path}/again")
    assert f"the data differ from those of {run} (data.train.annotations_sha256)" in said
    assert "other_data=true" in said
    assert "data.train.annotations_sha256" in rows(capsys.readouterr().out)
    assert not (tmp_path / "again").exists()


@pytest.mark.process
def test_other_data_where_they_are_allowed(elsewhere: tuple[Path, Path], run_dir: Path):
    run, _ = elsewhere
    printed = printed_by("reproduce", f"run={run}", f"run_dir={run_dir}", "other_data=true", code=1)
    assert "Not reproduced: the tolerance is 0." in printed
    assert result(run_dir)["status"] == "finished"
    names = [
        entry["name"]
        for entry in json.loads((run_dir / "reproduction.json").read_text())["differences"]
    ]
    assert {"data.train.annotations_sha256", "val/loss"} <= set(names)


def test_data_that_are_gone(
    elsewhere: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, root = elsewhere
    shutil.rmtree(root)
    monkeypatch.chdir(tmp_path)
    assert "there is no annotation file" in refused("reproduce", f"run={run}")


@pytest.mark.process
def test_a_run_of_two_processes(
    strange: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By whatever name their number was given: here as two machines with one each."""
    options = (*coco_data(strange), *MODEL, *SHORT)
    done = run_script("train", *options, "trainer.devices=2", f"run_dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(run_dir)["machine"]["processes"] == 2
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(
        config.replace("num_nodes: 1", "num_nodes: 2").replace("devices: 2", "devices: 1")
    )
    monkeypatch.chdir(tmp_path)
    assert printed_by("reproduce", f"run={run_dir}").endswith("Reproduced: the tolerance is 0.\n")
    (again,) = (tmp_path / "outputs" / "reproductions").iterdir()
    assert same(checkpoint(run_dir)["state_dict"], checkpoint(again)["state_dict"])
    assert checkpoint(again)["global_step"] == 2, "8 images, 2 processes with 2 images a step"


@pytest.mark.process
def test_what_was_begun_goes_on(
    trained: Path, reproduced: tuple[Path, str], run_dir: Path, capfd: pytest.CaptureFixture
):
    """Its folder and the config are there, from a reproduction that was killed."""
    folder, _ = reproduced
    shutil.copytree(folder, run_dir)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace(str(folder), str(run_dir)))
    before = read_result(run_dir / "result.json")
    write_result(run_dir / "result.json", replace(before, status="running", config_sha256=None))
    run_command("reproduce", f"run={trained}", f"run_dir={run_dir}")
    printed = capfd.readouterr().out
    assert f"{run_dir} resumes from step 8" in printed
    assert "Reproduced: the tolerance is 0." in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("run=none",),
            "none does not exist: give a run folder (run_dir) that `maskrcnn-lit train` wrote",
        ),
        (("run={run}", "tolerance=-1"), "tolerance=-1 must be a number from 0"),
        (
            ("run={run}", "run_dir={run}"),
            "run_dir={run} contains another run: give a new folder, or that of an unfinished "
            "reproduction",
        ),
    ],
)
def test_a_mistake_is_told(
    options: tuple[str, ...],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    other = tampered(trained, tmp_path / "run")
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text().replace("seed: 1", "seed: 2")
    )
    options = tuple(text.format(run=other) for text in options)
    run_command("reproduce", *options, code=2)
    assert message.format(run=other) in capsys.readouterr().err


def test_a_run_that_did_not_finish_has_nothing_to_compare(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tampered(trained, tmp_path / "run", status="failed")
    run_command("reproduce", f"run={run}", code=2)
    assert (
        f"{run} is failed and has no final metrics: give the folder of a finished run"
        in capsys.readouterr().err
    )


def test_a_launcher_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert "leave out torchrun or srun" in refused("reproduce", f"run={trained}")


@pytest.mark.process
def test_a_run_that_goes_on_from_another_is_reproduced_from_there(
    trained: Path, run_dir: Path, tmp_path: Path
):
    longer = tmp_path / "longer"
    run_command("train", f"resume={trained}", "trainer.epochs=3", f"run_dir={longer}")
    again = tmp_path / "again"
    printed = printed_by("reproduce", f"run={longer}", f"run_dir={again}")
    assert "Reproduced: the tolerance is 0." in printed
    assert same(checkpoint(again)["state_dict"], checkpoint(longer)["state_dict"])
    assert result(again)["parent"] == result(longer)["parent"]
    moved = replace(read_result(longer / "result.json"))
    moved.parent = {**(moved.parent or {}), "checkpoint_sha256": "0" * 64}
    write_result(longer / "result.json", moved)
    said = refused("reproduce", f"run={longer}", f"run_dir={run_dir}")
    assert "last.ckpt has changed since" in said
    shutil.rmtree(longer)
    shutil.rmtree(again)


@pytest.mark.process
def test_a_killed_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(
        UserError, match=r"killed by signal 9; resume with \S*maskrcnn-lit train resume=again"
    ):
        reproduce._train(Path("again"), [])


def test_differences_by_name():
    run, now = (
        {"a": 1.0, "b": math.nan, "c": None, "d": "x"},
        {"a": 1.0, "b": math.nan, "d": "y", "e": 2},
    )
    assert differing(run, now) == [Difference("d", "x", "y"), Difference("e", None, 2)]


@pytest.mark.parametrize(
    ("run", "now", "expected"),
    [
        (0.5, 0.52, 0.02),
        (0.5, 0.5, 0),
        (4.0, 5.0, 0.2),
        (math.nan, math.nan, 0),
        (math.nan, 0.5, math.inf),
        (None, 0.5, math.inf),
    ],
)
def test_the_distance_of_two_values(run: float | None, now: float | None, expected: float):
    assert distance(run, now) == distance(now, run) == pytest.approx(expected)


def test_an_older_result_has_no_machine():
    assert origin(RunResult(status="finished", versions={"torch": "2.0"})) == {
        "commit": None,
        "versions.torch": "2.0",
    }
