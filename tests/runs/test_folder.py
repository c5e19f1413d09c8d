"""result.json is true at any time, whatever ends a run, and one process at a time writes to the
folder.
"""

import errno
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs import folder as run_folder
from maskrcnn_lit.runs.folder import (
    check_output_file,
    check_output_folder,
    freeze_config,
    new_output_folder,
    program,
    record_status,
    relocate,
    run_lock,
    watch_command,
)
from maskrcnn_lit.runs.result import RunResult, read_result, write_result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_result(tmp_path / "result.json", RunResult(status="running", overrides=["seed=1"]))
    return tmp_path


def test_a_job_that_ends_is_finished(folder: Path):
    with record_status(folder) as result:
        assert read_result(folder / "result.json").status == "running"
        result.metrics["val/mask_ap"] = 0.5
    told = read_result(folder / "result.json")
    assert (told.status, told.metrics, told.overrides) == (
        "finished",
        {"val/mask_ap": 0.5},
        ["seed=1"],
    )


@pytest.mark.parametrize(
    "error", [UserError("no such file: give another"), ArithmeticError("a bug")]
)
def test_a_job_that_fails_says_why(folder: Path, error: Exception):
    with pytest.raises(type(error)), record_status(folder):
        raise error
    told = read_result(folder / "result.json")
    assert told.status == "failed"
    assert told.error == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_job_says_how_to_go_on(folder: Path, error: BaseException):
    with (
        pytest.raises(KeyboardInterrupt, match=f"resume with .*maskrcnn-lit train resume={folder}"),
        record_status(folder),
    ):
        raise error
    assert read_result(folder / "result.json").status == "interrupted"


def test_of_several_processes_one_that_fails_says_so_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with record_status(folder):
        pass
    assert read_result(folder / "result.json").status == "running", "the first process writes"
    with pytest.raises(UserError), record_status(folder):
        raise UserError("no memory: take less")
    told = read_result(folder / "result.json")
    assert (told.status, told.error, told.overrides) == (
        "failed",
        "UserError: no memory: take less",
        ["seed=1"],
    )


def test_a_program_is_named_as_it_can_be_typed():
    assert program("python3").endswith("python3")
    assert " " not in program("no-such-program").strip("'")


def test_a_run_that_moves_writes_into_its_new_folder_alone():
    config = OmegaConf.create(
        {
            "run_dir": "outputs/a",
            "data": {"root": "outputs/a"},
            "callbacks": {"evaluation": {"run_dir": "outputs/a", "limits": [1, 2]}, "panels": None},
            "logger": {"csv": {"path": "outputs/a/metrics.csv"}, "other": {"name": "outputs/ab"}},
        }
    )
    assert OmegaConf.to_container(relocate(config, "b")) == {
        "run_dir": "b",
        "data": {"root": "outputs/a"},
        "callbacks": {"evaluation": {"run_dir": "b", "limits": [1, 2]}, "panels": None},
        "logger": {"csv": {"path": "b/metrics.csv"}, "other": {"name": "outputs/ab"}},
    }


def test_one_process_at_a_time_trains_in_a_folder(folder: Path):
    with (
        run_lock(folder),
        pytest.raises(UserError, match="another process is training in"),
        run_lock(folder),
    ):
        pass
    with run_lock(folder):
        pass


def test_a_run_does_not_freeze_what_only_a_sweep_reads():
    config = freeze_config(
        compose("train", ["experiment=backbones", "model.weights=torchvision_v1"])
    )
    assert not {"sweep", "sweep_dir", "sweep_scale", "launcher"} & set(config)
    assert Path(config.data.root).is_absolute()
    assert config.model.backbone.norm == "frozen", "what refers to an option is told too"


def test_files_of_an_output_folder_are_not_overwritten_without_a_word(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.json").touch()
    (tmp_path / "empty").mkdir()
    for free in (None, str(tmp_path / "new"), str(tmp_path / "empty")):
        check_output_folder(free, overwrite=False)
    check_output_folder(str(tmp_path / "full"), overwrite=True)
    with pytest.raises(UserError, match=r"full is not empty: .* add overwrite=true"):
        check_output_folder(str(tmp_path / "full"), overwrite=False)
    with pytest.raises(UserError, match=r"a\.json is a file: give a folder"):
        check_output_folder(str(tmp_path / "full" / "a.json"), overwrite=True)


def test_outputs_of_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.strftime", lambda form: "noon")
    folders = [new_output_folder(str(tmp_path), None, "predictions") for _ in range(3)]
    assert [folder.name for folder in folders] == ["noon", "noon_2", "noon_3"]
    assert all(folder.is_dir() for folder in folders)
    given = new_output_folder(str(tmp_path), str(tmp_path / "given"), "predictions")
    assert given == tmp_path / "given"
    assert not given.exists()


def test_a_backbone_of_ones_own_needs_no_options_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "small.yaml").write_text("_target_: mylab.Small\nwidth: 16\n")
    monkeypatch.setenv("MASKRCNN_LIT_CONFIG_DIR", str(tmp_path))
    config = freeze_config(compose("train", ["backbone=small", "model.weights=torchvision_v1"]))
    assert config.model.backbone == {"_target_": "mylab.Small", "width": 16}


def test_a_result_that_cannot_be_written_does_not_hide_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "result.json")

    monkeypatch.setattr(run_folder, "write_result", full)
    with pytest.raises(OSError, match=r"metrics\.csv") as raised, record_status(folder):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
    assert not hasattr(raised.value, "__notes__"), "no checkpoint to go on from"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(OSError, match=r"metrics\.csv") as raised, record_status(folder):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
    assert raised.value.__notes__[0].endswith(f"train resume={folder}")
    with pytest.raises(OSError, match=r"result\.json"), record_status(folder):
        pass


def test_a_file_that_is_there_is_not_overwritten_without_a_word(tmp_path: Path):
    file = tmp_path / "a.json"
    check_output_file(None, overwrite=False)
    check_output_file(str(file), overwrite=False)
    file.touch()
    check_output_file(str(file), overwrite=True)
    with pytest.raises(UserError, match=r"out=.*a\.json already exists: .* add overwrite=true"):
        check_output_file(str(file), overwrite=False)
    with pytest.raises(UserError, match="is a folder: give a file"):
        check_output_file(str(tmp_path), overwrite=True)


def test_tensorboard_is_started_where_the_run_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for run, folder in (
        ("runs/a", "runs"),
        ("a b/c", "'a b'"),
        ("a", "a"),  # not all of the working directory
        ("../a", "../a"),
        (f"{tmp_path}/a/b", f"{tmp_path}/a"),
    ):
        assert watch_command(run).endswith(f" --logdir {folder}")
