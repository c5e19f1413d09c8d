"""`from maskrcnn_lit import load_model`: the Python interface."""

import gc
import io
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_commands import SIZE, ground_truth
from videos import write_video

import maskrcnn_lit
from maskrcnn_lit import load_model, predictor
from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.thresholds import write_thresholds
from maskrcnn_lit.predictor import Detections, Predictor, read
from maskrcnn_lit.runs.folder import output_folder
from maskrcnn_lit.storage import strips
from maskrcnn_lit.storage.video_writer import VideoWriter

pytest_plugins = ("tiny_commands",)


@pytest.fixture(scope="module")
def model(trained: Path) -> Predictor:
    return load_model(trained, score_threshold=0.0, accelerator="cpu")


@pytest.fixture(scope="module")
def picture(shapes: Path) -> Path:
    return min((shapes / "val").iterdir())


@pytest.fixture(scope="module")
def found(model: Predictor, picture: Path) -> Detections:
    (detections,) = model.predict(picture)
    return detections


@pytest.mark.process
def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, maskrcnn_lit\n"
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules), 'torch is loaded'\n"
        "assert 'load_model' in maskrcnn_lit.__all__\n"
        "assert {'load_model', 'train', '__version__'} <= set(dir(maskrcnn_lit))\n"
        "try: maskrcnn_lit.lode_model\n"
        "except AttributeError as error: assert 'lode_model' in str(error)\n"
        "else: raise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_imported_from_its_module():
    assert set(maskrcnn_lit.__all__) == {
        *("load_model", "Predictor", "Detections", "UserError", "CocoDataModule", "MaskRCNN"),
        *("build_model", "train", "evaluate", "RunResult"),
    }
    for name in maskrcnn_lit.__all__:
        value = getattr(maskrcnn_lit, name)
        assert (value.__name__, value.__module__) == (name, maskrcnn_lit._MODULES[name])
        assert value.__doc__
    assert maskrcnn_lit.UserError is UserError


def test_what_is_found_on_a_file(found: Detections, picture: Path):
    assert found.name == picture.name
    assert np.array_equal(found.image, np.asarray(Image.open(picture).convert("RGB")))
    count = len(found.scores)
    assert count == 100  # max_detections: a model of 8 steps finds something everywhere
    assert found.boxes.shape == (count, 4)
    assert found.boxes.dtype == np.float32
    assert found.scores.shape == found.labels.shape == (count,)
    assert len(found.names) == len(found.masks) == count
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > 0
    assert found.scores.max() <= 1
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= SIZE


def test_names_are_those_of_the_labels(found: Detections, strange: Path):
    names = sorted(entry["name"] for entry in ground_truth(strange)["categories"])
    assert found.names == [names[label - 1] for label in found.labels]


def test_masks_are_rles_of_the_whole_image_inside_their_boxes(found: Detections):
    assert any(coco_mask.area(mask) for mask in found.masks)
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes, strict=True):
        y, x = np.nonzero(coco_mask.decode(mask))
        assert mask["size"] == [SIZE, SIZE]
        if len(x):  # a pixel more: the mask's cells reach half a cell over the box
            assert x.min() >= x1 - 2
            assert x.max() <= x2 + 2
            assert y.min() >= y1 - 2
            assert y.max() <= y2 + 2


def test_coco_results_have_the_ids_of_the_training_data(found: Detections, strange: Path):
    ids = {entry["name"]: entry["id"] for entry in ground_truth(strange)["categories"]}
    results = found.to_coco(image_id=12)
    assert [entry["category_id"] for entry in results] == [ids[name] for name in found.names]
    assert {entry["image_id"] for entry in results} == {12}
    for entry, score, (x1, y1, x2, y2) in zip(results, found.scores, found.boxes, strict=True):
        assert entry["score"] == pytest.approx(float(score), abs=1e-6)
        assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-2)


def test_it_is_drawn_on_a_copy(found: Detections):
    before = found.image.copy()
    drawn = found.draw()
    factor = len(drawn) // SIZE  # small pictures are enlarged, so that labels can be read
    assert drawn.shape == (factor * SIZE, factor * SIZE, 3)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - before.repeat(factor, 0).repeat(factor, 1)).max() > 100
    assert np.array_equal(found.image, before)


