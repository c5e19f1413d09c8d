"""`maskrcnn-lit export` from end to end, and the commands that take what it writes."""

import base64
import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser_runtime import package_of
from tiny_commands import (
    SIZE,
    VAL_IMAGES,
    coco_data,
    ground_truth,
    printed_by,
    refused,
    result,
    run_command,
)

from maskrcnn_lit import load_model
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export import web_runtime
from maskrcnn_lit.export.runtime import open_exported
from maskrcnn_lit.export.web_runtime import WebRuntime
from maskrcnn_lit.launch import certificate
from maskrcnn_lit.launch import export as launch_export
from maskrcnn_lit.report import web
from maskrcnn_lit.storage.sealed import read_sealed_json

pytest_plugins = ("tiny_commands", "plain_plots")
pytestmark = [pytest.mark.long, pytest.mark.process, pytest.mark.usefixtures("plain_plots")]

MODEL = f"model_{SIZE}x{SIZE}.onnx"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an export of `trained`. Not to be written to."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "TIMED", 2)
        run_command("export", f"run={trained}", f"run_dir={folder}")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def quick(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that takes the ONNX file of `exported`, and is timed shortly."""
    monkeypatch.setattr(certificate, "TIMED", 1)
    monkeypatch.setattr(certificate, "WARMUP", 0)
    monkeypatch.setattr(
        launch_export, "write_onnx", lambda model, path, about: shutil.copy(exported / MODEL, path)
    )


def scores_of(results: Path) -> list[tuple[int, int, float]]:
    entries = json.loads(results.read_text())
    return sorted((r["image_id"], r["category_id"], r["score"]) for r in entries)


def test_the_folder_has_the_file_and_its_certificate(exported: Path, trained: Path):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *(MODEL, "export.json", "report.html", "client.py"),
        *("config.yaml", "result.json", "detections.json"),
    }
    record = read_sealed_json(exported / "export.json")
    assert record["holds"]
    assert record["images"] == VAL_IMAGES
    assert [row["name"] for row in record["bounds"]] == [
        *("parity, real", "parity, blank", "parity, full", "val/box_ap", "val/mask_ap")
    ]
    assert record["parity"]["real"]["images"] == VAL_IMAGES
    assert record["parity"]["full"]["detections"] > 0
    assert record["config_sha256"] == result(trained)["config_sha256"]
    assert record["peak_bytes"] is None or 50e6 < record["peak_bytes"] < 500e6
    assert list(record["latency_milliseconds"]) == ["exported", "pytorch", "load_model"]
    assert record["files"][0]["bytes"] == (exported / MODEL).stat().st_size
    assert "The largest differences from PyTorch" in (exported / "report.html").read_text()


def test_the_metadata_names_the_classes_of_the_data(exported: Path, strange: Path):
    about = open_exported(exported).metadata
    truth = ground_truth(strange)["categories"]
    assert sorted(about.classes) == sorted((c["id"], c["name"]) for c in truth)
    assert about.image_size == SIZE
    assert about.size == (SIZE, SIZE)
    assert about.precision == "f32"


def test_predict_gives_what_the_run_gives(
    exported: Path, trained: Path, shapes: Path, tmp_path: Path
):
    options = (f"source={shapes}/val", "score_threshold=0.06", "save=false", "max_detections=9")
    found = []
    for name, source in (("run", trained), ("export", exported), ("file", exported / MODEL)):
        run_command("predict", f"run={source}", *options, f"run_dir={tmp_path / name}")
        found.append(scores_of(tmp_path / name / "detections.json"))
    assert len(found[0]) == 9 * VAL_IMAGES
    assert found[1] == found[2]
    for ours, theirs in zip(found[0], found[1], strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


def test_evaluate_gives_the_ap_of_the_run(exported: Path, trained: Path, tmp_path: Path):
    records = []
    for name, source in (("run", trained), ("export", exported)):
        run_command("evaluate", f"run={source}", f"run_dir={tmp_path / name}", "report=false")
        records.append(read_sealed_json(tmp_path / name / "evaluation.json"))
    for key in ("val/mask_ap", "val/box_ap", "val/mask_ap50"):
        assert records[1]["metrics"][key] == pytest.approx(records[0]["metrics"][key], abs=5e-4)
    assert records[1]["metrics"]["val/roi_accuracy"] is None  # no box head to ask
    assert not (exported / "thresholds.json").exists()


def test_compare_takes_it_as_a_run(exported: Path, trained: Path, tmp_path: Path):
    run_command("compare", f"runs=[{trained},{exported}]", f"out={tmp_path / 'report'}")
    table = (tmp_path / "report" / "results.csv").read_text()
    assert trained.name in table
    assert exported.name in table


def test_bench_times_its_stages(exported: Path):
    text = printed_by("bench", f"run={exported}", "steps=2")
    report: dict[str, Any] = json.loads(text.splitlines()[-1])
    assert list(report["latency_milliseconds"]["exported"]) == ["resize", "model", "masks", "all"]


def test_python_takes_it(exported: Path, shapes: Path):
    model = load_model(exported / MODEL, score_threshold=0.06)
    (found,) = model.predict(sorted((shapes / "val").iterdir())[0])
    assert len(found) > 0
    assert found.masks_array().shape[1:] == found.image.shape[:2]
    with pytest.raises(UserError, match=r"score_threshold=0\.01 is below 0\.05, "):
        model.predict(sorted((shapes / "val").iterdir())[0], score_threshold=0.01)
    with pytest.raises(UserError, match="an exported model stays where its runtime runs"):
        model.to("cpu")
    with pytest.raises(UserError, match="score_threshold=best is not known of"):
        load_model(exported, score_threshold="best")


def test_int8_layers_go_back_to_float_and_a_broken_bound_is_exit_code_1(
    quick: None,
    exported: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[int] = []

    def difference(original: Any, exported: Any) -> dict[str, Any]:
        """Two tries fail and the third is good enough; the certificate then measures -0.02."""
        asked.append(1)
        value = 0.0 if len(asked) == 3 else -0.02
        return {
            "differences": {"val/mask_ap": {"value": value, "interval": [value, value]}},
            "original": {},
            "exported": {},
            "intervals": {},
        }

    monkeypatch.setattr(certificate, "compare_ap", difference)
    out = tmp_path / "int8"
    words = ("precision=int8", "calibration_images=2", "images=2")
    run_command("export", f"run={trained}", f"run_dir={out}", *words, code=1)
    record = read_sealed_json(out / "export.json")
    assert [row["float_layers"] for row in record["tries"]] == [0, 1, 2]
    assert len(record["float_layers"]) == 2
    assert record["bounds"] == [
        {"name": "val/mask_ap", "value": -0.02, "bound": 0.005, "holds": False}
    ]
    assert not record["holds"]
    assert record["images"] == 2
    assert open_exported(out).metadata.precision == "int8"
    assert record["files"][0]["bytes"] < 0.4 * (exported / MODEL).stat().st_size
    page = (out / "report.html").read_text()
    assert record["float_layers"][0] in page
    assert "-0.0200" in page
    assert "NO" in page


def test_web_writes_a_page_with_the_file_inside(
    quick: None, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = package_of(WebRuntime(b"export {}", b"\0asm"))
    (tmp_path / "ort.tgz").write_bytes(package)
    monkeypatch.setattr(web_runtime, "SHA512", hashlib.sha512(package).hexdigest())
    out = tmp_path / "page"
    words = ("format=web", f"web_runtime={tmp_path / 'ort.tgz'}", "images=2")
    run_command("export", f"run={trained}", f"run_dir={out}", *words)
    record = read_sealed_json(out / "export.json")
    assert [file["name"] for file in record["files"]] == [MODEL, "index.html"]
    assert record["format"] == "web"
    assert record["holds"]
    page = (out / "index.html").read_text()
    assert base64.b64encode(gzip.compress((out / MODEL).read_bytes(), 6, mtime=0)).decode() in page
    assert open_exported(out).metadata.format == "onnx"
    assert (out / "client.py").is_file()


def test_a_page_that_cannot_be_made_is_one_sentence_before_any_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = ("export", f"run={trained}", f"run_dir={tmp_path / 'out'}", "format=web")
    said = refused(*given, f"web_runtime={tmp_path / 'none.tgz'}")
    assert "none.tgz cannot be read" in said
    assert "or leave it out to download it" in said
    monkeypatch.setattr(web, "MAX_BYTES", 2**20)
    assert "and a browser takes up to 1 MB: give one size with sizes=" in refused(*given)
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_foreign_file_is_one_sentence(exported: Path, shapes: Path, tmp_path: Path):
    given = ("predict", f"source={shapes}/val", "save=false", f"run_dir={tmp_path / 'out'}")
    (tmp_path / "a.onnx").write_bytes((exported / MODEL).read_bytes()[:1000])
    assert "is not an exported file, or damaged" in refused(*given, f"run={tmp_path / 'a.onnx'}")
    shutil.copytree(exported, tmp_path / "other")
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1", "seed: 2"))
    said = refused("evaluate", f"run={tmp_path / 'other'}", f"run_dir={tmp_path / 'e'}")
    assert "is not the config that" in said
    assert "was exported with: export the run again" in said


def test_what_cannot_be_exported_is_one_sentence(
    exported: Path, trained: Path, strange: Path, tmp_path: Path
):
    given = ("export", f"run_dir={tmp_path / 'out'}")
    for words in (
        (*given, f"run={exported}"),
        (*given, f"run={exported / MODEL}"),
        ("reproduce", f"run={exported}"),
        ("train", f"resume={exported}", "trainer.epochs=9"),
        (
            "train",
            f"model.weights={exported}",
            *coco_data(strange),
            "trainer=cpu",
            f"run_dir={tmp_path / 't'}",
        ),
    ):
        assert "is an exported model, which has no weights to train or export" in refused(*words)
    assert "precision=int8 needs format=onnx, openvino or web" in refused(
        *given, f"run={trained}", "format=pt2", "precision=int8"
    )
    assert "precision=bf16 must be one of f32, int8" in refused(
        *given, f"run={trained}", "precision=bf16"
    )
    assert "sizes=64x50 must be HEIGHTxWIDTH" in refused(*given, f"run={trained}", "sizes=64x50")
    assert "larger than sizes=[32x32]" in refused(*given, f"run={trained}", "sizes=32x32")
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    saved["config"]["model"]["roi_align"]["points"] = 0
    torch.save(saved, tmp_path / "points.ckpt")
    said = refused(*given, f"run={tmp_path / 'points.ckpt'}")
    assert "roi_align.points=0 cannot be exported" in said
    assert not (tmp_path / "out").exists()
