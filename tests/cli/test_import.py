"""`maskrcnn-lit import`: files of another framework in, a run folder out that the commands take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdetection_files import write_configs
from tiny_commands import printed_by, refused
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_lit import load_model

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of torchvision's model with two classes."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    file = tmp_path_factory.mktemp("theirs") / "weights.pth"
    torch.save(model.state_dict(), file)
    return file


def test_a_model_of_torchvision_detects_here(theirs: Path, tmp_path: Path):
    out = tmp_path / "new"
    said = printed_by(
        "import", "from=torchvision", f"weights={theirs}", "classes=[cat,dog]", f"out={out}"
    )
    assert "2 classes, 44.0 million weights" in said
    assert f"predict run={out} source=IMAGE_OR_FOLDER" in said
    assert "its training script's schedule" in said
    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    here, there = (load_model(source).predict(image)[0] for source in (out, theirs))
    assert [category.name for category in here.categories] == ["cat", "dog"]
    assert len(here) > 0
    assert np.array_equal(here.boxes, there.boxes)
    assert np.array_equal(here.scores, there.scores)
    assert here.masks == there.masks


def test_mistakes_end_in_one_sentence(theirs: Path, tmp_path: Path):
    config = write_configs(tmp_path)
    out = f"out={tmp_path / 'new'}"
    said = refused("import", "from=mmdetection", f"config={config}", f"weights={theirs}", out)
    assert "does not belong to MMDetection's Mask R-CNN" in said
    assert "from" in refused("import", "from=caffe", f"weights={theirs}", out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    said = refused("import", "from=torchvision", f"weights={theirs}", out)
    assert "is not empty" in said
    assert (tmp_path / "new" / "file").exists()
