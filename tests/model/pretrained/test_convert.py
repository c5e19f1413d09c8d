import mmdetection_files
import pytest
import torch
from detectron2_names import constants, published_shapes
from models import make_batch, make_model
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision_names import as_first_published

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained.convert import (
    from_detectron2,
    from_mmdetection,
    from_torchvision,
    load,
    new_parts,
    take_over,
)
from maskrcnn_lit.model.pretrained.published import coco_categories

State = dict[str, torch.Tensor]
STD = (0.229, 0.224, 0.225)


def ours(backbone: str = "resnet18", num_classes: int = 3) -> MaskRCNN:
    """Torchvision's widths."""
    return make_model(num_classes, backbone, channels=256, width=1024, depth=4)


@pytest.fixture(scope="module")
def theirs() -> State:
    """Torchvision's Mask R-CNN on a ResNet-18, to be small."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d
    )
    return TheirMaskRCNN(backbone, num_classes=4).state_dict()


@pytest.mark.long
def test_maskrcnn_resnet50_fpn_fits_name_by_name_and_shape_by_shape():
    with torch.device("meta"):  # shapes alone: the numbers are 170 MB
        state = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=91
        ).state_dict()
        model = ours("resnet50", 90)
        renamed = from_torchvision(state)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_maskrcnn_resnet50_fpn_v2_fits_name_by_name_and_shape_by_shape():
    with torch.device("meta"):
        state = maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=91
        ).state_dict()
        widths = {"channels": 256, "width": 1024, "depth": 4, "convs": 4, "fcs": 1}
        model = make_model(90, "resnet50", head_norm="batch", rpn_depth=2, **widths)
        renamed = from_torchvision(state)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_names_of_before_torchvision_0_13_are_the_same_weights(theirs: State):
    """The file of MaskRCNN_ResNet50_FPN_Weights still has them."""
    old, new = as_first_published(theirs), from_torchvision(theirs)
    assert {
        "backbone.fpn.inner_blocks.3.weight",
        "rpn.head.conv.bias",
        "roi_heads.mask_head.mask_fcn4.bias",
    } <= set(old)
    renamed = from_torchvision(old)
    assert renamed.keys() == {name for name in new if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, new[name]) for name, value in renamed.items())
    load(ours(), renamed)


def test_published_weights_have_frozen_norms():
    """Those of torchvision's own training have no `num_batches_tracked`, which need not be told."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    state = TheirMaskRCNN(backbone, num_classes=4).state_dict()
    for model in (make_model(channels=256, width=1024, depth=4, norm="frozen"), ours()):
        load(model, from_torchvision(state))
        assert torch.equal(
            model.backbone.body["bn1"].running_var, state["backbone.body.bn1.running_var"]
        )


def test_every_number_arrives_where_it_belongs(theirs: State):
    model = ours()
    load(model, from_torchvision(theirs))
    own = model.state_dict()
    pairs = {
        "backbone.body.layer3.1.conv2.weight": "backbone.body.layer3.1.conv2.weight",
        "fpn.lateral.2.weight": "backbone.fpn.inner_blocks.2.0.weight",
        "fpn.output.0.bias": "backbone.fpn.layer_blocks.0.0.bias",
        "rpn.objectness.weight": "rpn.head.cls_logits.weight",
        "rpn.deltas.bias": "rpn.head.bbox_pred.bias",
        "box_head.classes.weight": "roi_heads.box_predictor.cls_score.weight",
        "mask_head.convs.3.weight": "roi_heads.mask_head.3.0.weight",
        "mask_head.deconv.weight": "roi_heads.mask_predictor.conv5_mask.weight",
    }
    for name, their_name in pairs.items():
        assert torch.equal(own[name], theirs[their_name]), name
    # without background's row
    assert torch.equal(
        own["box_head.deltas.weight"], theirs["roi_heads.box_predictor.bbox_pred.weight"][4:]
    )
    assert torch.equal(
        own["mask_head.logits.weight"],
        theirs["roi_heads.mask_predictor.mask_fcn_logits.weight"][1:],
    )
    # the first layer reads the same features in another order
    features = torch.randn(3, 256, 7, 7)
    expected = torch.nn.functional.linear(
        features.flatten(1), theirs["roi_heads.box_head.fc6.weight"]
    )
    got = torch.nn.functional.linear(
        features.permute(0, 2, 3, 1).flatten(1), own["box_head.fcs.0.weight"]
    )
    assert torch.allclose(got, expected, atol=1e-5)


