import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.backbone import Backbone, FrozenBatchNorm, recomputed

STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def backbone(name: str = "resnet18", **options: object) -> Backbone:
    return Backbone(**{"name": name, "norm": "batch", "freeze_at": 0, "recompute": False, **options})


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [64, 128, 256, 512]),
        ("resnet34", [64, 128, 256, 512]),
        ("resnet50", [256, 512, 1024, 2048]),
        ("resnet101", [256, 512, 1024, 2048]),
    ],
)
def test_channels_and_strides(name: str, channels: list[int]):
    with torch.device("meta"):  # shapes alone
        built = backbone(name)
        maps = built(torch.zeros(2, 3, 96, 160))
    assert built.channels == channels
    assert built.strides == [4, 8, 16, 32]
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 96 // s, 160 // s) for c, s in zip(channels, built.strides, strict=True)
    ]
    blocks = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
    assert tuple(len(built.body[stage]) for stage in STAGES[2:]) == blocks[name]


def test_the_numbers_are_those_of_torchvisions_resnet():
    built, theirs = backbone().eval(), resnet18(weights=None).eval()
    theirs.load_state_dict({k.removeprefix("body."): v for k, v in built.state_dict().items()}, strict=False)
    images = torch.randn(1, 3, 64, 96)
    pooled = theirs.avgpool(built(images)[-1]).flatten(1)
    assert torch.allclose(theirs.fc(pooled), theirs(images), atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "kind"), [("frozen", FrozenBatchNorm), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)]
)
def test_norms(norm: str, kind: type[nn.Module]):
    built = backbone(norm=norm)
    norms = [m for m in built.modules() if isinstance(m, (FrozenBatchNorm, nn.BatchNorm2d, nn.GroupNorm))]
    assert len(norms) == 20 and all(type(m) is kind for m in norms)
    parameters = {p for m in norms for p in m.parameters()}
    assert len(parameters) == (0 if norm == "frozen" else 40)
    assert all(m.isfinite().all() for m in built.train()(torch.randn(2, 3, 64, 64)))


def test_the_frozen_norm_is_batch_norm_in_evaluation():
    reference = nn.BatchNorm2d(6).eval()
    for tensor in (reference.weight, reference.bias, reference.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(reference.running_var, 0.1, 3)
    frozen = FrozenBatchNorm(6)
    frozen.load_state_dict(reference.state_dict())
    x = torch.randn(2, 6, 5, 4)
    assert torch.allclose(frozen.train()(x), reference(x), atol=1e-6)


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(freeze_at: int):
    built = backbone(freeze_at=freeze_at).train()
    frozen = {0: (), 1: STAGES[:2], 2: STAGES[:3], 3: STAGES[:4], 4: STAGES[:5], 5: STAGES}[freeze_at]
    before = {k: v.clone() for k, v in built.state_dict().items() if "running" in k or "tracked" in k}
    maps = built(torch.randn(2, 3, 64, 64))
    if freeze_at < 5:
        sum(m.square().mean() for m in maps).backward()
    for name, parameter in built.named_parameters():
        fixed = name.split(".")[1] in frozen
        assert parameter.requires_grad is not fixed, name
        assert (parameter.grad is None) is fixed, name
    for name, value in before.items():
        fixed = name.split(".")[1] in frozen
        assert torch.equal(built.state_dict()[name], value) is fixed, name


def test_building_leaves_the_statistics_alone_and_the_mode_at_training():
    built = backbone()
    assert built.training and built.body["layer1"].training
    assert int(built.body["bn1"].num_batches_tracked) == 0


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_computing_again_gives_identical_gradients(norm: str):
    kept, again = backbone(norm=norm, freeze_at=1), backbone(norm=norm, freeze_at=1, recompute=True)
    again.load_state_dict(kept.state_dict())
    images, passes = torch.randn(2, 3, 64, 64), []
    for built in (kept, again):
        calls: list[object] = []
        built.body["layer2"][0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        sum(m.square().mean() for m in built(images)).backward()
        passes.append(len(calls))
    assert passes == [1, 2], "in the backward pass res3 is computed again"
    for (name, first), second in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        assert first.grad is None or torch.equal(first.grad, second.grad), name


def test_batch_norm_sees_each_batch_once():
    built = backbone(recompute=True)
    sum(m.mean() for m in built(torch.randn(2, 3, 64, 64))).backward()
    assert {int(v) for k, v in built.state_dict().items() if k.endswith("num_batches_tracked")} == {1}


def test_nothing_is_kept_for_later_without_gradients():
    calls: list[object] = []

    def part(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 2

    with torch.no_grad():
        assert recomputed(part, torch.ones(1)) == 2
    assert recomputed(part, torch.ones(1, requires_grad=True)).grad_fn is not None
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "layer"}, "backbone.norm=layer is unknown; choose one of frozen, batch, group"),
        ({"freeze_at": 6}, "backbone.freeze_at=6 must be 0"),
        ({"freeze_at": -1}, "backbone.freeze_at=-1 must be 0"),
        ({"name": "resnet19"}, "backbone.name=resnet19 is unknown; choose one of resnet18, resnet34"),
        ({"name": "vit_b_16"}, "backbone.name=vit_b_16 is unknown"),
    ],
)
def test_mistakes_are_told(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        backbone(**wrong)
