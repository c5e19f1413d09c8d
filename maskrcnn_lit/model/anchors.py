"""Reference boxes of the region proposal network (Faster R-CNN, Ren et al. 2015, section 3.1.1; FPN
section 4.1).

Letters: L levels, A anchors of all levels, a anchors per cell, h w the cells of a level.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError, check_flag, check_list, check_within


class Anchors:
    """Anchors of one size per level and several aspect ratios, centered at the corner of each cell.

    Args: round_corners: round the corners to whole pixels around the center, as torchvision does.
    offset: of the first center from the image's corner, in strides (0: at the corner). sizes: the
    side of a square anchor in pixels for p2..p6. ratios: height / width, at constant area.
    measured_strides: use padded side // cells as a level's stride, as torchvision does, instead of
    4, 8, 16, 32, 64. The two differ at p6 if the padded side is not a multiple of 64 (800 px: 61
    instead of 64); networks trained with torchvision need this.

    Raises UserError for values of the wrong type or range, and for a side below 1 px that is
    rounded to 0.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[float],
        ratios: Sequence[float],
        round_corners: bool = True,
        offset: float = 0.0,
        measured_strides: bool = False,
    ) -> None:
        check_list(1, 10_000, model__anchors__sizes=sizes)
        check_list(0.001, 1000, model__anchors__ratios=ratios)
        check_within(0, 1, model__anchors__offset=offset)
        check_flag(
            model__anchors__round_corners=round_corners,
            model__anchors__measured_strides=measured_strides,
        )
        self.sizes, self.ratios, self.round_corners = tuple(sizes), tuple(ratios), round_corners
        self.offset, self.measured_strides = offset, measured_strides
        self._made: dict[object, Tensor] = {}
        self._check_areas()

    def __call__(self, pyramid: Sequence[Tensor], image_size: Sequence[int]) -> Tensor:
        """Maps p2..p6 (each B C h w) and the padded height, width -> A 4, x1 y1 x2 y2, by level,
        row, column, ratio.

        They depend only on shapes and are cached for each padded size.
        """
        cells = tuple((p.shape[-2], p.shape[-1]) for p in pyramid)
        return self._constant(cells, (image_size[0], image_size[1]), pyramid[0].device)

    @torch.compiler.assume_constant_result  # a constant in compiled code
    def _constant(
        self,
        cells: tuple[tuple[int, int], ...],
        image_size: tuple[int, int],
        device: torch.device,
    ) -> Tensor:
        key = (cells, image_size, device)
        if key not in self._made:
            levels = [
                self._level(size, grid, self._stride(level, grid, image_size))
                for level, (size, grid) in enumerate(zip(self.sizes, cells, strict=True))
            ]
            self._made[key] = torch.cat(levels).to(device)
        return self._made[key]

    def _stride(
        self, level: int, cells: tuple[int, int], image_size: Sequence[int]
    ) -> tuple[int, int]:
        if self.measured_strides:
            return image_size[0] // cells[0], image_size[1] // cells[1]
        return 4 << level, 4 << level

    def _check_areas(self) -> None:
        for size, ratio in itertools.product(self.sizes, self.ratios):
            sides = size / ratio**0.5, size * ratio**0.5
            if self.round_corners and round(min(sides) / 2) == 0:
                raise UserError(
                    f"model.anchors.sizes={list(self.sizes)} and ratios={list(self.ratios)} must "
                    f"give anchors with an area, but {size} at ratio {ratio:g} is {sides[0]:.3g} x "
                    f"{sides[1]:.3g} px, which is rounded to 0: choose larger sizes, ratios nearer "
                    "to 1, or model.anchors.round_corners=false"
                )

    def _base(self, size: float) -> Tensor:
        """a 4: x1 y1 x2 y2 of the anchors of a level around their center."""
        high = torch.tensor(self.ratios).sqrt()
        half = torch.stack([size / high, size * high], dim=1) / 2  # a 2: half width, half height
        base = torch.cat([-half, half], dim=1)
        return base.round() if self.round_corners else base

    def _level(self, size: float, cells: tuple[int, int], stride: tuple[int, int]) -> Tensor:
        base = self._base(size)
        y, x = (
            (torch.arange(n) + self.offset) * step for n, step in zip(cells, stride, strict=True)
        )
        shifts = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).repeat(
            1, 1, 2
        )  # h w 4
        return (shifts[:, :, None] + base).reshape(-1, 4)  # h w a 4 -> (h w a) 4
