"""The package PyAV, which reads and writes videos."""

import gc
import os
from functools import cache
from typing import Any

from maskrcnn_lit.storage.packages import import_package


def pyav() -> Any:
    """The module av. Raises: UserError: it is not installed."""
    av = import_package("av", "video", "reading or writing a video")
    _leave_pictures_to_their_process()
    return av


@cache
def _leave_pictures_to_their_process() -> None:
    """Let forked processes, such as those of data loaders, not collect what was made before the
    fork. A picture of PyAV has threads of its own, which a forked process lacks: to free the
    picture there would wait for them forever.
    """
    os.register_at_fork(after_in_child=gc.freeze)