def test_the_given_state_dict_stays_as_it_was(theirs: State):
    before = {name: (value.shape, value.data_ptr()) for name, value in theirs.items()}
    from_torchvision(theirs)
    assert before == {name: (value.shape, value.data_ptr()) for name, value in theirs.items()}


def test_an_unknown_name_is_told(theirs: State):
    with pytest.raises(
        UserError, match=r"'roi_heads\.keypoint_head\.0\.weight'.*maskrcnn_resnet50_fpn"
    ):
        from_torchvision(theirs | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)})


@pytest.mark.long
@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("rpn.head.conv.0.0.weight", "rpn.convs.0.weight"),
        ("roi_heads.mask_head.2.0.bias", "mask_head.convs.2.bias"),
        ("backbone.body.layer1.0.bn1.running_mean", "backbone.body.layer1.0.bn1.running_mean"),
        ("roi_heads.box_head.fc6.weight", "fc6.weight|box_head.fcs.0.weight"),
        ("roi_heads.box_predictor.bbox_pred.weight", "bbox_pred.weight|box_head.deltas.weight"),
        (
            "roi_heads.mask_predictor.mask_fcn_logits.bias",
            "mask_fcn_logits.bias|mask_head.logits.bias",
        ),
    ],
)
def test_a_missing_name_is_told(theirs: State, lost: str, named: str):
    kept = {name: value for name, value in theirs.items() if name != lost}
    with pytest.raises(UserError, match=f"({named}).* missing"):
        load(ours(), from_torchvision(kept))


def test_a_checkpoint_of_another_class_count_is_told(theirs: State):
    model = ours(num_classes=7)
    before = model.box_head.classes.weight.clone()
    with pytest.raises(
        UserError, match=r"6 places.*box_head\.classes\.bias is \(4,\), but the model has \(8,\)"
    ):
        load(model, from_torchvision(theirs))
    assert torch.equal(model.box_head.classes.weight, before), "nothing is loaded by halves"