def test_paths_and_arrays_give_the_same(
    model: Predictor, found: Detections, picture: Path, shapes: Path
):
    array = np.asarray(Image.open(picture).convert("RGB"))
    for source in (array, [array], str(picture), [picture]):
        (again,) = model.predict(source)
        assert np.array_equal(again.boxes, found.boxes)
        assert np.array_equal(again.scores, found.scores)
        assert again.names == found.names
        assert again.masks == found.masks
    names = [one.name for one in model.predict([shapes / "val", array])]
    assert names == [*sorted(path.name for path in (shapes / "val").iterdir()), "array[1]"]


def same_detections(one: Detections, other: Detections) -> bool:
    """Up to the rounding of a batched forward."""
    return (
        one.names == other.names
        and np.allclose(one.boxes, other.boxes, atol=1e-2)
        and np.allclose(one.scores, other.scores, atol=1e-4)
    )


def test_every_kind_of_source_gives_the_same(model: Predictor, found: Detections, picture: Path):
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    channels_first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    sources: list[Any] = [
        picture.read_bytes(),
        io.BytesIO(picture.read_bytes()),
        Image.open(picture),
        np.dstack([pixels, pixels[..., 0]]),
        pixels.astype(np.uint16) * 257,
        pixels / 255,
        channels_first,
        channels_first / 255,
        channels_first[None],
    ]
    for source in sources:
        (again,) = model.predict(source)
        assert np.array_equal(again.image, found.image)
        assert same_detections(again, found)


