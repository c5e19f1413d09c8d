"""`train`: claim a run folder, freeze the config into it, then let its processes run it (run.py)."""

import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import compose, to_yaml
from maskrcnn_lit.config.overrides import FOR_SWEEPS, assign, is_given, typed
from maskrcnn_lit.config.stored import load_run_config, read_run_config
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.launch.processes import start
from maskrcnn_lit.launch.run import run_job
from maskrcnn_lit.runs.folder import (
    LOCK,
    freeze_config,
    missing_folders,
    relocate,
    resume_hint,
    run_lock,
)
from maskrcnn_lit.runs.parent import LENGTH, check_longer, read_parent, start_from
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.runs.result import RunResult, config_fault, file_fault, read_result, write_result
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.training.checkpoint import last_checkpoint, load_sound
from maskrcnn_lit.training.devices import count_devices
from maskrcnn_lit.training.loggers import EVENTS
from maskrcnn_lit.training.processes import (
    broadcast_from_rank_zero,
    cluster_environment,
    processes_per_node,
)

_log = logging.getLogger(__name__)

# What may be given with resume=RUN: where things are now, who is trusted. All else is as it was.
WITH_RESUME = ("resume", "trust", "logger", "data.root", "data.cache_dir", "data.workers")


def train(config: DictConfig, overrides: list[str], command: list[str]) -> Path:
    """Train, score and draw one model; returns its run folder.

    The first process composes, and what it writes is what all of them run: a rank that composed for
    itself might end up with another time of day in its run_dir, or another draw of a sweep.

    Args:
        config: conf/train.yaml with `overrides`; command: the command line that result.json records.
    """
    with ExitStack() as claim:

        def make() -> str:
            run_dir = claim.enter_context(_claimed(config, overrides))
            return freeze(config, overrides, command, run_dir)

        text = broadcast_from_rank_zero(make, config.trainer.rank_timeout_minutes)
        frozen = DictConfig(OmegaConf.create(text))
        processes = count_devices(frozen.trainer.accelerator, frozen.trainer.devices)
        if cluster_environment() or processes == 1:
            run_job(frozen)
        else:
            _start_processes(frozen, processes)
    return Path(frozen.run_dir)


def freeze(config: DictConfig, overrides: list[str], command: list[str], run_dir: Path) -> str:
    """The config of the run with every reference resolved, as yaml. A new run's folder gets it as
    config.yaml, and its first result.json; that of a resumed run stays as it is until it goes on.
    """
    if _extends(config, overrides):
        return _freeze_longer(config, overrides, command, run_dir)
    if config.resume is not None:
        checkpoint = last_checkpoint(run_dir)  # none if the run was killed before its first
        config = _resumed(config, overrides, run_dir)
        _place(config)
        step = _step_of(checkpoint) if checkpoint else "0: it has no checkpoint"
        _log.info(f"{run_dir} goes on from step {step}")
        return to_yaml(config)
    config.run_dir = str(run_dir)
    _check_one(config, overrides)
    config = freeze_config(config)
    _place(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    result = RunResult(status="running", overrides=overrides, command=command, seed=config.seed)
    result.versions, result.commit = package_versions(), package_commit(changes=True)
    write_result(run_dir / "result.json", result)  # first: a folder with a config has a result
    atomic_write(run_dir / "config.yaml", text)
    return text


def _extends(config: DictConfig, overrides: list[str]) -> bool:
    """Whether this is a new run that goes on from a finished one, longer than that."""
    if config.resume is None or read_result(Path(config.resume) / "result.json").status != (
        "finished"
    ):
        return False
    return any(is_given(name, overrides) for name in LENGTH)


def _freeze_longer(
    config: DictConfig, overrides: list[str], command: list[str], run_dir: Path
) -> str:
    """As `freeze`, for a new run that goes on from the finished run `config.resume`: that run's
    config with another length. The new folder begins with its checkpoint and its curves.
    """
    parent = Path(config.resume)
    before = read_result(parent / "result.json")
    described, checkpoint = read_parent(parent)
    longer = _resumed(config, overrides, run_dir)
    check_longer(longer, described, str(parent))
    _place(longer)
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
    start_from(parent, run_dir, checkpoint)  # before config.yaml, which makes a folder a run
    write_result(run_dir / "result.json", result)
    atomic_write(run_dir / "config.yaml", text)
    _log.info(
        f"{run_dir} is a new run that goes on from step {described['step']} of {parent}; its "
        "learning rate follows the schedule of the new length from there"
    )
    return text


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _step_of(last: Path) -> int:
    """The step at which a run goes on. Where last.ckpt is damaged, or its weights are not finite,
    the error offers best.ckpt.
    """
    try:
        return int(load_sound(last)["global_step"])
    except UserError as error:
        best = last.with_name("best.ckpt")
        try:
            step = load_sound(best)["global_step"]
        except UserError:
            raise error from None
        fault = "has weights that are not finite" if "not finite" in str(error) else "is damaged"
        raise UserError(
            f"{last} {fault}, best.ckpt of step {step} is sound: to go on from there, "
            f"cp {shlex.quote(str(best))} {shlex.quote(str(last))}"
        ) from error


@contextmanager
def _claimed(config: DictConfig, overrides: list[str]) -> Iterator[Path]:
    """The run folder, which no other process writes to until the end of the block.

    A default name that another run has taken in the same second gets a number. A new folder with a
    default name, in which nothing has begun, is removed when the block fails.
    """
    if config.resume is not None:
        load_run_config(config.resume, trust=config.trust)  # is it a run?
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
    """Whether its training has begun, which writes the digest of its config."""
    file = run_dir / "result.json"
    return file.is_file() and read_result(file).config_sha256 is not None


def _forget_copies(run_dir: Path, given: bool, error: BaseException) -> None:
    """Remove what a new run has copied from its parent, since it does not begin; and its folder,
    unless the user has named it.
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
    """`run_dir`, made; where the name was not given, one that no other run has."""
    there = next(
        folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"run_dir={run_dir} cannot be written, since {there} takes no new folder: give another "
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
    """A folder in which no training began, and the folder of its day if that is empty now."""
    for file in run_dir.glob("*"):
        if file.is_file():
            file.unlink()
    for folder in (run_dir / "tensorboard", run_dir / "checkpoints", run_dir, run_dir.parent):
        try:
            folder.rmdir()
        except OSError:  # there is something else in it, or it is not there
            continue


def _start_processes(frozen: DictConfig, processes: int) -> None:
    """Run the frozen config in so many processes of this machine."""
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
    """Of an experiment's grid, one point must be named: else it is a sweep."""
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    free = [name for name in config.sweep.grid if name not in given]
    if free:
        raise UserError(
            f"this experiment is a grid over {', '.join(config.sweep.grid)}: add -m to run all of it, or give one "
            f"value each, {' '.join(typed(name, config.sweep.grid[name][0]) for name in free)}"
        )


def _place(config: DictConfig) -> None:
    """Where torchrun or srun has started the processes, their number is what counts."""
    environment = cluster_environment()
    if environment is not None:
        config.trainer.devices, config.trainer.num_nodes = processes_per_node(environment)
    elif config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes} needs a launcher on each machine: start the "
            "command with torchrun or srun (docs/guide/gpus.md)"
        )
    count_devices(
        config.trainer.accelerator, config.trainer.devices
    )  # a mistake is told before anything is written


