"""A run that goes on with another number of processes takes the same images in each optimizer step.

The order of the images is cut into batches of all processes, and `accumulate` batches make a step.
Each loss is a mean over the samples of such a batch, whatever process they are on. So a batch that
more or fewer processes share has the same gradient. One that is divided into parts, one after the
other, has the mean of their means instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.errors import UserError, check_whole, plural
from maskrcnn_lit.runs.result import read_result
from maskrcnn_lit.training.devices import count_devices


class Division(NamedTuple):
    """How the images of an optimizer step are divided."""

    processes: int
    batch_size: int  # images of a process at once
    accumulate: int  # batches of all processes in a step
    parts: int  # of these batches, one after the other, that divide a batch of the data order

    @property
    def together(self) -> int:
        """Images of a batch of the data order."""
        return self.processes * self.batch_size * self.parts


def keep_step(
    config: DictConfig, run_dir: Path, checkpoint: dict[str, Any] | None, given: dict[str, Any]
) -> str | None:
    """Change `data.batch_size` and `trainer.accumulate` of the config of a resumed run so that its
    processes take as many images in a step as before. Returns a line about the change; None if
    nothing changes.

    Args:
        config: of the run, with the processes with which it goes on.
        checkpoint: from which it resumes; None: it has none.
        given: "batch_size" and "accumulate", if the user gave them.

    Raises:
        UserError: the images of a step cannot be divided like that.
    """
    position = {} if checkpoint is None else checkpoint.get("position") or {}
    own = read_run_config(run_dir) if checkpoint is None else checkpoint["config"]
    before = divided_before(own, position, read_result(run_dir / "result.json").machine)
    after = divided(before, _processes(config.trainer), **given)
    config.data.batch_size, config.trainer.accumulate = after.batch_size, after.accumulate
    limit = own["trainer"].get("limit_train_batches")
    if limit is not None:
        config.trainer.limit_train_batches = limit * after.parts // before.parts
    return None if after == before else describe(before, after)


def divided_before(
    config: Mapping[str, Any], position: Mapping[str, int], machine: Mapping[str, Any]
) -> Division:
    """How a run divided the images of a step.

    Args:
        config: of its last checkpoint, or of the run if it has none.
        position: of that checkpoint, see `checkpoint.Position`; empty without one. An earlier
            version did not write all of it.
        machine: of its result.json.
    """
    size, parts = int(config["data"]["batch_size"]), int(position.get("parts", 1))
    if "together" in position:
        processes = position["together"] // (size * parts)
    else:
        processes = int(machine.get("processes") or _processes(config["trainer"]))
    return Division(processes, size, int(config["trainer"].get("accumulate", 1)), parts)


def _processes(trainer: Mapping[str, Any] | DictConfig) -> int:
    """Of a config's trainer, on all machines."""
    here = count_devices(trainer["accelerator"], trainer["devices"])
    return here * int(trainer.get("num_nodes", 1))


def divided(
    before: Division,
    processes: int,
    batch_size: int | None = None,
    accumulate: int | None = None,
) -> Division:
    """The same images of a step for `processes` processes. By default the number of images of a
    process changes, not that of the batches of a step.

    Raises:
        UserError: the images cannot be divided like that, or not with these options.
    """
    together, wholes = before.together, before.accumulate // before.parts
    choices = [
        Division(processes, together // (processes * parts), wholes * parts, parts)
        for parts in range(1, together // processes + 1)
        if together % (processes * parts) == 0
    ]
    step = (
        f"the {plural(before.processes * before.batch_size * before.accumulate, 'image')} of a "
        f"step, in {plural(wholes, 'batch', 'batches')} of {together}"
    )
    if not choices:
        use = ", ".join(str(n) for n in range(1, together + 1) if together % n == 0)
        raise UserError(
            f"{plural(processes, 'process', 'processes')} cannot divide {step}: use one of {use} "
            "(trainer.devices, or what the launcher starts)"
        )
    for name, value in {"trainer.accumulate": accumulate, "data.batch_size": batch_size}.items():
        if value is None:
            continue
        check_whole(1, **{name.replace(".", "__"): value})
        field = name.partition(".")[2]
        fitting = [choice for choice in choices if getattr(choice, field) == value]
        if not fitting:
            use = ", ".join(str(getattr(choice, field)) for choice in choices)
            raise UserError(
                f"{name}={value} does not divide {step}, for "
                f"{plural(processes, 'process', 'processes')}: use one of {use}"
            )
        choices = fitting
    few = [choice for choice in choices if choice.parts <= before.parts]
    return few[-1] if few else choices[0]


def describe(before: Division, after: Division) -> str:
    """A line about the change."""
    changes = []
    if after.processes != before.processes:
        changes.append(
            f"{plural(after.processes, 'process', 'processes')} in place of {before.processes}"
        )
    if after.batch_size != before.batch_size:
        changes.append(f"data.batch_size={after.batch_size} in place of {before.batch_size}")
    if after.accumulate != before.accumulate:
        changes.append(f"trainer.accumulate={after.accumulate} in place of {before.accumulate}")
    images = plural(after.processes * after.batch_size * after.accumulate, "image")
    line = f"{', '.join(changes)}: a step still has {images}, and the learning rate stays"
    if after.parts > 1:
        line += (
            f"; a loss is the mean over {after.parts} parts of a batch, each with its own number "
            "of samples, so it differs a little from that of the whole batch"
        )
    return line