def test_an_answer_is_a_list_and_a_stream_is_lazy(model: Predictor, picture: Path, shapes: Path):
    assert isinstance(model.predict(picture), list)
    assert isinstance(model(picture), list)
    assert model.predict([]) == []
    pulled: list[int] = []

    def frames() -> Iterator[Path]:
        for i in range(4):
            pulled.append(i)
            yield picture

    stream = model.predict(frames(), stream=True)
    assert isinstance(stream, Iterator)
    assert not pulled
    next(stream)
    assert pulled == [0]
    assert len(list(stream)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_missing_file_is_a_mistake_at_the_call(stream: bool, model: Predictor, picture: Path):
    with pytest.raises(UserError, match=r"missing\.jpg does not exist"):
        model.predict([picture, "missing.jpg"], stream=stream)


@pytest.mark.long
@pytest.mark.parametrize("image_size", [SIZE, [48, 80]])
def test_batches_find_what_single_images_do(
    image_size: Any, model: Predictor, shapes: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pictures of three shapes: those of one shape run together, and the order stays."""
    monkeypatch.setitem(model.config.data, "image_size", image_size)
    pictures = [np.asarray(Image.open(file)) for file in sorted((shapes / "val").iterdir())]
    images = [p[:, : SIZE * 5 // 8] if i % 2 else p for i, p in enumerate(pictures * 3)]
    images += [pictures[0][:40], pictures[1][:40]]
    sizes: list[int] = []
    forward = type(model.model).forward

    def counted(self: Any, batch: Any) -> Any:
        sizes.append(len(batch["images"]))
        return forward(self, batch)

    monkeypatch.setattr(type(model.model), "forward", counted)
    alone = model.predict(images)
    assert sizes == [1] * len(images)
    sizes.clear()
    together = model.predict(images, batch_size=4)
    assert sum(sizes) == len(images)
    assert sorted(sizes) == ([3, 4, 4] if image_size == SIZE else [1, 2, 4, 4])
    for one, other, image in zip(alone, together, images, strict=True):
        assert np.array_equal(other.image, image)
        assert same_detections(one, other)


def test_a_threshold_of_one_call(model: Predictor, trained: Path, picture: Path):
    """Also one below that of the model's config, 0.05, which the head has by itself."""
    strict = load_model(trained, accelerator="cpu")
    assert strict.score_thresholds.tolist() == [0.5] * len(NAMES)
    (every,) = model.predict(picture)
    (low,) = strict.predict(picture, score_threshold=0.0)
    assert same_detections(low, every)
    threshold = float(every.scores[10])
    (some,) = model.predict(picture, score_threshold=threshold)
    assert len(some) == (every.scores >= threshold).sum()
    assert len(strict.predict(picture)[0]) == (every.scores >= 0.5).sum()
    for wrong in (1.5, -0.1, "best", True, float("nan")):
        with pytest.raises(UserError, match=r"score_threshold=\S+ must be a number from 0"):
            model.predict(picture, score_threshold=wrong)
    with pytest.raises(UserError, match="batch_size=0 must be a whole number"):
        model.predict(picture, batch_size=0)


def test_a_model_moves_between_devices(trained: Path, picture: Path):
    model = load_model(trained, accelerator="cpu")
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")
    assert repr(model) == (
        f"<Predictor on cpu, {len(NAMES)} classes ({', '.join(sorted(NAMES)[:5])}, ...), "
        "score_threshold 0.5>"
    )
    assert len(model.predict(picture)) == 1
    for device, message in (
        ("cuda:99", r"device=cuda:99 does not exist: torch \S+ sees \d+ CUDA devices"),
        ("gpu", "device=gpu must be cpu, cuda or cuda:NUMBER"),
        ("meta", "device=meta must be cpu, cuda or cuda:NUMBER"),
    ):
        with pytest.raises(UserError, match=message):
            model.to(device)


def test_a_result_has_a_length_and_a_short_text(found: Detections):
    assert len(found) == len(found.scores) == 100
    assert repr(found).startswith(f"<Detections of {found.name}, {SIZE} x {SIZE}: ")
    assert len(repr(found)) < 200
    counts = {name: found.names.count(name) for name in set(found.names)}
    assert all(f"{count} {name}" in repr(found) for name, count in counts.items())


def test_masks_as_arrays(found: Detections, model: Predictor, picture: Path):
    masks = found.masks_array()
    assert (masks.shape, masks.dtype) == ((100, SIZE, SIZE), np.bool_)
    for mask, rle in zip(masks, found.masks, strict=True):
        assert np.array_equal(mask, coco_mask.decode(rle).astype(bool))
    (nothing,) = model.predict(picture, score_threshold=1.0)
    assert len(nothing) == 0
    assert nothing.masks_array().shape == (0, SIZE, SIZE)
    assert nothing.to_rows() == []
    assert repr(nothing).endswith(": nothing>")


def test_rows_are_plain(found: Detections):
    rows = found.to_rows()
    assert len(rows) == 100
    assert list(rows[0]) == ["image", "label", "name", "score", "x1", "y1", "x2", "y2", "area"]
    for r, row in enumerate(rows):
        kinds = [type(value) for value in row.values()]
        assert kinds == [str, int, str, float, float, float, float, float, int]
        assert row["image"] == found.name
        assert found.categories[row["label"] - 1].name == row["name"] == found.names[r]
        assert [row[key] for key in ("x1", "y1", "x2", "y2")] == found.boxes[r].tolist()
        assert row["score"] == found.scores[r]
    assert [row["area"] for row in rows] == found.masks_array().sum((1, 2)).tolist()


def test_supervision_gets_its_own_detections(found: Detections, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="not installed: pip install supervision"):
        found.to_supervision()
    module = types.ModuleType("supervision")
    module.Detections = lambda **values: types.SimpleNamespace(**values)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    given = found.to_supervision()
    assert np.array_equal(given.xyxy, found.boxes)
    assert np.array_equal(given.confidence, found.scores)
    assert np.array_equal(given.mask, found.masks_array())
    assert [found.categories[i].name for i in given.class_id] == found.names
    assert given.data["class_name"].tolist() == found.names


@pytest.mark.long
def test_a_result_is_shown_and_saved(found: Detections, tmp_path: Path):
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.format == "PNG"
    assert np.array_equal(np.asarray(shown), found.draw())
    found.save(tmp_path / "folder" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "folder" / "a.png")), found.draw())
    with pytest.raises(UserError, match=r"a\.psd cannot be written"):
        found.save(tmp_path / "a.psd")


def test_a_threshold_leaves_out_what_is_less_certain(
    trained: Path, found: Detections, picture: Path
):
    threshold = float(found.scores[10])
    (some,) = load_model(trained, score_threshold=threshold, accelerator="cpu").predict(picture)
    kept = found.scores >= threshold
    assert 10 < kept.sum() < len(kept)
    assert np.array_equal(some.boxes, found.boxes[kept])
    assert some.names == found.names[: len(some.names)]


