"""COCO data without a loader; tests/data/test_datamodule.py has what else they tell."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_lit.data.coco_data import CocoData
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError

pytest_plugins = ("tiny_commands",)


def options(root: Path) -> dict[str, Any]:
    parts = {
        part: {"images": part, "annotations": f"annotations/instances_{part}.json"}
        for part in ("train", "val")
    }
    return {"name": "shapes", "root": root, **parts, "val_images": 3, "seed": 4}


def test_it_reads_what_the_data_module_reads(shapes: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    plain, module = CocoData(**options(shapes)), CocoDataModule(**options(shapes))
    for data in (plain, module):
        caplog.clear()
        data.setup()
        assert [m for m in caplog.messages if m.startswith("val: 3 images")], data
    assert plain.subset_ids() == module.subset_ids()
    assert len(plain.subset_ids()["val"]) == 3
    assert plain.categories == module.categories


def test_validation_alone(shapes: Path):
    data = CocoData(**options(shapes))
    data.setup("validate")
    assert data.train_index is None
    assert data.val_index is not None
    assert len(data.val_index) == 3


@pytest.mark.parametrize("name", ["train_images", "val_images", "max_pixels", "bits"])
def test_a_count_of_the_wrong_kind_is_named(shapes: Path, name: str):
    with pytest.raises(UserError, match=f"data.{name}=many must be a whole number"):
        CocoData(**options(shapes) | {name: "many"})


@pytest.mark.process
def test_it_needs_neither_torch_nor_lightning():
    code = (
        "import sys, maskrcnn_lit.data.coco_data, maskrcnn_lit.report.comparison.write\n"
        "import maskrcnn_lit.cli.compare\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
