"""ViTDet from its equations (Li et al. 2022): what its Mask R-CNN computes, written plainly from
the layouts of the weights that Detectron2 publishes, and compared with ours in float64 on a small
one.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vitdet_names import Size, vitdet_shapes

from maskrcnn_lit.config.compose import build, compose
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights

State = dict[str, Tensor]
SIZE = Size(
    width=16, depth=8, heads=2, grid=8, pretrained=3, window=3, channels=8, classes=2, hidden=12
)
SIDE = 16 * SIZE.grid


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Layer norm over the last axis."""
    x = x - x.mean(dim=-1, keepdim=True)
    x = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def conv(state: State, name: str, x: Tensor) -> Tensor:
    """With the norm of its channels where it has one."""
    weight = state[f"{name}.weight"]
    x = F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)
    if f"{name}.norm.weight" in state:
        x = norm(state, f"{name}.norm", x.movedim(1, -1)).movedim(-1, 1)
    return x


def deconv(state: State, name: str, x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)


def attention(state: State, name: str, x: Tensor) -> Tensor:
    """h w C -> h w C: softmax(q k / sqrt(d) + q R_h + q R_w) v, the R by the rows and the columns
    between two cells.
    """
    height, width, channels = x.shape
    size = channels // SIZE.heads
    q, k, v = (
        part.reshape(height * width, SIZE.heads, size).transpose(0, 1)
        for part in linear(state, f"{name}.qkv", x.reshape(-1, channels)).split(channels, dim=1)
    )
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    logits = q @ k.transpose(1, 2) / size**0.5
    for axis, place, cells in (("h", row, height), ("w", column, width)):
        table = state[f"{name}.rel_pos_{axis}"]
        assert len(table) == 2 * cells - 1
        between = table[place[:, None] - place[None, :] + cells - 1]  # N N d
        logits = logits + torch.einsum("hqd,qkd->hqk", q, between)
    out = (logits.softmax(dim=-1) @ v).transpose(0, 1).reshape(height, width, channels)
    return linear(state, f"{name}.proj", out)


def in_windows(state: State, name: str, x: Tensor) -> Tensor:
    """Each window alone; cells beyond the map are zeros, and attended to."""
    height, width, _ = x.shape
    side = SIZE.window
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    out = torch.zeros_like(x)
    for top in range(0, x.shape[0], side):
        for left in range(0, x.shape[1], side):
            here = slice(top, top + side), slice(left, left + side)
            out[here] = attention(state, name, x[here])
    return out[:height, :width]


def vit(state: State, image: Tensor) -> Tensor:
    """3 H W -> C h w."""
    name = "backbone.net"
    patch = f"{name}.patch_embed.proj"
    x = F.conv2d(image[None], state[f"{patch}.weight"], state[f"{patch}.bias"], stride=16)[0]
    places = state[f"{name}.pos_embed"][:, 1:].view(1, SIZE.pretrained, SIZE.pretrained, -1)
    places = F.interpolate(places.permute(0, 3, 1, 2), size=x.shape[1:], mode="bicubic")[0]
    x = (x + places).permute(1, 2, 0)
    for number in range(SIZE.depth):
        block = f"{name}.blocks.{number}"
        attend = attention if number in SIZE.everywhere else in_windows
        x = x + attend(state, f"{block}.attn", norm(state, f"{block}.norm1", x))
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
        x = x + linear(state, f"{block}.mlp.fc2", hidden)
    return x.permute(2, 0, 1)


def pyramid_of(state: State, x: Tensor) -> list[Tensor]:
    """1 C h w -> p2..p6."""
    name = "backbone.simfp_"
    p2 = deconv(state, f"{name}2.0", x).movedim(1, -1)
    p2 = deconv(state, f"{name}2.3", F.gelu(norm(state, f"{name}2.1", p2)).movedim(-1, 1))
    p2 = conv(state, f"{name}2.5", conv(state, f"{name}2.4", p2))
    p3 = conv(state, f"{name}3.2", conv(state, f"{name}3.1", deconv(state, f"{name}3.0", x)))
    p4 = conv(state, f"{name}4.1", conv(state, f"{name}4.0", x))
    p5 = conv(state, f"{name}5.2", conv(state, f"{name}5.1", F.max_pool2d(x, 2)))
    return [p2, p3, p4, p5, F.max_pool2d(p5, kernel_size=1, stride=2)]


