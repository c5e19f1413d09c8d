"""An image classifier -> c2..c5, the feature maps at strides 4, 8, 16 and 32 (Mask R-CNN, section
3.1).

Which of its layers give them is measured on a dummy image, for any classifier of torchvision whose
layers follow one another (timm's are in timm_backbone.py). Letters: B images, C channels, H W the
padded image.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from maskrcnn_lit.errors import UserError, check_flag, check_text, check_within
from maskrcnn_lit.model.norms import NORMS, fold_frozen, replace_norms

STRIDES = (4, 8, 16, 32)

# What a step of a ResNet-50 keeps until its backward pass, in bfloat16 and with nothing computed
# again; deeper networks and float32 keep up to three times as much, so memory is short early.
BYTES_A_PIXEL, SHARE = 700, 0.3

SIDE = 64  # of the dummy image

RANDOM = (
    StochasticDepth,
    nn.Dropout,
    nn.Dropout2d,
)  # what these drop the second time is something else


class StagedBody(nn.ModuleDict):
    """Layers that follow one another: image -> [c2, c3, c4, c5], each the output of the last layer
    at its stride.

    `strides` has each layer's; those at stride 8 are computed again in the backward pass with
    `recompute` ("auto": see `memory_is_short`), unless they drop something at random.
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
        """Of the stem (all below stride 4; where there is nothing, the first layer) and of c2..c5."""
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

    Args: name: a classifier of torchvision.models, built with random weights. norm: what its batch
        norms become: frozen, batch, sync or group (see norms.py), or auto: frozen with pretrained
        weights, batch from scratch. Layer norms (ConvNeXt) stay. freeze_at: how many stages get no
        gradient: 0 none, 1 the stem, 2 stem and c2's (the paper's), ... 5 all; or auto: 2 with
        pretrained weights, 0 from scratch. recompute: in the backward pass compute c3's stage,
        whose maps are the largest that are trained after c2's, again instead of keeping them;
        "auto": on the CPU, and where a GPU's memory is short for the batch. Not with norm=batch or
        sync, whose statistics would see each batch twice, and not where layers are dropped at
        random (EfficientNet, ConvNeXt), which would be others the second time. weights: what
        `load_pretrained` shall load: "imagenet", another name of its weights in torchvision
        (IMAGENET1K_V2), or a file; None or "none" leaves it random. layers: paths of its layers in
        their order, where they are not simply its children or those of `features`. stride_in_1x1:
        a bottleneck that halves the map does so in its first, 1x1, convolution (the original
        ResNet, of the paper and of Detectron2's weights) and not in the 3x3 one (torchvision's).
        norm_eps: of the batch norms; None: the architecture's own.
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
    ) -> None:
        super().__init__()
        check_flag(backbone__stride_in_1x1=stride_in_1x1)
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
        replace_norms(trunk, norm, norm_eps)
        fold_frozen(trunk)
        paths = _children(trunk) if layers is None else _named_layers(name, trunk, layers)
        self._paths = {path.rsplit(".", 1)[-1]: path for path in paths}
        layers_by_name = {key: trunk.get_submodule(path) for key, path in self._paths.items()}
        strides = _strides(layers_by_name)
        if not set(STRIDES) <= set(strides):
            raise UserError(
                f"the layers of backbone {name} have strides {sorted(set(strides))}, and a pyramid needs "
                f"{list(STRIDES)}: name them in backbone.layers, or choose another (`maskrcnn-lit backbones`)"
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
        """Frozen stages stay in evaluation: their batch statistics do not move either."""
        super().train(mode)
        keep_frozen(self.body)
        return self

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Load the state dict of the whole classifier; its last layers, which a detector has not,
        are left out.

        Raises: UserError: a weight is missing or of another shape, or the norms are group norms,
            which it has none for.
        """
        refuse_group_norm(self.norm)
        own = self.body.state_dict()
        given = {
            f"{key}.{name[len(path) + 1 :]}": value
            for key, path in self._paths.items()
            for name, value in state.items()
            if name.startswith(f"{path}.")
        }
        given |= {
            key: value
            for key, value in own.items()
            if key.endswith("num_batches_tracked") and key not in given
        }
        wrong = [
            key for key, value in own.items() if key not in given or given[key].shape != value.shape
        ]
        if wrong:
            raise UserError(
                f"the weights are not those of backbone {self.name}: {len(wrong)} of {len(own)} are missing or of "
                f"another shape, {wrong[0]} is the first; give a state dict of torchvision's {self.name}"
            )
        self.body.load_state_dict({key: given[key] for key in own})


def choose(norm: str, freeze_at: int | str, *, pretrained: bool) -> tuple[str, int]:
    """The norm and the number of frozen stages, where "auto" follows from whether the weights are
    pretrained.
    """
    norm = {True: "frozen", False: "batch"}[pretrained] if norm == "auto" else norm
    freeze_at = (2 if pretrained else 0) if freeze_at == "auto" else freeze_at
    if norm not in NORMS:
        raise UserError(
            f"backbone.norm={norm} is unknown; choose one of {', '.join(NORMS)} or auto"
        )
    if not isinstance(freeze_at, int) or isinstance(freeze_at, bool) or freeze_at not in range(6):
        raise UserError(
            f"backbone.freeze_at={freeze_at} must be 0 (train all) to 5 (freeze all), or auto"
        )
    return norm, freeze_at


def freeze(stages: Sequence[Sequence[nn.Parameter]]) -> None:
    for parameters in stages:
        for parameter in parameters:
            parameter.requires_grad_(False)


def keep_frozen(module: nn.Module) -> None:
    """Put whatever has parameters, but none that learns, into evaluation (with the dropout that it
    has inside).
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        for child in module.children():
            keep_frozen(child)
    elif next(module.parameters(), None) is not None:
        module.eval()


def levels(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Channels and strides of c2..c5: as any backbone states them, or else as they are measured.

    Raises:
        UserError: it does not give four maps B C H W at strides 4, 8, 16 and 32.
    """
    channels, strides = getattr(backbone, "channels", None), getattr(backbone, "strides", None)
    if channels is not None and strides is not None:
        return list(channels), list(strides)
    try:
        channels, strides = measure(backbone)
    except (TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"model.backbone {type(backbone).__name__} must return a list of c2..c5, each B C H W: "
            f"on an image of {SIDE} x {SIDE} pixels it does not ({error})"
        ) from error
    if strides != list(STRIDES):
        raise UserError(
            f"model.backbone {type(backbone).__name__} gives maps at strides {strides}: "
            f"it must return c2..c5, at strides {list(STRIDES)}"
        )
    return channels, strides


@torch.no_grad()
def measure(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Channels and strides of c2..c5."""
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
    """backbone.layers, checked."""
    modules = {path for path, _ in trunk.named_modules()} - {""}
    if not isinstance(layers, (list, tuple)) or not layers:
        raise UserError(
            f"backbone.layers={layers} must be null or a list of layers of {name}, such as "
            f"[{next(_children(trunk))}]"
        )
    for layer in layers:
        if layer not in modules:
            raise UserError(
                f"backbone.layers={list(layers)} must name layers of {name}, and {layer} is not "
                f"one: its first is {next(_children(trunk))}"
            )
    return list(layers)


@torch.no_grad()
def _strides(layers: Mapping[str, nn.Module]) -> list[int]:
    """Of each layer, as long as maps come out that the next one takes: then a classifier pools."""
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
            "backbone.norm=group has no pretrained weights to take over: use backbone.norm=frozen, batch or sync, "
            "or backbone.weights=none"
        )


@torch.compiler.assume_constant_result  # compiled code holds the answer for its fixed shapes
def memory_is_short(pixels: int, device: torch.device) -> bool:
    """Whether a training step on so many padded pixels (of all images of a batch) would keep more
    than `SHARE` of a GPU's memory, by `BYTES_A_PIXEL`. On the CPU memory counts as short.
    """
    if device.type != "cuda":
        return True
    return pixels * BYTES_A_PIXEL > SHARE * torch.cuda.get_device_properties(device).total_memory


def recomputed(part: nn.Module, inputs: Any) -> Any:
    """`part(inputs)`, whose inner activations are computed again in the backward pass instead of
    kept until then.
    """
    if not torch.is_grad_enabled():
        return part(inputs)
    return checkpoint(part, inputs, use_reentrant=False, preserve_rng_state=False)
