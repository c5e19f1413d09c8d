"""The tutorial's notebook is its page, and runs from the first cell to the last."""

import os
import runpy
import sys
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
    "experiment=finetune model=tiny backbone=resnet18 model.weights=null data.image_size=64 "
    "trainer.epochs=1"
)


def made() -> Any:
    return runpy.run_path(str(REPOSITORY / "docs/notebook.py"))["notebook"](PAGE.read_text("utf-8"))


def test_the_notebook_is_the_page():
    assert nbformat.read(NOTEBOOK, 4) == made(), "run python docs/notebook.py"


@pytest.mark.process
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = made()
    for cell in notebook.cells:
        cell.source = cell.source.replace("experiment=finetune", SMALL)
        cell.source = cell.source.replace("data.train_images=120", "data.train_images=12")
        cell.source = cell.source.replace("data.val_images=30", "data.val_images=4")
        cell.source = "" if cell.source.startswith("%pip") else cell.source
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
