"""Window attention for the transformers of timm: most blocks attend within windows of the map, and
the last block of each quarter attends over all of it (ViTDet, Li et al. 2022, section 3).

Letters: B images, P class and register tokens, C channels, h w the map, n windows of an image, s
their side.
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maskrcnn_lit.errors import UserError

GLOBAL_BLOCKS = 4


class Grid(NamedTuple):
    """The map and its windows; those at the end may reach beyond it."""

    height: int
    width: int
    side: int

    def split(self, x: Tensor) -> Tensor:
        """B h w C -> B n (s s) C, zeros beyond the map."""
        bottom, right = -self.height % self.side, -self.width % self.side
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        x = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """B n (s s) C -> B h w C."""
        columns = -(-self.width // self.side)
        x = windows.unflatten(2, (self.side, self.side)).unflatten(1, (-1, columns))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, : self.height, : self.width]


def check_windows(model: Any, name: str, window: int) -> None:
    """Raise UserError if `model` has no blocks that can attend in windows."""
    blocks = getattr(model, "blocks", None)
    if blocks is not None and hasattr(blocks[0], "window_size"):
        raise UserError(
            f"backbone.window={window}: {name} has windows of its own: leave backbone.window out"
        )
    if not hasattr(model, "_pos_embed") or blocks is None or not _takes_mask(blocks[0]):
        raise UserError(
            f"backbone.window={window} is not supported for {name}: leave backbone.window out, or "
            "use a ViT, DINOv2, DINOv3, MAE or EVA-02 of timm"
        )


def _takes_mask(block: Any) -> bool:
    return "attn_mask" in inspect.signature(block.forward).parameters


def global_blocks(depth: int) -> set[int]:
    """The numbers of the blocks that attend over the whole map: 2, 5, 8 and 11 of 12."""
    return {depth * quarter // GLOBAL_BLOCKS - 1 for quarter in range(1, GLOBAL_BLOCKS + 1)}


def windowed_map(model: Any, images: Tensor, side: int, recompute: bool) -> Tensor:
    """B 3 H W -> B C h w: the model's blocks, most of them in windows of `side` cells.

    recompute: activation checkpointing of each block.
    """
    x = model.patch_embed(images)  # B h w C
    grid = Grid(x.shape[1], x.shape[2], side)
    embedded = model._pos_embed(x)
    x, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    x = model.norm_pre(x)
    depth = len(model.blocks)
    for number, block in enumerate(model.blocks):
        # each block may have rotations of its own
        turns = rope[number] if getattr(model, "rope_mixed", False) and rope is not None else rope
        call = whole_block if number in global_blocks(depth) else windowed_block
        arguments = block, x, turns, grid
        x = checkpoint(call, *arguments, use_reentrant=False) if recompute else call(*arguments)
    x = model.norm(x)[:, -grid.height * grid.width :]
    return x.transpose(1, 2).unflatten(2, (grid.height, grid.width))


def whole_block(block: Any, x: Tensor, rope: Tensor | None, grid: Grid) -> Tensor:
    """B (P + h w) C -> the same, by a block of timm."""
    return block(x) if rope is None else block(x, rope=rope)


def windowed_block(block: Any, x: Tensor, rope: Tensor | None, grid: Grid) -> Tensor:
    """B (P + h w) C -> the same, by a block of timm in each window alone.

    Every window has a copy of the P tokens, and their new values are the mean over the windows of
    an image. Cells beyond the map are not attended to.

    rope: rotations of all cells, (h w) D or heads (h w) D, which they keep in a window.
    """
    images, cells = len(x), grid.height * grid.width
    tokens, cells_of_map = x[:, :-cells], x[:, -cells:]
    windows = grid.split(cells_of_map.unflatten(1, (grid.height, grid.width)))  # B n (s s) C
    count = windows.shape[1]
    repeated = tokens[:, None].expand(-1, count, -1, -1)
    inputs = torch.cat([repeated, windows], dim=2).flatten(0, 1)
    arguments: dict[str, Tensor] = {}
    if rope is not None:
        heads = rope.view(-1, *rope.shape[-2:]).unflatten(1, (grid.height, grid.width))
        turns = grid.split(heads).transpose(0, 1)  # n heads (s s) D
        arguments["rope"] = turns.repeat(images, 1, 1, 1)
    if grid.height % grid.side or grid.width % grid.side:
        ones = x.new_ones(1, grid.height, grid.width, 1)
        inside = F.pad(grid.split(ones)[0, ..., 0] > 0, (tokens.shape[1], 0), value=True)
        arguments["attn_mask"] = inside.repeat(images, 1)[:, None, None]  # (B n) 1 1 (P + s s)
    outputs = block(inputs, **arguments).unflatten(0, (images, count))
    tokens = outputs[:, :, : tokens.shape[1]].mean(dim=1)
    windows = outputs[:, :, tokens.shape[1] :]
    return torch.cat([tokens, grid.join(windows).flatten(1, 2)], dim=1)
