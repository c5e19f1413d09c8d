"""The run folder: its frozen config, its lock, and result.json, which is valid at any time."""

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.config.overrides import FOR_SWEEPS, typed
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.result import LOCK, RunResult, file_digests, read_result, write_result
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.storage.files import locked
from maskrcnn_lit.storage.sources import join
from maskrcnn_lit.training.ranks import is_rank_zero


def output_folder(run: str | None, run_dir: str | None, kind: str) -> Path:
    """The output folder of a command: `run_dir`, or else a new folder under `kind` in the run
    folder, or in outputs/ without a run folder.
    """
    if run_dir is not None:
        return Path(run_dir)
    home = Path(run) if run is not None and Path(run).is_dir() else Path("outputs")
    return home / kind / time.strftime("%Y-%m-%d_%H-%M-%S")


def check_output_folder(folder: str | None, *, overwrite: bool, option: str = "run_dir") -> None:
    """Raise UserError if `folder`, the value of `option`, is a file, or contains files and
    `overwrite` is false. None: the command chooses a new folder.
    """
    if folder is None:
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{option}={folder} is a file: give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"{option}={folder} is not empty: give another folder, or add overwrite=true"
        )


def remove_if_empty(folder: Path) -> None:
    """Remove an empty folder, and those around it that are empty then: at most the kind of output,
    and outputs/.
    """
    with suppress(OSError):
        for empty in (folder, folder.parent, folder.parent.parent):
            empty.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and those around it that are not there, from the inside."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def check_output_file(file: str | None, *, overwrite: bool, option: str = "out") -> None:
    """Raise UserError if `file`, the value of `option`, is a folder, or exists and `overwrite` is
    false.
    """
    if file is None:
        return
    if Path(file).is_dir():
        raise UserError(f"{option}={file} is a folder: give a file")
    if Path(file).exists() and not overwrite:
        raise UserError(f"{option}={file} already exists: give another file, or add overwrite=true")


def new_output_folder(run: str | None, run_dir: str | None, kind: str) -> Path:
    """As `output_folder`; a default folder is created under a unique name."""
    wanted = folder = output_folder(run, run_dir, kind)
    number = 1
    while run_dir is None:
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
    return folder
    raise RuntimeError("unreachable")


def freeze_config(config: DictConfig) -> DictConfig:
    """The config as frozen by a run: derived options are set, and options for sweeps are
    removed.
    """
    unset = () if config.get("requeue") else ("requeue",)
    left_out = (*FOR_SWEEPS, "trust", "question", *unset)
    plain = OmegaConf.masked_copy(config, [str(name) for name in config if name not in left_out])
    plain.data.root = join(
        Path.cwd(), plain.data.root or "."
    )  # so that a run resumed from another folder finds its data
    for name, value in {"norm": "frozen", "freeze_at": 2}.items():
        if plain.model.weights not in (None, "none") and plain.backbone.get(name) == "auto":
            plain.backbone[name] = (
                value  # as for a pretrained backbone only; model.backbone refers to it
            )
    return plain


def relocate(config: DictConfig, run_dir: str) -> DictConfig:
    """The config of a run with the paths of its run folder replaced by `run_dir`."""
    before = str(config.run_dir)

    def rebased(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: rebased(value) for key, value in node.items()}
        inside = isinstance(node, str) and (node == before or node.startswith(f"{before}/"))
        return f"{run_dir}{node[len(before) :]}" if inside else node

    for name in ("run_dir", "callbacks", "logger"):
        config[name] = rebased(to_dict(config)[name])
    return config


def resume_hint(run_dir: str | Path) -> str:
    return f"resume with {program('maskrcnn-lit')} train {typed('resume', run_dir)}"


def watch_command(run_dir: str | Path) -> str:
    """How to start TensorBoard, which names runs by their path from its folder: from the folder
    around the run, so that the run has its name, unless that is the working directory or around it.
    """
    folder = Path(run_dir).parent
    around = Path.cwd().is_relative_to(folder.resolve())
    return f"{program('tensorboard')} --logdir {shlex.quote(str(run_dir if around else folder))}"


def program(name: str) -> str:
    """The command for a program of this environment: its name, or its path if the environment is
    not active.
    """
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    )


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Lock the run folder, so that one process at a time trains in it (rank zero, for several
    processes of one run).
    """
    if not is_rank_zero():
        yield
        return
    with locked(run_dir / LOCK, wait=False) as free:
        if not free:
            raise UserError(f"another process is training in {run_dir}: wait until it has ended")
        yield


@contextmanager
def record_status(run_dir: Path) -> Iterator[RunResult]:
    """Record the status in result.json: running, then finished (or pruned, if the block sets it),
    interrupted or failed, with the reason. Rank zero writes it, and any failing rank; the first
    failure is kept, since it ends the other ranks.
    """
    file = run_dir / "result.json"
    result = read_result(file) if is_rank_zero() else RunResult(status="running")
    try:
        yield result
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning converts one into the other
        result.status = "interrupted"
        if is_rank_zero():
            _record_end(file, result)
        raise KeyboardInterrupt(resume_hint(run_dir)) from error
    except BaseException as error:
        result = result if is_rank_zero() else read_result(file)
        result.status, result.error = "failed", f"{type(error).__name__}: {error}"
        _record_end(file, result)
        if isinstance(error, OSError) and last_checkpoint(run_dir) is not None:
            error.add_note(resume_hint(run_dir))
        raise
    if result.status != "pruned":
        result.status = "finished"
    if is_rank_zero() and read_result(file).status != "failed":
        result.files = file_digests(run_dir)
        write_result(file, result)


def _record_end(file: Path, result: RunResult) -> None:
    """Write the result, unless another process failed first. A full disk is reported to the user
    elsewhere.
    """
    with suppress(OSError):
        if read_result(file).status != "failed":
            result.files = file_digests(file.parent)
            write_result(file, result)
