from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from models import make_batch
from torch import nn

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.model.fpn import SimpleFPN
from maskrcnn_lit.model.plain_transformer import PlainTransformer
from maskrcnn_lit.model.timm_backbone import TimmBackbone

SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2}
# Each way to know where a patch is, and each size of a patch.
NAMES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL,  # absolute embeddings
    # rotary ones; LayerScale begins at 1e-5, with which no block does anything
    "vit_small_patch16_dinov3": SMALL | {"init_values": 1.0},
    "eva02_tiny_patch14_224": SMALL,  # both
    "samvit_base_patch16": SMALL | {"img_size": 256},  # relative ones, in windows of its own
    "vit_small_patch14_reg4_dinov2": SMALL,
    "vit_small_patch32_224": SMALL,
    "vit_small_patch8_224": SMALL,
    "xcit_nano_12_p16_224": {"depth": 4, "embed_dim": 32, "num_heads": 2},
}
STRIDES = {"vit_small_patch32_224": 32, "vit_small_patch8_224": 8}
IMAGES = (2, 3, 64, 96)


@cache
def shared(name: str) -> TimmBackbone:
    return backbone(name)


def backbone(name: str = "vit_small_patch16_dinov3", **options: Any) -> TimmBackbone:
    torch.manual_seed(0)
    given = {"norm": "auto", "freeze_at": 0, "options": NAMES[name]} | options
    return TimmBackbone(name=name, **given)


