"""`data.feature_cache`: the maps of a frozen backbone are computed once, before the first step, and
training and validation read them in place of pixels.

With `backbone.freeze_at=all` only the pyramid and the heads learn, so c2..c5 of an image never
change. They are stored for the image as it is and mirrored (data/stores/feature_maps.py), by a key
of all that they depend on, and are shared by all runs with this key.
"""

import hashlib
import inspect
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import maskrcnn_lit
from maskrcnn_lit.data.batch import map_key
from maskrcnn_lit.data.buckets import Shape
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import BLANK_SIDE
from maskrcnn_lit.data.samplers import BLANK
from maskrcnn_lit.data.stores.feature_folder import (
    make_room,
    mark_used,
    one_at_a_time,
    reserve,
    room,
)
from maskrcnn_lit.data.stores.feature_maps import FOLDER, FeatureMaps, Level, padded_shapes
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.model.backbone import levels
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.storage.files import locked
from maskrcnn_lit.training.rank_watch import RankWatch

SAY_SECONDS = 30.0  # between two lines of progress
POLL_SECONDS = 0.5  # while another run computes the same maps

# Options of a backbone that do not change its maps; the weights have a digest of their own.
_NO_MATTER = ("weights", "freeze_at", "recompute", "drop_path")

# Packages whose versions are in the key, where they are installed, beside torch.
_PACKAGES = ("torchvision", "timm", "pillow")

_log = logging.getLogger(__name__)


class Cached(NamedTuple):
    """What a run reads its features from.

    Attributes: dtype: data.feature_cache. views: of all images. computed: how many of them the
    processes of this machine computed. seconds: until they were all there. in_use: the locks
    against their removal, for as long as this object.
    """

    dtype: str
    gigabytes: float
    views: int
    computed: int
    seconds: float
    in_use: Sequence[IO[Any]]

    def record(self) -> dict[str, Any]:
        """For result.json."""
        return {name: value for name, value in self._asdict().items() if name != "in_use"}


def cache_features(
    model: nn.Module, trainer: Trainer, backbone_config: Mapping[str, Any]
) -> Cached | None:
    """Compute the maps that are not stored yet, and let the data module use them; None: there is no
    cache, which a line explains where one was wanted. Every process calls it, when the weights are
    loaded and on their device.

    Raises:
        UserError: the backbone is not frozen, or an image cannot be read.
    """
    data: CocoDataModule = trainer.datamodule  # type: ignore[attr-defined]
    if getattr(data, "feature_cache", "off") == "off":
        return None
    started = time.perf_counter()
    filler = _Filler(check_frozen(model), trainer, data)
    folder = data.cache / FOLDER
    try:
        stores = filler.stores(folder, backbone_config)
        in_use = [mark_used(store.file) for store in stores.values()]
        fits = trainer.local_rank > 0 or _reserve(data, filler.bytes)
    except OSError as error:
        data.announce(_off(data, f"{folder} cannot be written ({error.strerror or error})"))
        stores, in_use, fits = {}, [], False
    fits = trainer.strategy.reduce_boolean_decision(fits)  # all processes use the maps, or none
    computed = 0
    if fits:
        with _one_run_at_a_time(trainer, [store.file for store in stores.values()]):
            counts = [filler.fill(part, store) for part, store in stores.items()]
            fits = trainer.strategy.reduce_boolean_decision(None not in counts)
        computed = sum(count or 0 for count in counts)
    if not fits:
        for mark in in_use:
            mark.close()
        return None
    data.use_features(stores)
    views = sum(len(store.index) * len(data.mirrored_views(part)) for part, store in stores.items())
    seconds = time.perf_counter() - started
    data.announce(
        f"data.feature_cache={data.feature_cache}: steps read the backbone's maps of "
        f"{plural(views, 'view')} from {folder} ({filler.needed / 1e9:.2f} GB); "
        f"{computed:,} were computed, in {seconds:.0f} s"
    )
    return Cached(data.feature_cache, filler.needed / 1e9, views, computed, seconds, in_use)


def check_frozen(model: nn.Module) -> MaskRCNN:
    """The model, if its backbone gives an image the same maps in every step of training.

    Raises:
        UserError: it does not.
    """
    if not isinstance(model, MaskRCNN):
        raise UserError(
            f"data.feature_cache needs a MaskRCNN, but the model is a {type(model).__name__}: use "
            "data.feature_cache=off"
        )
    backbone = model.backbone
    learning = sum(parameter.requires_grad for parameter in backbone.parameters())
    if learning:
        raise UserError(
            "data.feature_cache needs a backbone that does not learn, but "
            f"{plural(learning, 'tensor')} of it would: use backbone.freeze_at=all, or "
            "data.feature_cache=off"
        )
    mode = model.training
    model.train()
    changing = sorted({type(part).__name__ for part in backbone.modules() if _changes(part)})
    model.train(mode)
    if changing:
        raise UserError(
            f"data.feature_cache needs the same maps in every step, but the backbone has "
            f"{', '.join(changing)} in training mode: leave them out of it or set them to "
            "evaluation mode, or use data.feature_cache=off"
        )
    return model


