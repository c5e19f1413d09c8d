"""Reports whose plots are built but not painted, for tests of something else in them.

A pytest plugin: a test module that wants its fixture says `pytest_plugins = ("plain_plots",)`.
"""

import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from maskrcnn_lit.report import theme


def saved(figure: Figure, kind: str) -> bytes:
    """A pixel in place of the figure, whatever its kind."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def plain_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting a plot and embedding its letters takes most of the time of a report. (Not that of a
    fixture of a module or session.)
    """
    monkeypatch.setattr(theme, "_saved", saved)