def _ended(run_dir: Path, status: str, error: str | None = None) -> None:
    """For processes that could not write it themselves."""
    result = read_result(run_dir / "result.json")
    if result.status == "running":
        result.status, result.error = status, error
        write_result(run_dir / "result.json", result)


def _check_new(run_dir: Path) -> None:
    """A run that failed before its first checkpoint has left nothing that would be lost."""
    if not (run_dir / "config.yaml").exists():
        return
    file = run_dir / "result.json"
    failed = file.is_file() and read_result(file).status == "failed"
    if not failed or last_checkpoint(run_dir) is not None:
        raise UserError(
            f"run_dir={run_dir} has a run: continue it with {typed('resume', run_dir)}, or give "
            "another run_dir"
        )


def _check_record(run_dir: Path, result: RunResult) -> None:
    """A run goes on with the config and the curves that it had."""
    if fault := config_fault(read_run_config(run_dir), result):
        raise UserError(
            f"{run_dir} cannot go on: {fault}; copy it back from where it is sound, or start a new "
            "run with other options"
        )
    if fault := file_fault(run_dir / "metrics.csv", result):
        raise UserError(
            f"{fault}; copy it back from where it is sound, or move it away: the run then goes on "
            "with a new one"
        )


def _resumed(typed_config: DictConfig, overrides: list[str], run_dir: Path) -> DictConfig:
    """The config of a run that is to go on in `run_dir`, with what was typed beside `resume=`."""
    source = str(typed_config.resume)
    longer = _extends(typed_config, overrides)
    config = load_run_config(source, trust=typed_config.trust)
    _check_record(Path(source), read_result(Path(source) / "result.json"))
    _check_beside_resume(typed_config, overrides, config)
    if Path(config.run_dir).resolve() != run_dir.resolve():
        config = relocate(config, str(run_dir))
    for name in ("root", "cache_dir", "workers"):
        if is_given(f"data.{name}", overrides):
            config.data[name] = typed_config.data[name]
    for name in LENGTH if longer else ():
        if is_given(name, overrides):
            OmegaConf.update(config, name, OmegaConf.select(typed_config, name))
    # A file does not start loggers: they are those of conf/logger, or what was typed.
    chosen = [text for text in overrides if text.startswith("logger")]
    OmegaConf.set_struct(config, False)
    config.logger = compose("train", [*chosen, assign("run_dir", run_dir)]).logger
    OmegaConf.resolve(config)
    return config


def _check_beside_resume(
    typed_config: DictConfig, overrides: list[str], config: DictConfig
) -> None:
    """Raise UserError for an option that may not be given with `resume=`, and for a run that has
    nothing left to do. `config` is the run's own.
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
            f"{source} is finished, nothing is left to resume: for more {unit}, in a new run that "
            f"goes on from it, add trainer.{unit}={2 * reached}"
        )
    if others and _name(others[0]) in LENGTH:
        raise UserError(
            f"{source} has not finished, so it goes on as it was configured: leave out {others[0]}, "
            "which a finished run takes"
        )
    if others:
        raise UserError(
            f"resume continues a run as it was configured, so {others[0]} cannot be given with it "
            f"(only {', '.join(allowed[1:])} can): for another configuration start a new run"
        )
