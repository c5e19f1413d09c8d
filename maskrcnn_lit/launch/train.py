"""`train`: claim a run folder, freeze the config in it, then start the processes of the run
(run.py).
"""

import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import compose, to_yaml
from maskrcnn_lit.config.overrides import FOR_SWEEPS, LENGTH, assign, is_given, typed
from maskrcnn_lit.config.stored import load_run_config, read_run_config
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.export.runtime import refuse_exported
from maskrcnn_lit.launch.auto_batch import AUTO, choose_batch
from maskrcnn_lit.launch.elastic import keep_step
from maskrcnn_lit.launch.processes import start
from maskrcnn_lit.launch.requeue import continued, job_folder
from maskrcnn_lit.launch.run import run_job
from maskrcnn_lit.runs.folder import (
    LOCK,
    freeze_config,
    missing_folders,
    relocate,
    resume_hint,
    run_lock,
)
from maskrcnn_lit.runs.parent import check_longer, read_parent, start_from
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.runs.result import RunResult, config_fault, file_fault, read_result, write_result
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.training.checkpoint_files import load_sound
from maskrcnn_lit.training.devices import count_devices
from maskrcnn_lit.training.loggers import EVENTS
from maskrcnn_lit.training.processes import broadcast_from_rank_zero, rank_timeout
from maskrcnn_lit.training.ranks import cluster_environment, processes_per_node

_log = logging.getLogger(__name__)

# Options that may be given with resume=RUN: trust, present paths, and the processes with their
# shares of a step (elastic.py). All others are fixed.
PATHS = ("data.root", "data.cache_dir", "data.workers")
PROCESSES = ("trainer.devices", "trainer.num_nodes")
SHARES = ("data.batch_size", "trainer.accumulate")
WITH_RESUME = ("resume", "trust", "logger", "requeue", *PATHS, *PROCESSES, *SHARES)


def train(config: DictConfig, overrides: list[str], command: list[str]) -> Path:
    """Train, score and draw one model; return its run folder.

    Rank zero composes the config and writes it for all ranks: other ranks might get another time of
    day in run_dir, for example.

    Args:
        config: conf/train.yaml with `overrides`; command: the command line for result.json.
    """
    if config.resume is not None:
        refuse_exported(config.resume, "resume")
    with ExitStack() as claim:

        def make() -> str:
            own, words = _continued(config, overrides)
            run_dir = claim.enter_context(_claimed(own, words))
            return freeze(own, words, command, run_dir)

        tries = config.data.batch_size == AUTO
        text = broadcast_from_rank_zero(make, rank_timeout(config.trainer), long=tries)
        frozen = DictConfig(OmegaConf.create(text))
        processes = count_devices(frozen.trainer.accelerator, frozen.trainer.devices)
        if cluster_environment() or processes == 1:
            run_job(frozen)
        else:
            _start_processes(frozen, processes)
    return Path(frozen.run_dir)