@pytest.fixture(scope="module", autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights under which each layer has something to say."""
    torch.manual_seed(1)
    made = {}
    for name, shape in vitdet_shapes(SIZE).items():
        wide = len(shape) == 1 and name.endswith("weight")
        made[name] = 1 + 0.3 * torch.randn(shape) if wide else 0.3 * torch.randn(shape)
    return made


def options() -> list[str]:
    own = {"img_size": SIDE, "embed_dim": SIZE.width, "depth": SIZE.depth, "num_heads": SIZE.heads}
    own |= {"window_size": SIZE.window, "global_attn_indexes": sorted(SIZE.everywhere)}
    text = ", ".join(f"{name}: {value}" for name, value in own.items())
    heads = [f"model.{part}={SIZE.channels}" for part in ("fpn.channels", "mask_head.width")]
    heads += [f"model.box_head.{part}" for part in (f"width={SIZE.hidden}", "conv_width=8")]
    return [f"backbone.options={{{text}}}", f"backbone.square={SIDE}", *heads]


@pytest.fixture(scope="module")
def ours(state: State) -> MaskRCNN:
    config = compose("train", ["model=vitdet_b", *options()]).model
    config.num_classes = SIZE.classes
    model = build(config).double().eval()
    weights.load(model, weights.from_detectron2(state, std=config.std))
    return model


def close(got: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= bound * expected.abs().max()


@torch.no_grad()
def test_features_and_pyramid(ours: MaskRCNN, state: State):
    """An image smaller than the square: what is padded has embeddings of its own, too."""
    image = torch.randn(3, 96, 64)
    expected = vit(state, F.pad(image, (0, SIDE - 64, 0, SIDE - 96)))
    (x,) = ours.backbone(image[None])
    close(x[0], expected)
    for got, level in zip(ours.fpn([x]), pyramid_of(state, expected[None]), strict=True):
        close(got, level)


@torch.no_grad()
def test_heads(ours: MaskRCNN, state: State):
    name, pyramid = "proposal_generator.rpn_head", [torch.randn(1, SIZE.channels, 6, 4)]
    hidden = F.relu(conv(state, f"{name}.conv.conv0", pyramid[0]))
    hidden = F.relu(conv(state, f"{name}.conv.conv1", hidden))
    logits = conv(state, f"{name}.objectness_logits", hidden)[0].permute(1, 2, 0).flatten()
    close(ours.rpn(pyramid).logits[0], logits)

    region = torch.randn(5, SIZE.channels, 7, 7)
    hidden = region
    for layer in (1, 2, 3, 4):
        hidden = F.relu(conv(state, f"roi_heads.box_head.conv{layer}", hidden))
    hidden = F.relu(linear(state, "roi_heads.box_head.fc1", hidden.flatten(1)))
    got, deltas = ours.box_head(region.clone())
    close(got.roll(-1, dims=1), linear(state, "roi_heads.box_predictor.cls_score", hidden))
    close(deltas.flatten(1), linear(state, "roi_heads.box_predictor.bbox_pred", hidden))

    region, labels = torch.randn(3, SIZE.channels, 14, 14), torch.tensor([1, 2, 2])
    hidden = region
    for layer in (1, 2, 3, 4):
        hidden = F.relu(conv(state, f"roi_heads.mask_head.mask_fcn{layer}", hidden))
    hidden = F.relu(deconv(state, "roi_heads.mask_head.deconv", hidden))
    masks = conv(state, "roi_heads.mask_head.predictor", hidden)
    close(ours.mask_head(region.clone(), labels), masks[torch.arange(3), labels - 1])


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [{"norm_eps": 1e-5}, {"square": None}, {"options": {"window_size": 4}}]
)
def test_the_comparison_would_see_it(ours: MaskRCNN, change: dict[str, Any]):
    config = compose("train", ["model=vitdet_b", *options()]).backbone
    given = dict(config) | change | {"options": dict(config.options) | change.get("options", {})}
    other = build(given).double().eval()
    own = {k: v for k, v in ours.backbone.state_dict().items() if "rel_pos" not in k}
    other.load_state_dict(own, strict=False)
    image = torch.randn(1, 3, 96, 64)
    (x,), (y,) = ours.backbone(image), other(image)
    assert x.shape != y.shape or (x - y).abs().max() > 1e-6
