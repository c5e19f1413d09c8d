"""`maskrcnn-lit reproduce`: run a finished run again in a new folder, and list the differences."""

import hashlib
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.config.overrides import flat, typed
from maskrcnn_lit.config.stored import load_run_config, read_run_config
from maskrcnn_lit.errors import UserError, check_within
from maskrcnn_lit.export.runtime import refuse_exported
from maskrcnn_lit.launch.run import read_data
from maskrcnn_lit.runs.folder import output_folder, relocate, resume_hint
from maskrcnn_lit.runs.parent import read_parent, start_from
from maskrcnn_lit.runs.provenance import (
    describe_datamodule,
    describe_machine,
    package_commit,
    package_versions,
)
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.storage.files import atomic_write, config_digest, without_nan, write_json
from maskrcnn_lit.terminal.table import text_table
from maskrcnn_lit.training.devices import resolve_accelerator
from maskrcnn_lit.training.ranks import cluster_environment

# if sums may differ: two threads instead of one changed the demo's mask AP by 0.019
TOLERANCE = 0.03

TIMES = ("val/evaluation_seconds",)  # metrics that differ in any two runs


class Difference(NamedTuple):
    """A difference between two result.json: the dotted name, the value in the run, the value now
    (None: missing).
    """

    name: str
    run: Any
    now: Any


def run(config: DictConfig, overrides: list[str]) -> int:
    """Run `config.run` again and compare. Return 0 if the metrics agree within the tolerance, else
    1; if the new run fails, return its exit code.
    """
    if config.tolerance is not None:
        check_within(0, math.inf, tolerance=config.tolerance)
    if cluster_environment() is not None:
        raise UserError(
            "reproduce starts the processes of the run itself: leave out torchrun or srun"
        )
    refuse_exported(config.run, "run")
    frozen = load_run_config(config.run, trust=config.trust)
    before = read_result(Path(config.run) / "result.json")
    if before.status != "finished":
        raise UserError(
            f"{config.run} is {before.status} and has no final metrics: give the folder of a "
            "finished run"
        )
    folder = output_folder(
        None, config.run_dir, "reproductions"
    )  # inside the run it would join the run's sweep
    _say_before(config.run, before, frozen, config.other_data)
    frozen = _as_here(relocate(frozen, str(folder)), before.machine)
    if _prepared(folder, frozen, before, config.trust):
        print(f"The same again, in {folder}:", flush=True)
        code = _train(folder, config.trust)
        if code:
            return code
    return _compare(config.run, folder, before, config.tolerance)


def origin(result: RunResult) -> dict[str, Any]:
    """All inputs of the metrics except the config, by dotted name."""
    parts = {name: getattr(result, name) for name in ("commit", "versions", "machine", "data")}
    return {name: value for name, value in flat(parts) if not isinstance(value, dict)}