def test_names_of_another_model_are_told():
    state = make_model().state_dict()
    with pytest.raises(UserError, match=r"1 places.*rpn\.extra is not in this model"):
        load(make_model(), state | {"rpn.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"is not in this model|is missing"):
        load(make_model(backbone="resnet34"), state)


def test_our_own_state_dict_goes_round():
    batch, first = make_batch(), make_model()
    torch.nn.init.normal_(first.box_head.classes.weight)
    second = make_model()
    load(second, first.state_dict())
    expected, got = first.eval()(batch).detections, second.eval()(batch).detections
    assert expected is not None
    assert got is not None
    assert expected["valid"].any()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


# Detectron2


def hollow(shapes: dict[str, tuple[int, ...]]) -> State:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.long
@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("classes", [80, 3])
def test_detectron2_fits_name_by_name_and_shape_by_shape(depth: int, classes: int):
    with torch.device("meta"):
        widths = {"channels": 256, "width": 1024, "depth": 4}
        model = make_model(classes, f"resnet{depth}", stride_in_1x1=True, norm="frozen", **widths)
        renamed = from_detectron2(hollow(published_shapes(depth, classes)), STD)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.long
def test_a_cascade_of_detectron2_fits_name_by_name_and_shape_by_shape():
    with torch.device("meta"):
        widths = {"channels": 256, "width": 1024, "depth": 4, "cascade": (0.5, 0.6, 0.7)}
        model = make_model(80, "resnet50", stride_in_1x1=True, norm="frozen", **widths)
        renamed = from_detectron2(hollow(published_shapes(cascade=True)), STD)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_every_number_of_detectron2_arrives_where_it_belongs():
    shapes = published_shapes(classes=3)
    random = {name: torch.randn(shape) for name, shape in shapes.items()}
    own = from_detectron2(random, STD)
    body, bottom_up = "backbone.body", "backbone.bottom_up"
    pairs = {
        f"{body}.bn1.running_var": f"{bottom_up}.stem.conv1.norm.running_var",
        f"{body}.layer1.0.conv1.weight": f"{bottom_up}.res2.0.conv1.weight",
        f"{body}.layer3.5.conv2.weight": f"{bottom_up}.res4.5.conv2.weight",
        f"{body}.layer4.2.bn3.running_mean": f"{bottom_up}.res5.2.conv3.norm.running_mean",
        f"{body}.layer2.0.downsample.0.weight": f"{bottom_up}.res3.0.shortcut.weight",
        f"{body}.layer2.0.downsample.1.bias": f"{bottom_up}.res3.0.shortcut.norm.bias",
        "fpn.lateral.0.weight": "backbone.fpn_lateral2.weight",
        "fpn.output.3.bias": "backbone.fpn_output5.bias",
        "rpn.convs.0.weight": "proposal_generator.rpn_head.conv.weight",
        "rpn.objectness.bias": "proposal_generator.rpn_head.objectness_logits.bias",
        "rpn.deltas.weight": "proposal_generator.rpn_head.anchor_deltas.weight",
        "box_head.fcs.0.bias": "roi_heads.box_head.fc1.bias",
        "box_head.fcs.1.weight": "roi_heads.box_head.fc2.weight",
        "box_head.deltas.weight": "roi_heads.box_predictor.bbox_pred.weight",
        "mask_head.convs.0.weight": "roi_heads.mask_head.mask_fcn1.weight",
        "mask_head.deconv.weight": "roi_heads.mask_head.deconv.weight",
        "mask_head.logits.bias": "roi_heads.mask_head.predictor.bias",
    }
    for name, their_name in pairs.items():
        assert torch.equal(own[name], random[their_name]), name
    for kind in ("weight", "bias"):  # background is the last of theirs
        scores = random[f"roi_heads.box_predictor.cls_score.{kind}"]
        assert torch.equal(own[f"box_head.classes.{kind}"], torch.cat([scores[3:], scores[:3]]))
    rgb = torch.rand(1, 3, 32, 32)  # 0..1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], STD])[:, :, None, None]
    expected = torch.conv2d(
        rgb.flip(1) * 255 - 255 * mean.flip(0), random[f"{bottom_up}.stem.conv1.weight"]
    )
    got = torch.conv2d((rgb - mean) / std, own[f"{body}.conv1.weight"])
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    features = torch.randn(3, 256, 7, 7)
    expected = torch.nn.functional.linear(
        features.flatten(1), random["roi_heads.box_head.fc1.weight"]
    )
    got = torch.nn.functional.linear(
        features.permute(0, 2, 3, 1).flatten(1), own["box_head.fcs.0.weight"]
    )
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_what_the_configuration_gives_is_left_out():
    with torch.device("meta"):
        state = hollow(published_shapes())
        assert (
            from_detectron2(state | hollow(constants()), STD).keys()
            == from_detectron2(state, STD).keys()
        )


def test_an_unknown_name_of_detectron2_is_told():
    for name in (
        "roi_heads.keypoint_head.conv_fcn1.weight",
        "roi_heads.box_head.fc.weight",
        "roi_heads.mask_head.conv",
    ):
        with pytest.raises(
            UserError, match=rf"'{name}' does not belong to Detectron2's mask_rcnn_R_50_FPN"
        ):
            from_detectron2(hollow({**published_shapes(), name: (1,)}), STD)


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ("roi_heads.mask_head.mask_fcn8", "mask_head.convs.7"),
        ("roi_heads.mask_head.mask_fcn12", "mask_head.convs.11"),
        ("roi_heads.box_head.conv6", "box_head.convs.5"),
        ("roi_heads.box_head.fc3", "box_head.fcs.2"),
        ("roi_heads.box_head.1.fc3", "box_head.later.0.fcs.2"),
        ("proposal_generator.rpn_head.conv.conv2", "rpn.convs.2"),
    ],
)
def test_any_number_of_layers_of_detectron2(theirs: str, own: str):
    bias = torch.randn(4)
    renamed = from_detectron2({f"{theirs}.bias": bias}, STD)
    assert renamed.keys() == {f"{own}.bias"}
    assert torch.equal(renamed[f"{own}.bias"], bias)