def _continued(config: DictConfig, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """With requeue=true, the config and overrides that continue the run which the same command has
    begun; else those given. A job of SLURM without `run_dir` has a folder of its number.
    """
    if config.resume is not None or not config.requeue:
        return config, overrides
    folder = None if is_given("run_dir", overrides) else job_folder()
    if folder is not None:
        overrides = [*overrides, assign("run_dir", folder)]
        config = compose("train", overrides)
    words = continued(Path(config.run_dir), overrides)
    return (config, overrides) if words is None else (compose("train", words), words)


def freeze(config: DictConfig, overrides: list[str], command: list[str], run_dir: Path) -> str:
    """The config of the run with every reference resolved, as yaml. For a new run it is written as
    config.yaml, with a first result.json; the files of a resumed run stay unchanged until it
    continues.
    """
    if _extends(config, overrides):
        return _freeze_longer(config, overrides, command, run_dir)
    if config.resume is not None:
        checkpoint = last_checkpoint(
            run_dir
        )  # None if the run was killed before its first checkpoint
        resumed = _resumed(config, overrides, run_dir)
        _use_launcher_processes(resumed)
        saved = None if checkpoint is None else _load_last(checkpoint)
        step = "0, since it has no checkpoint" if saved is None else saved["global_step"]
        _log.info(f"{run_dir} resumes from step {step}")
        _keep_step(resumed, run_dir, saved, config, overrides)
        return to_yaml(resumed)
    config.run_dir = str(run_dir)
    _check_one(config, overrides)
    config = freeze_config(config)
    _use_launcher_processes(config)
    choose_batch(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    result = RunResult(status="running", overrides=overrides, command=command, seed=config.seed)
    result.versions, result.commit = package_versions(), package_commit(changes=True)
    write_result(
        run_dir / "result.json", result
    )  # first, so that a folder with a config has a result
    atomic_write(run_dir / "config.yaml", text)
    return text


def _extends(config: DictConfig, overrides: list[str]) -> bool:
    """Whether this is a new run that extends a finished one."""
    if config.resume is None or read_result(Path(config.resume) / "result.json").status != (
        "finished"
    ):
        return False
    return any(is_given(name, overrides) for name in LENGTH)


def _freeze_longer(
    config: DictConfig, overrides: list[str], command: list[str], run_dir: Path
) -> str:
    """As `freeze`, for a new run that extends the finished run `config.resume`: the same config
    with another length. The new folder starts with the checkpoint and curves of that run.
    """
    parent = Path(config.resume)
    before = read_result(parent / "result.json")
    described, checkpoint = read_parent(parent)
    longer = _resumed(config, overrides, run_dir)
    check_longer(longer, described, str(parent))
    _use_launcher_processes(longer)
    _keep_step(longer, parent, checkpoint, config, overrides)
    own = [text for text in overrides if not text.startswith(("resume=", "trust="))]
    selected = [text for text in before.overrides if not is_given(_name(text), own)]
    result = RunResult(
        status="running",
        overrides=[*selected, *own],
        command=command,
        seed=before.seed,
        data=before.data,
        parent=described,
    )
    result.versions, result.commit = package_versions(), package_commit(changes=True)
    text = to_yaml(longer)
    start_from(parent, run_dir, checkpoint)  # before config.yaml, which marks the folder as a run
    write_result(run_dir / "result.json", result)
    atomic_write(run_dir / "config.yaml", text)
    _log.info(
        f"{run_dir} is a new run that continues {parent} from step {described['step']}; its "
        "learning rate follows the schedule of the new length from there"
    )
    return text


def _keep_step(
    config: DictConfig,
    run_dir: Path,
    checkpoint: dict[str, Any] | None,
    typed_config: DictConfig,
    overrides: list[str],
) -> None:
    """See `keep_step`: `config` is that of the resumed run."""
    typed = {name: OmegaConf.select(typed_config, name) for name in SHARES}
    given = {
        name.partition(".")[2]: value
        for name, value in typed.items()
        if is_given(name, overrides) and value != AUTO
    }
    line = keep_step(config, run_dir, checkpoint, given)
    if line is not None:
        _log.info(line)


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _load_last(last: Path) -> dict[str, Any]:
    """The checkpoint from which a run resumes. If last.ckpt is damaged, or its weights are not
    finite, the error suggests best.ckpt.
    """
    try:
        return load_sound(last)
    except UserError as error:
        best = last.with_name("best.ckpt")
        try:
            step = load_sound(best)["global_step"]
        except UserError:
            raise error from None
        fault = "has weights that are not finite" if "not finite" in str(error) else "is damaged"
        raise UserError(
            f"{last} {fault}, but best.ckpt of step {step} is intact: to resume from there, "
            f"cp {shlex.quote(str(best))} {shlex.quote(str(last))}"
        ) from error


@contextmanager
def _claimed(config: DictConfig, overrides: list[str]) -> Iterator[Path]:
    """Claim the run folder: no other process writes to it until the end of the block.

    If another run took the default name in the same second, a number is appended. A new folder with
    a default name is removed when the block fails before training starts.
    """
    if config.resume is not None:
        load_run_config(config.resume, trust=config.trust)  # raises UserError if it is not a run
    extends = _extends(config, overrides)
    new = config.resume is None or extends
    given = not new or is_given("run_dir", overrides)
    made = missing_folders(Path(config.run_dir)) if new else []
    if new:
        check_whole(0, seed=config.seed)
        run_dir = _new_folder(Path(config.run_dir), given)
    else:
        run_dir = Path(config.resume)
    with run_lock(run_dir):
        if new:
            _check_new(run_dir)
        try:
            yield run_dir
        except BaseException as error:
            if extends and not _has_begun(run_dir):
                _forget_copies(run_dir, given, error)
            elif not given and not _has_trained(run_dir):
                _remove(run_dir)
            _remove_made(made)
            raise


def _has_trained(run_dir: Path) -> bool:
    return (run_dir / "metrics.csv").exists() or last_checkpoint(run_dir) is not None


def _has_begun(run_dir: Path) -> bool:
    """Whether training has started; it then has recorded the digest of the config."""
    file = run_dir / "result.json"
    return file.is_file() and read_result(file).config_sha256 is not None


def _forget_copies(run_dir: Path, given: bool, error: BaseException) -> None:
    """Remove the copies from the parent, since the new run does not start; remove its folder, too,
    unless the user named it.
    """
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for file in (run_dir / "metrics.csv", *run_dir.glob(EVENTS)):
        file.unlink(missing_ok=True)
    if not given:
        _remove(run_dir)
    elif (run_dir / "result.json").is_file():
        _ended(run_dir, "failed", str(error))


def _new_folder(run_dir: Path, given: bool) -> Path:
    """Create `run_dir`; for a default name, find one that no other run uses."""
    there = next(
        folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"run_dir={run_dir} cannot be created, since {there} is not writable: give another "
            "run_dir"
        )
    if given:
        run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    number, folder = 1, run_dir
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = run_dir.with_name(f"{run_dir.name}_{number}")


def _remove_made(folders: list[Path]) -> None:
    """Those of the folders that this command has made and that are empty, but for a lock."""
    for folder in folders:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _remove(run_dir: Path) -> None:
    """Remove a folder without training, and the folder of its day if that is empty."""
    for file in run_dir.glob("*"):
        if file.is_file():
            file.unlink()
    for folder in (run_dir / "tensorboard", run_dir / "checkpoints", run_dir, run_dir.parent):
        try:
            folder.rmdir()
        except OSError:  # not empty, or missing
            continue


def _start_processes(frozen: DictConfig, processes: int) -> None:
    """Run the frozen config in `processes` processes on this machine."""
    run_dir = Path(frozen.run_dir)
    with tempfile.TemporaryDirectory(prefix="maskrcnn_lit_") as folder:
        file = Path(folder, "config.yaml")
        file.write_text(to_yaml(frozen), encoding="utf-8")
        try:
            start(file, processes)
        except KeyboardInterrupt as error:
            _ended(run_dir, "interrupted")
            raise KeyboardInterrupt(resume_hint(run_dir)) from error
        except UserError as error:
            _ended(run_dir, "failed", str(error))
            raise


def _check_one(config: DictConfig, overrides: list[str]) -> None:
    """Raise UserError unless the overrides select one point of the experiment's grid."""
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    free = [name for name in config.sweep.grid if name not in given]
    if free:
        raise UserError(
            f"this experiment is a grid over {', '.join(config.sweep.grid)}: add -m to run all of "
            "it, or give one value for each, "
            f"{' '.join(typed(name, config.sweep.grid[name][0]) for name in free)}"
        )


def _use_launcher_processes(config: DictConfig) -> None:
    """If torchrun or srun started the processes, set the number of devices and nodes from them."""
    environment = cluster_environment()
    if environment is not None:
        config.trainer.devices, config.trainer.num_nodes = processes_per_node(environment)
    elif config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes} needs a launcher on each machine: start "
            "the command with torchrun or srun (docs/guide/gpus.md), or give trainer.num_nodes=1"
        )
    count_devices(
        config.trainer.accelerator, config.trainer.devices
    )  # reports a mistake before anything is written


