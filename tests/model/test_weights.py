import pytest
import torch
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.weights import from_torchvision, load
from tests.model.conftest import make_batch, make_model

State = dict[str, torch.Tensor]


def ours(backbone: str = "resnet18", num_classes: int = 3) -> MaskRCNN:
    """Torchvision's widths."""
    return make_model(num_classes, backbone, channels=256, width=1024, depth=4)


@pytest.fixture(scope="module")
def theirs() -> State:
    """Torchvision's Mask R-CNN on a ResNet-18, to be small."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)
    return TheirMaskRCNN(backbone, num_classes=4).state_dict()


def test_maskrcnn_resnet50_fpn_fits_name_by_name_and_shape_by_shape():
    with torch.device("meta"):  # shapes alone: the numbers are 170 MB
        state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
        model = ours("resnet50", 90)
        renamed = from_torchvision(state)
        load(model, renamed)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_published_weights_have_frozen_norms():
    """Those of torchvision's own training have no `num_batches_tracked`: they fit norm=frozen."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    state = TheirMaskRCNN(backbone, num_classes=4).state_dict()
    load(make_model(channels=256, width=1024, depth=4, norm="frozen"), from_torchvision(state))
    with pytest.raises(UserError, match="num_batches_tracked is missing"):
        load(ours(), from_torchvision(state))


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
    assert torch.equal(own["box_head.deltas.weight"], theirs["roi_heads.box_predictor.bbox_pred.weight"][4:])
    assert torch.equal(own["mask_head.logits.weight"], theirs["roi_heads.mask_predictor.mask_fcn_logits.weight"][1:])
    # the first layer reads the same features in another order
    features = torch.randn(3, 256, 7, 7)
    expected = torch.nn.functional.linear(features.flatten(1), theirs["roi_heads.box_head.fc6.weight"])
    got = torch.nn.functional.linear(features.permute(0, 2, 3, 1).flatten(1), own["box_head.fc1.weight"])
    assert torch.allclose(got, expected, atol=1e-5)


def test_the_given_state_dict_stays_as_it_was(theirs: State):
    before = {name: (value.shape, value.data_ptr()) for name, value in theirs.items()}
    from_torchvision(theirs)
    assert before == {name: (value.shape, value.data_ptr()) for name, value in theirs.items()}


def test_an_unknown_name_is_told(theirs: State):
    with pytest.raises(UserError, match=r"'roi_heads\.keypoint_head\.0\.weight'.*maskrcnn_resnet50_fpn"):
        from_torchvision(theirs | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)})
    with torch.device("meta"):
        other = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    with pytest.raises(UserError, match="is none of torchvision's maskrcnn_resnet50_fpn"):
        from_torchvision(other)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("rpn.head.conv.0.0.weight", "rpn.conv.weight"),
        ("roi_heads.mask_head.2.0.bias", "mask_head.convs.2.bias"),
        ("backbone.body.layer1.0.bn1.running_mean", "backbone.body.layer1.0.bn1.running_mean"),
        ("roi_heads.box_head.fc6.weight", "fc6.weight|box_head.fc1.weight"),
        ("roi_heads.box_predictor.bbox_pred.weight", "bbox_pred.weight|box_head.deltas.weight"),
        ("roi_heads.mask_predictor.mask_fcn_logits.bias", "mask_fcn_logits.bias|mask_head.logits.bias"),
    ],
)
def test_a_missing_name_is_told(theirs: State, lost: str, named: str):
    kept = {name: value for name, value in theirs.items() if name != lost}
    with pytest.raises(UserError, match=f"({named}).* missing"):
        load(ours(), from_torchvision(kept))


def test_a_checkpoint_of_another_class_count_is_told(theirs: State):
    model = ours(num_classes=7)
    before = model.box_head.classes.weight.clone()
    with pytest.raises(UserError, match=r"6 places.*box_head\.classes\.bias is \(4,\), the model has \(8,\)"):
        load(model, from_torchvision(theirs))
    assert torch.equal(model.box_head.classes.weight, before), "nothing is loaded by halves"


def test_names_of_another_model_are_told():
    state = make_model().state_dict()
    with pytest.raises(UserError, match=r"1 places.*rpn\.extra is not of this model"):
        load(make_model(), state | {"rpn.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"is not of this model|is missing"):
        load(make_model(backbone="resnet34"), state)


def test_our_own_state_dict_goes_round():
    batch, first = make_batch(), make_model()
    torch.nn.init.normal_(first.box_head.classes.weight)
    second = make_model()
    load(second, first.state_dict())
    expected, got = first.eval()(batch).detections, second.eval()(batch).detections
    assert expected is not None and got is not None and expected["valid"].any()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
