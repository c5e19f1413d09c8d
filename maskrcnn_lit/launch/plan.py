"""The plan of a sweep, printed before it starts: its jobs, and estimates of their time and
memory.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.config.durations import duration
from maskrcnn_lit.launch.grid import Job
from maskrcnn_lit.terminal.table import text_table

# Time and memory of a step do not depend on these options; jobs that differ in others are of
# different kinds.
_SAME = (("seed",), ("run_dir",), ("evaluation",), ("logger",), ("callbacks",), ("metrics",))

COUNTS = ("train_images", "val_images")

RATE_TEST = 100  # steps of `maskrcnn-lit lr`, in conf/lr.yaml

_SAME_INSIDE = (("trainer", "epochs"), ("trainer", "steps"), ("data", "seed"))


def kind(job: Job) -> str:
    """A digest of the options that affect a step: jobs of one kind need the same time and memory
    per step.
    """
    config = to_dict(job.config)
    for *path, last in (*_SAME, *_SAME_INSIDE):
        node = config
        for name in path:
            node = node[name]
        node.pop(last, None)
    config["optimizer"] = config["optimizer"]["_target_"]  # its state needs memory
    _without_counts(config["data"])
    if isinstance(config["data"].get("prepare"), dict):
        config["data"]["prepare"].pop("seed", None)
        _without_counts(config["data"]["prepare"])
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def _without_counts(data: dict[str, Any]) -> None:
    """Remove image counts, which do not affect a step; `estimate` uses those of the job."""
    for name in COUNTS:
        if data.get(name) is not None:
            data[name] = "as the job says"


def plan_table(jobs: Sequence[Job], missing: Collection[Job], trials: Mapping[str, Any]) -> str:
    """One line for each missing job, one for a rate test of the first of them, and the total of the
    jobs. `trials`: kind -> result of `trial.measure`, or the reason why it is missing.
    """
    rows, total, unknown = [], 0.0, 0
    for job in missing:
        trial = trials.get(kind(job))
        if isinstance(trial, dict):
            seconds, (epochs, steps) = estimate(job, trial), length(job, trial)
            total += seconds
            count = images_of(job, trial, "train_images")
            images = f"{count} images x {epochs:g} epochs = {steps} steps"
            rows.append([job.name, images, duration(seconds), _memory(trial)])
        else:
            unknown += 1
            rows.append(
                [
                    job.name,
                    "not measured" if trial is None else f"the trial failed: {trial}",
                    "?",
                    "?",
                ]
            )
    rows += _rate_test(missing, trials)
    lines = text_table([], rows, text=(0, 1))
    devices = sorted({trial["device"] for trial in trials.values() if isinstance(trial, dict)})
    more = f", and {unknown} of unknown time" if unknown else ""
    message = f"{len(missing)} of {len(jobs)} jobs to run"
    if devices:
        message += f": about {duration(total)}{more} one after the other, "
        message += f"measured on {', '.join(devices)}, without scoring and without the rate test"
    return "\n".join([*lines, message])


def _rate_test(missing: Collection[Job], trials: Mapping[str, Any]) -> list[list[str]]:
    """What `maskrcnn-lit lr` takes for the first job whose kind was measured."""
    for job in missing:
        trial = trials.get(kind(job))
        if isinstance(trial, dict):
            steps = RATE_TEST * trial["accumulate"] * trial["step_seconds"]
            seconds = trial["start_seconds"] + steps
            return [
                [
                    f"maskrcnn-lit lr, as {job.name}",
                    f"{RATE_TEST} steps",
                    duration(seconds),
                    _memory(trial),
                ]
            ]
    return []


def _memory(trial: Mapping[str, Any]) -> str:
    return f"{trial['peak_memory_bytes'] / 1e9:.1f} GB"


def length(job: Job, trial: Mapping[str, Any]) -> tuple[float, int]:
    """Epochs and optimizer steps of the job."""
    trainer = job.config.trainer
    a_step = trial["batch_size"] * trial["processes"] * trial["accumulate"]
    each = -(-images_of(job, trial, "train_images") // a_step)
    limits = [] if trainer.epochs is None else [trainer.epochs * each]
    steps = min([*limits, *([] if trainer.steps is None else [trainer.steps])])
    return steps / each, steps


def images_of(job: Job, trial: Mapping[str, Any], name: str) -> int:
    """The job's value of `name`, one of COUNTS; if it uses all images, the number in the trial."""
    own = job.config.data.get(name)
    return int(trial[name] if own is None else own)


def estimate(job: Job, trial: Mapping[str, Any]) -> float:
    """Estimated seconds of the job: start, training steps and validations."""
    epochs, steps = length(job, trial)
    evaluation, processes = job.config.evaluation, trial["processes"]
    every, images = evaluation.every_n_epochs, images_of(job, trial, "val_images")
    look = images if evaluation.images is None else min(evaluation.images, images)
    seen = look * (math.ceil(epochs) // every)
    if look < images or math.ceil(epochs) % every:  # at the end all images are scored
        seen += images
    validation = seen / (trial["batch_size"] * processes) * trial["validation_step_seconds"]
    return trial["start_seconds"] + steps * trial["accumulate"] * trial["step_seconds"] + validation