def test_each_class_has_its_best_threshold(
    trained: Path, found: Detections, picture: Path, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (run / name).symlink_to(trained / name)
    (first, *_), values = (
        sorted(set(found.names)),
        found.scores[np.array(found.names) == min(found.names)],
    )
    threshold = float(values[len(values) // 2])
    rows = [{"name": name, "threshold": threshold if name == first else None} for name in NAMES]
    write_thresholds(run, {"kind": "mask", "confusion": {"iou": 0.5}, "per_class": rows})
    model = load_model(run, score_threshold="best", accelerator="cpu")
    assert model.score_thresholds.tolist() == [
        threshold if name == first else 0.5 for name in sorted(NAMES)
    ]
    (some,) = model.predict(picture)
    kept = [
        score >= (threshold if name == first else 0.5)
        for name, score in zip(found.names, found.scores, strict=True)
    ]
    assert 0 < sum(kept) < len(kept)
    assert np.array_equal(some.scores, found.scores[kept])
    assert some.names == [name for name, is_kept in zip(found.names, kept, strict=True) if is_kept]
    # another suppression gives other scores
    with pytest.raises(UserError, match=r"thresholds_matrix\.json, which .* model.nms=matrix"):
        load_model(run, score_threshold="best", accelerator="cpu", nms="matrix")
    again = load_model(run, score_threshold="best", accelerator="cpu", nms="box")
    assert again.score_thresholds.tolist() == model.score_thresholds.tolist()


def test_max_detections_are_the_best(trained: Path, found: Detections, picture: Path):
    (some,) = load_model(trained, score_threshold=0.0, max_detections=3, accelerator="cpu").predict(
        picture
    )
    assert np.array_equal(some.scores, found.scores[:3])
    assert np.array_equal(some.boxes, found.boxes[:3])


@pytest.mark.long
def test_the_best_checkpoint_is_loaded_unless_the_last_is_asked_for(trained: Path):
    for name, kwargs in (("best", {}), ("last", {"checkpoint": "last"})):
        saved = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)[
            "state_dict"
        ]
        loaded = load_model(trained, accelerator="cpu", **kwargs).model.state_dict()
        heads = [
            key for key in loaded if not key.startswith("backbone.")
        ]  # there the norms are in the convolutions
        assert len(heads) > 20
        assert all(torch.equal(loaded[key], saved[f"model.{key}"]) for key in heads)
        assert not load_model(
            trained / "checkpoints" / f"{name}.ckpt", accelerator="cpu"
        ).model.training


def test_a_run_without_a_best_checkpoint_has_its_last(trained: Path, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to(trained / "checkpoints" / "last.ckpt")
    _, categories, state = read(tmp_path)
    assert [category.name for category in categories] == sorted(NAMES)
    assert "backbone.body.conv1.weight" in state
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    for name in ("best", "last"):
        with pytest.raises(UserError, match="has no checkpoint"):
            read(tmp_path, name)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"source": "none"}, "none does not exist: give a run folder"),
        (
            {"score_threshold": -0.1},
            r"score_threshold=-0.1 must be a number from 0 \(all detections\) to 1",
        ),
        ({"score_threshold": 1.5}, "score_threshold=1.5 must be"),
        (
            {"score_threshold": "high"},
            "score_threshold=high must be a number from 0 .* to 1, or best: the threshold of each "
            "class",
        ),
        (
            {"score_threshold": "best"},
            "thresholds.json, which does not exist: run `maskrcnn-lit evaluate run=",
        ),
        ({"max_detections": 0}, "max_detections=0 must be a whole number, 1 or more"),
        ({"checkpoint": "newest"}, "checkpoint=newest must be best or last"),
        ({"accelerator": "tpu"}, "tpu is unknown: use auto, cpu or gpu"),
    ],
)
def test_mistakes(kwargs, message, trained: Path):
    with pytest.raises(UserError, match=message):
        load_model(**{"source": trained, **kwargs})


