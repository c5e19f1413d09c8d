import json
import zipfile
from pathlib import Path

import pytest
import torch
from exported import METADATA, lively

from maskrcnn_lit.export.metadata import KEY
from maskrcnn_lit.export.other_files import write_pt2

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


@pytest.mark.slow
def test_a_library_is_written_beside_the_program(tmp_path: Path):
    write_pt2(lively(), tmp_path / "model.pt2", METADATA, library=True)
    run = torch._inductor.aoti_load_package(str(tmp_path / "model_library.pt2"))
    images, sizes = torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]])
    assert list(run(images, sizes)[0].shape) == [1, 100, 4]
