"""`data.batch_size=auto`: the largest batch that fits into the memory, found by trying.

Each try is a process of its own (batch_probe.py): one that the system kills because the memory is
full has tried a batch that does not fit, and leaves nothing behind. The config of the run has the
number, and the measurements beside it, so a resumed run tries nothing.
"""

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config.compose import build, to_dict
from maskrcnn_lit.config.overrides import assign
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.launch.backends import Command, reason, run
from maskrcnn_lit.storage.sealed import read_sealed_json
from maskrcnn_lit.training.devices import count_devices

AUTO = "auto"

AUTO_OPTIONS = ("data.batch_size", "trainer.accumulate")  # for which a run chooses a number

CHOSEN = "auto_batch.chosen"  # what was measured, in the config of a run

REFERENCE = 16  # images a step, of optimizers without `reference_batch`

KILLED = -9  # the exit code of a process that the system ends where the memory is full

# What a try has measured; see `batch_probe.measure`. A killed one has `fits` and `reason` alone.
Measured = dict[str, Any]

_log = logging.getLogger(__name__)


def choose_batch(config: DictConfig) -> None:
    """Put numbers in place of data.batch_size=auto and trainer.accumulate=auto into the config of a
    run. What was measured for the first goes into `auto_batch.chosen`.

    Raises:
        UserError: not even one image fits, or a try fails for another reason.
    """
    accumulate = config.trainer.accumulate  # its default depends on data.batch_size
    trainer = config.trainer
    processes = count_devices(trainer.accelerator, trainer.devices) * trainer.num_nodes
    reference = int(config.optimizer.get("reference_batch") or REFERENCE)
    if config.data.batch_size == AUTO:
        _prepare_data(config)
        most = config.auto_batch.most or max(1, reference // processes)
        with tempfile.TemporaryDirectory(prefix="maskrcnn_lit_") as folder:
            tries = Tries(config, Path(folder), most, processes)
            config.data.batch_size = tries.largest()
        OmegaConf.update(config, CHOSEN, tries.record(), force_add=True)
    if accumulate == AUTO:
        accumulate = filling(reference, int(config.data.batch_size) * processes)
        images = accumulate * config.data.batch_size * processes
        _log.info(
            f"trainer.accumulate=auto: {plural(accumulate, 'batch', 'batches')} a step, "
            f"{plural(images, 'image')} of optimizer.reference_batch={reference}"
        )
    config.trainer.accumulate = accumulate


def filling(reference: int, images: int) -> int:
    """The number of batches a step, at least 1, with which steps of `images` images a batch, over
    all processes, come nearest to `reference` images.
    """
    return max(1, (2 * reference + images) // (2 * images))


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest size up to `most` that fits, by doubling and bisection; 0: not even 1 does."""
    good, size = 0, 1
    while fits(size):
        good = size
        if good >= most:
            return good
        size = min(2 * good, most)
    bad = size
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


class Tries:
    """The search for the batch size of a run.

    Args:
        folder: for the files of the processes.
        most: no more images than this, nor than each process has training images.
        processes: of the run.
    """

    def __init__(self, config: DictConfig, folder: Path, most: int, processes: int) -> None:
        self.config, self.folder, self.most, self.processes = config, folder, most, processes
        self.measured: dict[int, Measured] = {}

    def largest(self) -> int:
        """Raises: UserError: see `choose_batch`."""
        if not self._fits(1):
            raise UserError(self._too_large())
        self.most = min(self.most, max(1, self.measured[1]["train_images"] // self.processes))
        size = largest(self._fits, self.most)
        _log.info(f"data.batch_size=auto: {size} of at most {plural(self.most, 'image')} a process")
        return size

    def record(self) -> dict[str, Any]:
        """What config.yaml has as `auto_batch.chosen`."""
        one = self.measured[1]
        return {
            "device": one["device"],
            "limit_gb": _gigabytes(one["limit_bytes"]),
            "most": self.most,
            "tries": [_recorded(size, self.measured[size]) for size in sorted(self.measured)],
        }

    def _fits(self, size: int) -> bool:
        if size not in self.measured:
            limit = self.measured[1]["limit_bytes"] if self.measured else None
            measured = self.measured[size] = probe(self.config, self.folder, size, limit)
            _log.info(f"data.batch_size=auto: {_described(size, measured)}")
        return bool(self.measured[size]["fits"])

    def _too_large(self) -> str:
        options, one = self.config.auto_batch, self.measured[1]
        limit = "null" if options.memory_gb is None else options.memory_gb
        return (
            f"data.batch_size=auto: {_described(1, one)}: use a smaller data.image_size than "
            f"{self.config.data.image_size}, a lighter model such as model=mask_rcnn_light, or "
            f"more memory ({assign('auto_batch.memory_gb', limit)}, "
            f"auto_batch.margin={options.margin:g})"
        )


def probe(config: DictConfig, folder: Path, size: int, limit: int | None) -> Measured:
    """Try `size` images in a process of its own.

    Args:
        limit: bytes that the run may use; None: the process finds it out.

    Raises:
        UserError: it fails, but not because of the memory.
    """
    files = {name: folder / f"{size}.{name}" for name in ("yaml", "json", "txt")}
    files["yaml"].write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    words = [sys.executable, "-P", "-m", "maskrcnn_lit.launch.batch_probe"]
    words += [str(files["yaml"]), str(files["json"]), str(size)]
    words += [] if limit is None else [str(limit)]
    code = run(Command(str(size), words, files["txt"]))
    if code == 0:
        return read_sealed_json(files["json"])
    if code == KILLED:
        return {"fits": False, "reason": "the system killed the process"}
    why = reason(code, files["txt"])
    if code == 2:  # a mistake of the user, which the run would report, too
        raise UserError(why)
    raise UserError(
        f"data.batch_size=auto: the try with {plural(size, 'image')} failed ({why}): run it with "
        f"data.batch_size={size}, which shows where"
    )


def _prepare_data(config: DictConfig) -> None:
    """Download or draw the data here, where the user sees the progress."""
    build(OmegaConf.create({**to_dict(config.data), "batch_size": 1})).prepare_data()


def _described(size: int, measured: Measured) -> str:
    if measured["fits"]:
        verb, least = "fits" if size == 1 else "fit", max(measured["peak_bytes"].values())
        why = f"{_gigabytes(least):g} GB"
    else:
        verb, why = "does not fit" if size == 1 else "do not fit", str(measured["reason"])
    limit = measured.get("budget_bytes")
    of = "" if limit is None else f" of {_gigabytes(limit):g} GB"
    return f"{plural(size, 'image')} {verb} ({why}{of})"


def _recorded(size: int, measured: Measured) -> dict[str, Any]:
    peaks = measured.get("peak_bytes", {})
    return {
        "batch_size": size,
        "fits": measured["fits"],
        **({} if measured["fits"] else {"reason": measured["reason"]}),
        "peak_gb": {name: _gigabytes(peak) for name, peak in peaks.items()},
    }


def _gigabytes(count: int) -> float:
    return round(count / 1e9, 3)
