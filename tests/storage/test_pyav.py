import gc
import os
import signal
from typing import Any

import numpy as np
import pytest

from maskrcnn_lit.storage.pyav import pyav


class Garbage:
    """A reference cycle."""

    def __init__(self, *held: Any) -> None:
        self.own, self.held = self, held


@pytest.mark.process
def test_a_forked_process_does_not_wait_for_the_threads_of_a_picture():
    picture = pyav().VideoFrame.from_ndarray(np.zeros((720, 1280, 3), np.uint8), format="rgb24")
    scaled = picture.reformat(format="yuv420p")
    gc.disable()
    try:
        Garbage(picture, scaled)
        del picture, scaled
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        gc.enable()
        gc.collect()
