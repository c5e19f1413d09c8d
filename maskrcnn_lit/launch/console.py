"""What a command shows and how it ends: log lines, exit codes, one sentence for a UserError, quiet
libraries.
"""

import errno
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable

from maskrcnn_lit.errors import UserError

PIPE_CLOSED = 141  # the exit code where nobody reads the output any more, as in `... | head`
_DISK_FAULTS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file would be larger than is allowed here", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "make it writable, or give another folder"),
}


def run_and_report_errors(work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit code; print a mistake of the user as one sentence."""
    try:
        return work() or 0
    except UserError as error:
        return _say(_sentence(error), 2)
    except KeyboardInterrupt as error:
        return _say(f"interrupted{f': {error}' if str(error) else ''}", 130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return PIPE_CLOSED
        if error.errno in _DISK_FAULTS:
            fault, advice = _DISK_FAULTS[error.errno]
            then = "; ".join(getattr(error, "__notes__", ["run it again"]))
            return _say(f"{fault} ({error.filename or error}): {advice}, then {then}", 2)
        if error.filename is None:  # not about a file
            raise
        return _say(
            f"{error.filename} cannot be used ({error.strerror}): check the path and the rights to it",
            2,
        )


def _reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads; it goes nowhere from then on."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


class ConsoleHandler(logging.Handler):
    """Prints each record as a plain line: warnings to standard error, the rest to standard output.

    The streams are looked up for every record, so that a redirected one gets the line.
    """

    def emit(self, record: logging.LogRecord) -> None:
        out = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=out, flush=True)


def show_library_logs() -> None:
    """Show what the library logs (logger "maskrcnn_lit", from INFO on) in the terminal.

    Commands call it. In a notebook the library is silent until `logging` is configured.
    """
    logger = logging.getLogger("maskrcnn_lit")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())


def silence_libraries() -> None:
    """Leave out what Lightning tells of itself: devices that are not used, tips, a deprecation
    inside of it.

    To be called when it is imported, since it sets its level then.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers.*"
    )  # data.workers=auto has chosen
    warnings.filterwarnings(
        "ignore", message=".*smaller than the logging interval.*"
    )  # TrainMeter logs every epoch all the same
    warnings.filterwarnings(
        "ignore", message=".*Grad strides do not match.*"
    )  # of 1 x 1 convolutions, channels last
    warnings.filterwarnings(
        "ignore", message=".*module.s. in eval mode.*"
    )  # they are frozen, and are to be
    threading.excepthook = _without_tensorboard
    # of every resume in mid-epoch; ours goes on exactly (data/samplers.py), which Lightning cannot
    # know
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")


_default_thread_hook = threading.excepthook


def _without_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer hands its errors on to the main thread, which tells them in a sentence."""
    writer = type(failure.thread).__name__ == "_AsyncWriterThread"
    if not (writer and isinstance(failure.exc_value, OSError)):
        _default_thread_hook(failure)


def _sentence(error: UserError) -> str:
    """The message; a loader process wraps it into the traceback that it had there."""
    return str(error).rstrip().rsplit("\nmaskrcnn_lit.errors.UserError: ", 1)[-1]


def _say(sentence: str, code: int) -> int:
    print(f"maskrcnn-lit: {sentence}", file=sys.stderr)
    return code
