import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from local_server import SWITCHED, Server
from PIL import Image
from urllib3 import Timeout

from maskrcnn_lit.data.datasets import web_images
from maskrcnn_lit.data.datasets.web_images import RECORD, WebImage, fetch_images, in_threads
from maskrcnn_lit.errors import UserError

pytest_plugins = ("local_server",)

COUNT = 20


@pytest.fixture
def images(server: Server, test_data: Path, monkeypatch: pytest.MonkeyPatch) -> list[WebImage]:
    """Photos of coco_mini, on the server."""
    monkeypatch.setattr("maskrcnn_lit.storage.download.TIMEOUT", Timeout(connect=5, read=1))
    monkeypatch.setattr("urllib3.Retry.parse_retry_after", lambda *_: 0)
    mini = test_data / "coco_mini"
    entries = json.loads((mini / "annotations" / "instances_val2017.json").read_text())["images"][
        :COUNT
    ]
    for entry in entries:
        server.offer((mini / "val2017" / entry["file_name"]).read_bytes(), entry["file_name"])
    address = f"{server.address}/val2017/"
    return [
        WebImage(e["file_name"], address + e["file_name"], e["height"], e["width"]) for e in entries
    ]


def seen(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")
    }


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is decoded from now on."""
    names: list[str] = []
    fault = web_images._fault
    monkeypatch.setattr(
        web_images, "_fault", lambda data, image: names.append(image.name) or fault(data, image)
    )
    return names


def test_from_nothing_and_nothing_twice(
    images: list[WebImage],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
):
    folder = tmp_path / "coco" / "val2017"
    fetch_images(images[:8], folder)
    assert seen(folder) == {image.name: server.files[image.name] for image in images[:8]}
    assert left(folder) == {RECORD, ".lock"}
    shown = capfd.readouterr().err
    assert "fetching val2017: 100%" in shown
    assert "8 of 8" in shown
    assert "images/s" in shown
    assert "MB/s" in shown
    fetch_images(images, folder)
    assert seen(folder) == {image.name: server.files[image.name] for image in images}
    assert sorted(server.asked) == sorted(f"/val2017/{image.name}" for image in images), "each once"
    names = decoded(monkeypatch)
    capfd.readouterr()
    fetch_images(images, folder)
    assert names == []
    assert capfd.readouterr().err == "", "a look at each file is enough"
    (folder / RECORD).unlink()
    fetch_images(images, folder)
    fetch_images(images, folder)
    assert sorted(names) == sorted(image.name for image in images), (
        "decoded once where nothing is known of them"
    )
    assert len(server.asked) == COUNT


@pytest.mark.parametrize("known", [True, False], ids=["changed", "never_seen"])
def test_damaged_files_are_found_and_fetched_again(
    images: list[WebImage], server: Server, tmp_path: Path, known: bool
):
    fetch_images(images, tmp_path)
    server.asked.clear()
    half, other, text, empty, zeros = (tmp_path / image.name for image in images[:5])
    half.write_bytes(half.read_bytes()[:-2000])
    page = io.BytesIO()
    Image.new("RGB", (10, 10)).save(page, "JPEG")
    other.write_bytes(page.getvalue())
    text.write_text("<html>")
    empty.write_bytes(b"")
    zeros.write_bytes(bytes(zeros.stat().st_size))
    if not known:
        (tmp_path / RECORD).unlink()
    fetch_images(images, tmp_path)
    assert sorted(server.asked) == sorted(f"/val2017/{image.name}" for image in images[:5])
    assert seen(tmp_path) == {image.name: server.files[image.name] for image in images}


@pytest.mark.long
@pytest.mark.parametrize("fault", SWITCHED)
def test_a_fault_that_passes_leaves_no_trace(
    images: list[WebImage], server: Server, tmp_path: Path, fault: str
):
    server.fail(fault, times=1)
    fetch_images(images, tmp_path)
    assert seen(tmp_path) == {image.name: server.files[image.name] for image in images}
    assert len(server.asked) == 2 * COUNT


REASONS = {
    "404": "HTTP 404 Not Found",
    "500": "HTTP 500 Internal Server Error",
    "503": "HTTP 503 Service Unavailable",
    "says_nothing": "Connection aborted.",
    "stalls": "Read timed out. (read timeout=0.1)",
    "stalls_in_the_body": "Read timed out.",
    "breaks_in_the_body": "Connection broken: IncompleteRead",
    "html": "not this image: no image",
    "cut": "not this image: image file is truncated",
}


@pytest.mark.long
@pytest.mark.parametrize("fault", SWITCHED)
def test_a_fault_that_stays_is_one_message_and_the_rest_is_kept(
    images: list[WebImage],
    server: Server,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        "maskrcnn_lit.storage.download.TIMEOUT",
        Timeout(connect=5, read=0.1 if fault.startswith("stalls") else 5),
    )
    bad = {image.name for image in images[:4]}
    server.fail(fault, times=1000, files="")
    kept = {image.name for image in images} - bad
    original = server.fault
    monkeypatch.setattr(server, "fault", lambda name: original(name) if name in bad else None)
    with pytest.raises(UserError) as error:
        fetch_images(images, tmp_path)
    message = str(error.value)
    assert f"4 of {COUNT} images could not be downloaded: " in message
    assert message.count(REASONS[fault]) == 3
    assert (
        f"the other {COUNT - 4} are in {tmp_path}. Run the command again to continue, or use these"
        in message
    )
    assert "data.download=false" in message
    assert sum(name in message for name in bad) == 3
    assert "..." in message
    assert set(seen(tmp_path)) == kept
    assert left(tmp_path) == {RECORD, ".lock"}
    server.fail("")
    server.asked.clear()
    fetch_images(images, tmp_path)
    assert {path.rsplit("/", 1)[-1] for path in server.asked} == bad
    assert len(seen(tmp_path)) == COUNT


def test_another_image_is_not_this_one(images: list[WebImage], server: Server, tmp_path: Path):
    first, second = next(
        (a, b) for a in images for b in images if (a.height, a.width) != (b.height, b.width)
    )
    server.files[first.name] = server.files[second.name]
    with pytest.raises(
        UserError, match=rf"1 of 1 images .*not this image: it is {second.width} x {second.height}"
    ):
        fetch_images([first], tmp_path)
    assert seen(tmp_path) == {}


@pytest.mark.long
def test_a_server_that_is_down_is_not_asked_for_every_image(
    images: list[WebImage], server: Server, tmp_path: Path
):
    server.fail("404", times=1000)
    many = [image._replace(name=f"{i}.jpg") for i, image in enumerate(images * 50)]
    with pytest.raises(
        UserError,
        match=r"1000 of 1000 images .*, \d+ of them not tried after 32 failures in a row: ",
    ):
        fetch_images(many, tmp_path)
    assert len(server.asked) < 6 * 100


@pytest.mark.process
def test_interrupted_and_continued(images: list[WebImage], server: Server, tmp_path: Path):
    """A process of its own is interrupted while the server holds back all images but the five that
    it was asked for first, also if one of these is asked for again.
    """
    answered: set[str] = set()
    choosing = threading.Lock()
    waiting = threading.Event()

    def before(path: str) -> None:
        with choosing:
            if len(answered) < 5:
                answered.add(path)
        if path not in answered:
            waiting.set()
            server.stopped.wait(30)

    server.before = before
    program = (
        "import sys, json; from pathlib import Path\n"
        "from maskrcnn_lit.data.datasets.web_images import WebImage, fetch_images\n"
        "try: fetch_images([WebImage(*i) for i in json.loads(sys.argv[1])], Path(sys.argv[2]))\n"
        "except KeyboardInterrupt as error: print(error); sys.exit(130)\n"
    )
    command = [sys.executable, "-c", program, json.dumps(images), str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waiting.wait(60)
    while len(seen(tmp_path)) < 5:
        assert running.poll() is None
        time.sleep(0.01)  # this process is the server, too
    running.send_signal(2)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    whole = seen(tmp_path)
    assert whole == {name: server.files[name] for name in whole}
    assert len(whole) == 5
    text = f"5 of {COUNT} images are in {tmp_path}: run the command again to continue"
    assert text in out
    assert left(tmp_path) == {RECORD, ".lock"}
    server.before = None
    server.asked.clear()
    fetch_images(images, tmp_path)
    assert len(server.asked) == COUNT - 5
    assert len(seen(tmp_path)) == COUNT


def test_two_runs_at_once_fetch_each_image_once(
    images: list[WebImage], server: Server, tmp_path: Path
):
    threads = [threading.Thread(target=fetch_images, args=(images, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == COUNT == len(seen(tmp_path))


@pytest.mark.parametrize(
    "where",
    [
        "maskrcnn_lit.data.datasets.web_images.locked",
        "maskrcnn_lit.data.datasets.web_images.atomic_write",
    ],
)
def test_a_folder_that_cannot_be_written(
    images: list[WebImage],
    server: Server,
    tmp_path: Path,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Complete, it is taken as it is; else the message says what is missing."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    for image in images[:5]:
        (tmp_path / image.name).write_bytes(server.files[image.name])
    monkeypatch.setattr(where, refuse)
    fetch_images(images[:5], tmp_path)
    with pytest.raises(
        UserError,
        match=r"cannot be written \(Read-only file system\), and 3 of 8 images are missing",
    ):
        fetch_images(images[:8], tmp_path)
    assert len(seen(tmp_path)) == 5


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"'../a.jpg' points outside of .*, so it is not downloaded: fix the json"
    ):
        fetch_images([WebImage("../a.jpg", "http://host.invalid/a.jpg", 1, 1)], tmp_path / "images")


def test_threads_give_results_and_errors():
    found = dict(in_threads(lambda n: 1 // n, range(5), threads=3))
    assert [found[n] for n in range(1, 5)] == [1, 0, 0, 0]
    assert isinstance(found[0], ZeroDivisionError)
    assert list(in_threads(str, [])) == []
