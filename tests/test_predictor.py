"""`from maskrcnn_lit import load_model`: the Python interface."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_verbs import SIZE, ground_truth

from maskrcnn_lit import load_model
from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.thresholds import write_thresholds
from maskrcnn_lit.predictor import Detections, Predictor, read
from maskrcnn_lit.runs.folder import output_folder

pytest_plugins = ("tiny_verbs",)


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


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, maskrcnn_lit\n"
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules), 'torch is loaded'\n"
        "assert 'load_model' in maskrcnn_lit.__all__\n"
        "try: maskrcnn_lit.lode_model\n"
        "except AttributeError as error: assert 'lode_model' in str(error)\n"
        "else: raise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_found_on_a_file(found: Detections, picture: Path):
    assert found.name == picture.name and np.array_equal(
        found.image, np.asarray(Image.open(picture).convert("RGB"))
    )
    count = len(found.scores)
    assert count == 100  # max_detections: a model of 8 steps finds something everywhere
    assert found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
    assert (
        found.scores.shape == found.labels.shape == (count,)
        and len(found.names) == len(found.masks) == count
    )
    assert (np.diff(found.scores) <= 0).all() and found.scores.min() > 0 and found.scores.max() <= 1
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
    assert found.boxes.min() >= 0 and found.boxes.max() <= SIZE


def test_names_are_those_of_the_labels(found: Detections, strange: Path):
    names = sorted(entry["name"] for entry in ground_truth(strange)["categories"])
    assert found.names == [names[label - 1] for label in found.labels]


def test_masks_are_rles_of_the_whole_image_inside_their_boxes(found: Detections):
    assert any(coco_mask.area(mask) for mask in found.masks)
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes, strict=True):
        y, x = np.nonzero(coco_mask.decode(mask))
        assert mask["size"] == [SIZE, SIZE]
        if len(x):  # a pixel more: the mask's cells reach half a cell over the box
            assert (
                x.min() >= x1 - 2 and x.max() <= x2 + 2 and y.min() >= y1 - 2 and y.max() <= y2 + 2
            )


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
    assert drawn.shape == (factor * SIZE, factor * SIZE, 3) and drawn.dtype == np.uint8
    assert np.abs(drawn.astype(int) - before.repeat(factor, 0).repeat(factor, 1)).max() > 100
    assert np.array_equal(found.image, before)


def test_paths_and_arrays_give_the_same(
    model: Predictor, found: Detections, picture: Path, shapes: Path
):
    array = np.asarray(Image.open(picture).convert("RGB"))
    for source in (array, [array], str(picture), [picture]):
        (again,) = model.predict(source)
        assert np.array_equal(again.boxes, found.boxes) and np.array_equal(
            again.scores, found.scores
        )
        assert again.names == found.names and again.masks == found.masks
    names = [one.name for one in model.predict([shapes / "val", array])]
    assert names == [*sorted(path.name for path in (shapes / "val").iterdir()), "array"]


def test_a_threshold_leaves_out_what_is_less_certain(
    trained: Path, found: Detections, picture: Path
):
    threshold = float(found.scores[10])
    (some,) = load_model(trained, score_threshold=threshold, accelerator="cpu").predict(picture)
    kept = found.scores >= threshold
    assert 10 < kept.sum() < len(kept) and np.array_equal(some.boxes, found.boxes[kept])
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
    assert 0 < sum(kept) < len(kept) and np.array_equal(some.scores, found.scores[kept])
    assert some.names == [name for name, is_kept in zip(found.names, kept, strict=True) if is_kept]


def test_max_detections_are_the_best(trained: Path, found: Detections, picture: Path):
    (some,) = load_model(trained, score_threshold=0.0, max_detections=3, accelerator="cpu").predict(
        picture
    )
    assert np.array_equal(some.scores, found.scores[:3]) and np.array_equal(
        some.boxes, found.boxes[:3]
    )


def test_the_best_checkpoint_is_loaded_unless_the_last_is_asked_for(trained: Path):
    for name, kwargs in (("best", {}), ("last", {"checkpoint": "last"})):
        saved = torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)[
            "state_dict"
        ]
        loaded = load_model(trained, accelerator="cpu", **kwargs).model.state_dict()
        heads = [
            key for key in loaded if not key.startswith("backbone.")
        ]  # there the norms are in the convolutions
        assert len(heads) > 20 and all(
            torch.equal(loaded[key], saved[f"model.{key}"]) for key in heads
        )
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
        with pytest.raises(UserError, match="holds no checkpoint"):
            read(tmp_path, name)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"source": "none"}, "none does not exist: give the folder"),
        ({"score_threshold": -0.1}, r"score_threshold=-0.1 must be from 0 \(all detections\) to 1"),
        ({"score_threshold": 1.5}, "score_threshold=1.5 must be"),
        (
            {"score_threshold": "high"},
            "score_threshold=high must be from 0 .* to 1, or best: each class's own",
        ),
        (
            {"score_threshold": "best"},
            "thresholds.json, which is not there: run `maskrcnn-lit evaluate run=",
        ),
        ({"max_detections": 0}, "max_detections=0 must be at least 1"),
        ({"checkpoint": "newest"}, "checkpoint=newest must be best or last"),
        ({"accelerator": "tpu"}, "'tpu'; expected auto, cpu or gpu"),
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
