"""`train`: freeze the config into a run folder, then let its processes run it (run.py)."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import load_run_config
from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.launch.processes import start
from maskrcnn_lit.launch.run import run_job
from maskrcnn_lit.runs.folder import again, check_idle, moved, settle
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.training.checkpoint import last_checkpoint, load_plain
from maskrcnn_lit.training.devices import count_devices
from maskrcnn_lit.training.processes import from_first, launched, per_machine


def train(config: DictConfig, overrides: list[str], command: list[str]) -> None:
    """Train, score and draw one model; `config` is that of conf/train.yaml with `overrides`.

    `command` is the command line that result.json records.

    The first process composes, and what it writes is what all of them run: a rank that composed for
    itself might end up with another time of day in its run_dir, or another draw of a sweep.
    """
    frozen = DictConfig(OmegaConf.create(from_first(lambda: freeze(config, overrides, command))))
    processes = (
        1 if launched() else count_devices(frozen.trainer.accelerator, frozen.trainer.devices)
    )
    if processes == 1:
        run_job(frozen)
        return
    try:
        start(Path(frozen.run_dir), processes)
    except KeyboardInterrupt as error:
        _ended(Path(frozen.run_dir), "interrupted")
        raise KeyboardInterrupt(again(frozen.run_dir)) from error
    except UserError as error:
        _ended(Path(frozen.run_dir), "failed", str(error))
        raise


def freeze(config: DictConfig, overrides: list[str], command: list[str]) -> str:
    """Write config.yaml, every reference resolved, and the first result.json; the text of
    config.yaml.
    """
    if config.resume is not None:
        check_idle(Path(config.resume))
        checkpoint = last_checkpoint(
            config.resume
        )  # none if the run was killed before its first: it begins anew
        config = _resumed(config.resume, overrides)
        step = (
            load_plain(checkpoint)["global_step"] if checkpoint else "0: it has no checkpoint yet"
        )
        print(f"{config.run_dir} goes on from step {step}")
        result = read_result(Path(config.run_dir) / "result.json")
    else:
        check_whole(0, seed=config.seed)
        _check_new(Path(config.run_dir))
        _check_one(config, overrides)
        config = settle(config)
        result = RunResult(status="running", overrides=overrides, command=command, seed=config.seed)
    _place(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    result.status, result.error = "running", None
    result.versions, result.commit = package_versions(), package_commit(changes=True)
    # first: a folder with a config has a result
    write_result(Path(config.run_dir) / "result.json", result)
    atomic_write(Path(config.run_dir) / "config.yaml", text)
    return text


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
    environment = launched()
    if environment is not None:
        config.trainer.devices, config.trainer.num_nodes = per_machine(environment)
    elif config.trainer.num_nodes != 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes} needs torchrun on each machine, or srun: README, "
            '"Many GPUs, many machines"'
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
    there = next(
        folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"run_dir={run_dir} cannot be written, since {there} takes no new folder: give another run_dir"
        )
    if not (run_dir / "config.yaml").exists():
        return
    failed = (run_dir / "result.json").is_file() and read_result(
        run_dir / "result.json"
    ).status == "failed"
    if not failed or last_checkpoint(run_dir) is not None:
        raise UserError(
            f"run_dir={run_dir} holds a run: continue it with {typed('resume', run_dir)}, or give another run_dir"
        )


def _resumed(source: str, overrides: list[str]) -> DictConfig:
    """The config of a run that is to go on."""
    others = [text for text in overrides if not text.startswith("resume=")]
    if others:
        raise UserError(
            f"resume continues a run as it was configured, so {others[0]} cannot be given with it; "
            "for another configuration start a new run"
        )
    config = load_run_config(source)
    if read_result(Path(source) / "result.json").status == "finished":
        raise UserError(
            f"{source} is finished, nothing is left to resume; for more epochs start a new run"
        )
    if Path(config.run_dir).resolve() != Path(source).resolve():
        config = moved(config, str(source))
    return config
