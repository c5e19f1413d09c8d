"""Runs with data.feature_cache beside the same runs without."""

import inspect
import json
import multiprocessing
import os
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coco_file import coco_dict, write_coco
from lightning.pytorch import Callback
from models import make_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_trainer
from torch import nn
from torchvision.ops import StochasticDepth

from maskrcnn_lit.callbacks.panels import Panels
from maskrcnn_lit.data.batch import BLANK_ID, Batch, check_batch
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.stores import feature_folder
from maskrcnn_lit.data.stores.feature_maps import FeatureMaps
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.fpn import SimpleFPN
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.timm_backbone import TimmBackbone
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.training.feature_cache import (
    Cached,
    _Filler,
    _one_run_at_a_time,
    cache_features,
    check_frozen,
)
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.optimizer import adamw
from maskrcnn_lit.training.ranks import is_rank_zero

TRAIN, VAL = 7, 3
FLIP = {"flip": 0.5}
VIEWS = 2 * TRAIN + VAL


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_coco(root / "train", coco_dict(TRAIN))
    write_coco(root / "val", coco_dict(VAL))
    return root


def data(root: Path, cache: Path, **options: Any) -> CocoDataModule:
    parts = {
        part: {"annotations": f"{part}/instances.json", "images": f"{part}/images"}
        for part in ("train", "val")
    }
    given: dict[str, Any] = {
        **{"name": "test", "root": root, **parts, "image_size": 64, "batch_size": 2},
        **{"workers": 0, "augment": FLIP, "mask_size": 28, "seed": 1, "cache_dir": cache},
    }
    made = CocoDataModule(**given | options)
    made.setup("fit")
    return made


def model(**options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    given = {"num_classes": 3, "backbone": "resnet18", "freeze_at": "all", "norm": "frozen"}
    return make_model(**given | options)


class Losses(Callback):
    """Those of every step, and the batches of the first epoch."""

    def __init__(self) -> None:
        self.train: list[dict[str, float]] = []
        self.batches: list[Batch] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any):
        self.train.append({name: float(v) for name, v in outputs["losses"].items()})
        self.batches.append(batch)


class Fitted:
    """A run of two epochs, and what it left."""

    def __init__(self, run_dir: Path, made: CocoDataModule, built: nn.Module, **options: Any):
        self.losses, self.data = Losses(), made
        self.module = DetectionModule(
            model=built,
            optimizer=partial(
                adamw,
                **{"lr": 1e-3, "reference_batch": 2, "scaling": "linear", "backbone_factor": 1.0},
                **{"weight_decay": 0.1, "betas": (0.9, 0.999), "warmup_steps": 1},
                end_factor=0.1,
            ),
            categories=made.categories,
            config={"model": {"backbone": {"name": "resnet18"}}},
            seed=3,
        )
        resume = options.pop("resume", None)
        panels = Panels(images=2, seed=0, score_threshold=0.0)
        self.run_dir = run_dir
        self.trainer = tiny_trainer(run_dir, [self.losses, panels], **{"epochs": 2, **options})
        self.trainer.fit(self.module, datamodule=made, ckpt_path=resume)
        self.val = {
            name: float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/loss")
        }
        self.weights = {k: v.clone() for k, v in built.state_dict().items()}

    @property
    def cached(self) -> Cached:
        assert self.module.cached is not None
        return self.module.cached


