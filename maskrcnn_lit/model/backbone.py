"""Backbones: an image classifier as a function to c2..c5, the feature maps at strides 4, 8, 16 and
32 (Mask R-CNN, section 3.1).

The layers that produce the maps are found with a dummy image, for any sequential classifier of
torchvision (timm's are in timm_backbone.py). Letters: B images, C channels, H W the padded image.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from maskrcnn_lit.errors import UserError, check_flag, check_text, check_within
from maskrcnn_lit.model.deformable import check_stages, deform
from maskrcnn_lit.model.norms import NORMS, fold_frozen, replace_norms

STRIDES = (4, 8, 16, 32)

FREEZE_ALL = 5  # backbone.freeze_at=all

# Activations that a ResNet-50 stores per step in bfloat16 without checkpointing; deeper networks
# and float32 store up to three times as much, so SHARE is low.
BYTES_A_PIXEL, SHARE = 700, 0.3

SIDE = 64  # of the dummy image

RANDOM = (
    StochasticDepth,
    nn.Dropout,
    nn.Dropout2d,
)  # these would drop other activations the second time


class StagedBody(nn.ModuleDict):
    """Sequential layers: image -> [c2, c3, c4, c5], each the output of the last layer at its
    stride.

    `strides`: of each layer. With `recompute`, activation checkpointing applies to the layers at
    stride 8 ("auto": see `memory_is_short`), unless they use dropout.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], strides: Sequence[int], recompute: bool | str
    ) -> None:
        super().__init__(layers)
        self.strides = dict(zip(layers, strides, strict=True))
        self._last = {max(n for n, s in enumerate(strides) if s == stride) for stride in STRIDES}
        self.recompute = recompute
        again = {name for name, stride in self.strides.items() if stride == 8}
        self._again = {
            name for name in again if not any(isinstance(m, RANDOM) for m in layers[name].modules())
        }

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        again = self._again if self._recomputes(x) else set()
        for number, (name, layer) in enumerate(self.items()):
            x = recomputed(layer, x) if name in again else layer(x)
            if number in self._last:
                maps.append(x)
        return maps

    def _recomputes(self, images: Tensor) -> bool:
        if self.recompute != "auto":
            return bool(self.recompute)
        return memory_is_short(images.shape[0] * images.shape[2] * images.shape[3], images.device)

    def parameters_by_stage(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem (all layers below stride 4, or else the first layer) and of
        c2..c5.
        """
        first = next(iter(self))
        stem = [
            name
            for name, stride in self.strides.items()
            if stride < 4 or (name == first and stride == 4)
        ]
        stages = [
            [n for n, stride in self.strides.items() if stride == s and n not in stem]
            for s in STRIDES
        ]
        return [[p for name in names for p in self[name].parameters()] for names in (stem, *stages)]


class Backbone(nn.Module):
    """Image -> [c2, c3, c4, c5]; `channels` and `strides` of the four are measured on a dummy pass.

    Args: name: a classifier of torchvision.models, built with random weights. norm: the replacement
    of its batch norms: frozen, batch, sync or group (see norms.py), or auto: frozen with pretrained
    weights, batch from scratch. Layer norms (ConvNeXt) stay. freeze_at: number of frozen stages: 0
    none, 1 the stem, 2 the stem and c2 (the paper), ... 5 or "all" all; or auto: 2 with pretrained
    weights, 0 from scratch. recompute: activation checkpointing of the stage of c3, whose maps are
    the largest after c2's; "auto": on the CPU, and on a GPU with too little memory for the batch.
    Not with norm=batch or sync, whose statistics would see each batch twice, or with dropout
    (EfficientNet, ConvNeXt), which would differ the second time. weights: the weights for
    `load_pretrained`: "imagenet", another name of torchvision's weights (IMAGENET1K_V2), or a file;
    None or "none": random. layers: paths of its layers in order, if they are not its children or
    those of `features`. stride_in_1x1: a bottleneck that halves the map does so in its first, 1x1,
    convolution (the original ResNet of the paper and of Detectron2's weights) instead of the 3x3
    one (torchvision). norm_eps: of the batch norms; None: that of the architecture. deformable: the
    stages, 2 to 5, whose 3x3 convolutions are deformable (see deformable.py), of a ResNet with
    bottlenecks; None: none. modulated: these have factors, too (DCNv2).
    """

    def __init__(
        self,
        *,
        name: str,
        norm: str,
        freeze_at: int | str,
        recompute: bool | str,
        weights: str | None = None,
        layers: Sequence[str] | None = None,
        stride_in_1x1: bool = False,
        norm_eps: float | None = None,
        deformable: Sequence[int] | None = None,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        check_flag(backbone__stride_in_1x1=stride_in_1x1, backbone__modulated=modulated)
        check_stages(deformable)
        if recompute != "auto":
            check_flag(backbone__recompute=recompute)
        check_text(backbone__weights=weights)
        if norm_eps is not None:
            # torchvision's first weights were trained with 0
            check_within(0, 1, backbone__norm_eps=norm_eps)
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise UserError(
                f"backbone.name={name} is not a classifier of torchvision.models; "
                "`maskrcnn-lit backbones` lists the choices"
            )
        self.name, self.weights = name, None if weights == "none" else weights
        norm, frozen = choose(norm, freeze_at, pretrained=self.weights is not None)
        self.norm = norm
        trunk = torchvision.models.get_model(name, weights=None)
        if stride_in_1x1:
            _stride_in_1x1(trunk)
        deform(trunk, deformable or (), modulated)
        replace_norms(trunk, norm, norm_eps)
        fold_frozen(trunk)
        paths = _children(trunk) if layers is None else _named_layers(name, trunk, layers)
        self._paths = {path.rsplit(".", 1)[-1]: path for path in paths}
        layers_by_name = {key: trunk.get_submodule(path) for key, path in self._paths.items()}
        strides = _strides(layers_by_name)
        if not set(STRIDES) <= set(strides):
            raise UserError(
                f"the layers of backbone {name} have strides {sorted(set(strides))}, but a pyramid "
                f"needs {list(STRIDES)}: list its layers in backbone.layers, or use another "
                "backbone (`maskrcnn-lit backbones`)"
            )
        self.body = StagedBody(
            {key: layers_by_name[key] for key in list(layers_by_name)[: len(strides)]},
            strides,
            False if norm in ("batch", "sync") else recompute,
        )
        freeze(self.body.parameters_by_stage()[:frozen])
        self.channels, self.strides = measure(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W, normalized -> four maps B C H/s W/s, s = 4, 8, 16, 32."""
        return self.body(images)

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation mode, so their batch statistics do not change."""
        super().train(mode)
        keep_frozen(self.body)
        return self

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of c2..c5, for optimizer.layer_decay."""
        return self.body.parameters_by_stage()

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Load the state dict of the full classifier; its last layers, which a detector lacks, are
        ignored. The displacements of deformable convolutions, which it lacks, stay as they are.

        Raises: UserError: a weight is missing or has another shape, or the norms are group norms,
        for which there are no weights.
        """
        refuse_group_norm(self.norm)
        own = self.body.state_dict()
        given = {
            f"{key}.{name[len(path) + 1 :]}": value
            for key, path in self._paths.items()
            for name, value in state.items()
            if name.startswith(f"{path}.")
        }
        new = ("num_batches_tracked", "conv_offset.weight", "conv_offset.bias")
        given = {key: value for key, value in own.items() if key.endswith(new)} | given
        wrong = [
            key for key, value in own.items() if key not in given or given[key].shape != value.shape
        ]
        if wrong:
            raise UserError(
                f"the weights are not those of backbone {self.name}: {len(wrong)} of {len(own)} "
                f"are missing or have another shape, the first is {wrong[0]}: give a state dict of "
                f"torchvision's {self.name}"
            )
        self.body.load_state_dict({key: given[key] for key in own})


def choose(norm: str, freeze_at: int | str, *, pretrained: bool) -> tuple[str, int]:
    """The norm and the number of frozen stages; "auto" depends on whether the weights are
    pretrained.
    """
    norm = {True: "frozen", False: "batch"}[pretrained] if norm == "auto" else norm
    named = {"auto": 2 if pretrained else 0, "all": FREEZE_ALL}
    freeze_at = named.get(freeze_at, freeze_at) if isinstance(freeze_at, str) else freeze_at
    if norm not in NORMS:
        raise UserError(f"backbone.norm={norm} is unknown: use {', '.join(NORMS)} or auto")
    if not isinstance(freeze_at, int) or isinstance(freeze_at, bool) or freeze_at not in range(6):
        raise UserError(
            f"backbone.freeze_at={freeze_at} must be 0 (train all) to 5 (freeze all), all, or auto"
        )
    return norm, freeze_at


def freeze(stages: Sequence[Sequence[nn.Parameter]]) -> None:
    for parameters in stages:
        for parameter in parameters:
            parameter.requires_grad_(False)


def keep_frozen(module: nn.Module) -> None:
    """Set submodules whose parameters are all frozen to evaluation mode (with their dropout)."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        for child in module.children():
            keep_frozen(child)
    elif next(module.parameters(), None) is not None:
        module.eval()


def levels(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Channels and strides of c2..c5, or of one map: the backbone's attributes, or else measured.

    Raises:
        UserError: the backbone does not return four maps B C H W at strides 4, 8, 16 and 32, or one
            at one of these.
    """
    channels, strides = getattr(backbone, "channels", None), getattr(backbone, "strides", None)
    if channels is not None and strides is not None:
        return list(channels), list(strides)
    try:
        channels, strides = measure(backbone)
    except (TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"model.backbone {type(backbone).__name__} must return a list of c2..c5, each B C H W: "
            f"it fails on an image of {SIDE} x {SIDE} pixels ({error})"
        ) from error
    if strides != list(STRIDES) and not (len(strides) == 1 and strides[0] in STRIDES):
        raise UserError(
            f"model.backbone {type(backbone).__name__} returns maps at strides {strides}: "
            f"it must return c2..c5, at strides {list(STRIDES)}, or one map at one of these"
        )
    return channels, strides


@torch.no_grad()
def measure(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Measure the channels and strides of c2..c5 with a dummy image."""
    backbone.eval()
    maps = backbone(torch.zeros(1, 3, SIDE, SIDE))
    backbone.train()
    return [m.shape[1] for m in maps], [SIDE // m.shape[2] for m in maps]


def _children(trunk: nn.Module) -> Iterator[str]:
    inner = getattr(trunk, "features", None)
    within = inner if isinstance(inner, nn.Sequential) else trunk
    yield from (
        name if within is trunk else f"features.{name}" for name, _ in within.named_children()
    )


def _named_layers(name: str, trunk: nn.Module, layers: Any) -> list[str]:
    """Check backbone.layers."""
    modules = {path for path, _ in trunk.named_modules()} - {""}
    if not isinstance(layers, (list, tuple)) or not layers:
        raise UserError(
            f"backbone.layers={layers} must be null or a list of layers of {name}, such as "
            f"[{next(_children(trunk))}]"
        )
    for layer in layers:
        if layer not in modules:
            raise UserError(
                f"backbone.layers={list(layers)} must be layers of {name}, but {layer} is not one: "
                f"its first layer is {next(_children(trunk))}"
            )
    return list(layers)


@torch.no_grad()
def _strides(layers: Mapping[str, nn.Module]) -> list[int]:
    """The strides of the layers, up to the classifier's pooling."""
    x, strides = torch.zeros(1, 3, SIDE, SIDE), []
    for layer in layers.values():
        try:
            x = layer.eval()(x)
        except (RuntimeError, AssertionError, TypeError, ValueError):
            break
        finally:
            layer.train()
        if x.ndim != 4 or x.shape[2] != x.shape[3] or SIDE // x.shape[2] > STRIDES[-1]:
            break
        strides.append(SIDE // x.shape[2])
    return strides


def _stride_in_1x1(trunk: nn.Module) -> None:
    halving = [
        m
        for m in trunk.modules()
        if isinstance(m, torchvision.models.resnet.Bottleneck) and m.stride == 2
    ]
    if not halving:
        raise UserError(
            "backbone.stride_in_1x1=true needs a ResNet with bottlenecks, of 50 layers or more"
        )
    for block in halving:
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def refuse_group_norm(norm: str) -> None:
    if norm == "group":
        raise UserError(
            "backbone.norm=group has no pretrained weights: use backbone.norm=frozen, batch or "
            "sync, "
            "or backbone.weights=none"
        )


@torch.compiler.assume_constant_result  # a constant in compiled code, which has fixed shapes
def memory_is_short(pixels: int, device: torch.device) -> bool:
    """Whether the activations of a training step on `pixels` padded pixels (of all images of a
    batch) would need more than `SHARE` of a GPU's memory, by `BYTES_A_PIXEL`. True on the CPU.
    """
    if device.type != "cuda":
        return True
    return pixels * BYTES_A_PIXEL > SHARE * torch.cuda.get_device_properties(device).total_memory


def recomputed(part: nn.Module, inputs: Any) -> Any:
    """`part(inputs)` with activation checkpointing."""
    if not torch.is_grad_enabled():
        return part(inputs)
    return checkpoint(part, inputs, use_reentrant=False, preserve_rng_state=False)
