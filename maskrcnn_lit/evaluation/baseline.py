"""What `evaluate ... against=SOURCE` compares with: a run's own evaluation, an evaluation, or any
COCO results json.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.coco.results import read_results
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.storage.sealed import DamagedFileError, read_sealed_json

FILE = "evaluation.json"

DIGEST = "detections_sha256"  # its key for that of the detections.json beside it

MOST_UNREADABLE = 0.1  # share of the images, for `check_same_images`


class Baseline(NamedTuple):
    """results: the COCO results json; evaluation: what evaluation.json says of it, None for a file
    of another tool.
    """

    results: Path
    evaluation: dict[str, Any] | None


def candidate_evaluations(source: Path, checkpoint: str) -> list[Baseline]:
    """The results that `source` stands for, the newest first.

    source: a run folder (its evaluations of the weights `checkpoint`, "best" or "last"), an
        evaluation's folder or evaluation.json, or a COCO results json.

    Raises:
        UserError: a folder without such an evaluation, or an evaluation.json that cannot be read.
    """
    if source.is_dir() and not (source / FILE).is_file():
        files = sorted(
            source.glob(f"evaluations/*/{FILE}"),
            key=lambda file: file.stat().st_mtime_ns,
            reverse=True,
        )
        baselines = [Baseline(file.with_name("detections.json"), _read(file)) for file in files]
        baselines = [
            other
            for other in baselines
            if other.evaluation and other.evaluation.get("checkpoint") == checkpoint
        ]
        if not baselines:
            more = "" if checkpoint == "best" else f" checkpoint={checkpoint}"
            raise UserError(
                f"{source} has no evaluation of its {checkpoint} weights: type `maskrcnn-lit evaluate "
                f"run={source}{more}` first"
            )
        return baselines
    file = source / FILE if source.is_dir() else source
    if file.name == FILE:
        return [Baseline(file.with_name("detections.json"), _read(file))]
    return [Baseline(source, None)]


def baseline_on_same_images(baselines: list[Baseline], image_ids: Collection[int]) -> Baseline:
    """The first of `found` (at least one) that scored these images; of another tool's file nobody
    knows, it is taken.

    Raises:
        UserError: all of them scored other images.
    """
    digest = ids_digest(image_ids)
    for other in baselines:
        if other.evaluation is None or other.evaluation.get("image_ids_sha256") == digest:
            return other
    evaluation = baselines[0].evaluation or {}
    raise UserError(
        f"{baselines[0].results.with_name(FILE)} scored {evaluation.get('images', 'unknown')} images, and here are "
        f"{len(image_ids)}, not the same ones: evaluate both on the same images"
    )


def read_baseline(other: Baseline) -> list[dict[str, Any]]:
    """Its results. UserError: they cannot be read, or are not those that were evaluated."""
    expected = (other.evaluation or {}).get(DIGEST)
    if (
        expected is not None
        and other.results.is_file()
        and file_digest(other.results, "sha256") != expected
    ):
        raise UserError(
            f"{other.results} does not match the checksum of it in {FILE}: it was damaged or edited, "
            "evaluate again"
        )
    return read_results(other.results)


def check_same_images(baselines: list[Baseline], image_ids: Collection[int]) -> None:
    """As `on_same_images`, before anything is scored: `image_ids` are those that may be scored, of
    which some files may turn out to be unreadable, MOST_UNREADABLE of them at most.
    """
    least = (1 - MOST_UNREADABLE) * len(image_ids)
    counts = [other.evaluation.get("images") for other in baselines if other.evaluation is not None]
    known = [count for count in counts if isinstance(count, int)]
    if len(known) < len(baselines) or any(least <= count < len(image_ids) for count in known):
        return
    baseline_on_same_images(baselines, image_ids)


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_sealed_json(file)
    except (OSError, DamagedFileError) as error:
        raise UserError(
            f"{file} is not an evaluation, or damaged ({error}): give an evaluation's folder, or "
            "evaluate again"
        ) from None


def ids_digest(ids: Collection[int]) -> str:
    """SHA-256 of the image ids, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(map(int, ids))).encode()).hexdigest()
