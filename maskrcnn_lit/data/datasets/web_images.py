"""Downloads single images into a folder: each is decoded to verify it, and none is downloaded
twice.
"""

import json
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.download import get
from maskrcnn_lit.storage.files import atomic_write, locked, safe_path
from maskrcnn_lit.storage.images import UnreadableImageError, decode
from maskrcnn_lit.terminal.progress import Counter

THREADS = 16

IN_A_ROW = 32  # consecutive failures after which the server counts as down

RECORD = (
    ".sound.json"  # in the folder: name -> size in bytes and time of each file when it was verified
)

Item = TypeVar("Item")

Stamp = list[int]


class WebImage(NamedTuple):
    """An image file of a COCO json: its name in the folder, its URL, its expected size."""

    name: str
    url: str
    height: int
    width: int


def fetch_images(images: Sequence[WebImage], folder: Path) -> None:
    """Download the missing ones of `images` into `folder`. Existing files are kept, unless they
    cannot be decoded or have another size.

    A verified file is not decoded again while its size and time are unchanged. A complete,
    unchanged folder is only read. A read-only folder is used as it is.

    Raises:
        UserError: some images are missing after all retries; the others stay.
        KeyboardInterrupt: the message has the number of complete images.
    """
    record = _read_record(folder)
    stamps = {image.name: _stamp(_path(folder, image)) for image in images}
    unknown = [
        image
        for image in images
        if stamps[image.name] is None or stamps[image.name] != record.get(image.name)
    ]
    if not unknown:
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # another run may be filling the same folder: wait and use its images
            stack.enter_context(locked(folder / ".lock"))
        except OSError as error:
            if None in stamps.values():
                raise _unwritable(folder, images, error) from error
            return  # complete, in a read-only folder
        try:
            _complete(unknown, folder, len(images))
        except OSError as error:
            raise _unwritable(folder, images, error) from error


def _unwritable(folder: Path, images: Sequence[WebImage], error: OSError) -> UserError:
    missing = sum(_stamp(_path(folder, image)) is None for image in images)
    return UserError(
        f"{folder} cannot be written ({error.strerror or error}), and {missing} of {len(images)} "
        "images are missing there: free some space, or give another folder with data.root=DIR, and "
        "run the command again; complete files are kept"
    )


def _complete(unknown: Sequence[WebImage], folder: Path, wanted: int) -> None:
    record = _read_record(folder)
    failures: dict[str, str] = {}
    try:
        absent = _check(unknown, folder, record)
        _fetch(absent, folder, record, failures)
    except KeyboardInterrupt:
        # not by `record`, which the results reach in the order of the images
        there = wanted - sum(_stamp(_path(folder, image)) is None for image in unknown)
        raise KeyboardInterrupt(
            f"{there} of {wanted} images are in {folder}: run the command again to continue"
        ) from None
    finally:
        with suppress(OSError):  # a full disk: they will be decoded again
            atomic_write(folder / RECORD, json.dumps(record))
    missing = [image.name for image in absent if image.name not in record]
    if missing:
        reasons = "; ".join(
            [f"{name} ({failures[name]})" for name in missing if name in failures][:3]
        )
        untried = sum(name not in failures for name in missing)
        stopped = (
            f", {untried} of them not tried after {IN_A_ROW} failures in a row" if untried else ""
        )
        raise UserError(
            f"{len(missing)} of {wanted} images could not be downloaded{stopped}: {reasons}"
            f"{' ...' if len(failures) > 3 else ''}; the other {wanted - len(missing)} are in "
            f"{folder}. Run the command again to continue, or use these with data.download=false"
        )


def _check(images: Sequence[WebImage], folder: Path, record: dict[str, Stamp]) -> list[WebImage]:
    """Decode the existing files that are not in `record`; return the images to download."""
    absent: list[WebImage] = []
    present: list[WebImage] = []
    for image in images:
        stamp = _stamp(_path(folder, image))
        if stamp is None or stamp != record.get(image.name):
            record.pop(image.name, None)
            (absent if stamp is None else present).append(image)
    if present:
        with Counter(f"checking {folder.name}", len(present), unit="images") as counter:
            for image, result in in_threads(partial(_found, folder=folder), present):
                counter.advance()
                if isinstance(result, list):
                    record[image.name] = result
                else:
                    absent.append(image)
    return absent


def _found(image: WebImage, folder: Path) -> Stamp:
    path = _path(folder, image)
    stamp = _stamp(path)
    if stamp is None or (fault := _fault(path.read_bytes(), image)) is not None:
        raise OSError(fault)
    return stamp


def _fetch(
    images: Sequence[WebImage], folder: Path, record: dict[str, Stamp], failures: dict[str, str]
) -> None:
    """Download `images` in order; add successes to `record` and errors to `failures`."""
    stop, row, arrived = threading.Event(), 0, 0

    def fetch(image: WebImage) -> Stamp | str:
        try:
            data = get(image.url, lambda data: _fault(data, image))
        except OSError as error:
            return str(error)
        if stop.is_set():
            return "interrupted"
        path = _path(folder, image)
        atomic_write(path, data)
        return _stamp(path) or "removed"

    if not images:
        return
    results = in_threads(fetch, images)
    try:
        with Counter(f"fetching {folder.name}", len(images), unit="images") as counter:
            for image, result in results:
                if isinstance(result, Exception):  # disk error
                    raise result
                if isinstance(result, str):
                    failures[image.name] = result
                    row += 1
                else:
                    record[image.name] = result
                    row, arrived = 0, arrived + result[0]
                    counter.note = f"{arrived / 1e6 / counter.seconds:.1f} MB/s"
                    counter.advance()
                if row >= IN_A_ROW:
                    return
    finally:
        stop.set()
        results.close()


def in_threads(
    function: Callable[[Item], Any], items: Iterable[Item], threads: int = THREADS
) -> Generator[tuple[Item, Any], None, None]:
    """Yield each item with the function's result or exception, as they complete. A caller that
    stops iterating does not wait for hanging threads, and they do not delay the exit, unlike those
    of a ThreadPoolExecutor.
    """
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    for item in items:
        todo.put(item)
    count = todo.qsize()

    def work() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, function(item)))
            except Exception as error:
                done.put((item, error))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, count))]
    for worker in workers:
        worker.start()
    try:
        for _ in range(count):
            yield done.get()
    finally:
        stop.set()
        for worker in workers:  # let running writes finish; do not wait for a silent server
            worker.join(1 / len(workers))


def _fault(data: bytes, image: WebImage) -> str | None:
    """Why `data` is not the expected image, or None."""
    try:
        decode(data, (image.height, image.width))
    except UnreadableImageError as error:
        return f"not this image: {error}"
    return None


def _path(folder: Path, image: WebImage) -> Path:
    path = safe_path(folder, image.name)
    if path is None:
        raise UserError(
            f"file name {image.name!r} points outside of {folder}, so it is not downloaded: fix "
            "the json"
        )
    return path


def _stamp(path: Path) -> Stamp | None:
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _read_record(folder: Path) -> dict[str, Stamp]:
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