def test_the_output_lies_in_the_run_or_where_it_is_told(tmp_path: Path):
    file = tmp_path / "last.ckpt"
    file.touch()
    assert output_folder(str(tmp_path), None, "predictions").parent == tmp_path / "predictions"
    assert output_folder(str(file), f"{tmp_path}/a", "predictions") == tmp_path / "a"
    for run in (str(file), None):  # in which no folder can lie
        assert output_folder(run, None, "predictions").parent == Path("outputs") / "predictions"


# Streams


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a.avi", 9)


def test_a_stream_of_a_video(model: Predictor, clip: Path):
    """In batches, which change nothing."""
    alone = list(model.stream(clip, score_threshold=0.0))
    together = list(model.stream(clip, batch_size=4, score_threshold=0.0))
    assert [found.index for found in alone] == list(range(9))
    assert [found.name for found in alone] == ["a.avi"] * 9
    assert [round(found.time, 3) for found in alone] == [i / 10 for i in range(9)]
    assert alone[0].clip == ("a.avi", 10.0, 9)
    assert alone[0].track_ids is None
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.image, other.image)
        assert same_detections(one, other)
    frames = [found.image for found in alone]
    for one, other in zip(alone, model.predict(frames), strict=True):
        assert same_detections(one, other)
    assert len(list(model.predict([clip, frames[0]], stream=True))) == 10


def test_predict_has_no_list_of_a_video(
    model: Predictor, clip: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Predictor, "_found", lambda *given: pytest.fail("an image ran before"))
    with pytest.raises(UserError, match=r"a\.avi is a video, .*: use `for found in model\.stream"):
        model.predict([picture, clip])


def test_a_stream_that_is_left_ends_its_thread(model: Predictor, tmp_path: Path):
    for found in model.stream(write_video(tmp_path / "long.avi", 200)):
        assert found.index == 0
        break
    del found
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.mark.parametrize("track", ["mask_iou", "bytetrack", "ocsort"])
def test_a_stream_has_identities(track: str, model: Predictor, picture: Path, tmp_path: Path):
    """Of a picture that stands still: every object stays itself; each video begins with 1."""
    image = Image.open(picture).convert("RGB")
    paths = [tmp_path / f"{name}.mp4" for name in "ab"]
    for path in paths:
        with VideoWriter(path, 10) as writer:
            for number in range(6):
                writer.write(np.asarray(image), number / 10)
    fifth = float(next(model.stream(paths[0])).scores[4])
    results = list(model.stream(paths, track=track, score_threshold=fifth))
    assert [found.clip.name for found in results] == ["a.mp4"] * 6 + ["b.mp4"] * 6
    for found in results:
        assert found.track_ids.shape == (len(found),)
        assert found.track_ids.dtype == np.int64
    if track == "mask_iou":
        assert results[0].track_ids.tolist() == results[6].track_ids.tolist()
        assert sorted(results[0].track_ids) == list(range(1, len(results[0]) + 1))
        assert set(results[1].track_ids) & set(results[0].track_ids)


def test_identities_are_in_rows_results_and_drawings(found: Detections):
    few = replace(
        found,
        **{key: getattr(found, key)[:2] for key in ("boxes", "scores", "labels", "names", "masks")},
        track_ids=np.array([3, -1]),
    )
    assert [row["track_id"] for row in few.to_rows()] == [3, None]
    first, second = few.to_coco(5)
    assert first["track_id"] == 3
    assert "track_id" not in second
    assert few.to_supervision().tracker_id.tolist() == [3, -1]
    untracked = replace(few, track_ids=None)
    assert not np.array_equal(few.draw(), untracked.draw())
    assert "track_id" not in untracked.to_rows()[0]


def test_mistakes_of_a_stream_are_told_at_the_call(model: Predictor, clip: Path):
    with pytest.raises(UserError, match="track=sort must be one of"):
        model.stream(clip, track="sort")
    with pytest.raises(UserError, match="batch_size=0 must be"):
        model.stream(clip, batch_size=0)
    with pytest.raises(UserError, match=r"missing\.mp4 does not exist"):
        model.stream("missing.mp4")
    with pytest.raises(UserError, match="more than max_pixels=100"):
        next(model.stream(clip, max_pixels=100))