@pytest.fixture(scope="module")
def plain(shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    cache = tmp_path_factory.mktemp("cache")
    run = Fitted(tmp_path_factory.mktemp("plain"), data(shared_root, cache), model())
    assert run.module.cached is None
    assert "c2" not in run.losses.batches[0]
    return run


@pytest.fixture(scope="module")
def filled(shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    """The folder of a cache, and the run that filled it."""
    cache = tmp_path_factory.mktemp("cache")
    made = data(shared_root, cache, feature_cache="float32")
    return cache, Fitted(tmp_path_factory.mktemp("filled"), made, model())


def pictures(run: Fitted) -> list[tuple[str, int, bytes]]:
    """Those that TensorBoard shows of the validation images, with predictions."""
    events = EventAccumulator(
        str(run.run_dir / "tensorboard"), size_guidance={"images": 0}
    ).Reload()
    return [
        (tag, event.step, event.encoded_image_string)
        for tag in events.Tags()["images"]
        for event in events.Images(tag)
    ]


def assert_same(one: Fitted, other: Fitted) -> None:
    assert one.losses.train == other.losses.train
    assert one.val == other.val
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[k], other.weights[k]) for k in one.weights)


@pytest.mark.long
def test_in_float32_a_run_is_the_uncached_one_to_the_last_bit(
    plain: Fitted, filled: tuple[Path, Fitted]
):
    """Losses, weights and validation; the last batch of an epoch has a slot without an image."""
    run = filled[1]
    assert_same(run, plain)
    assert run.cached.computed == run.cached.views == VIEWS
    assert run.cached.dtype == "float32"
    assert json.dumps(run.cached.record())
    assert pictures(run) == pictures(plain)
    assert len(pictures(plain)) == 2 * 2
    seen = [i for batch in run.losses.batches for i in batch["image_ids"].tolist()]
    assert BLANK_ID in seen
    for batch, other in zip(run.losses.batches, plain.losses.batches, strict=True):
        check_batch(batch, 3)
        assert batch["images"].shape == (2, 0, 64, 64)
        assert batch["c4"].shape == (2, 256, 4, 4)
        assert batch.keys() - other.keys() == {"c2", "c3", "c4", "c5"}
        same = other.keys() - {"images"}
        assert all(torch.equal(batch[key], other[key]) for key in same)


