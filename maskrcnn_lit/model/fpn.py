"""Feature maps -> p2..p6, one width at every stride: from c2..c5 (Feature Pyramid Networks, Lin et
al. 2017, section 3), or from the one map of a plain transformer (Li et al. 2022, section 3).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError, check_choice, check_flag, check_list, check_whole
from maskrcnn_lit.model.norms import HEAD_NORMS, MAX_WIDTH, conv, dense_convs, norm_of

KINDS = ("auto", "fpn", "simple")  # model.fpn.kind

STRIDES = (4, 8, 16, 32)  # of p2..p5


def build_fpn(
    *,
    in_channels: Sequence[int],
    strides: Sequence[int],
    channels: int,
    kind: str = "auto",
    norm: str | None = None,
    separable: bool = False,
    connections: str = "both",
    path_augmentation: bool | str = False,
) -> "FPN | SimpleFPN":
    """The pyramid for maps of `in_channels` at `strides`.

    Args:
        in_channels: of the backbone's maps.
        strides: of these.
        channels: of every level of the pyramid.
        kind: "fpn", "simple", or "auto": simple for one map.
        norm: after each convolution (see norms.py); None: none, and in a simple pyramid layer norm.
        separable: the output convolutions are depthwise separable (see norms.py).
        connections, path_augmentation: see `FPN`; a simple pyramid has neither.

    Raises UserError for a kind that does not fit the number of maps, and for options of the other.
    """
    check_choice(KINDS, False, model__fpn__kind=kind)
    fits = "simple" if len(in_channels) == 1 else "fpn"
    if kind not in ("auto", fits):
        raise UserError(
            f"model.fpn.kind={kind} does not fit a backbone with maps at strides {list(strides)}: "
            f"use {fits} or auto"
        )
    if fits == "fpn":
        return FPN(
            in_channels=in_channels,
            channels=channels,
            norm=norm,
            separable=separable,
            connections=connections,
            path_augmentation=path_augmentation,
        )
    check_choice(CONNECTIONS, model__fpn__connections=connections)
    chosen = {"connections": (connections, "both"), "path_augmentation": (path_augmentation, False)}
    for name, (value, default) in chosen.items():
        if value != default:
            raise UserError(
                f"model.fpn.{name}={value} needs a backbone with several maps, and this one has "
                f"one: leave out model.fpn.{name}"
            )
    return SimpleFPN(
        in_channels=in_channels[0],
        stride=strides[0],
        channels=channels,
        norm=norm or "layer",
        separable=separable,
    )


CONNECTIONS = ("both", "lateral", "top_down")


class FPN(nn.Module):
    """For each level a 1x1 lateral convolution, a top-down sum and a 3x3 output convolution; p6
    subsamples p5.

    Args:
        in_channels: of c2..c5.
        channels: of every level of the pyramid.
        norm: after each convolution (see norms.py); None: none.
        separable: the output convolutions are depthwise separable (see norms.py).
        connections: both: a level is its own map and the coarser levels; lateral: its own map
            alone (table 1 d of the paper); top_down: below the coarsest, the coarser levels alone
            (table 1 e).
        path_augmentation: with the bottom-up path of PANet (Liu et al. 2018, section 3.1): each
            level adds the finer one through a 3x3 convolution of stride 2, and another 3x3
            convolution follows, each with a ReLU. "mmdetection": that of MMDetection's PAFPN,
            which adds the finer level before its last convolution, and has no ReLU.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        norm: str | None = None,
        separable: bool = False,
        connections: str = "both",
        path_augmentation: bool | str = False,
    ) -> None:
        super().__init__()
        check_choice(CONNECTIONS, model__fpn__connections=connections)
        if path_augmentation != "mmdetection" and not isinstance(path_augmentation, bool):
            raise UserError(
                f"model.fpn.path_augmentation={path_augmentation} must be true, false or "
                "mmdetection"
            )
        check_list(1, MAX_WIDTH, model__fpn__in_channels=in_channels)
        check_whole(1, MAX_WIDTH, model__fpn__channels=channels)
        check_choice(HEAD_NORMS, True, model__fpn__norm=norm)
        check_flag(model__fpn__separable=separable)
        self.channels, self.connections = channels, connections
        self.paper_path = path_augmentation != "mmdetection"
        inputs = in_channels[-1:] if connections == "top_down" else in_channels
        self.lateral = nn.ModuleList(conv(c, channels, 1, norm) for c in inputs)
        self.output = nn.ModuleList(
            conv(channels, channels, 3, norm, separable=separable) for _ in in_channels
        )
        steps = range(len(in_channels) - 1 if path_augmentation else 0)
        self.down = nn.ModuleList(conv(channels, channels, 3, norm, stride=2) for _ in steps)
        self.joined = nn.ModuleList(conv(channels, channels, 3, norm) for _ in steps)
        for layer in dense_convs(self):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[c2, c3, c4, c5] -> [p2, p3, p4, p5, p6], each B C H/s W/s with s = 4, 8, 16, 32, 64."""
        merged: list[Tensor] = [self.lateral[-1](maps[-1])]
        for level in range(len(maps) - 2, -1, -1):
            merged.insert(0, self._merge(level, maps[level], merged[0]))
        pyramid = [output(m) for output, m in zip(self.output, merged, strict=True)]
        return with_p6(self._augmented(pyramid))

    def _augmented(self, pyramid: list[Tensor]) -> list[Tensor]:
        """With the bottom-up path, if there is one."""
        paths = list(zip(self.down, self.joined, strict=True))
        if self.paper_path:
            for level, (down, joined) in enumerate(paths):
                finer = F.relu(down(pyramid[level]))
                pyramid[level + 1] = F.relu(joined(pyramid[level + 1] + finer))
            return pyramid
        for level, (down, _) in enumerate(paths):
            pyramid[level + 1] = pyramid[level + 1] + down(pyramid[level])
        return [pyramid[0], *(joined(p) for (_, joined), p in zip(paths, pyramid[1:], strict=True))]

    def _merge(self, level: int, own: Tensor, coarser: Tensor) -> Tensor:
        """Top-down: the lateral map of a level, and the coarser map, upsampled by two."""
        if self.connections == "lateral":
            return self.lateral[level](own)
        larger = enlarge(coarser, own.shape[-2:])
        return larger if self.connections == "top_down" else self.lateral[level](own) + larger


class SimpleFPN(nn.Module):
    """Each of p2..p5 from the last map of a transformer: deconvolutions of stride two to finer
    strides, max pooling to coarser ones, then a 1x1 and a 3x3 convolution; p6 subsamples p5.

    Args:
        in_channels: of the map; each deconvolution halves them.
        stride: of the map: 4, 8, 16 or 32.
        channels: of every level of the pyramid.
        norm: after each convolution, and between two deconvolutions (see norms.py).
        separable: the 3x3 convolutions are depthwise separable (see norms.py).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        stride: int,
        channels: int,
        norm: str = "layer",
        separable: bool = False,
    ) -> None:
        super().__init__()
        check_whole(1, MAX_WIDTH, model__fpn__in_channels=in_channels)
        check_whole(1, MAX_WIDTH, model__fpn__channels=channels)
        if stride not in STRIDES:
            raise UserError(f"a simple pyramid needs a map at stride 4, 8, 16 or 32, not {stride}")
        check_choice(HEAD_NORMS, False, model__fpn__norm=norm)
        check_flag(model__fpn__separable=separable)
        self.channels, self.strides = channels, list(STRIDES)
        self.levels = nn.ModuleList()
        for level in STRIDES:
            width, layers = in_channels, list[nn.Module]()
            for step in range((stride // level).bit_length() - 1):
                layers += [norm_of(norm, width), nn.GELU()] if step else []
                layers.append(nn.ConvTranspose2d(width, max(1, width // 2), 2, stride=2))
                width = max(1, width // 2)
            if level > stride:
                layers.append(nn.MaxPool2d(level // stride))
            layers.append(conv(width, channels, 1, norm))
            layers.append(conv(channels, channels, 3, norm, separable=separable))
            self.levels.append(nn.Sequential(*layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[map] -> [p2, p3, p4, p5, p6], each B C H/s W/s with s = 4, 8, 16, 32, 64."""
        return with_p6([level(maps[0]) for level in self.levels])


def with_p6(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Footnote 1 of the paper's section 4.1: p6, for the largest anchors of the RPN, is a stride
    two subsampling of p5. The gradient of max pooling would need atomic additions.
    """
    return [*pyramid, pyramid[-1][:, :, ::2, ::2].clone()]


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """B C h w -> B C H W by nearest neighbors; `size` is H, W.

    In channels-last format, upsampling by exactly two is a copied view. Its gradient is a sum of
    four, while that of a compiled `F.interpolate` uses atomic additions and another memory format.
    """
    images, channels, height, width = x.shape
    if tuple(size) != (2 * height, 2 * width) or x.is_contiguous():
        return F.interpolate(x, size=tuple(size), mode="nearest")
    cells = x.permute(0, 2, 3, 1)[:, :, None, :, None]  # B h 1 w 1 C
    doubled = cells.expand(images, height, 2, width, 2, channels)
    return doubled.reshape(images, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
