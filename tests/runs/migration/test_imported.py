"""A Mask R-CNN of another framework as a run folder."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2_names
import pytest
import torch
import yaml
from mmdetection_files import published_shapes, write_configs
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.published import coco_categories
from maskrcnn_lit.runs.migration.imported import (
    Imported,
    experiment_yaml,
    import_model,
    write_imported,
)
from maskrcnn_lit.runs.trained_model import read

State = dict[str, Tensor]

pytestmark = pytest.mark.long


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Zeros that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def torchvision_shapes(classes: int = 2) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes + 1)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    write_configs(folder)
    (folder / "two.py").write_text(
        "_base_ = './base.py'\n"
        "two = dict(num_classes=2)\n"
        "model = dict(roi_head=dict(bbox_head=two, mask_head=two))\n"
        "metainfo = dict(classes=('cat', 'dog'))\n"
    )
    torch.save({"state_dict": hollow(published_shapes(classes=2))}, folder / "two.pth")
    return folder


@pytest.fixture(scope="module")
def imported(files: Path) -> Imported:
    return import_model("mmdetection", str(files / "two.py"), str(files / "two.pth"))


def test_a_run_folder_has_it_all(imported: Imported, tmp_path: Path):
    assert [tuple(category) for category in imported.categories] == [(1, "cat"), (2, "dog")]
    write_imported(imported, tmp_path / "run", "Does it work?")
    again = read(tmp_path / "run")
    assert again.categories == imported.categories
    assert again.state.keys() == imported.state.keys()
    assert again.config.model.num_classes == 2
    assert again.config.model.roi_align.points == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert {row["theirs"]: row["ours"] for row in settings}["model.backbone.depth=50"] == (
        "backbone=resnet50"
    )


def test_the_experiment_trains_as_it_was_trained(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_imported(imported, tmp_path / "run", "Does it work?")
    monkeypatch.setenv("MASKRCNN_LIT_CONFIG_DIR", str(tmp_path / "run"))
    config = compose("train", ["experiment=imported", "data.root=x"])
    assert config.question == "Does it work?"
    assert config.optimizer.milestones == [0.666667, 0.916667]
    assert config.data.image_size == [800, 1333]
    assert config.trainer.epochs == 12
    assert config.backbone.freeze_at == 2
    assert config.model.box_head.batch_size == 512


def test_an_experiment_has_groups_and_options():
    options = {"backbone": "resnet50", "model.num_classes": 3, "model.fpn.channels": 8, "seed": 2}
    content = yaml.safe_load(experiment_yaml(options, "Why?"))
    assert content == {
        "question": "Why?",
        "defaults": [{"override /backbone": "resnet50"}],
        "model": {"fpn": {"channels": 8}},
        "seed": 2,
    }


def test_coco_s_classes_have_their_ids(files: Path):
    torch.save(hollow(published_shapes()), files / "coco.pth")
    imported = import_model("mmdetection", str(files / "base.py"), str(files / "coco.pth"))
    assert imported.categories == coco_categories(80)
    assert (imported.categories[-1].id, imported.categories[-1].name) == (90, "toothbrush")


def test_a_model_of_boxes_alone(files: Path, tmp_path: Path):
    (tmp_path / "boxes.py").write_text(
        f"_base_ = '{files / 'two.py'}'\n"
        "head = {{_base_.model.roi_head}}\n"
        "model = dict(type='FasterRCNN', roi_head=dict(_delete_=True, "
        "bbox_roi_extractor=head['bbox_roi_extractor'], bbox_head=head['bbox_head']))\n"
    )
    state = {n: v for n, v in hollow(published_shapes(classes=2)).items() if "mask" not in n}
    torch.save(state, tmp_path / "boxes.pth")
    imported = import_model("mmdetection", str(tmp_path / "boxes.py"), str(tmp_path / "boxes.pth"))
    assert imported.config.model.mask_head is None
    assert len(imported.state) == len(state)


def write_theirs(framework: str, pool: int, weight: Tensor, folder: Path) -> Path | None:
    """Write weights.pth with `weight` as the first layer on a region's features of side `pool`, and
    the config; return the config's path.
    """
    shapes, first, config = published_shapes(classes=2), "roi_head.bbox_head.shared_fcs.0", None
    if framework == "mmdetection":
        write_configs(folder)
        config = folder / "config.py"
        config.write_text(
            "_base_ = './base.py'\n"
            f"model = dict(roi_head=dict(mask_head=dict(num_classes=2), "
            f"bbox_head=dict(num_classes=2, roi_feat_size={pool}), "
            f"bbox_roi_extractor=dict(roi_layer=dict(output_size={pool}))))\n"
        )
    elif framework == "detectron2":
        shapes, first = detectron2_names.published_shapes(classes=2), "roi_heads.box_head.fc1"
        config = detectron2_names.write_yaml_config(
            folder,
            "MODEL: {ROI_HEADS: {NUM_CLASSES: 2}, "
            f"ROI_BOX_HEAD: {{POOLER_RESOLUTION: {pool}}}}}",
        )
    else:
        shapes, first = torchvision_shapes(), "roi_heads.box_head.fc6"
    torch.save(hollow(shapes) | {f"{first}.weight": weight}, folder / "weights.pth")
    return config


@pytest.mark.parametrize("pool", [14, 8])
@pytest.mark.parametrize("framework", ["mmdetection", "detectron2", "torchvision"])
def test_region_features_of_another_size(framework: str, pool: int, tmp_path: Path):
    weight = torch.randn(256 * pool**2).expand(1024, -1)
    config = write_theirs(framework, pool, weight, tmp_path)
    imported = import_model(framework, config and str(config), str(tmp_path / "weights.pth"))
    assert imported.options["model.box_head.pool"] == pool
    assert imported.config.model.box_head.pool == pool
    features = torch.randn(2, 256, pool, pool)
    expected = features.flatten(1) @ weight[:3].T
    got = features.permute(0, 2, 3, 1).flatten(1) @ imported.state["box_head.fcs.0.weight"][:3].T
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_weights_of_torchvision_that_do_not_fit_are_told(tmp_path: Path):
    state = hollow(torchvision_shapes() | {"rpn.head.conv.0.0.weight": (128, 256, 3, 3)})
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(
        UserError,
        match=r"weights\.pth does not fit model=torchvision_v1: .*rpn\.convs\.0\.weight is \(128",
    ):
        import_model("torchvision", None, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("wrapped", "row"),
    [
        (lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}}, None),
        (
            lambda state: {"ema_state_dict": {f"module.{n}": v for n, v in state.items()}},
            ("ema_state_dict of the file", "read: averaged weights, there are no others"),
        ),
        (
            lambda state: {"state_dict": state, "ema_state_dict": {"x.y": torch.ones(1)}},
            (
                "ema_state_dict of the file",
                "not read: state_dict is (by MMDetection, with the averaged weights)",
            ),
        ),
        (
            lambda state: {
                "state_dict": state
                | {f"ema_{n.replace('.', '_')}": v + torch.ones(()) for n, v in state.items()}
            },
            (
                "ema_* of the file",
                "not read: state_dict is (by MMDetection, with the averaged weights)",
            ),
        ),
    ],
)
def test_which_weights_of_a_file_are_read(
    wrapped: Callable[[State], Any], row: tuple[str, str] | None, files: Path, tmp_path: Path
):
    state = hollow(published_shapes(classes=2))
    torch.save(wrapped(state), tmp_path / "weights.pth")
    imported = import_model("mmdetection", str(files / "two.py"), str(tmp_path / "weights.pth"))
    assert len(imported.state) == len(state)
    assert not imported.state["rpn.convs.0.weight"].any()
    rows = [(one.theirs, one.difference) for one in imported.table if "of the file" in one.theirs]
    assert rows == ([] if row is None else [row])


def test_the_epsilon_of_torchvision_s_norms(tmp_path: Path):
    torch.save(hollow(torchvision_shapes()), tmp_path / "weights.pth")
    for norm_eps, own, difference in (
        (None, None, "give norm_eps=0 if yours was"),
        (0.0, 0.0, ""),
    ):
        imported = import_model(
            "torchvision", None, str(tmp_path / "weights.pth"), norm_eps=norm_eps
        )
        assert imported.config.backbone.norm_eps == own
        (row,) = (row for row in imported.table if row.theirs == "epsilon of the frozen norms")
        assert row.difference.endswith(difference)
        assert bool(row.difference) == bool(difference)
    norms = [m for m in build(imported.config.backbone).modules() if hasattr(m, "eps")]
    assert {norm.eps for norm in norms} == {0.0}
    with pytest.raises(UserError, match=r"norm_eps=0 is for from=torchvision"):
        import_model("mmdetection", "a.py", "b.pth", norm_eps=0.0)


class Log:
    """As the history that MMDetection saves: reading it would run this class."""

    def __reduce__(self) -> Any:
        return (open, (MARK, "w"))


MARK = "made_by_the_file"


def test_objects_in_a_file_are_not_made(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    state = hollow(published_shapes(classes=2))
    torch.save({"state_dict": state, "message_hub": Log()}, tmp_path / "weights.pth")
    imported = import_model("mmdetection", str(files / "two.py"), str(tmp_path / "weights.pth"))
    assert len(imported.state) == len(state)
    assert not Path(MARK).exists()
    with open(tmp_path / "weights.pkl", "wb") as file:
        pickle.dump({"model": {}, "log": Log()}, file)
    with pytest.raises(UserError, match="neither an array nor plain data"):
        import_model("mmdetection", str(files / "two.py"), str(tmp_path / "weights.pkl"))
    assert not Path(MARK).exists()


def test_what_does_not_fit_is_told(files: Path):
    with pytest.raises(UserError, match=r"two\.pth does not fit the config: .*box_head\.classes"):
        import_model("mmdetection", str(files / "base.py"), str(files / "two.pth"))
    with pytest.raises(UserError, match=r"from=mmdetection needs config=FILE"):
        import_model("mmdetection", None, str(files / "two.pth"))
    with pytest.raises(UserError, match="1 class names were given for 2 classes"):
        import_model("mmdetection", str(files / "two.py"), str(files / "two.pth"), ["cat"])
    with pytest.raises(UserError, match=r"config=a\.py is not needed"):
        import_model("torchvision", "a.py", str(files / "two.pth"))
    names = import_model("mmdetection", str(files / "two.py"), str(files / "two.pth"), ["a", "b"])
    assert [category.name for category in names.categories] == ["a", "b"]