def test_ten_and_more_layers_of_mmdetection():
    bias = torch.randn(4)
    state = {f"roi_head.mask_head.convs.11.conv.{kind}": bias for kind in ("weight", "bias")}
    renamed = from_mmdetection(state, STD, STD, bgr=False)
    assert renamed.keys() == {"mask_head.convs.11.weight", "mask_head.convs.11.bias"}


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("backbone.bottom_up.stem.conv1.weight", r"backbone\.body\.conv1\.weight"),
        (
            "backbone.bottom_up.res5.2.conv3.norm.running_var",
            r"backbone\.body\.layer4\.2\.bn3\.running_var",
        ),
        ("roi_heads.box_head.fc1.weight", r"box_head\.fcs\.0\.weight"),
        ("roi_heads.box_predictor.cls_score.bias", r"box_head\.classes\.bias"),
    ],
)
def test_a_missing_name_of_detectron2_is_told(lost: str, named: str):
    shapes = published_shapes()
    del shapes[lost]
    with torch.device("meta"):
        model = ours("resnet50", 80)
        with pytest.raises(UserError, match=rf"1 places.*{named} is missing"):
            load(model, from_detectron2(hollow(shapes), STD))


# MMDetection


@pytest.mark.long
def test_group_norms_of_mmdetection_fit_name_by_name_and_shape_by_shape():
    """As in configs/gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py."""
    shapes = mmdetection_files.group_norm_shapes()
    assert "backbone.layer1.0.gn1.weight" in shapes
    with torch.device("meta"):
        widths = {"channels": 256, "width": 1024, "depth": 4, "convs": 4, "fcs": 1}
        model = make_model(80, "resnet50", norm="group", head_norm="group", **widths)
        renamed = from_mmdetection(hollow(shapes), STD, (1.0, 1.0, 1.0), bgr=True)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    random = {name: torch.randn(shapes[name]) for name in shapes if "layer1.0" in name}
    own = from_mmdetection(random, STD, (1.0, 1.0, 1.0), bgr=True)
    block = "backbone.body.layer1.0"
    for name, theirs in ((f"{block}.bn{n}.bias", f"layer1.0.gn{n}.bias") for n in (1, 2, 3)):
        assert torch.equal(own[name], random[f"backbone.{theirs}"])
    name = "downsample.1.weight"
    assert torch.equal(own[f"{block}.{name}"], random[f"backbone.layer1.0.{name}"])


# All of them