def _ended(run_dir: Path, status: str, error: str | None = None) -> None:
    """Record the outcome for processes that could not do so themselves."""
    result = read_result(run_dir / "result.json")
    if result.status == "running":
        result.status, result.error = status, error
        write_result(run_dir / "result.json", result)


def _check_new(run_dir: Path) -> None:
    """Raise UserError if `run_dir` has a run; one that failed before its first checkpoint may be
    replaced.
    """
    if not (run_dir / "config.yaml").exists():
        return
    file = run_dir / "result.json"
    failed = file.is_file() and read_result(file).status == "failed"
    if not failed or last_checkpoint(run_dir) is not None:
        raise UserError(
            f"run_dir={run_dir} contains a run: continue it with {typed('resume', run_dir)}, or "
            "give "
            "another run_dir"
        )


def _check_record(run_dir: Path, result: RunResult) -> None:
    """Raise UserError if the config or the curves of the run are damaged."""
    if fault := config_fault(read_run_config(run_dir), result):
        raise UserError(
            f"{run_dir} cannot resume: {fault}; restore it from a copy, or start a new run"
        )
    if fault := file_fault(run_dir / "metrics.csv", result):
        raise UserError(
            f"{fault}; restore it from a copy, or move it away: the run then continues with a "
            "new one"
        )


