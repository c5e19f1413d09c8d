"""`maskrcnn-lit predict` from end to end, with a run of a few small pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from local_server import Server
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_commands import SIZE, VAL_IMAGES, ground_truth, refused, run_command

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.data.datasets.shapes import NAMES
from maskrcnn_lit.evaluation.thresholds import DEFAULT, write_thresholds
from maskrcnn_lit.predictor import load_model
from maskrcnn_lit.report.draw import draw_instances

pytest_plugins = ("tiny_commands", "local_server")


@pytest.fixture
def photos(shapes: Path, tmp_path: Path) -> Path:
    """Three pictures of different sizes, one in a subfolder under the name of another, and a file
    that is none.
    """
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    first, second, third = sorted((shapes / "val").iterdir())
    shutil.copy(first, folder / "a.png")
    Image.open(second).crop((0, 0, 50, 40)).save(folder / "more" / "a.png")
    Image.open(third).resize((150, 90)).convert("L").save(folder / "b.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


SIZES = {"a.png": (SIZE, SIZE), "b.jpg": (150, 90), "more/a.png": (50, 40)}  # width, height


@pytest.mark.long
def test_a_folder_is_drawn_and_written_as_coco_results(
    trained: Path, strange: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    options = ("score_threshold=0", "max_detections=7", f"run_dir={out}")
    run_command("predict", f"run={trained}", f"source={photos}", *options)
    images = json.loads((out / "images.json").read_text())
    assert {image["file_name"]: (image["width"], image["height"]) for image in images} == SIZES
    assert [image["id"] for image in images] == [1, 2, 3]
    for name, (width, height) in SIZES.items():
        drawn = Image.open(out / "images" / name.replace(".jpg", ".png"))
        factor = drawn.width // width  # small pictures are enlarged, so that labels can be read
        assert drawn.size == (factor * width, factor * height)
        assert drawn.mode == "RGB"
        before = Image.open(photos / name).convert("RGB").resize(drawn.size)
        assert (
            np.abs(np.asarray(drawn, int) - np.asarray(before, int)).max() > 100
        )  # something is drawn on it
    truth = COCO()
    truth.dataset = {
        "images": images,
        "annotations": [],
        "categories": ground_truth(strange)["categories"],
    }
    truth.createIndex()
    found = truth.loadRes(str(out / "detections.json"))
    assert len(found.anns) == 7 * 3
    for image in images:
        for entry in found.imgToAnns[image["id"]]:
            assert entry["category_id"] in truth.cats
            mask = coco_mask.decode(entry["segmentation"])
            assert mask.shape == (image["height"], image["width"])
            x, y, w, h = entry["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + w <= image["width"] + 1e-3
            assert y + h <= image["height"] + 1e-3
    printed = capsys.readouterr().out
    assert f"21 detections on 3 images: {out}/detections.json, {out}/images.json" in printed
    assert f"-> {out}/images/more/a.png\n" in printed
    lines = [line for line in printed.splitlines() if line.startswith("[")]
    assert [line.split(":")[0] for line in lines] == [
        "[1/3] a.png",
        "[2/3] b.jpg",
        "[3/3] more/a.png",
    ]
    assert f"{photos}: skipping files that are not supported images: 1 .txt\n" in printed


@pytest.mark.parametrize("source", ["b.jpg", "*.jpg", "**/b.*"])
def test_a_file_or_a_glob(
    source: str, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    run_command(
        "predict",
        f"run={trained}",
        f"source={photos}/{source}",
        f"run_dir={out}",
        "checkpoint=last",
    )
    assert [path.name for path in (out / "images").rglob("*.png")] == ["b.png"]
    printed = capsys.readouterr().out
    assert " on 1 image: " in printed
    assert "[1/1]" not in printed


def test_where_nothing_is_found_it_says_so(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    run_command(
        "predict", f"run={trained}", f"source={shapes}/val", "score_threshold=1", f"run_dir={out}"
    )
    printed = capsys.readouterr().out
    assert printed.count(": nothing -> ") == VAL_IMAGES
    assert f"0 detections on {VAL_IMAGES} images" in printed
    assert json.loads((out / "detections.json").read_text()) == []
    for file in (shapes / "val").iterdir():
        drawn = np.asarray(Image.open(out / "images" / file.name))
        plain = np.asarray(Image.open(file).convert("RGB"))
        assert np.array_equal(
            drawn, draw_instances(plain, boxes=np.zeros((0, 4)), masks=[], names=[])
        )


@pytest.mark.long
def test_results_lie_in_the_run_by_default(
    trained: Path, shapes: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(trained, run_dir)
    run_command("predict", f"run={run_dir}", f"source={shapes}/val")
    (folder,) = (run_dir / "predictions").iterdir()
    assert (folder / "detections.json").is_file()
    monkeypatch.chdir(tmp_path)
    run_command("predict", f"run={run_dir / 'checkpoints' / 'best.ckpt'}", f"source={shapes}/val")
    (folder,) = (tmp_path / "outputs" / "predictions").iterdir()
    assert (folder / "detections.json").is_file()


@pytest.mark.long
def test_the_best_thresholds_of_the_run_are_used_where_they_are_asked_for(
    trained: Path, shapes: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained, run_dir)
    given = ("predict", f"run={run_dir}", f"source={shapes}/val", "save=false")
    best = "score_threshold=best"
    run_command(*given, f"run_dir={tmp_path}/before")
    assert "score_threshold 0.5\n" in capsys.readouterr().out
    surest = max(json.loads((run_dir / "detections.json").read_text()), key=lambda e: e["score"])
    categories = load_model(run_dir).categories
    (kept,) = [c.name for c in categories if c.id == surest["category_id"]]
    rows = [{"name": name, "threshold": 0.0 if name == kept else 1.0} for name in NAMES]
    write_thresholds(run_dir, {"kind": "mask", "confusion": {"iou": 0.5}, "per_class": rows})
    run_command(*given, f"run_dir={tmp_path}/best", best)
    first, second, *_ = sorted(NAMES)
    values = {name: f"{name} {0.0 if name == kept else 1.0:.2f}" for name in NAMES}
    told = (
        "score_threshold of each class, by its best F1 on the run's validation images: "
        f"{values[first]}, "
    )
    assert told + values[second] in capsys.readouterr().out
    found = json.loads((tmp_path / "best" / "detections.json").read_text())
    assert len({entry["category_id"] for entry in found}) == 1
    assert min(entry["score"] for entry in found) < 0.5
    said = refused(*given, f"run_dir={tmp_path}/last", "checkpoint=last", best)
    assert "not for checkpoint=last" in said  # they are not of these weights
    capsys.readouterr()
    run_command(
        *given, f"run_dir={tmp_path}/half"
    )  # an evaluation does not change what is predicted
    hint = (
        "(score_threshold=best uses the best threshold of each class, from "
        f"{run_dir}/thresholds.json)"
    )
    assert f"score_threshold 0.5 {hint}\n" in capsys.readouterr().out
    files = [(tmp_path / name / "detections.json").read_text() for name in ("before", "half")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=none.jpg"], "source=none.jpg does not exist: give an image, a folder or a glob"),
        (["source={photos}/*.gif"], "*.gif has no image"),
        (["source={photos}/notes.txt"], "notes.txt, line 1: source="),
        (
            ["source={photos}", "score_threshold=50"],
            "score_threshold=50 must be a number from 0 to 1",
        ),
        (
            ["source={photos}", "score_threshold=high"],
            "score_threshold=high must be a number from 0",
        ),
        (
            ["source={photos}", "score_threshold=auto"],
            "score_threshold=auto must be a number from 0 to 1, or best",
        ),
        (["source=s3://camera/1"], "predict reads http:// and https:// URLs of images"),
        (["source=webcam:99"], "source=webcam:99 cannot be opened (No such file or directory)"),
        (["source=rtsp://127.0.0.1:9/1"], "rtsp://127.0.0.1:9/1 cannot be opened (Connection"),
        (["source={photos}", "track=sort"], "track=sort must be one of mask_iou, bytetrack, ocs"),
        (["source={photos}", "run_dir={photos}"], "is not empty: give another folder"),
        (["source={photos}", "run_dir={photos}/b.jpg"], "b.jpg is a file: give a folder"),
        (["source={photos}", "batch_size=0"], "batch_size=0 must be a whole number from 1"),
        (["source={photos}", "score_threshold=best"], "run `maskrcnn-lit evaluate run="),
        (
            ["source={photos}", "max_detections=0"],
            "max_detections=0 must be a whole number from 1",
        ),
        (
            ["source={photos}", "run=none"],
            "none does not exist: give a run folder (run_dir) that `maskrcnn-lit train` wrote",
        ),
        (["source={photos}", "accelerator=tpu"], "accelerator=tpu must be one of auto, cpu, gpu"),
    ],
)
def test_a_mistake_is_told(
    arguments, message, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    given = [text.format(photos=photos) for text in arguments]
    run_command("predict", f"run={trained}", f"run_dir={tmp_path}/out", *given, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_pictures_are_not_overwritten_unless_asked_for(
    trained: Path, photos: Path, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    given = ("predict", f"run={trained}", f"source={photos}/b.jpg")
    run_command(*given, f"run_dir={tmp_path}/out", "save=false")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "detections.jsonl",
        "images.json",
    ]
    assert f"run_dir={tmp_path}/out is not empty: give another folder, or add overwrite=true" in (
        refused(*given, f"run_dir={tmp_path}/out")
    )
    run_command(*given, f"run_dir={tmp_path}/out", "overwrite=true")
    assert (tmp_path / "out" / "images" / "b.png").is_file()
    (tmp_path / "empty").mkdir()
    run_command(*given, f"run_dir={tmp_path}/empty")


@pytest.mark.long
def test_a_url_and_batches(
    trained: Path, photos: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture
):
    url, _ = server.offer((photos / "a.png").read_bytes(), "a.png")
    run_command(
        "predict", f"run={trained}", f"source={url}", f"run_dir={tmp_path}/url", "score_threshold=0"
    )
    run_command(
        "predict",
        f"run={trained}",
        f"source={photos}",
        f"run_dir={tmp_path}/all",
        "score_threshold=0",
        "batch_size=2",
        "save=false",
    )
    (image,) = json.loads((tmp_path / "url" / "images.json").read_text())
    assert image["file_name"] == "a.png"
    assert (tmp_path / "url" / "images" / "a.png").is_file()
    alone = json.loads((tmp_path / "url" / "detections.json").read_text())
    batched = json.loads((tmp_path / "all" / "detections.json").read_text())
    scores = [entry["score"] for entry in batched if entry["image_id"] == 1]
    assert scores == pytest.approx([entry["score"] for entry in alone], abs=1e-4)


def test_a_damaged_file_of_a_folder_is_counted(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (photos / "b.jpg").write_bytes(b"no image")
    run_command(
        "predict", f"run={trained}", f"source={photos}", f"run_dir={tmp_path}/out", "save=false"
    )
    printed = capsys.readouterr()
    assert "1 of 3 images could not be read" in printed.out
    assert "[3/3] more/a.png: " in printed.out
    assert f"{photos}/b.jpg is skipped, since it cannot be read as an image" in printed.err


def test_a_mistake_ends_in_one_sentence(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert "source=none.jpg does not exist" in refused(
        "predict", f"run={trained}", "source=none.jpg", "run_dir=out"
    )


def test_every_way_to_predict_begins_at_the_same_threshold(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A run, a bare checkpoint, the Python API and the pictures of a training."""
    best = trained / "checkpoints" / "best.ckpt"
    for number, run in enumerate((trained, best)):
        given = (f"run={run}", f"source={shapes}/val", "save=false", f"run_dir={tmp_path}/{number}")
        run_command("predict", *given)
        assert f"score_threshold {DEFAULT}\n" in capsys.readouterr().out
        assert set(load_model(run, accelerator="cpu").score_thresholds) == {DEFAULT}
    files = [(tmp_path / name / "detections.json").read_text() for name in ("0", "1")]
    assert files[0] == files[1]
    assert compose("train", []).callbacks.panels.score_threshold == DEFAULT
    run_command("predict", *given[:3], f"run_dir={tmp_path}/set", "score_threshold=0.9")
    assert "score_threshold 0.9\n" in capsys.readouterr().out
