from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.timm_backbone import TimmBackbone
from maskrcnn_lit.model.window_attention import Grid, global_blocks, windowed_block

SMALL = {"depth": 8, "embed_dim": 32, "num_heads": 2}
NAMES = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_mixed_ape_224",
    "eva02_tiny_patch14_224",
)


def backbone(name: str, **options: Any) -> TimmBackbone:
    torch.manual_seed(0)
    # LayerScale begins at 1e-5, with which no block does anything
    scaled = {"init_values": 1.0} if "dinov3" in name or "rope" in name else {}
    given = {"norm": "auto", "freeze_at": 0, "options": SMALL | scaled} | options
    return TimmBackbone(name=name, **given)


def test_windows_cover_the_map_and_come_back():
    grid = Grid(5, 7, 3)
    x = torch.arange(2 * 5 * 7.0).view(2, 5, 7, 1) + 1
    windows = grid.split(x)
    assert tuple(windows.shape) == (2, 2 * 3, 9, 1)
    assert torch.equal(windows[1, 1, :, 0].view(3, 3), x[1, 0:3, 3:6, 0])
    assert windows[0, 5, :, 0].view(3, 3).tolist() == [[28, 0, 0], [35, 0, 0], [0, 0, 0]]
    assert torch.equal(grid.join(windows), x)


def test_the_last_block_of_each_quarter_attends_everywhere():
    assert global_blocks(12) == {2, 5, 8, 11}
    assert global_blocks(24) == {5, 11, 17, 23}
    assert global_blocks(32) == {7, 15, 23, 31}
    assert global_blocks(40) == {9, 19, 29, 39}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_window_for_the_whole_map_changes_nothing(name: str):
    whole, windowed = backbone(name).eval(), backbone(name, window=8).eval()
    small, large = torch.randn(2, 3, 64, 96), torch.randn(1, 3, 128, 192)
    assert torch.allclose(windowed(small)[0], whole(small)[0], atol=1e-5)
    assert (windowed(large)[0] - whole(large)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_block_in_windows_is_the_block_on_each_window(name: str):
    """Also where a window reaches beyond the map: then it is smaller."""
    built = backbone(name).double().eval()
    model, (height, width, side) = built.body.model, (5, 8, 4)
    block, count = model.blocks[0], model.num_prefix_tokens
    x = torch.randn(2, count + height * width, 32, dtype=torch.float64)
    rope = model.rope.get_embed(shape=(height, width)) if hasattr(model, "rope") else None
    if rope is not None and getattr(model, "rope_mixed", False):
        rope = rope[0]
    got = windowed_block(block, x, rope, Grid(height, width, side))
    cells = x[:, count:].unflatten(1, (height, width))
    expected, tokens = torch.zeros_like(cells), list[Tensor]()
    for top in range(0, height, side):
        for left in range(0, width, side):
            here = slice(top, top + side), slice(left, left + side)
            window = cells[:, *here]
            turns = {}
            if rope is not None:
                places = rope.unflatten(-2, (height, width))[..., *here, :]
                turns["rope"] = places.flatten(-3, -2)
            out = block(torch.cat([x[:, :count], window.flatten(1, 2)], dim=1), **turns)
            expected[:, *here] = out[:, count:].unflatten(1, window.shape[1:3])
            tokens.append(out[:, :count])
    assert torch.allclose(got[:, count:], expected.flatten(1, 2), atol=1e-12)
    assert torch.allclose(got[:, :count], torch.stack(tokens).mean(dim=0), atol=1e-12)


@pytest.mark.long
def test_windows_train_are_checkpointed_and_exported():
    name, images, gradients = "vit_small_patch16_dinov3", torch.randn(2, 3, 64, 96), []
    for recompute in (False, True):
        built = backbone(name, window=3, recompute=recompute, drop_path=0.5).train()
        torch.manual_seed(1)
        built(images)[0].square().mean().backward()
        gradients.append([p.grad for p in built.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    built.eval()
    exported = torch.export.export(built, (images,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(images)[0], built(images)[0], atol=1e-5)


def test_models_that_cannot_are_named():
    own = {"name": "samvit_base_patch16", "options": SMALL | {"img_size": 64}}
    with pytest.raises(UserError, match=r"window=14: samvit_base_patch16 has windows of its own"):
        backbone(**own, window=14)
    for name in ("xcit_nano_12_p16_224", "test_resnet"):
        options = {"depth": 4} if name.startswith("xcit") else {}
        with pytest.raises(UserError, match=rf"backbone\.window=14 .*{name}"):
            backbone(name, window=14, options=options)
    with pytest.raises(UserError, match=r"backbone\.window=0 must be"):
        backbone("vit_tiny_patch16_224", window=0)
