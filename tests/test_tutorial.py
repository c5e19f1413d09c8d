"""The tutorial's notebook is its page, and runs from the first cell to the last."""

import runpy
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from repository import REPOSITORY

PAGE = REPOSITORY / "docs/tutorial.md"
NOTEBOOK = REPOSITORY / "docs/tutorial.ipynb"
# As the page's last section has it, without a network, and smaller.
SMALL = (
    "experiment=finetune model=tiny backbone=mobilenet_v3_small model.weights=null "
    "data.image_size=64 trainer.epochs=1"
)


def in_the_kernel(source: str) -> str:
    """A cell whose commands run in the process of its other cells: each program would import torch
    for itself. A command that fails is an error.
    """
    lines = []
    for line in source.splitlines():
        program, *words = shlex.split(line) if line.startswith("!") else [""]
        lines.append(f"assert main({words!r}) == 0" if program == "!maskrcnn-lit" else line)
    return "\n".join(lines)


def made() -> Any:
    return runpy.run_path(str(REPOSITORY / "docs/notebook.py"))["notebook"](PAGE.read_text("utf-8"))


def test_the_notebook_is_the_page():
    assert nbformat.read(NOTEBOOK, 4) == made(), "run python docs/notebook.py"


@pytest.mark.process
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = made()
    for cell in notebook.cells:
        cell.source = cell.source.replace("experiment=finetune", SMALL)
        cell.source = cell.source.replace("data.train_images=120", "data.train_images=12")
        cell.source = cell.source.replace("data.val_images=30", "data.val_images=4")
        if cell.source.startswith("%pip"):
            cell.source = "from maskrcnn_lit.cli.main import main"
        elif cell.cell_type == "code":
            cell.source = in_the_kernel(cell.source)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert "No faults in the data" in outputs[4]
    assert (tmp_path / "samples.png").is_file()
    assert (tmp_path / "mine/result.json").is_file()
    assert (tmp_path / "judged/report.html").is_file()
    assert len(list((tmp_path / "predicted/images").iterdir())) == 4
    assert outputs[-1].count("\n") == 4  # a line for each validation image
