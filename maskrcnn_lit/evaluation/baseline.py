"""The baseline of `evaluate ... against=SOURCE`: an evaluation of a run, or any COCO results
json.
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

DIGEST = "detections_sha256"  # key of the digest of the detections.json beside it

MOST_UNREADABLE = 0.1  # maximum share of images, for `check_same_images`


class Baseline(NamedTuple):
    """results: the COCO results json; evaluation: the content of its evaluation.json, None for a
    file of another tool.
    """

    results: Path
    evaluation: dict[str, Any] | None


def candidate_evaluations(source: Path, checkpoint: str) -> list[Baseline]:
    """The candidate baselines in `source`, newest first.

    source: a run folder (its evaluations of the weights `checkpoint`, "best" or "last"), an
        evaluation's folder or evaluation.json, or a COCO results json.

    Raises:
        UserError: the folder has no such evaluation, or its evaluation.json cannot be read.
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
                f"{source} has no evaluation of its {checkpoint} weights: run `maskrcnn-lit "
                "evaluate "
                f"run={source}{more}` first"
            )
        return baselines
    file = source / FILE if source.is_dir() else source
    if file.name == FILE:
        return [Baseline(file.with_name("detections.json"), _read(file))]
    return [Baseline(source, None)]


def baseline_on_same_images(baselines: list[Baseline], image_ids: Collection[int]) -> Baseline:
    """The first of `baselines` (at least one) on these images; the images of another tool's file
    are unknown, so it is accepted.

    Raises:
        UserError: all of them are on other images.
    """
    digest = ids_digest(image_ids)
    for other in baselines:
        if other.evaluation is None or other.evaluation.get("image_ids_sha256") == digest:
            return other
    evaluation = baselines[0].evaluation or {}
    raise UserError(
        f"{baselines[0].results.with_name(FILE)} scored {evaluation.get('images', 'unknown')} "
        f"images, but these are {len(image_ids)} other images: evaluate both on the same images"
    )


def read_baseline(other: Baseline) -> list[dict[str, Any]]:
    """Read the results. UserError: they cannot be read, or have changed since the evaluation."""
    expected = (other.evaluation or {}).get(DIGEST)
    if (
        expected is not None
        and other.results.is_file()
        and file_digest(other.results, "sha256") != expected
    ):
        raise UserError(
            f"{other.results} does not match its checksum in {FILE}: it was damaged or edited, "
            "evaluate again"
        )
    return read_results(other.results)


def check_same_images(baselines: list[Baseline], image_ids: Collection[int]) -> None:
    """As `baseline_on_same_images`, before scoring: up to a share of MOST_UNREADABLE of `image_ids`
    may turn out to be unreadable.
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
            f"{file} is not an evaluation, or is damaged ({error}): give an evaluation's "
            "folder, or "
            "evaluate again"
        ) from None


def ids_digest(ids: Collection[int]) -> str:
    """SHA-256 of the image ids, independent of their order."""
    return hashlib.sha256(json.dumps(sorted(map(int, ids))).encode()).hexdigest()
