"""The provenance of a run: versions, commit, machine, data."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import maskrcnn_lit
from maskrcnn_lit.data.coco.fingerprint import fingerprint
from maskrcnn_lit.data.coco_data import CocoData
from maskrcnn_lit.evaluation.baseline import ids_digest
from maskrcnn_lit.training.devices import device_name

DIFF_CHARACTERS = 100_000  # maximum length of the stored diff

UNTRACKED_FILES = 100  # maximum number of stored names

_SOURCES = (".py", ".yaml", ".yml", ".toml", ".sh", ".cpp", ".cu")

_PACKAGES = {
    **{
        name: name
        for name in ("torch", "torchvision", "lightning", "pycocotools", "numpy", "pillow")
    },
    "hydra": "hydra-core",
}


COMMIT = "MASKRCNN_LIT_COMMIT"  # environment variable with the commit of a copy without .git


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of packages that affect the numbers."""
    versions = {name: metadata.version(package) for name, package in _PACKAGES.items()}
    versions["torch"] = str(torch.__version__)  # includes its CUDA version
    return {
        "python": platform.python_version(),
        "maskrcnn_lit": maskrcnn_lit.__version__,
    } | versions


def package_commit(folder: Path | None = None, *, changes: bool = False) -> dict[str, Any] | None:
    """{"hash", "dirty"} of the checkout that the code runs from; None if the code is not in a
    commit.

    dirty: whether a file of the checkout, except ignored ones, differs from the commit. None if
    unknown: a copy without .git, with its commit from the environment (`COMMIT`).
    folder: of the code; by default that of this package. An installed copy inside another checkout
    (in its .venv) is not tracked there, and has no commit.
    changes: include the changes. "diff" is `git diff HEAD`, cut to DIFF_CHARACTERS with a note;
    uncut, `git apply` accepts it. "untracked" are the names of at most UNTRACKED_FILES untracked
    source files.
    """
    folder = folder or Path(maskrcnn_lit.__file__).parent
    head, top = _git(folder, "rev-parse", "HEAD"), _git(folder, "rev-parse", "--show-toplevel")
    if not head or not top or not _git(folder, "ls-files", "__init__.py"):
        named = os.environ.get(COMMIT)
        return {"hash": named, "dirty": None} if named else None
    checkout = Path(top.strip())
    status = _git(checkout, "status", "--porcelain")
    if status is None:
        return None
    commit = {"hash": head.strip(), "dirty": bool(status)}
    return commit | _changes(checkout) if changes else commit


def _changes(checkout: Path) -> dict[str, Any]:
    diff = _git(checkout, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    if len(diff) > DIFF_CHARACTERS:
        diff = (
            f"{diff[:DIFF_CHARACTERS]}\n[cut: the first {DIFF_CHARACTERS} of {len(diff)} "
            "characters]\n"
        )
    others = (_git(checkout, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    names = sorted(name for name in others if name.endswith(_SOURCES))
    if len(names) > UNTRACKED_FILES:
        names = [
            *names[:UNTRACKED_FILES],
            f"[cut: the first {UNTRACKED_FILES} of {len(names)} names]",
        ]
    return {"diff": diff, "untracked": names}


def describe_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """The `machine` of result.json: the device by name, the processes of the run on all machines,
    the threads of each, and the GPUs of this machine with their driver, or None on the CPU.
    """
    machine: dict[str, Any] = {
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        driver = (
            _printed(
                Path.cwd(), "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            )
            or ""
        )
        built = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        machine["gpu"] = {
            "names": names,
            "count": len(names),
            "driver": next(iter(driver.split()), None),
            **built,
        }
    return machine


def describe_data(
    *,
    name: str,
    subset_ids: Mapping[str, Sequence[int]],
    categories: Sequence[tuple[int, str]],
    fingerprints: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The `data` of result.json: for each split the number of images, a digest of their ids and its
    entry in `fingerprints`; and the categories.

    subset_ids: {"train": image ids, "val": image ids}. The digest is computed on the ids in
    ascending order, so it depends only on the set of images.
    """
    splits = {
        split: {
            "images": len(ids),
            "ids_sha256": ids_digest(ids),
            **(fingerprints or {}).get(split, {}),
        }
        for split, ids in subset_ids.items()
    }
    return {
        "name": name,
        **splits,
        "categories": [[int(number), title] for number, title in categories],
    }


def describe_datamodule(data: CocoData) -> dict[str, Any]:
    """`describe_data` of a data module that has read its annotations."""
    parts = {"train": data.train_index, "val": data.val_index}
    return describe_data(
        name=data.name,
        subset_ids=data.subset_ids(),
        categories=data.categories,
        fingerprints={
            part: fingerprint(index) for part, index in parts.items() if index is not None
        },
    )


def changed_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted names of digests and counts that differ between two `describe_data`. Entries
    missing in the older one are not compared.
    """
    changed = []
    for part in ("train", "val"):
        old, new = before.get(part) or {}, now.get(part) or {}
        changed += [f"{part}.{key}" for key in old if key in new and old[key] != new[key]]
    if "categories" in before and before["categories"] != now.get("categories"):
        changed.append("categories")
    return changed


def _git(folder: Path, *arguments: str) -> str | None:
    return _printed(folder, "git", *arguments)


def _printed(folder: Path, *command: str) -> str | None:
    """The output of a program, or None if it is not installed or fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