def _resumed(typed_config: DictConfig, overrides: list[str], run_dir: Path) -> DictConfig:
    """The config of the run to resume in `run_dir`, with the other overrides applied."""
    source = str(typed_config.resume)
    longer = _extends(typed_config, overrides)
    config = load_run_config(source, trust=typed_config.trust)
    _check_record(Path(source), read_result(Path(source) / "result.json"))
    _check_beside_resume(typed_config, overrides, config)
    if Path(config.run_dir).resolve() != run_dir.resolve():
        config = relocate(config, str(run_dir))
    for name in ("requeue", *PATHS, *PROCESSES, *(LENGTH if longer else ())):
        if is_given(name, overrides):
            OmegaConf.update(config, name, OmegaConf.select(typed_config, name))
    # Loggers are not read from the run's file, but from conf/logger and the overrides.
    chosen = [text for text in overrides if text.startswith("logger")]
    OmegaConf.set_struct(config, False)
    config.logger = compose("train", [*chosen, assign("run_dir", run_dir)]).logger
    OmegaConf.resolve(config)
    return config


def _check_beside_resume(
    typed_config: DictConfig, overrides: list[str], config: DictConfig
) -> None:
    """Raise UserError for an option that may not be given with `resume=`, and for a finished run.
    `config` is that of the run.
    """
    source = str(typed_config.resume)
    finished = read_result(Path(source) / "result.json").status == "finished"
    longer = _extends(typed_config, overrides)
    allowed = (*WITH_RESUME, *LENGTH, "run_dir") if longer else WITH_RESUME
    given = [text for text in overrides if not text.startswith(FOR_SWEEPS)]
    others = [text for text in given if _name(text) not in allowed]
    if finished and not longer and not others:
        unit = "steps" if config.trainer.epochs is None else "epochs"
        reached = config.trainer[unit]
        raise UserError(
            f"{source} is finished: to continue it in a new run with more {unit}, add "
            f"trainer.{unit}={2 * reached}"
        )
    if others and _name(others[0]) in LENGTH:
        raise UserError(
            f"{source} has not finished, so its config is fixed: leave out {others[0]}, which only "
            "a finished run accepts"
        )
    if others:
        raise UserError(
            f"resume continues a run with its own config, so {others[0]} cannot be given with it "
            f"(only {', '.join(allowed[1:])}): start a new run for another config"
        )
