"""The one record between a run and a report: result.json of the run folder.

`status` is "running" from the start of the run, so that a killed run is seen for what it is, and then
"finished", "failed" or "interrupted".
"""

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import maskrcnn_lit
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.cost import device_name
from maskrcnn_lit.files import write_json

STATUSES = ("running", "finished", "failed", "interrupted")
DIFF_CHARACTERS = 100_000  # of the changes to a commit that a result keeps
UNTRACKED_FILES = 100  # names of them that it keeps
_SOURCES = (".py", ".yaml", ".yml", ".toml", ".sh", ".cpp", ".cu")
_PACKAGES = {
    **{name: name for name in ("torch", "torchvision", "lightning", "pycocotools", "numpy", "pillow")},
    "hydra": "hydra-core",
}


@dataclass
class RunResult:
    """What is known of a run.

    error: why it failed; config_sha256: of its config, see `training.module.config_digest`.
    metrics: by logged name (val/box_ap, val/mask_ap, val/roi_accuracy, ...); NaN is null in the file.
    intervals: of val/box_ap and val/mask_ap, 95 % (bootstrap over images); None where the images hold no object.
    overrides: what the user typed after the verb; command: the whole command line.
    versions: see `package_versions`; commit: see `package_commit`, with changes; machine: see `describe_machine`;
    data: see `describe_data`.
    cost: see `run_cost` and, of a run that has finished, `inference_cost` in `maskrcnn_lit.evaluation.cost`.
    """

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    commit: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    error: str | None = None
    config_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; expected one of {', '.join(STATUSES)}")


def write_result(path: Path, result: RunResult) -> None:
    """Write result.json: the file is complete or as it was before."""
    write_json(path, asdict(result))


def read_result(path: Path) -> RunResult:
    """Read result.json; a metric that is null comes back as NaN. UserError if there is none or it is no
    result."""
    try:
        values = json.loads(path.read_text())
        known = {f.name: values[f.name] for f in fields(RunResult) if f.name in values}
        known["metrics"] = {k: math.nan if v is None else v for k, v in known.get("metrics", {}).items()}
        return RunResult(**known)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; give the folder of a run") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the result of a run ({error}); give the folder of a run") from None


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that the numbers depend on."""
    found = {name: metadata.version(package) for name, package in _PACKAGES.items()}
    found["torch"] = str(torch.__version__)  # says which CUDA it was built for, too
    return {"python": platform.python_version(), "maskrcnn_lit": maskrcnn_lit.__version__} | found


def package_commit(folder: Path | None = None, *, changes: bool = False) -> dict[str, Any] | None:
    """{"hash", "dirty"} of the checkout that the code runs from; None where the code is in no commit.

    dirty: a file of the checkout, other than ignored ones, differs from the commit.
    folder: of the code; by default this package's own. An installed copy that merely lies in somebody's checkout (a
        .venv in it) is not tracked there, and has no commit.
    changes: tell these, too. "diff" is `git diff HEAD`, no more than DIFF_CHARACTERS of it and a note; whole, it is for
        `git apply`. "untracked" are the names of source files that git does not know, UNTRACKED_FILES at most.
    """
    folder = folder or Path(maskrcnn_lit.__file__).parent
    head, top = _git(folder, "rev-parse", "HEAD"), _git(folder, "rev-parse", "--show-toplevel")
    if not head or not top or not _git(folder, "ls-files", "__init__.py"):
        return None
    checkout = Path(top.strip())
    status = _git(checkout, "status", "--porcelain")
    if status is None:
        return None
    commit = {"hash": head.strip(), "dirty": bool(status)}
    return commit | _changes(checkout) if changes else commit


def _changes(checkout: Path) -> dict[str, Any]:
    diff = _git(checkout, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    if len(diff) > DIFF_CHARACTERS:
        diff = f"{diff[:DIFF_CHARACTERS]}\n[cut: the first {DIFF_CHARACTERS} of {len(diff)} characters]\n"
    others = (_git(checkout, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    names = sorted(name for name in others if name.endswith(_SOURCES))
    if len(names) > UNTRACKED_FILES:
        names = [*names[:UNTRACKED_FILES], f"[cut: the first {UNTRACKED_FILES} of {len(names)} names]"]
    return {"diff": diff, "untracked": names}


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """The `machine` of result.json: the device by name, the processes of the run on all machines, the threads of each,
    and the GPUs of this machine with their driver, or None where the run is on the CPU."""
    found: dict[str, Any] = {
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        driver = _printed(Path.cwd(), "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
        built = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found["gpu"] = {"names": names, "count": len(names), "driver": next(iter(driver.split()), None), **built}
    return found


def describe_data(
    *,
    name: str,
    subset_ids: Mapping[str, Sequence[int]],
    categories: Sequence[tuple[int, str]],
    fingerprints: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The `data` of result.json: of each split the number of images, a digest of their ids and, of `fingerprints`, what
    else tells it from others (data/fingerprint.py); and the categories.

    subset_ids: {"train": image ids, "val": image ids}. The digest is that of the ids in ascending order, so that it is
        the same for the same choice of images.
    """
    splits = {
        split: {"images": len(ids), "ids_sha256": ids_digest(ids), **(fingerprints or {}).get(split, {})}
        for split, ids in subset_ids.items()
    }
    return {"name": name, **splits, "categories": [[int(number), title] for number, title in categories]}


def ids_digest(ids: Collection[int]) -> str:
    """SHA-256 of the image ids, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(map(int, ids))).encode()).hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    return _printed(folder, "git", *arguments)


def _printed(folder: Path, *command: str) -> str | None:
    """What a program prints, or None where there is none, or it fails: no checkout, no right to read it."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