@pytest.mark.parametrize("pool", [7, 14, 8])
@pytest.mark.parametrize(
    ("their_name", "convert", "own_name"),
    [
        ("roi_heads.box_head.fc1", "detectron2", "box_head.fcs.0"),
        ("roi_heads.box_head.0.fc1", "detectron2", "box_head.fcs.0"),
        ("roi_heads.box_head.1.fc1", "detectron2", "box_head.later.0.fcs.0"),
        ("roi_heads.box_head.2.fc1", "detectron2", "box_head.later.1.fcs.0"),
        ("roi_heads.box_head.fc6", "torchvision", "box_head.fcs.0"),
        ("roi_heads.box_head.5", "torchvision", "box_head.fcs.0"),
        ("roi_head.bbox_head.shared_fcs.0", "mmdetection", "box_head.fcs.0"),
    ],
)
def test_the_first_layer_of_a_box_head_gives_the_same_for_every_pool(
    their_name: str, convert: str, own_name: str, pool: int
):
    weight = torch.randn(6, 16 * pool**2)
    own = {
        "torchvision": lambda state: from_torchvision(state, pool),
        "detectron2": lambda state: from_detectron2(state, STD, pool=pool),
        "mmdetection": lambda state: from_mmdetection(state, STD, STD, False, pool),
    }[convert]({f"{their_name}.weight": weight})
    features = torch.randn(5, 16, pool, pool)
    expected = features.flatten(1) @ weight.T
    got = features.permute(0, 2, 3, 1).flatten(1) @ own[f"{own_name}.weight"].T
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_weights_of_another_pool_are_told():
    with torch.device("meta"):
        shapes = published_shapes(classes=3) | {"roi_heads.box_head.fc1.weight": (1024, 256 * 64)}
        model = make_model(3, "resnet50", norm="frozen", channels=256, width=1024, depth=4)
        with pytest.raises(
            UserError, match=r"1 places.*box_head\.fcs\.0\.weight is \(1024, 16384\)"
        ):
            load(model, from_detectron2(hollow(shapes), STD, pool=7))


# Classes by name


ANIMALS = ["cat", "dog", "horse", "cow"]


def distinct(model: MaskRCNN) -> State:
    """A state dict of its names and shapes, in which no two numbers of a weight are the same."""
    shift = {name: index for index, name in enumerate(model.state_dict())}
    return {
        name: torch.linspace(shift[name], shift[name] + 0.5, value.numel())
        .view(value.shape)
        .to(value.dtype)
        for name, value in model.state_dict().items()
    }


