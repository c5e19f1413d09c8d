"""A mask head of one's own, on data with void regions: those of docs/extend and of VOC."""

import sys
from pathlib import Path

import pytest
from own_project import write_project
from tiny_commands import TINY, refused, run_command
from voc_files import write_voc

from maskrcnn_lit.runs.result import read_result

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.long


def test_a_head_that_does_not_take_void_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_project(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    root = write_voc(tmp_path / "voc")
    options = [
        *TINY,
        *("data=voc2012", f"data.root={root}", f"data.cache_dir={tmp_path}/cache"),
        *("model.mask_head._target_=mylab.mask_head.DiceMaskHead", "data.batch_size=1"),
    ]
    try:
        sentence = refused("train", *options, f"run_dir={tmp_path / 'refused'}")
        assert "DiceMaskHead.losses does not take" in sentence
        assert "data.ignore_void=false" in sentence
        assert refused("bench", *options, "steps=1", "warmup=0") == sentence
        run = ("trainer.steps=1", f"run_dir={tmp_path / 'run'}")
        run_command("train", *options, *run, "data.ignore_void=false")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
            del sys.modules[name]
    assert read_result(tmp_path / "run" / "result.json").status == "finished"
