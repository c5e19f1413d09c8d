"""What a command shows, and how it ends: one sentence for what a user can fix, a traceback for a
bug.
"""

import errno
import logging
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from tiny_commands import environment

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.console import (
    PIPE_CLOSED,
    ConsoleHandler,
    run_and_report_errors,
    show_library_logs,
)


def fail_with(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such thing"), 2, "maskrcnn-lit: no such thing\n"),
        (KeyboardInterrupt(), 130, "maskrcnn-lit: interrupted\n"),
        (KeyboardInterrupt("go on"), 130, "maskrcnn-lit: interrupted: go on\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.json"),
            2,
            "maskrcnn-lit: a.json cannot be used (Permission denied): check the path and its "
            "permissions\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "last.ckpt"),
            2,
            "maskrcnn-lit: the disk is full (last.ckpt)",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            2,
            "maskrcnn-lit: the disk quota is used up ([Errno 122] Disk quota exceeded)",
        ),
        (OSError(errno.EFBIG, "File too large", "a"), 2, "maskrcnn-lit: a file would exceed"),
        (
            OSError(errno.EROFS, "Read-only file system", "runs/a"),
            2,
            "maskrcnn-lit: the file system is read-only (runs/a): make it writable, or give "
            "another",
        ),
    ],
)
def test_how_a_command_may_end(error, code: int, message: str, capsys: pytest.CaptureFixture):
    assert run_and_report_errors(partial(fail_with, error)) == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "a bug"), SystemExit(5)])
def test_a_bug_keeps_its_traceback(error: BaseException):
    with pytest.raises(type(error)):
        run_and_report_errors(partial(fail_with, error))


@pytest.fixture
def library_logger() -> Iterator[logging.Logger]:
    """The logger of the package, which is as it was before when the test is done."""
    logger = logging.getLogger("maskrcnn_lit")
    level, handlers = logger.level, list(logger.handlers)
    logger.handlers.clear()
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_log_lines_are_shown_as_they_are(
    library_logger: logging.Logger, capsys: pytest.CaptureFixture
):
    for _ in range(2):  # a second call adds nothing
        show_library_logs()
    assert [type(handler) for handler in library_logger.handlers] == [ConsoleHandler]
    logging.getLogger("maskrcnn_lit.data").info("train: 8 images (100 % read)")
    logging.getLogger("maskrcnn_lit.data").debug("a detail")
    logging.getLogger("maskrcnn_lit.storage").warning("a.jpg is skipped")
    logging.getLogger("another").info("not ours")
    shown = capsys.readouterr()
    assert shown.out == "train: 8 images (100 % read)\n"
    assert shown.err == "a.jpg is skipped\n"


NOTEBOOK = """
import sys
from pathlib import Path
from maskrcnn_lit import CocoDataModule, MaskRCNN, Predictor
from maskrcnn_lit.data.datasets.shapes import write_shapes
root = Path(sys.argv[1])
write_shapes(root=root, train_images=2, val_images=1, size=64, seed=0)
parts = {
    part: {"images": part, "annotations": f"annotations/instances_{part}.json"}
    for part in ("train", "val")
}
if sys.argv[2] == "configured":
    import logging
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
data = CocoDataModule(
    name="shapes", root=root, **parts, image_size=64, batch_size=1, workers=0, augment={},
    cache_dir=root.parent / "cache"
)
data.prepare_data()
data.setup("fit")
assert len(list(data.train_dataloader())) == 2
"""


@pytest.mark.process
@pytest.mark.parametrize("how", ["silent", "configured"])
def test_the_library_prints_nothing_by_itself(how: str, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(tmp_path / "data"), how],
        env=environment(warm=how == "configured"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if how == "silent":
        assert done.stdout == ""
    else:
        assert "maskrcnn_lit.data.coco_data: train: 2 images" in done.stdout


@pytest.mark.process
def test_a_reader_that_leaves_ends_the_command_quietly():
    script = (
        "import sys; from maskrcnn_lit.launch.console import run_and_report_errors\n"
        "def work():\n"
        "    for n in range(100_000): print(n)\n"
        "sys.exit(run_and_report_errors(work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        code = process.wait(60)
    assert code == PIPE_CLOSED
    assert said == ""