@pytest.mark.parametrize("name", NAMES)
def test_one_map_at_one_stride_and_a_gradient_for_every_parameter(name: str):
    built, stride = shared(name), STRIDES.get(name, 16)
    assert (built.channels, built.strides) == ([32], [stride])
    (x,) = built.train()(torch.randn(IMAGES))
    assert x.shape == (2, 32, 64 // stride, 96 // stride)
    x.square().mean().backward()
    for path, parameter in built.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    built.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_channels_last_and_bfloat16(name: str):
    built, images = shared(name).eval(), torch.randn(IMAGES)
    (expected,) = built(images)
    (x,) = built(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(x, expected, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (x,) = built(images)
    assert (x.float() - expected).abs().mean() < 0.05 * expected.abs().mean() + 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_map_is_exported(name: str):
    built, images = shared(name).eval(), torch.randn(1, 3, 64, 96)
    exported = torch.export.export(built, (images,)).module()
    assert torch.allclose(exported(images)[0], built(images)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@torch.no_grad()
def test_the_map_is_what_timm_says_with_its_last_norm(name: str):
    """LayerScale, class and register tokens take part, and the last norm applies."""
    built, images = shared(name).eval(), torch.randn(IMAGES)
    whole = timm.create_model(name, num_classes=0, dynamic_img_size=True, **NAMES[name]).eval()
    whole.load_state_dict(built.body.model.state_dict())
    tokens = whole.forward_features(images)[:, whole.num_prefix_tokens :]
    expected = tokens.transpose(1, 2).unflatten(2, (4, 6))
    assert torch.equal(built(images)[0], expected)
    kinds = {path.rpartition(".")[2] for path, _ in whole.named_parameters()}
    assert name == "vit_tiny_patch16_224" or {"gamma_1", "gamma_2", "reg_token"} <= kinds


class Copy(nn.Module):
    """A model whose map is the mean of each patch: for tests of sizes."""

    grad_checkpointing = False

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.feature_info = [{"reduction": patch, "num_chs": 3}]
        self.seen: list[tuple[int, ...]] = []

    def prune_intermediate_layers(self, *_: Any, **__: Any) -> None:
        pass

    def forward_intermediates(self, images: torch.Tensor, **_: Any) -> list[torch.Tensor]:
        self.seen.append(tuple(images.shape[2:]))
        return [F.avg_pool2d(images, self.feature_info[0]["reduction"])]


@pytest.mark.parametrize(
    ("patch", "size", "padded", "cells"),
    [
        (16, (64, 96), (64, 96), (4, 6)),
        (16, (65, 100), (80, 112), (5, 7)),  # any size
        (14, (64, 96), (70, 98), (4, 6)),
        (14, (448, 448), (448, 448), (28, 28)),
        (14, (50, 33), (70, 56), (4, 3)),
        (32, (64, 100), (64, 128), (2, 4)),
    ],
)
def test_images_are_padded_to_multiples_of_the_patch(
    patch: int, size: tuple[int, int], padded: tuple[int, int], cells: tuple[int, int]
):
    model = Copy(patch)
    (x,) = PlainTransformer(model)(torch.randn(1, 3, *size))
    assert model.seen == [padded]
    assert tuple(x.shape) == (1, 3, *cells)


@pytest.mark.parametrize("patch", [12, 14, 16])
def test_a_cell_lies_where_its_stride_says(patch: int):
    """A map that rises along the image has at the center of each cell the value of that place."""
    place = torch.arange(224.0).view(1, 1, 1, -1).expand(1, 3, 224, 224) + 0.5
    transformer = PlainTransformer(Copy(patch))
    (x,) = transformer(place)
    stride = transformer.stride
    expected = (torch.arange(224 // stride) + 0.5) * stride
    inner = slice(1, -1)  # beyond the outermost centers there is nothing to interpolate
    assert torch.allclose(x[0, 0, 3, inner], expected[inner], atol=1e-3)


def test_a_square_is_the_least_size():
    model = Copy(16)
    transformer = PlainTransformer(model, square=128)
    for size, cells in (((64, 96), (8, 8)), ((64, 160), (8, 10))):
        assert tuple(transformer(torch.randn(1, 3, *size))[0].shape[2:]) == cells


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 4, 5, "all"])
def test_freezing_goes_by_quarters_of_the_blocks(freeze_at: int | str):
    built = backbone(freeze_at=freeze_at, drop_path=0.5).train()
    frozen = 5 if freeze_at == "all" else freeze_at
    model = built.body.model
    assert [block.norm1.weight.requires_grad for block in model.blocks] == [
        frozen < stage for stage in (2, 3, 4, 5)
    ]
    assert model.reg_token.requires_grad is model.patch_embed.proj.weight.requires_grad
    assert model.cls_token.requires_grad is (frozen == 0)
    assert model.norm.weight.requires_grad is (frozen < 5)
    assert [block.training for block in model.blocks] == [frozen < stage for stage in (2, 3, 4, 5)]
    images = torch.randn(IMAGES)
    (first,), (second,) = built(images), built(images)
    assert first.requires_grad is (frozen < 5)
    assert torch.equal(first, second) is (frozen == 5)  # then no stochastic depth is left


def test_layers_are_the_embeddings_and_each_block():
    built = backbone()
    layers = built.body.parameters_by_layer()
    model = built.body.model
    assert [len(layer) for layer in layers[1:]] == [len(list(b.parameters())) for b in model.blocks]
    rest = {p for p in model.parameters()} - {p for layer in layers for p in layer}
    assert rest == set(model.norm.parameters())
    first = {id(p) for p in layers[0]}
    assert {id(model.cls_token), id(model.reg_token), id(model.patch_embed.proj.weight)} <= first


@pytest.mark.parametrize("recompute", [True, False, "auto"])
def test_checkpointing_changes_no_gradient_with_stochastic_depth_too(recompute: bool | str):
    plain, again = backbone(drop_path=0.5), backbone(drop_path=0.5, recompute=recompute)
    images, gradients = torch.randn(IMAGES), []
    for built in (plain, again):
        torch.manual_seed(1)
        built.train()(images)[0].square().mean().backward()
        gradients.append([p.grad for p in built.parameters()])
    assert again.body.model.grad_checkpointing is (recompute is True)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    again.eval()(images)
    assert again.body.model.grad_checkpointing is False


def test_stochastic_depth_grows_with_the_depth():
    blocks = backbone(drop_path=0.3).body.model.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("kind", ["auto", "simple"])
def test_a_whole_model_of_one_map_trains_and_detects(kind: str):
    """By one word: the simple pyramid is chosen by itself."""
    options = "backbone.options={depth: 4, embed_dim: 32, num_heads: 2}"
    name = "backbone.name=vit_small_patch16_dinov3"
    config = compose(
        "train",
        ["backbone=timm", name, options, "model=tiny", f"model.fpn.kind={kind}"],
    ).model
    config.num_classes = 3
    model, batch = build(config), make_batch(side=64)
    assert isinstance(model.fpn, SimpleFPN)
    assert model.strides == [4, 8, 16, 32]
    losses = model.train()(batch).losses
    torch.stack(list(losses.values())).sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    detections = model.eval()(batch).detections
    assert detections["boxes"].shape[0] == 2
    assert detections["boxes"].isfinite().all()
