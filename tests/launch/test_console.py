"""How a command ends: one sentence for what a user can fix, a traceback for a bug."""

import errno
from functools import partial

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.console import guarded


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
            "maskrcnn-lit: a.json cannot be used (Permission denied): check the path and the rights to it\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "last.ckpt"),
            2,
            "maskrcnn-lit: the disk is full (last.ckpt)",
        ),
    ],
)
def test_how_a_command_may_end(error, code: int, message: str, capsys: pytest.CaptureFixture):
    assert guarded(partial(fail_with, error)) == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "a bug"), SystemExit(5)])
def test_a_bug_keeps_its_traceback(error: BaseException):
    with pytest.raises(type(error)):
        guarded(partial(fail_with, error))
