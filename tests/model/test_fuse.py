"""A model that was made fast finds what it found before."""

import copy
from typing import Any

import pytest
import torch
from models import make_batch, make_model
from torch import Tensor, nn

from maskrcnn_lit.model.box_head import BoxHead
from maskrcnn_lit.model.fuse import CELLS, WinogradConv, fold_norms, for_inference
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.norms import FoldedConv, FrozenBatchNorm

NORMS = (nn.BatchNorm2d, FrozenBatchNorm)


def moved(model: MaskRCNN) -> MaskRCNN:
    """With statistics and scales that are not those of a new norm."""
    for norm in (m for m in model.modules() if isinstance(m, NORMS)):
        for values in (norm.running_mean, norm.bias):
            values.data.normal_(0, 0.1)
        for values in (norm.running_var, norm.weight):
            values.data.uniform_(0.8, 1.2)
    return model


@pytest.mark.long
@pytest.mark.parametrize(
    ("norm", "head_norm"), [("batch", None), ("frozen", "batch"), ("frozen", "frozen")]
)
def test_the_detections_stay(norm: str, head_norm: str | None) -> None:
    torch.manual_seed(0)
    model = moved(make_model(norm=norm, head_norm=head_norm, convs=1)).double().eval()
    batch = {
        key: value.double() if value.is_floating_point() else value
        for key, value in make_batch().items()
    }
    batch = {key: batch[key] for key in ("images", "image_sizes")}
    with torch.no_grad():
        before = model(batch).detections
        after = for_inference(model)(batch).detections
    assert before is not None
    assert after is not None
    assert before["valid"].sum() > 10
    for key, value in before.items():
        assert torch.allclose(after[key].double(), value.double(), atol=1e-9), key
    assert not any(isinstance(m, (*NORMS, FoldedConv)) for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.skipif(
    not torch.backends.nnpack.is_available(), reason="this build of PyTorch has no NNPACK"
)
@pytest.mark.parametrize("images", [1, 3])
def test_winograd_is_a_convolution(images: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 24, 3, padding=1)
    fast = WinogradConv(copy.deepcopy(plain))
    x = torch.randn(images, 16, 37, 41)
    assert len(x) * 37 * 41 >= CELLS
    with torch.inference_mode():
        exact = copy.deepcopy(plain).double()(x.double())
        assert (fast(x) - exact).abs().max() < 1e-4 * exact.abs().max()
        assert not torch.equal(fast(x), plain(x)), "it was NNPACK that computed it"
        for other in (x[..., :9, :9], x.double()):
            if other.dtype == torch.float32:
                assert torch.equal(fast(other), plain(other))
        assert torch.equal(fast.double()(x.double()), exact)


def test_only_what_it_can_do_is_given_to_winograd() -> None:
    suits = [
        WinogradConv.suits(nn.Conv2d(4, 4, size, **options))
        for size, options in (
            (3, {"padding": 1}),
            (3, {}),
            (1, {}),
            (3, {"padding": 1, "stride": 2}),
            (3, {"padding": 1, "groups": 2}),
            (3, {"padding": 2, "dilation": 2}),
            (3, {"padding": 1, "padding_mode": "reflect"}),
        )
    ]
    assert suits == [True, *[False] * 6]


def test_a_fold_leaves_norms_that_no_convolution_precedes() -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    ).eval()
    for norm in (net[0], net[2], net[4]):
        nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = net(x)
        fold_norms(net)
        assert torch.allclose(net(x), expected, atol=1e-6)
    assert [type(layer) for layer in net] == [
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.Identity,
        nn.ReLU,
        nn.BatchNorm2d,
    ]


def test_a_model_for_the_cpu_can_be_moved_to_another_device():
    """The CPU's own convolution is left for PyTorch's there."""
    layer = next(m for m in for_inference(make_model()).modules() if isinstance(m, WinogradConv))
    side = int(CELLS**0.5) + 1
    x = torch.zeros(1, layer.in_channels, side, side, device="meta")
    assert layer.to("meta")(x).shape == (1, layer.out_channels, side, side)


class LaterNorm(BoxHead):
    """A head of another person, whose norm does not follow the convolution before it in the
    file.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.conv, self.norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(self.conv(self.norm(features)))


def test_norms_of_another_persons_head_stay() -> None:
    torch.manual_seed(0)
    model = make_model()
    head = model.box_head
    model.box_head = LaterNorm(
        channels=16,
        num_classes=3,
        conv_width=16,
        **{
            name: getattr(head, name)
            for name in ("pool", "object_iou", "batch_size", "positive_fraction", "box_weights")
        },
        **{name: getattr(head, name) for name in ("score_threshold", "nms_iou", "candidates")},
        max_detections=100,
        width=32,
    )
    model = moved(model).double().eval()
    features = torch.randn(5, 16, 7, 7).double()
    before = model.box_head(features)
    after = for_inference(model).box_head(features)
    assert isinstance(model.box_head.norm, nn.BatchNorm2d)
    for ours, theirs in zip(after, before, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
