"""Console output and exit codes of the commands: log lines, one sentence for a UserError, silenced
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

PIPE_CLOSED = 141  # exit code if the reader of the output has closed it, as in `... | head`
_DISK_FAULTS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file would exceed the size limit", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "make it writable, or give another folder"),
}


def run_and_report_errors(work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit code; print a UserError as one sentence."""
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
        if error.filename is None:  # not a file error
            raise
        return _say(
            f"{error.filename} cannot be used ({error.strerror}): check the path and its "
            "permissions",
            2,
        )


def _reader_left() -> bool:
    """Whether standard output is a closed pipe; later output is then discarded."""
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

    The streams are looked up for every record, so redirection works.
    """

    def emit(self, record: logging.LogRecord) -> None:
        out = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=out, flush=True)


def show_library_logs() -> None:
    """Show the library's log (logger "maskrcnn_lit", INFO and above) in the terminal.

    The commands call this. In a notebook the library is silent until `logging` is configured.
    """
    logger = logging.getLogger("maskrcnn_lit")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())


def silence_libraries() -> None:
    """Silence Lightning's own messages: unused devices, tips, an internal deprecation.

    Call it after importing Lightning, which sets its log level on import.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers.*"
    )  # data.workers=auto has chosen the number
    warnings.filterwarnings(
        "ignore", message=".*smaller than the logging interval.*"
    )  # TrainMeter logs every epoch anyway
    warnings.filterwarnings(
        "ignore", message=".*Grad strides do not match.*"
    )  # of 1 x 1 convolutions, channels last
    warnings.filterwarnings(
        "ignore", message=".*module.s. in eval mode.*"
    )  # they are frozen on purpose
    threading.excepthook = _without_tensorboard
    # logged when resuming in mid-epoch; our loader resumes exactly (data/samplers.py)
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")


_default_thread_hook = threading.excepthook


def _without_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """Ignore errors in TensorBoard's writer thread; the main thread reports them."""
    writer = type(failure.thread).__name__ == "_AsyncWriterThread"
    if not (writer and isinstance(failure.exc_value, OSError)):
        _default_thread_hook(failure)


def _sentence(error: UserError) -> str:
    """The message, without the traceback that a loader process adds."""
    return str(error).rstrip().rsplit("\nmaskrcnn_lit.errors.UserError: ", 1)[-1]


def _say(sentence: str, code: int) -> int:
    print(f"maskrcnn-lit: {sentence}", file=sys.stderr)
    return code
