"""The page that says what a run is: its command, how its config differs from that of its
experiment, and digests of its data.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.callbacks.boards import Table
from maskrcnn_lit.config.compose import show, values_of
from maskrcnn_lit.config.overrides import FOR_SWEEPS, flat
from maskrcnn_lit.config.schema import COPIES
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.result import RunResult, read_result

# Options about where and how a run executes. They do not change its result.
MEANS = (
    *("run_dir", "resume", "requeue", "sweep", "launcher", "logger", "callbacks", "evaluation"),
    *(
        "data.root",
        "data.train.",
        "data.val.",
        "data.prepare",
        "data.reader",
        "data.annotations",
        "data.images",
        "data.cache",
        "data.image_cache",
        "data.workers",
    ),
    *("data.download", "data.mirror", "trainer.log_every", "trainer.checkpoint"),
)

# Set by the data, by other options, or read by a sweep alone.
_FOLLOWS = (
    *("model.num_classes", "question", "trust", "experiment"),
    *FOR_SWEEPS,
    *(f"{copy}." for copy in COPIES),
)


def run_page(file: Path, config: Mapping[str, Any]) -> dict[str, Table | str]:
    """Title -> content, of the run with this result.json and resolved config: "command", "commit"
    (with the versions), "changed options" and "data", as far as they are known.
    """
    result = read_result(file) if file.is_file() else RunResult("running")
    page: dict[str, Table | str] = {}
    if result.command:
        page["command"] = shlex.join(result.command)
    if made := made_by(result):
        page["commit"] = made
    default, rows = differences(config, result.overrides)
    page["changed options"] = Table(["option", default, "this run"], rows)
    if parts := data_rows(result.data):
        head = ["data", "images", "image ids", "annotations", "image files"]
        page["data"] = Table(head, parts)
    return page


def made_by(result: RunResult) -> str:
    """The commit of the code, whether it was changed, and versions."""
    texts = []
    if result.commit:
        changed = ", with changes that are not committed" if result.commit.get("dirty") else ""
        texts.append(f"{result.commit.get('hash')}{changed}")
    versions = [f"{name} {result.versions[name]}" for name in sorted(result.versions)]
    return "\n".join([*texts, ", ".join(versions)] if versions else texts)


def differences(
    config: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[str, list[tuple[str, str, str]]]:
    """The experiment among `overrides`, or "default" without one, and option, value there and value
    in `config` of every option that differs, but for MEANS. A value that is not there is "-".
    """
    chosen = [text for text in overrides if text.startswith("experiment=")][-1:]
    try:
        there = values_of(show("train", chosen))
    except UserError:  # a yaml of the user's that this process does not see
        chosen, there = [], values_of(show("train"))
    here = {name: value for name, value in flat(config) if not isinstance(value, dict)}
    rows = []
    for name in [*there, *(name for name in here if name not in there)]:
        ignored = name.startswith((*MEANS, *_FOLLOWS)) or name.rpartition(".")[2].startswith("_")
        if not ignored and there.get(name) != here.get(name):
            rows.append((name, _shown(name, there), _shown(name, here)))
    return (chosen[0] if chosen else "default"), sorted(rows)


def data_rows(data: Mapping[str, Any]) -> list[list[Any]]:
    """Of the `data` of result.json: training and validation images with their digests, of which the
    first twelve digits name a set of data well enough.
    """
    rows = []
    for part in ("train", "val"):
        if described := data.get(part):
            digests = (
                str(described.get(f"{kind}_sha256") or "")[:12]
                for kind in ("ids", "annotations", "images")
            )
            rows.append([f"{data.get('name', '')} {part}", described["images"], *digests])
    return rows


def _shown(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return "-"
    value = values[name]
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
