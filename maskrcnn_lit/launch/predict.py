"""`predict`: detect objects in images and videos; writes drawn pictures and COCO results."""

import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.evaluation.thresholds import FILE, has_thresholds
from maskrcnn_lit.launch.prediction_files import PredictionFiles, Written
from maskrcnn_lit.predictor import Detections, Predictor, load_model
from maskrcnn_lit.runs.folder import check_output_folder, new_output_folder, remove_if_empty
from maskrcnn_lit.storage.image_inputs import Input, list_inputs
from maskrcnn_lit.storage.video import Clip, VideoInput
from maskrcnn_lit.terminal.progress import Counter

_SOON = 10.0  # seconds before the time left is worth a place in a line


def predict(config: DictConfig) -> None:
    """Detect objects in the images and videos of a source; `config` is conf/predict.yaml, composed.

    Raises: KeyboardInterrupt: what was done until then is in the folder, and the message says so.
    """
    check_output_folder(config.run_dir, overwrite=config.overwrite)
    list_sources = partial(
        list_inputs,
        config.source,
        max_pixels=config.max_pixels,
        page=config.page,
        strips=config.tile is not None,
    )
    inputs = list_sources()  # a missing file is an error before the model is loaded
    model = load_model(
        config.run,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
        trust=config.trust,
        provider=config.provider,
        compile=config.compile,
        tta=config.tta,
        **config.model,
    )
    if model.bits:
        inputs = list_sources(bits=model.bits)
    stream = model.stream(
        inputs,
        track=config.track,
        batch_size=config.batch_size,
        max_pixels=config.max_pixels,
        tile=config.tile,
        overlap=config.overlap,
    )
    folder = new_output_folder(config.run, config.run_dir, "predictions")
    try:
        print(f"score_threshold {_describe_threshold(config, model)}", flush=True)
        _write_all(inputs, stream, PredictionFiles(folder, inputs, draw=config.save))
    except BaseException:
        remove_if_empty(folder)
        raise


def _write_all(
    inputs: Sequence[Input], stream: Generator[Detections, None, None], files: PredictionFiles
) -> None:
    """Draw and list the detections of `stream`."""
    images = sum(not isinstance(source, VideoInput) for source in inputs)
    started, progress = time.perf_counter(), _Progress(len(inputs))

    def noun() -> str:
        return "image" if files.images else "frame"

    try:
        with closing(stream), files, progress:
            for found in stream:
                progress.show(found, files.add(found))
    except KeyboardInterrupt:
        if files.done:
            raise KeyboardInterrupt(
                f"the results of {plural(files.done, noun())} are in {files.folder}"
            ) from None
        raise
    if not files.done:
        raise UserError("none of the images could be read: give others")
    seconds = (time.perf_counter() - started) / files.done
    names = ", ".join(str(path) for path in files.lists)
    print(
        f"{plural(files.detections, 'detection')} on {plural(files.done, noun())}: {names} "
        f"({seconds:.2f} s per {noun()})"
    )
    if files.images < images:
        print(f"{images - files.images} of {plural(images, 'image')} could not be read")


class _Progress:
    """A line for each image, a line that is written over for each video."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0
        self._began = time.monotonic()
        self._clip: Clip | None = None
        self._counter: Counter | None = None
        self._video: Written | None = None

    def show(self, found: Detections, written: Written) -> None:
        """`found` was written."""
        if found.clip is None:
            self._end_video()
            self._show_image(found, written)
            return
        if found.clip is not self._clip:
            self._end_video()
            self._clip = found.clip
            self._counter = Counter(found.name, found.clip.frames, unit="frames", out=sys.stdout)
            self._counter.__enter__()
        self._video = written
        if self._counter is not None:
            count = found.index + 1 - self._counter.done
            self._counter.note = _left(self._counter)
            self._counter.advance(count)

    def _show_image(self, found: Detections, written: Written) -> None:
        self.number = found.index + 1
        line = f"{found.name}: {found.summary()}"
        if written.picture is not None:
            line += f" -> {written.picture}"
        counter = ""
        if self.total > 1:
            seconds = time.monotonic() - self._began
            left = seconds / self.number * (self.total - self.number)
            soon = seconds < _SOON or self.number == self.total
            counter = f"[{self.number}/{self.total}{'' if soon else f', {_clock(left)} left'}] "
        print(f"{counter}{line}", flush=True)

    def _end_video(self) -> None:
        counter, self._counter = self._counter, None
        if counter is None or self._clip is None or self._video is None:
            return
        counter.note = ""
        counter.__exit__(None, None, None)
        if self._video.picture is not None:
            print(f"{self._clip.name} -> {self._video.picture}", flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_video()


def _left(counter: Counter) -> str:
    """The time left for a log file; a terminal has a column for it."""
    if counter.out.isatty() or not counter.total or not counter.done:
        return ""
    return f"{_clock(counter.seconds / counter.done * (counter.total - counter.done))} left"


def _clock(seconds: float) -> str:
    """0:01:05."""
    return str(timedelta(seconds=max(0, round(seconds))))


def _describe_threshold(config: DictConfig, model: Predictor) -> str:
    if config.score_threshold == "best":
        values = zip(
            (category.name for category in model.categories),
            model.score_thresholds.tolist(),
            strict=True,
        )
        return f"of each class, by its best F1 on the run's validation images: {_some(values)}"
    number = f"{config.score_threshold:g}"
    as_trained = all(value is None for value in config.model.values())
    if as_trained and has_thresholds(config.run, config.checkpoint):
        stored = Path(config.run) / FILE
        return (
            f"{number} (score_threshold=best uses the best threshold of each class, from {stored})"
        )
    return number


def _some(values: Iterable[tuple[str, float]]) -> str:
    texts = [f"{name} {value:.2f}" for name, value in values]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