def differing(run: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The differences, in the order of `run`. NaN equals NaN."""
    names = [*run, *(name for name in now if name not in run)]
    pairs = [Difference(name, run.get(name), now.get(name)) for name in names]
    return [pair for pair in pairs if without_nan(pair.run) != without_nan(pair.now)]


def distance(run: float | None, now: float | None) -> float:
    """The difference of two values of a metric, relative to the larger if that is above 1; infinite
    if one is missing.
    """
    if run is None or now is None or math.isnan(run) != math.isnan(now):
        return math.inf
    return 0.0 if run == now or math.isnan(run) else abs(run - now) / max(1.0, abs(run), abs(now))


def _say_before(run: str, before: RunResult, frozen: DictConfig, other_data: bool) -> None:
    """Print the differences that exist before the run; raise UserError if the data differ, unless
    `other_data`.
    """
    threads = before.machine.get("threads")
    if threads:  # for equal sums; child processes inherit it
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    kind = resolve_accelerator(frozen.trainer.accelerator, 1)
    here = RunResult(
        status="running",
        versions=package_versions(),
        commit=package_commit(changes=True),
        machine=describe_machine(
            torch.device("cuda", 0) if kind == "gpu" else torch.device("cpu"), _processes(before)
        ),
        data=describe_datamodule(read_data(frozen.copy())),
    )
    differences = differing(origin(before), origin(here))
    digest = config_digest(read_run_config(run))
    if digest != before.config_sha256:
        differences.insert(0, Difference("config_sha256", before.config_sha256, digest))
    message = (
        f"differs:\n{_table(differences)}"
        if differences
        else "is unchanged: config, commit, versions, machine and data"
    )
    print(f"Compared with {run}, this {message}\n")
    changed = [
        pair.name for pair in differences if pair.name.startswith("data.") and pair.run is not None
    ]
    if changed and not other_data:
        raise UserError(
            f"the data differ from those of {run} ({', '.join(changed)}): restore them, or add "
            "other_data=true to use the present data"
        )


def _processes(before: RunResult) -> int:
    return int(before.machine.get("processes", 1))


def _as_here(frozen: DictConfig, machine: Mapping[str, Any]) -> DictConfig:
    """The config with all processes of the run on this machine."""
    if "processes" in machine:
        frozen.trainer.devices, frozen.trainer.num_nodes = machine["processes"], 1
    return frozen


def _prepared(folder: Path, frozen: DictConfig, before: RunResult, trust: Sequence[str]) -> bool:
    """Write config.yaml and the first result.json if missing; return whether training remains to be
    done.
    """
    if (folder / "config.yaml").exists():
        if to_dict(load_run_config(folder, trust=trust)) != to_dict(frozen):
            raise UserError(
                f"run_dir={folder} contains another run: give a new folder, or that of an "
                "unfinished reproduction"
            )
        return read_result(folder / "result.json").status != "finished"
    parent = _same_parent(before)
    if parent is not None:  # before config.yaml, which makes a folder a run
        start_from(parent[0], folder, parent[1])
    atomic_write(folder / "config.yaml", OmegaConf.to_yaml(frozen))
    begun = RunResult("running", overrides=before.overrides, command=sys.argv, seed=before.seed)
    begun.parent = before.parent
    write_result(folder / "result.json", begun)
    return True


def _same_parent(before: RunResult) -> tuple[Path, dict[str, Any]] | None:
    """The parent run and its last checkpoint; None without a parent.

    Raises:
        UserError: the parent is missing, or its last checkpoint has changed.
    """
    if before.parent is None:
        return None
    folder = Path(str(before.parent.get("run")))
    now, checkpoint = read_parent(folder)
    if now["checkpoint_sha256"] != before.parent.get("checkpoint_sha256"):
        raise UserError(
            f"the run continued {folder}, whose checkpoints/last.ckpt has changed since: restore "
            "the original file"
        )
    return folder, checkpoint


def _train(folder: Path, trust: Sequence[str]) -> int:
    """Run `maskrcnn-lit train resume=FOLDER` as a separate process and return its exit code."""
    resume = shlex.split(typed("resume", folder))
    trusted = [f"trust=[{','.join(trust)}]"] if trust else []
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "maskrcnn_lit", "train", *resume, *trusted]
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted, too, and closes its run
        raise KeyboardInterrupt(resume_hint(folder)) from None
    if code < 0:
        raise UserError(f"the run was killed by signal {-code}; {resume_hint(folder)}")
    return code


def _compare(run: str, folder: Path, before: RunResult, tolerance: float | None) -> int:
    after = read_result(folder / "result.json")
    differences = differing(origin(before), origin(after))
    if tolerance is None:
        elsewhere = any(pair.name.startswith(("versions.", "machine.")) for pair in differences)
        tolerance = TOLERANCE if elsewhere or after.machine["gpu"] is not None else 0.0
    selected = [
        {k: v for k, v in result.metrics.items() if k not in TIMES} for result in (before, after)
    ]
    metrics = sorted(differing(*selected), key=lambda pair: -distance(pair.run, pair.now))
    largest = max((distance(pair.run, pair.now) for pair in metrics), default=0.0)
    equal = largest <= tolerance
    if differences or metrics:
        print(f"\nDifferences between {run} and {folder}:\n{_table([*differences, *metrics])}")
    where = f", of {metrics[0].name}" if metrics else ""
    same, all_ = len(selected[0]) - len(metrics), len(selected[0])
    print(
        f"\n{same} of {all_} metrics are bit-identical; the largest difference is "
        f"{largest:.3g}{where}."
    )
    print(f"{'Reproduced' if equal else 'Not reproduced'}: the tolerance is {tolerance:g}.")
    record = {"run": run, "equal": equal, "tolerance": tolerance, "largest_difference": largest}
    record["differences"] = [pair._asdict() for pair in [*differences, *metrics]]
    write_json(folder / "reproduction.json", record)
    return 0 if equal else 1


def _table(differences: list[Difference]) -> str:
    """A table of the differences, with the numeric difference of numbers."""
    rows = [(pair.name, _short(pair.run), _short(pair.now), _gap(pair)) for pair in differences]
    head = ["", "the run", "now", *["difference"] * any(gap for *_, gap in rows)]
    return "\n".join(text_table(head, rows, text=(0, 1, 2)))


def _gap(pair: Difference) -> str:
    return (
        f"{pair.now - pair.run:+.3g}"
        if isinstance(pair.run, float) and isinstance(pair.now, float)
        else ""
    )


def _short(value: Any) -> str:
    """The value if it is short, else the beginning of its digest."""
    if value is None or value in ("", []):
        return "-" if value is None else "none"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return (
        text
        if len(text) <= 60
        else f"{hashlib.sha256(text.encode()).hexdigest()[:10]} ({len(text)} characters)"
    )