class _Filler:
    """Computes maps of the images of a data module."""

    def __init__(self, model: MaskRCNN, trainer: Trainer, data: CocoDataModule) -> None:
        self.model, self.trainer, self.data = model, trainer, data
        self.keys = [map_key(stride) for stride in levels(model.backbone)[1]]
        self.bytes: dict[Path, int] = {}  # of all views in each file, after `stores`

    @property
    def needed(self) -> int:
        return sum(self.bytes.values())

    def stores(self, folder: Path, backbone_config: Mapping[str, Any]) -> dict[str, FeatureMaps]:
        """The stores of both parts, which may be empty."""
        key = self._key(backbone_config)
        stores = {}
        for part, index in (("train", self.data.train_index), ("val", self.data.val_index)):
            if index is None:
                raise RuntimeError("call setup() first")
            # of the full json, as all runs with any of its images share the file
            shapes, _ = padded_shapes(index, self.data.image_size)
            blank = {shape: self._blank(shape) for shape in shapes}
            stores[part] = FeatureMaps(
                index=index,
                image_size=self.data.image_size,
                levels={
                    shape: [Level(name, *value.shape) for name, value in maps.items()]
                    for shape, maps in blank.items()
                },
                dtype=self.data.feature_cache,
                key=key,
                blank=blank,
                folder=folder,
            )
        for part, store in stores.items():
            needed = store.needed(len(self.data.mirrored_views(part)))
            self.bytes[store.file] = self.bytes.get(store.file, 0) + needed
        return stores

    def fill(self, part: str, store: FeatureMaps) -> int | None:
        """Compute this process's share of the views that are missing; the number of all of them.
        None: they cannot be stored.
        """
        here = max(1, self.trainer.world_size // self.trainer.num_nodes)
        done, lost = 0, False
        for mirrored in self.data.mirrored_views(part):
            missing = store.missing(mirrored)
            # every process has found the same ones before another fills them
            self.trainer.strategy.barrier()
            own = missing[self.trainer.local_rank :: here]
            self._compute(part, store, mirrored, own, len(missing))
            lost = lost or any(store.get(i, mirrored) is None for i in own)
            done += len(missing)
        if lost:
            self.data.announce(_off(self.data, f"{store.file} cannot be written"))
        return None if lost else done

    def _compute(
        self, part: str, store: FeatureMaps, mirrored: bool, own: Sequence[int], missing: int
    ) -> None:
        if not own:
            return
        size = self.data.batch_size
        batches = [
            positions[start : start + size]
            for positions in _by_shape(store, own)
            for start in range(0, len(positions), size)
        ]
        self.data.announce(
            f"data.feature_cache={store.dtype}: {part}: computing the backbone's maps of "
            f"{plural(missing, 'image')}{', mirrored' if mirrored else ''}"
        )
        # always full batches, as in training: a kernel may depend on the size of its batch
        full = [[*batch, *[BLANK] * (size - len(batch))] for batch in batches]
        loader = self.data.view_batches(part, mirrored, full)
        said, count = time.perf_counter(), 0
        for positions, batch in zip(batches, loader, strict=True):
            maps = self._maps(batch["images"], batch["image_sizes"])
            for row, i in enumerate(positions):
                one = {name: value[row].float().cpu() for name, value in maps.items()}
                store.put(i, mirrored, one, bool(batch["readable"][row]))
            count += len(positions)
            if time.perf_counter() - said > SAY_SECONDS:
                said = time.perf_counter()
                self.data.announce(f"data.feature_cache: {part}: {count:,} of {len(own):,}")

    @torch.no_grad()
    def _maps(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """c2..c5 of a batch, as a training step would compute them."""
        model, device = self.model, self.model.mean.device
        with self.trainer.precision_plugin.forward_context():
            pixels = model.normalize(images.to(device), image_sizes.to(device))
            maps = model.backbone(pixels)
        return dict(zip(self.keys, maps, strict=True))

    def _blank(self, shape: Shape) -> dict[str, Tensor]:
        """The maps of a slot without an image: black pixels in the corner, see `CocoDataset`."""
        count = self.data.batch_size
        images = torch.zeros(count, 3, *shape, dtype=torch.uint8)
        maps = self._maps(images, torch.full((count, 2), BLANK_SIDE))
        return {name: value[0].float().cpu() for name, value in maps.items()}

    def _key(self, backbone_config: Mapping[str, Any]) -> str:
        """A digest of what the maps depend on beside the image files and their padded size."""
        model = self.model
        options = {k: v for k, v in backbone_config.items() if k not in _NO_MATTER}
        facts = [
            *(options, repr(model.backbone), model.mean.tolist(), model.std.tolist()),
            *(self.data.image_size, self.data.max_pixels, self.data.feature_cache),
            self.data.on_bad,  # the maps of an image that cannot be read are stored if it is skip
            *(str(self.trainer.precision), model.mean.device.type),
            *(_versions(), _foreign_code(model.backbone)),
        ]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        tensors = dict(model.backbone.state_dict()) | dict(model.backbone.named_buffers())
        for name, value in sorted(tensors.items()):
            content = value.detach().cpu().contiguous()
            digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
            digest.update(content.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]


def _versions() -> dict[str, str]:
    """Of the packages that read images and compute maps."""
    versions = {"maskrcnn_lit": maskrcnn_lit.__version__, "torch": str(torch.__version__)}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _foreign_code(backbone: nn.Module) -> dict[str, str]:
    """The code of the classes of layers that are not of a package with a version in the key."""
    code = {}
    for layer in {type(part) for part in backbone.modules()}:
        if layer.__module__.partition(".")[0] not in ("maskrcnn_lit", "torch", *_PACKAGES):
            with suppress(OSError, TypeError):  # of a console
                code[f"{layer.__module__}.{layer.__qualname__}"] = inspect.getsource(layer)
    return code


def _by_shape(store: FeatureMaps, positions: Sequence[int]) -> list[list[int]]:
    """The positions of each padded size."""
    groups: dict[Shape, list[int]] = {}
    for i in positions:
        groups.setdefault(store.shape(i), []).append(i)
    return list(groups.values())


def _changes(part: nn.Module) -> bool:
    """Whether a layer gives other values, or learns statistics, each time."""
    if not part.training or next(part.children(), None) is not None:
        return False
    changing = (nn.modules.batchnorm._BatchNorm, nn.RReLU, StochasticDepth)
    return isinstance(part, changing) or "drop" in type(part).__name__.lower()


def _reserve(data: CocoDataModule, files: Mapping[Path, int]) -> bool:
    """Make room for the maps, in one process of each machine; False: there is too little.

    Args:
        files: the bytes that each will take.
    """
    needed, folder = sum(files.values()), next(iter(files)).parent
    with one_at_a_time(folder):
        allowed = room(folder, files, data.cache_gb)
        fits = needed <= allowed
        removed = make_room(folder, files, needed, data.cache_gb) if fits else []
        if fits:
            for file, size in files.items():
                reserve(file, size)
    if not fits:
        data.announce(
            _off(
                data,
                f"the maps need {needed / 1e9:.3g} GB, and {max(allowed, 0) / 1e9:.3g} GB may be "
                "used (data.cache_gb, the free disk, and what other runs use)",
            )
        )
    if removed:
        data.announce(
            f"data.feature_cache: {plural(len(removed), 'older file')} of maps removed from "
            f"{folder}, to stay within data.cache_gb={data.cache_gb:g}"
        )
    return fits


def _off(data: CocoDataModule, why: str) -> str:
    return (
        f"data.feature_cache={data.feature_cache}: off, since {why}: the backbone runs in every "
        "step"
    )


@contextmanager
def _one_run_at_a_time(trainer: Trainer, files: Sequence[Path]) -> Iterator[None]:
    """All processes of this run go on when no other run computes the maps in `files`."""
    with ExitStack() as stack:
        for file in sorted(set(files)):
            mine = not trainer.is_global_zero  # machines may share the folder
            while True:
                if not mine:
                    mine = _locked_now(stack, file.with_suffix(".fill"))
                if trainer.strategy.reduce_boolean_decision(mine):
                    break
                _wait(trainer)
        yield


def _locked_now(stack: ExitStack, path: Path) -> bool:
    """Whether `path` could be locked; if so, until `stack` ends."""
    with ExitStack() as attempt:
        if not attempt.enter_context(locked(path, wait=False)):
            return False
        stack.push(attempt.pop_all())
        return True


def _wait(trainer: Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RankWatch):
            callback.moved()  # the other run makes progress
    time.sleep(POLL_SECONDS)
