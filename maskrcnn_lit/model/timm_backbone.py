"""Backbones from timm: any model with feature maps -> c2..c5, or the one map of a plain transformer
(extra `timm`). Letters: B images, C channels, H W the image.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_lit.errors import UserError, check_flag, check_text, check_whole, check_within
from maskrcnn_lit.model.backbone import (
    SIDE,
    STRIDES,
    choose,
    freeze,
    keep_frozen,
    measure,
    refuse_group_norm,
)
from maskrcnn_lit.model.norms import replace_norms
from maskrcnn_lit.model.plain_transformer import PlainTransformer
from maskrcnn_lit.model.window_attention import check_windows
from maskrcnn_lit.storage.download import file_digest

MAX_SIDE = 16_384  # pixels of a padded image

UNUSUAL = 0x20170320  # a seed that no published weights used

# Options of timm.create_model, first the ones that suit, by which a model takes images of any size
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmBackbone(nn.Module):
    """Image -> [c2, c3, c4, c5] of a timm model, or [its last map] where all its maps have one
    stride (see plain_transformer.py); `channels` and `strides` are measured on a dummy pass.

    Args: name: from timm.list_models(). norm, freeze_at: as in Backbone. A stage has the parameters
    that its map depends on and the previous map does not; those of a plain transformer are the
    embeddings and four quarters of its blocks. weights: the weights for `load_pretrained`:
    "imagenet" (the model's default weights; add a tag to the name for others, `resnet50.a1_in1k`),
    or a file; None or "none": random. options: of timm.create_model. drop_path: rate of stochastic
    depth in the last block; the others have less, in proportion to their depth. norm_eps: of all
    norms; None: the model's own. recompute, square, window: of a plain transformer (see there).
    """

    def __init__(
        self,
        *,
        name: str,
        norm: str,
        freeze_at: int | str,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        norm_eps: float | None = None,
        recompute: bool | str = "auto",
        square: int | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        check_text(backbone__weights=weights)
        check_within(0, 1, backbone__drop_path=drop_path)
        if norm_eps is not None:
            check_within(0, 1, backbone__norm_eps=norm_eps)
        if recompute != "auto":
            check_flag(backbone__recompute=recompute)
        if square is not None:
            check_whole(SIDE, MAX_SIDE, backbone__square=square)
        if window is not None:
            check_whole(1, MAX_SIDE, backbone__window=window)
        if not isinstance(name, str):
            raise UserError(f"backbone.name={name} must be a name of timm.list_models()")
        if not isinstance(options, (dict, NoneType)) or not all(
            isinstance(k, str) for k in options or ()
        ):
            raise UserError(
                f"backbone.options={options} must be null or options of timm.create_model by name, "
                "such as {depth: 6}"
            )
        self.name, self.weights, self._options = (
            name,
            None if weights == "none" else weights,
            ({"drop_path_rate": drop_path} if drop_path else {}) | (options or {}),
        )
        self._norm_eps = norm_eps
        self._plain: dict[str, Any] = {"recompute": recompute, "window": window}
        self.norm, frozen = choose(norm, freeze_at, pretrained=self.weights is not None)
        self._is_plain = False  # whether all maps have one stride
        self.body = self._build()
        self._maps = [0]
        if not isinstance(self.body, PlainTransformer):
            _check_hierarchical(name, self._plain | {"square": square})
            self._maps = _last_maps(name, list(self.body.feature_info.reduction()))
        self._channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        try:
            if frozen:
                freeze(self.parameters_by_stage()[:frozen])
            self.channels, self.strides = measure(self)
            self.body.square = square  # after the small dummy image
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"backbone {name} does not accept an image of {SIDE} x {SIDE} pixels "
                f"({_line(error)}), but a detector's images have any size: use another timm model "
                "(docs/guide/backbones.md has families that do)"
            ) from error

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W, normalized -> four maps B C H/s W/s, s = 4, 8, 16, 32, or one, s = 8, 16 or
        32.
        """
        maps = self.body(images)
        chosen = [maps[i] for i in self._maps]
        return [m.permute(0, 3, 1, 2) for m in chosen] if self._channels_last else chosen

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        keep_frozen(self.body)
        return self

    def load_pretrained(
        self, state: Mapping[str, Tensor] | None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Load the published state dict of a full timm model (None: download it from timm's hub
        into its cache); return the mean and the standard deviation of R G B in its training.

        Raises: UserError: the state dict belongs to another model, the hub cannot be reached or has
        no weights for the model.
        """
        refuse_group_norm(self.norm)
        whose = "from its hub" if state is None else "from the file"
        advice = f"give a file with timm's weights of {self.name}, backbone.weights=FILE"
        if state is not None and not state:  # timm would access its hub
            raise UserError(f"the file has no weights: {advice}")
        overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state)}}
        with torch.random.fork_rng(devices=[]):
            random = self._build_seeded()
            try:
                pretrained = self._build_seeded(pretrained=True, **overlay)
            # from the hub or timm's filters: weights of another model can raise anything
            except Exception as error:
                raise UserError(
                    f"timm's weights of {self.name} cannot be loaded {whose} ({_line(error)}): "
                    f"{'check the network and the name, or ' if state is None else ''}{advice}"
                ) from error
        layers = {
            n: p for n, p in random.named_parameters() if p.ndim > 1 and p.min() < p.max()
        }  # no constant scales
        left = [
            name
            for name, value in layers.items()
            if torch.equal(value, pretrained.get_parameter(name))
        ]
        if left:
            raise UserError(
                f"the weights {whose} are not those of timm's {self.name}: {len(left)} of "
                f"{len(layers)} layers are missing ({left[0]} and so on): {advice}"
            )
        config = pretrained.pretrained_cfg
        if state is None:
            check_hub_file(config["hf_hub_id"])
        self.body.load_state_dict(pretrained.state_dict())
        return tuple(config["mean"]), tuple(config["std"])

    def _build_seeded(self, **pretrained: Any) -> Any:
        """Build with a fixed seed, to detect layers for which timm has no weights and leaves random
        values.
        """
        torch.default_generator.manual_seed(UNUSUAL)  # of the CPU only
        return self._build(**pretrained)

    def _build(self, **pretrained: Any) -> Any:
        try:
            with _without_warnings():
                if not self._is_plain:
                    body = self._create(features_only=True, **pretrained)
                    self._is_plain = _is_plain(body)
                if self._is_plain:  # again, with the last norm
                    model = self._create(num_classes=0, **pretrained)
                    if self._plain["window"] is not None:
                        check_windows(model, self.name, self._plain["window"])
                    body = PlainTransformer(model, **self._plain)
                    body.pretrained_cfg = model.pretrained_cfg
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            if pretrained:
                raise
            raise UserError(
                f"timm cannot build backbone.name={self.name} with feature maps ({_line(error)}): "
                "timm.list_models() "
                "has the names"
            ) from error
        replace_norms(body, self.norm, self._norm_eps)
        if self._norm_eps is not None:
            for module in body.modules():
                if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                    module.eps = self._norm_eps
        return body

    def _create(self, **arguments: Any) -> Any:
        """timm's model, for images of any size where it can."""
        try:
            import timm
        except ImportError:
            raise UserError("backbone=timm needs timm: pip install 'maskrcnn_lit[timm]'") from None
        for any_size in ANY_SIZE:
            try:
                options: dict[str, Any] = {**any_size, **self._options, **arguments}
                return timm.create_model(self.name, **options)
            except TypeError:  # it has no such argument
                if not any_size:
                    raise
        raise RuntimeError("unreachable")

    def parameters_by_stage(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of c2..c5: the stem has those that the map at stride 2
        depends on, or without such a map (patches of 4 x 4), the first module. Of a plain
        transformer: see `PlainTransformer.parameters_by_stage`.
        """
        if isinstance(self.body, PlainTransformer):
            return self.body.parameters_by_stage()
        reductions = list(self.body.feature_info.reduction())
        parameters = list(self.body.parameters())
        frozen = [p for p in parameters if not p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        self.body.eval()
        maps = self.body(torch.zeros(1, 3, SIDE, SIDE, device=parameters[0].device))
        self.body.train()
        stages, seen = [], set[nn.Parameter]()
        for i in ([reductions.index(2)] if 2 in reductions else []) + self._maps:
            gradients = torch.autograd.grad(
                maps[i].sum(), parameters, retain_graph=True, allow_unused=True
            )
            used = {
                p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None
            }
            stages.append([p for p in parameters if p in used - seen])
            seen |= used
        if len(stages) == len(STRIDES):
            children = list(self.body.named_children())
            first = children[0][0].split("_")[
                0
            ]  # stem_0, stem_1: timm joins flattened names by "_"
            stem = {
                p
                for name, child in children
                if name.split("_")[0] == first
                for p in child.parameters()
            }
            stages = [
                [p for p in stages[0] if p in stem],
                [p for p in stages[0] if p not in stem],
                *stages[1:],
            ]
        freeze([frozen])
        self.train(self.training)
        return stages

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of c2..c5, or of the embeddings and each block of a plain
        transformer, for optimizer.layer_decay.
        """
        if isinstance(self.body, PlainTransformer):
            return self.body.parameters_by_layer()
        return self.parameters_by_stage()

    def undecayed(self) -> list[nn.Parameter]:
        """The position embeddings and tokens of a plain transformer: without weight decay."""
        if not isinstance(self.body, PlainTransformer):
            return []
        model = self.body.model
        names = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
        return [value for name, value in model.named_parameters() if name in names]


def _is_plain(body: Any) -> bool:
    """Whether all maps of timm's feature extractor have one stride."""
    inner = getattr(body, "model", None)
    return len(set(body.feature_info.reduction())) == 1 and hasattr(
        inner, "prune_intermediate_layers"
    )


def _check_hierarchical(name: str, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if value not in (None, False, "auto"):
            raise UserError(
                f"backbone.{option}={value} needs a plain transformer of timm, but {name} has maps "
                f"at several strides: leave backbone.{option} out"
            )


def _last_maps(name: str, reductions: list[int]) -> list[int]:
    """The index of the last map at each stride."""
    if not set(STRIDES) <= set(reductions):
        raise UserError(
            f"backbone {name} has maps at strides {reductions}, but a pyramid needs "
            f"{list(STRIDES)}, or maps at one stride: use another timm model"
        )
    return [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]


def check_hub_file(repository: str) -> None:
    """The hub's cache names files by hash: raise UserError if a file does not match its name."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, name)
        path = Path(cached).resolve() if isinstance(cached, str) else None
        if (
            path is not None
            and re.fullmatch(r"[0-9a-f]{64}", path.name)
            and file_digest(path, "sha256") != path.name
        ):
            raise UserError(
                f"checksum mismatch: {path} differs from the published file; remove it and try "
                "again"
            )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """timm warns of each weight that the feature maps do not need. `load_pretrained` checks that
    none is missing.
    """
    log = logging.getLogger("timm.models")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _line(error: Exception) -> str:
    """The first line of the message, and the second if the first introduces a list."""
    return " ".join(re.findall(r"\A(?:.*:\n)?.*", str(error))[0].split()) or type(error).__name__