def test_a_compiled_model_sees_full_batches_alone(
    trained: Path, shapes: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
):
    """The last batch is filled up, so that no other size is compiled; the results are the same."""
    plain = load_model(trained, score_threshold=0.0, accelerator="cpu")
    alone = list(plain.stream(clip, batch_size=4))
    sizes: list[int] = []
    forward = type(plain.model).forward

    def counted(self: Any, batch: Any) -> Any:
        sizes.append(len(batch["images"]))
        return forward(self, batch)

    monkeypatch.setattr(type(plain.model), "forward", counted)
    list(plain.stream(clip, batch_size=4))
    assert sizes == [4, 4, 1]
    sizes.clear()
    monkeypatch.setattr("maskrcnn_lit.predictor.is_compiled", lambda model: True)
    full = list(plain.stream(clip, batch_size=4))
    assert sizes == [4, 4, 4]
    assert len(full) == 9
    for one, other in zip(alone, full, strict=True):
        assert same_detections(one, other)


def test_a_model_is_compiled_on_a_gpu_alone(
    model: Predictor,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO")
    compiled: list[Any] = []
    monkeypatch.setattr(predictor, "compile_regions", compiled.append)
    load_model(trained, accelerator="cpu", compile=True)
    assert "compile=true: not compiled, because the model runs on the CPU" in caplog.text
    assert not compiled
    monkeypatch.setattr(Predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(predictor, "obstacle", lambda *_: None)
    predictor.compile_on_gpu(model)
    assert compiled == [model.model]
    monkeypatch.setattr(predictor, "obstacle", lambda *_: "there is no Triton")
    predictor.compile_on_gpu(model)
    assert "not compiled, because there is no Triton" in caplog.text
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", ["flip", "scales"])
def test_views_of_a_mirrored_picture_give_the_mirrored_result(
    trained: Path, picture: Path, found: Detections, kind: str
):
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    model = load_model(trained, score_threshold=0.0, accelerator="cpu", tta=kind)
    first, second = model.predict([pixels, np.ascontiguousarray(pixels[:, ::-1])])
    assert len(first) == 100
    assert np.array_equal(first.labels, second.labels)
    assert np.allclose(first.scores, second.scores, atol=1e-5)
    mirrored = SIZE - second.boxes[:, [2, 1, 0, 3]] * [1, -1, 1, -1]
    mirrored[:, [1, 3]] = second.boxes[:, [1, 3]]
    assert np.allclose(first.boxes, mirrored, atol=1e-2)
    areas = [coco_mask.area(one.masks).astype(int) for one in (first, second)]
    column = first.boxes[:, 3] - first.boxes[:, 1] + 4  # masks are pasted on whole pixels
    assert areas[0].max() > 50
    assert (np.abs(areas[0] - areas[1]) <= column).all()
    assert not np.allclose(first.scores, found.scores, atol=1e-4)  # other boxes came in


def test_a_model_with_views_predicts_batches_as_single_images(trained: Path, picture: Path):
    """Images of several shapes, at three sizes each."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    model = load_model(trained, score_threshold=0.0, accelerator="cpu", tta="scales")
    sources = [pixels, pixels[:40], pixels[:, :50], pixels[::-1].copy()]
    singles = model.predict(sources)
    for one, other in zip(singles, model.predict(sources, batch_size=3), strict=True):
        assert np.allclose(one.scores, other.scores, atol=1e-4)
    with pytest.raises(UserError, match="tta=rotate"):
        load_model(trained, tta="rotate")


def test_an_image_of_one_tile_is_predicted_as_without_tiles(
    model: Predictor, picture: Path, found: Detections
):
    (tiled,) = model.predict(picture, tile=SIZE)
    assert np.array_equal(tiled.boxes, found.boxes)
    assert tiled.masks == found.masks
    assert np.array_equal(tiled.scores, found.scores)
    assert tiled.names == found.names


def test_an_object_in_tiles_of_a_large_file_lies_where_it_lies_in_the_image(
    model: Predictor, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The file is read in windows, and gives what its array gives, whatever the batch."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    canvas = np.zeros((3 * SIZE, 4 * SIZE, 3), np.uint8)
    canvas[-SIZE:, -SIZE:] = pixels  # as the last tile sees it
    Image.fromarray(canvas).save(tmp_path / "a.png")
    (array,) = model.predict(canvas, tile=SIZE, overlap=0.25)
    monkeypatch.setattr(strips, "WHOLE", SIZE * SIZE)
    monkeypatch.setattr(strips, "PREVIEW", 2 * SIZE)
    (file,) = model.predict(tmp_path / "a.png", tile=SIZE, overlap=0.25, batch_size=3)
    assert (file.size, file.image.shape) == (canvas.shape[:2], (3 * SIZE // 2, 2 * SIZE, 3))
    assert len(file) == len(array) > 0
    assert np.allclose(file.boxes, array.boxes, atol=1e-2)
    assert np.allclose(file.scores, array.scores, atol=1e-4)
    (alone,) = model.predict(pixels)
    best = alone.boxes[0] + [3 * SIZE, 2 * SIZE, 3 * SIZE, 2 * SIZE]
    assert np.abs(file.boxes - best).max(1).min() < 1
    drawn = file.draw()
    assert drawn.shape[0] * 4 == drawn.shape[1] * 3
    assert f"{4 * SIZE} x {3 * SIZE}" in repr(file)


def test_a_pixel_and_an_image_without_an_object_in_tiles(model: Predictor):
    tiny, black = model.predict(
        [Image.new("RGB", (1, 1)), np.zeros((200, 130, 3), np.uint8)],
        tile=SIZE,
        score_threshold=1.0,
    )
    assert (tiny.size, black.size) == ((1, 1), (200, 130))
    assert len(tiny) == len(black) == 0


def test_views_of_tiles(trained: Path, picture: Path):
    """`tta` and `tile` go together: a tile is seen as an image alone is."""
    model = load_model(trained, score_threshold=0.0, accelerator="cpu", tta="flip")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    (alone,) = model.predict(pixels)
    (tiled,) = model.predict(np.concatenate([pixels, np.zeros_like(pixels)]), tile=SIZE, overlap=0)
    assert np.abs(tiled.boxes - alone.boxes[0]).max(1).min() < 1e-3


def test_pixels_of_tiles_belong_to_one_object_where_the_model_is_exclusive(
    trained: Path, picture: Path
):
    model = load_model(trained, score_threshold=0.0, accelerator="cpu", exclusive=True)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    (found,) = model.predict(np.concatenate([pixels, pixels]), tile=SIZE, overlap=0.5)
    assert len(found) > 1
    assert found.masks_array().sum(0).max() == 1


def test_damaged_large_files(
    model: Predictor,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """In a folder it is a line, and the next one follows; alone it is an error."""
    noise = np.random.default_rng(0).integers(0, 255, (2 * SIZE, 2 * SIZE, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.png").write_bytes(picture.read_bytes())
    monkeypatch.setattr(strips, "WHOLE", SIZE * SIZE)
    assert [one.name for one in model.predict(tmp_path, tile=SIZE)] == ["b.png"]
    assert "a.png is skipped, since it cannot be read as an image" in caplog.text
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image"):
        model.predict(tmp_path / "a.png", tile=SIZE)


def test_tiles_out_of_range(model: Predictor, picture: Path):
    with pytest.raises(UserError, match="tile=16"):
        model.predict(picture, tile=16)
    with pytest.raises(UserError, match=r"overlap=0\.7"):
        model.stream(picture, tile=64, overlap=0.7)


def test_the_depth_of_samples_is_that_of_the_training(
    model: Predictor, picture: Path, tmp_path: Path
):
    gray = np.asarray(Image.open(picture).convert("L")).astype(np.uint16)
    Image.fromarray(gray << 2).save(tmp_path / "a.tif")  # up to 10 bits
    assert model.bits == 0
    config = OmegaConf.merge(model.config, {"data": {"bits": 12}})
    deep = replace(model, config=config)
    for source in (tmp_path / "a.tif", gray << 2, Image.open(tmp_path / "a.tif")):
        (detections,) = deep.predict(source)
        assert np.array_equal(detections.image[..., 0], gray >> 2)
    ((_, streamed),) = enumerate(deep.stream(tmp_path / "a.tif"))
    assert np.array_equal(streamed.image[..., 0], gray >> 2)
