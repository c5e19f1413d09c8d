import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported import HEIGHT, METADATA, WIDTH, assert_same, batch_of, lively

from maskrcnn_lit.export.metadata import KEY
from maskrcnn_lit.export.other_files import is_library, library_of, write_pt2
from maskrcnn_lit.export.runtime import open_exported

pytest_plugins = ("exported",)


@pytest.mark.long
def test_a_program_of_pytorch_has_its_metadata_inside(exported_files: dict[str, Path]):
    with zipfile.ZipFile(exported_files["pt2"]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"extra/{KEY}")]
        assert json.loads(archive.read(name))["format"] == "pt2"


@pytest.mark.long
def test_openvino_has_float_weights_beside_it(exported_files: dict[str, Path]):
    file = exported_files["openvino"]
    weights = sum(4 * value.numel() for value in lively().parameters())
    assert file.with_suffix(".bin").stat().st_size > 0.9 * weights
    assert "&quot;openvino&quot;" in file.read_text()


def test_a_library_is_beside_its_program():
    path = library_of(Path("exports/model_64x96.pt2"))
    assert path == Path("exports/model_64x96_library.pt2")
    assert is_library(path)
    assert not is_library(Path("model_64x96.pt2"))


@pytest.mark.slow
def test_a_library_gives_what_the_model_gives(tmp_path: Path):
    metadata = replace(METADATA, format="pt2")
    write_pt2(lively(), tmp_path / "model.pt2", metadata, library=True)
    for source in (tmp_path, tmp_path / "model_library.pt2"):
        exported = open_exported(source, trust=["pt2"], library=True)
        assert exported.metadata == metadata
        batch = batch_of([(HEIGHT, WIDTH), (40, 70)])
        with torch.no_grad():
            expected = lively().infer(batch["images"], batch["image_sizes"], True)
        assert_same(exported(batch).detections, expected, score=5e-5)