def rows_of(state: State, label: int) -> list[torch.Tensor]:
    """All that a state dict knows of label 1..K."""
    rows = [state[f"box_head.classes.{kind}"][label] for kind in ("weight", "bias")]
    rows += [
        state[f"box_head.deltas.{kind}"][4 * (label - 1) : 4 * label] for kind in ("weight", "bias")
    ]
    return rows + [state[f"mask_head.logits.{kind}"][label - 1] for kind in ("weight", "bias")]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("classes", "known"),
    [
        (ANIMALS, ANIMALS),
        (["cow", "horse", "dog", "cat"], ["cow", "horse", "dog", "cat"]),
        (["dog"], ["dog"]),
        (["sheep", "horse", "cat"], ["horse", "cat"]),
        (["sheep", "cow", "goat", "cat", "hen", "dog"], ["cow", "cat", "dog"]),
        (["Cat", "dog ", "goat"], []),
    ],
)
def test_rows_of_classes_are_taken_over_by_name(classes: list[str], known: list[str]):
    state = distinct(make_model(len(ANIMALS)))
    model = make_model(len(classes))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert take_over(model, state, ANIMALS, classes) == known
    after = model.state_dict()
    for label, name in enumerate(classes, start=1):
        source, row = (state, ANIMALS.index(name) + 1) if name in known else (before, label)
        assert same(rows_of(after, label), rows_of(source, row)), name
    for kind in ("weight", "bias"):
        assert torch.equal(
            after[f"box_head.classes.{kind}"][0], state[f"box_head.classes.{kind}"][0]
        ), "background"
    for name, value in after.items():
        if not name.startswith(("box_head.classes", "box_head.deltas", "mask_head.logits")):
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("theirs", [ANIMALS, ["dog"]])
def test_the_rows_of_all_stages_of_a_cascade_are_taken_over(theirs: list[str]):
    """Its deltas are of no class, also where the number of rows does not say so."""
    options = {"cascade": (0.5, 0.6)}
    state = distinct(make_model(len(theirs), **options))
    model = make_model(2, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert take_over(model, state, theirs, ["sheep", "dog"]) == ["dog"]
    after, row = model.state_dict(), theirs.index("dog") + 1
    for head in ("box_head", "box_head.later.0"):
        for kind in ("weight", "bias"):
            found, source = after[f"{head}.classes.{kind}"], state[f"{head}.classes.{kind}"]
            assert torch.equal(found[2], source[row])
            assert torch.equal(found[0], source[0])
            assert torch.equal(found[1], before[f"{head}.classes.{kind}"][1])
            deltas = f"{head}.deltas.{kind}"
            assert torch.equal(after[deltas], state[deltas])
    with pytest.raises(UserError, match=r"weights do not fit the model"):
        take_over(make_model(len(theirs)), state, theirs, theirs)


def test_optional_parts_are_taken_over_or_start_from_random_weights():
    parts = {"mask_iou": True, "occluder": True}
    state = distinct(make_model(4, **parts))
    model = make_model(2, **parts)
    assert new_parts(model, state) == []
    assert take_over(model, state, ANIMALS, ["sheep", "dog"]) == ["dog"]
    weight = "occluder.mask_deconv.weight"
    assert torch.equal(model.state_dict()[weight], state[weight])
    row = model.state_dict()["mask_iou.ious.weight"][1]
    assert torch.equal(row, state["mask_iou.ious.weight"][ANIMALS.index("dog")])

    plain = distinct(make_model(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert new_parts(model, plain) == ["mask_iou", "occluder"]
    assert take_over(model, plain, ANIMALS, ["sheep", "dog"]) == ["dog"]
    after = model.state_dict()
    for name, value in after.items():
        if name.startswith(("mask_iou.", "occluder.")):
            assert torch.equal(value, before[name]), name
    assert torch.equal(after["mask_head.deconv.weight"], plain["mask_head.deconv.weight"])
    with pytest.raises(UserError, match=r"mask_iou\.\S+ is not in this model"):
        take_over(make_model(4), state, ANIMALS, ANIMALS)


def test_taking_over_leaves_the_given_state_dict_as_it_was():
    state = distinct(make_model(4))
    before = {name: value.clone() for name, value in state.items()}
    take_over(make_model(2), state, ANIMALS, ["sheep", "dog"])
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_of_a_name_that_comes_twice_the_first_counts():
    state, model = distinct(make_model(3)), make_model(1)
    assert take_over(model, state, ["mouse", "bat", "mouse"], ["mouse"]) == ["mouse"]
    assert same(rows_of(model.state_dict(), 1), rows_of(state, 1))


def test_gaps_in_the_ids_of_coco_are_no_classes():
    every, used = ([category.name for category in coco_categories(rows)] for rows in (90, 80))
    state, model = distinct(make_model(90)), make_model(80)
    assert take_over(model, state, every, used) == used
    for category, label in zip(coco_categories(80), range(1, 81), strict=True):
        assert same(rows_of(model.state_dict(), label), rows_of(state, category.id)), category


@pytest.mark.long
def test_another_architecture_is_not_taken_over():
    model = make_model(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for other in (
        make_model(4, width=64),
        make_model(4, depth=2),
        make_model(4, "resnet34"),
        make_model(4, convs=1),
    ):
        with pytest.raises(UserError, match=r"do not fit the model in \d+ places"):
            take_over(model, other.state_dict(), ANIMALS, ["cat", "dog"])
    with pytest.raises(
        UserError, match=r"box_head\.classes\.bias is \(5,\), but the model has \(3,\)"
    ):
        take_over(
            model, make_model(4).state_dict(), ANIMALS[:3], ["cat", "dog"]
        )  # four rows, three names
    assert same(list(model.state_dict().values()), list(before.values())), (
        "nothing is loaded by halves"
    )
