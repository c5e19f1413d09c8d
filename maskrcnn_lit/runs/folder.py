"""A run folder: its config as it is frozen, who may write to it, and result.json, which is true at
any time.
"""

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
from maskrcnn_lit.runs.result import RunResult, file_digests, read_result, write_result
from maskrcnn_lit.storage.files import locked
from maskrcnn_lit.storage.sources import join
from maskrcnn_lit.training.checkpoint import last_checkpoint
from maskrcnn_lit.training.processes import is_rank_zero


def output_folder(run: str | None, run_dir: str | None, kind: str) -> Path:
    """Where a verb writes: `run_dir`, or else a new folder under `kind` in the run; in outputs/
    where there is not a run folder, but a checkpoint or nothing.
    """
    if run_dir is not None:
        return Path(run_dir)
    home = Path(run) if run is not None and Path(run).is_dir() else Path("outputs")
    return home / kind / time.strftime("%Y-%m-%d_%H-%M-%S")


def check_output_folder(folder: str | None, *, overwrite: bool, option: str = "run_dir") -> None:
    """Raise UserError where `folder`, given as `option`, is not a folder, or holds files that might
    be overwritten. None: the command chooses a new one.
    """
    if folder is None:
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"{option}={folder} is a file: give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"{option}={folder} has files already: give another folder, or add overwrite=true"
        )


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that was made for what did not come, and those around it that are empty then:
    at most the kind of output, and outputs/.
    """
    with suppress(OSError):
        for empty in (folder, folder.parent, folder.parent.parent):
            empty.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and those around it that are not there, from the inside."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def check_output_file(file: str | None, *, overwrite: bool, option: str = "out") -> None:
    """Raise UserError where `file`, given as `option`, is there already, or is a folder."""
    if file is None:
        return
    if Path(file).is_dir():
        raise UserError(f"{option}={file} is a folder: give a file")
    if Path(file).exists() and not overwrite:
        raise UserError(
            f"{option}={file} is there already: give another file, or add overwrite=true"
        )


def new_output_folder(run: str | None, run_dir: str | None, kind: str) -> Path:
    """As `output_folder`; a folder that is not given is made here, under a name that no other
    process has.
    """
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


LOCK = ".lock"  # of a run folder: held by the process that trains


def freeze_config(config: DictConfig) -> DictConfig:
    """`config` as a run freezes it: what other options refer to is set, and what only a sweep reads
    is gone.
    """
    plain = OmegaConf.masked_copy(
        config, [str(name) for name in config if name not in (*FOR_SWEEPS, "trust", "question")]
    )
    plain.data.root = join(
        Path.cwd(), plain.data.root or "."
    )  # resumed from elsewhere, it finds its data
    for name, value in {"norm": "frozen", "freeze_at": 2}.items():
        if plain.model.weights not in (None, "none") and plain.backbone.get(name) == "auto":
            plain.backbone[name] = (
                value  # as where the backbone alone is pretrained; model.backbone refers to it
            )
    return plain


def relocate(config: DictConfig, run_dir: str) -> DictConfig:
    """Where a run's config writes into its run folder, it writes into `run_dir`."""
    before = str(config.run_dir)

    def place(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: place(value) for key, value in node.items()}
        inside = isinstance(node, str) and (node == before or node.startswith(f"{before}/"))
        return f"{run_dir}{node[len(before) :]}" if inside else node

    for name in ("run_dir", "callbacks", "logger"):
        config[name] = place(to_dict(config)[name])
    return config


def resume_hint(run_dir: str | Path) -> str:
    return f"go on with {program('maskrcnn-lit')} train {typed('resume', run_dir)}"


def watch_command(run_dir: str | Path) -> str:
    """How to start TensorBoard, which names runs by their path from its folder: from the folder
    around the run, so that the run has its name, unless that is the working directory or around it.
    """
    folder = Path(run_dir).parent
    around = Path.cwd().is_relative_to(folder.resolve())
    return f"{program('tensorboard')} --logdir {shlex.quote(str(run_dir if around else folder))}"


def program(name: str) -> str:
    """How to start a program of this environment from here: by its name, or by its path where it is
    not activated.
    """
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    )


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """One process at a time trains in a run folder (of several that train together, the first
    stands for all).
    """
    if not is_rank_zero():
        yield
        return
    with locked(run_dir / LOCK, wait=False) as free:
        if not free:
            raise UserError(
                f"{run_dir} is being trained by another process: wait until it has ended"
            )
        yield


@contextmanager
def record_status(run_dir: Path) -> Iterator[RunResult]:
    """result.json, true at any time: running, then finished, interrupted or failed, and why. The
    first process writes it, and whichever fails; the first to fail has the last word, since it ends
    the others.
    """
    file = run_dir / "result.json"
    result = read_result(file) if is_rank_zero() else RunResult(status="running")
    try:
        yield result
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes one of the other
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
    result.status = "finished"
    if is_rank_zero() and read_result(file).status != "failed":
        result.files = file_digests(run_dir)
        write_result(file, result)


def _record_end(file: Path, result: RunResult) -> None:
    """Write it, unless another process was the first to fail. Where the disk takes nothing more,
    the reason for that is on its way to the user.
    """
    with suppress(OSError):
        if read_result(file).status != "failed":
            result.files = file_digests(file.parent)
            write_result(file, result)