@pytest.mark.long
def test_later_runs_with_other_heads_rates_and_fewer_images_compute_nothing(
    shared_root: Path, filled: tuple[Path, Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nor do they read an image."""
    cache, first = filled
    monkeypatch.setattr("maskrcnn_lit.data.coco.index.AnnotationIndex.decode", None)
    made = data(shared_root, cache, feature_cache="float32")
    again = Fitted(tmp_path / "again", made, model())
    assert_same(again, first)
    fewer = data(shared_root, cache, feature_cache="float32", train_images=3)
    other = Fitted(tmp_path / "other", fewer, model(width=96), epochs=1)
    assert [run.cached.computed for run in (again, other)] == [0, 0]
    assert other.cached.views == 2 * 3 + VAL


@pytest.mark.long
def test_a_resumed_run_ends_as_the_unbroken_one(
    shared_root: Path, filled: tuple[Path, Fitted], tmp_path: Path
):
    cache, unbroken = filled
    options = {"feature_cache": "float32"}

    class Stop(Exception):
        pass

    class StopAt(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 7:  # after the checkpoint of step 6, in the second epoch
                raise Stop

    made = data(shared_root, cache, **options)
    with pytest.raises(Stop), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Losses, "on_train_batch_start", StopAt.on_train_batch_start, raising=False)
        Fitted(tmp_path, made, model())
    torch.manual_seed(5)
    built = make_model(num_classes=3, backbone="resnet18", freeze_at="all", norm="frozen")
    checkpoint = last_checkpoint(tmp_path)
    resumed = Fitted(tmp_path, data(shared_root, cache, **options), built, resume=checkpoint)
    assert resumed.cached.computed == 0, "its weights come from the checkpoint"
    assert resumed.losses.train == unbroken.losses.train[6:]
    assert all(torch.equal(resumed.weights[k], v) for k, v in unbroken.weights.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "rpn", "heads"), [("bfloat16", 1e-4, 0.05), ("uint8", 1e-3, 0.05)]
)
def test_rounded_maps_give_the_losses_of_the_exact_ones_within_their_rounding(
    plain: Fitted,
    shared_root: Path,
    tmp_path: Path,
    dtype: str,
    rpn: float,
    heads: float,
):
    """Those of the first step, whose weights are the same. The losses of the RPN are a smooth
    function of the maps. Those of the heads are means over sampled regions, which are others where
    two proposals change places.
    """
    made = data(shared_root, tmp_path, feature_cache=dtype)
    run = Fitted(tmp_path / "run", made, model(), steps=1)
    exact, rounded = plain.losses.train[0], run.losses.train[0]
    assert rounded != exact, "it is rounded"
    for name, value in exact.items():
        bound = rpn if name.startswith("rpn") else heads
        assert rounded[name] == pytest.approx(value, rel=bound), name
    sizes = {d: piece(run.data, d) for d in ("float32", dtype)}
    assert run.cached.gigabytes * 1e9 == pytest.approx(VIEWS * sizes[dtype])
    assert sizes[dtype] < {"bfloat16": 0.51, "uint8": 0.32}[dtype] * sizes["float32"]


def piece(made: CocoDataModule, dtype: str) -> int:
    """The bytes of a view of 64 x 64 pixels of a ResNet-18."""
    return 4 + sum(
        {"float32": 4, "bfloat16": 2, "uint8": 1}[dtype] * channels * side * side
        + (8 * channels if dtype == "uint8" else 0)
        for channels, side in ((64, 16), (128, 8), (256, 4), (512, 2))
    )


@pytest.mark.long
def test_a_plain_transformer_has_one_map(shared_root: Path, tmp_path: Path):
    def built() -> MaskRCNN:
        torch.manual_seed(0)
        options = {"depth": 4, "embed_dim": 32, "num_heads": 2}
        backbone = TimmBackbone(
            name="vit_tiny_patch16_224",
            norm="auto",
            freeze_at="all",
            drop_path=0.5,
            options=options,
        )
        whole = model()
        whole.backbone = backbone
        whole.fpn = SimpleFPN(in_channels=32, stride=16, channels=whole.fpn.channels)
        return whole

    runs = {
        how: Fitted(
            tmp_path / how, data(shared_root, tmp_path, feature_cache=how), built(), epochs=1
        )
        for how in ("off", "float32")
    }
    assert_same(runs["float32"], runs["off"])
    batch = runs["float32"].losses.batches[0]
    assert batch["c4"].shape == (2, 32, 4, 4)
    assert "c2" not in batch


@pytest.mark.long
@pytest.mark.parametrize("views", [5, VIEWS - 1])
def test_what_an_interrupted_fill_has_stored_stays(
    shared_root: Path, filled: tuple[Path, Fitted], tmp_path: Path, views: int
):
    options = {"feature_cache": "float32"}
    put, count = FeatureMaps.put, 0

    def interrupted(self: FeatureMaps, *arguments: Any) -> None:
        nonlocal count
        if count == views:
            raise KeyboardInterrupt
        count += 1
        put(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(FeatureMaps, "put", interrupted)
        Fitted(tmp_path / "one", data(shared_root, tmp_path, **options), model(), epochs=1)
    whole = Fitted(tmp_path / "two", data(shared_root, tmp_path, **options), model())
    assert whole.cached.computed == VIEWS - views
    assert_same(whole, filled[1])


@pytest.mark.long
def test_another_weight_or_mean_or_file_is_computed_again(tmp_path: Path):
    for part, images in (("train", 3), ("val", 2)):
        write_coco(tmp_path / part, coco_dict(images))

    def computed(built: MaskRCNN, **options: Any) -> int:
        made = data(tmp_path, tmp_path / "cache", **{"feature_cache": "uint8"} | options)
        return Fitted(tmp_path / "run", made, built, steps=1).cached.computed

    assert computed(model()) == 8
    assert computed(model()) == 0
    changed = model()
    with torch.no_grad():
        next(changed.backbone.parameters()).view(-1)[5] += 1e-6
    assert computed(changed) == 8
    brighter = model()
    brighter.mean += 1e-3
    assert computed(brighter) == 8
    assert computed(model(), image_size=96) == 8
    assert computed(model(), feature_cache="float32") == 8
    os.utime(tmp_path / "train" / "images" / "01.jpg", (1, 1))
    assert computed(model()) == 2, "both views of this file"
    assert computed(model(), augment={"flip": 0.0}) == 0
    assert computed(model(), augment={"flip": 1.0}) == 0


@pytest.mark.long
def test_a_cache_that_would_be_too_large_is_not_used(
    plain: Fitted, shared_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "maskrcnn_lit")
    made = data(shared_root, tmp_path, feature_cache="float32", cache_gb=0.001)
    run = Fitted(tmp_path / "run", made, model())
    assert_same(run, plain)
    assert run.module.cached is None
    assert (
        "data.feature_cache=float32: off, since the maps need 0.00209 GB, and 0.001 GB may be used"
        in caplog.text
    )
    assert not list((tmp_path / "features").glob("*.raw"))


@pytest.mark.long
def test_older_maps_make_room(shared_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "maskrcnn_lit")
    first = data(shared_root, tmp_path, feature_cache="float32", cache_gb=0.003)
    Fitted(tmp_path / "one", first, model(), steps=1).cached.in_use[0].close()
    old = set((tmp_path / "features").glob("*.raw"))
    other = model()
    other.mean += 0.01
    second = data(shared_root, tmp_path, feature_cache="float32", cache_gb=0.003)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_folder, "_locked_alone", lambda opened: True)
        run = Fitted(tmp_path / "two", second, other, steps=1)
    assert run.cached.computed == VIEWS
    assert "of maps removed from" in caplog.text
    left = old & set((tmp_path / "features").glob("*.raw"))
    assert len(old) == 2 > len(left), "the first one, and the other if the first is that of val"


@pytest.mark.long
def test_maps_that_cannot_be_stored_are_computed_in_every_step(
    plain: Fitted, shared_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "maskrcnn_lit")
    (tmp_path / "features").write_text("a file, not a folder")
    run = Fitted(tmp_path / "run", data(shared_root, tmp_path, feature_cache="uint8"), model())
    assert_same(run, plain)
    assert "features cannot be written" in caplog.text
    (tmp_path / "features").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn_lit.data.stores.memmap.MemmapStore.put", lambda *_: None)
        made = data(shared_root, tmp_path, feature_cache="uint8")
        assert Fitted(tmp_path / "two", made, model(), steps=1).module.cached is None


@pytest.mark.long
def test_an_image_that_cannot_be_read_stays_hidden(tmp_path: Path):
    for part, images in (("train", 4), ("val", 3)):
        write_coco(tmp_path / part, coco_dict(images))
        file = tmp_path / part / "images" / "02.jpg"
        file.write_bytes(file.read_bytes()[:700])  # its size can be read, its pixels cannot
    runs = {
        how: Fitted(
            tmp_path / how,
            data(tmp_path, tmp_path / "cache", feature_cache=how, on_bad="skip"),
            model(),
            epochs=1,
        )
        for how in ("off", "float32")
    }
    assert_same(runs["float32"], runs["off"])
    readable = [
        dict(zip(b["image_ids"].tolist(), b["readable"].tolist(), strict=True))
        for b in runs["float32"].losses.batches
    ]
    assert {i: flag for batch in readable for i, flag in batch.items()}[3] is False
    with pytest.raises(UserError, match=r"02\.jpg cannot be decoded"):
        Fitted(tmp_path / "x", data(tmp_path, tmp_path / "new", feature_cache="uint8"), model())


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ({"scale": [0.8, 1.0]}, r"augment\.scale is \[0\.8, 1\.0\]: use 'augment\.scale=\[1\.0, 1"),
        ({"crop": 0.5}, r"augment\.crop is 0\.5: use 'augment\.crop=1\.0'"),
        ({"brightness": 0.2}, r"augment\.brightness is 0\.2: use 'augment\.brightness=0\.0'"),
        ({"rot90": 0.5}, "augment has QuarterTurns: use augment=none augment.flip=0.5"),
        (
            {"copy_paste": {"p": 0.5}},
            r"augment\.copy_paste\.p is 0\.5: use augment\.copy_paste\.p=0",
        ),
    ],
)
def test_other_augmentation_is_refused(
    shared_root: Path, tmp_path: Path, augment: dict[str, Any], said: str
):
    with pytest.raises(UserError, match=said):
        data(shared_root, tmp_path, feature_cache="uint8", augment=augment)
    data(shared_root, tmp_path, feature_cache="off", augment=augment)


@pytest.mark.long
def test_several_padded_sizes_are_refused(shared_root: Path, tmp_path: Path):
    options = {"feature_cache": "uint8", "image_size": (64, 100)}
    with pytest.raises(UserError, match=r"data\.lengths is 3: use data\.lengths=1, or one number"):
        data(shared_root, tmp_path, **options)
    made = {
        how: data(shared_root, tmp_path, **options | {"feature_cache": how, "lengths": 1})
        for how in ("off", "float32")
    }
    runs = {how: Fitted(tmp_path / how, one, model(), epochs=1) for how, one in made.items()}
    assert_same(runs["float32"], runs["off"])
    shapes = {tuple(b["c2"].shape[2:]) for b in runs["float32"].losses.batches}
    assert shapes == {(16, 32), (32, 16)}, "each orientation has one size"


def test_a_backbone_that_changes_is_refused(shared_root: Path, tmp_path: Path):
    made = data(shared_root, tmp_path, feature_cache="uint8")
    with pytest.raises(UserError, match=r"tensors of it would: use backbone\.freeze_at=all, or"):
        Fitted(tmp_path / "run", made, model(freeze_at=2))
    noisy = model()
    noisy.backbone.body["layer1"].append(nn.Dropout2d(0.5))
    check_frozen(noisy)  # the whole body is in evaluation mode
    noisy.backbone.register_module("late", nn.Dropout(0.5))
    with pytest.raises(UserError, match="the backbone has Dropout in training mode"):
        check_frozen(noisy)
    for layer in (StochasticDepth(0.5, "row"), nn.RReLU()):
        noisy.backbone.register_module("late", layer)
        with pytest.raises(UserError, match=f"the backbone has {type(layer).__name__} in train"):
            check_frozen(noisy)
    with pytest.raises(UserError, match="needs a MaskRCNN, but the model is a Linear"):
        check_frozen(nn.Linear(2, 2))
    check_frozen(model(norm="batch", head_norm=None))  # statistics of a frozen stage stay


def fill(root: Path, folder: Path, name: str, results: Any) -> None:
    torch.set_num_threads(1)
    assert is_rank_zero()
    made = data(root, folder, feature_cache="bfloat16")
    run = Fitted(folder / name, made, model(), epochs=1)
    results.put((run.cached.computed, [sorted(one.items()) for one in run.losses.train]))


@pytest.mark.long
@pytest.mark.process
def test_two_runs_at_once_compute_each_view_once(shared_root: Path, tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    processes = [
        context.Process(target=fill, args=(shared_root, tmp_path, name, results))
        for name in ("a", "b")
    ]
    for process in processes:
        process.start()
    (one, losses), (two, other) = (results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert sorted((one, two)) == [0, VIEWS]
    assert losses == other


def process(made: Any, *, reduced: bool | None = None, **options: Any) -> Any:
    """The trainer of one of several processes. reduced: what all processes agree on; by default,
    what this one says.
    """
    strategy = SimpleNamespace(
        reduce_boolean_decision=lambda mine: mine if reduced is None else reduced,
        barrier=lambda: None,
    )
    given = {"local_rank": 0, "is_global_zero": True, "world_size": 2, "num_nodes": 1}
    return SimpleNamespace(
        datamodule=made,
        strategy=strategy,
        callbacks=[],
        precision="32-true",
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        **given | options,
    )


def test_no_process_uses_a_cache_that_does_not_fit_in_another(
    shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = data(shared_root, tmp_path, feature_cache="uint8")
    second = {"local_rank": 1, "is_global_zero": False}
    monkeypatch.setattr(made, "use_features", None)
    assert cache_features(model(), process(made, reduced=False, **second), {}) is None
    assert not list((tmp_path / "features").glob("*.raw")), "nothing is computed"


def test_two_machines_with_one_folder_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wait(_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr("maskrcnn_lit.training.feature_cache._wait", wait)
    first = process(None, num_nodes=2)
    second = process(None, num_nodes=2, is_global_zero=False)
    other_run = process(None)
    files = [tmp_path / "train.raw", tmp_path / "val.raw"]
    with (
        _one_run_at_a_time(first, files),
        _one_run_at_a_time(second, files),
        pytest.raises(TimeoutError),
        _one_run_at_a_time(other_run, files),
    ):
        pass
    with _one_run_at_a_time(other_run, files):
        pass


def filler(made: CocoDataModule, built: MaskRCNN | None = None) -> _Filler:
    return _Filler(built or model(), process(made), made)


def test_runs_with_other_images_of_one_json_share_their_maps(tmp_path: Path):
    """Though none of them has images of both orientations."""
    content = coco_dict(4)
    portrait = content["images"][0]  # without annotations
    portrait["width"], portrait["height"] = 60, 100
    for part in ("train", "val"):
        write_coco(tmp_path / part, content)
    options = {"feature_cache": "uint8", "image_size": (64, 100), "lengths": 1, "keep_empty": True}
    parts = {"portrait": [1], "landscape": [2, 3], "both": [1, 2, 3, 4]}
    stores = {}
    for name, ids in parts.items():
        made = data(tmp_path, tmp_path / "cache", image_ids=ids, **options)
        stores[name] = filler(made).stores(tmp_path / "cache", {})["train"]
    assert len({store.file for store in stores.values()}) == 1
    for name in ("portrait", "landscape"):
        store = stores[name]
        for i, image in enumerate(parts[name]):
            levels = store.levels[store.shape(i)]
            maps = {level.key: torch.full(level[1:], float(image)) for level in levels}
            store.put(i, False, maps, readable=True)
    both = stores["both"]
    assert stores["landscape"].missing(False) == []
    assert both.missing(False) == [3]
    for i, image, sides in ((0, 1, (32, 16)), (1, 2, (16, 32)), (2, 3, (16, 32))):
        maps, _ = both.read(i, False)
        assert maps["c2"].shape == (64, *sides)
        assert (maps["c2_low"] == image).all()


class Shifted(nn.Module):
    def forward(self, maps: Any) -> Any:
        return [value + 1 for value in maps]


def test_the_key_has_all_that_maps_depend_on(
    shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def key(config: dict[str, Any] | None = None, **options: Any) -> str:
        made = data(shared_root, tmp_path, **{"feature_cache": "uint8"} | options)
        return filler(made, built)._key(config or {})

    built = model()
    first = key()
    assert key() == key({"weights": "other.pt"}) == first, "weights have a digest of their own"
    others = {first, key(on_bad="skip"), key({"width": 2})}
    built.backbone.body["layer1"].append(Shifted())
    others.add(key())
    source = inspect.getsource
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "getsource", lambda layer: source(layer).replace("1", "2"))
        others.add(key())
    version = metadata.version
    for package in ("torchvision", "timm", "pillow"):
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda p, new=package: version(p) + "1" * (p == new))
            others.add(key())
    monkeypatch.setattr("maskrcnn_lit.__version__", "9.9")
    others.add(key())
    assert len(others) == 9
