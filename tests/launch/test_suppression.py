"""`evaluate nms=all`: every kind from one forward pass, and the one that is stored."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from box_scenes import scene
from exported import lively
from models import make_batch
from tiny_commands import refused, run_command

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.best_suppression import read_suppression
from maskrcnn_lit.evaluation.coco.scores import score_results
from maskrcnn_lit.launch.evaluate import _choices, _store_best
from maskrcnn_lit.launch.suppression import choices_text, score_choices
from maskrcnn_lit.model.suppression import KINDS, Suppression
from maskrcnn_lit.report.evaluation.suppression import SURE
from maskrcnn_lit.storage.sealed import read_sealed_json

pytest_plugins = ("tiny_commands",)

LIMITS = (1, 10, 100)
BOX, MASK, SOFT = (Suppression(kind) for kind in ("box", "mask", "soft"))


def rows() -> tuple[dict[str, Any], dict[Suppression, list], list[dict[str, Any]]]:
    """In each of 30 images two objects; `box` finds one of them, `mask` both, `soft` one and
    nothing in ten images.
    """
    objects = [(n, "ant", (x, 0, 20, 20)) for n in range(1, 31) for x in (0, 60)]
    both = [(*one, 0.9) for one in objects]
    truth, results = scene(objects, both, 30)
    found = {
        BOX: [entry for entry in results if entry["bbox"][0] == 0],
        MASK: results,
        SOFT: [e for e in results if e["bbox"][0] == 0 and e["image_id"] > 10],
    }
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    return truth, found, score_choices(found.items(), BOX, truth, categories, LIMITS)


def test_choices_are_ranked_and_compared_with_the_own():
    truth, found, table = rows()
    assert [row["nms"] for row in table] == ["mask", "box", "soft"]
    assert [row["own"] for row in table] == [False, True, False]
    for row in table:
        choice = Suppression(row["nms"], row["agnostic_nms"], row["exclusive"])
        expected = score_results(truth, found[choice]).metrics
        assert {name: row["metrics"][name] for name in expected} == pytest.approx(
            expected, nan_ok=True
        )
    best, own, worst = table
    assert own["difference"] is None
    assert best["difference"]["value"] == pytest.approx(
        best["metrics"]["val/mask_ap"] - own["metrics"]["val/mask_ap"]
    )
    low, high = best["difference"]["interval"]
    assert low - 1e-9 <= best["difference"]["value"] <= high + 1e-9
    assert best["difference"]["p_value"] < SURE
    assert worst["difference"]["value"] < 0
    assert "Higher mask AP than the run's own with p < 0.05: mask." in choices_text(table)


def test_a_choice_that_is_the_same_does_not_differ():
    truth, found, _ = rows()
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    same = {MASK: found[BOX], BOX: found[BOX]}
    table = score_choices(same.items(), BOX, truth, categories, LIMITS)
    own, other = table
    assert own["own"], "the run's own is before its equals"
    assert other["difference"]["value"] == 0
    assert other["difference"]["p_value"] == 1
    assert "No choice has a higher mask AP than the run's own" in choices_text(table)


def test_every_choice_scores_as_an_evaluation_of_it_and_the_best_is_stored(
    trained: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(trained, run_dir)
    picture = next(Path(trained).rglob("*.png"))
    words = ("predict", f"run={run_dir}", f"source={picture}", "model.nms=best")
    assert "nms=all` first" in refused(*words)
    run_command("evaluate", f"run={run_dir}", "nms=all", f"run_dir={tmp_path}/all")
    printed = capsys.readouterr().out
    record = read_sealed_json(tmp_path / "all" / "evaluation.json")
    table = record["suppression"]
    names = ("nms", "agnostic_nms", "exclusive")
    assert {tuple(row[name] for name in names) for row in table} == {
        (kind, over, alone) for kind in KINDS for over in (False, True) for alone in (False, True)
    }
    (own,) = (row for row in table if row["own"])
    for name in ("val/mask_ap", "val/box_ap", "val/mask_ap50", "val/merged"):
        assert own["metrics"][name] == record["metrics"][name]
    assert read_suppression(run_dir) == {name: table[0][name] for name in names}
    assert "Stored for model.nms=best" in printed
    assert "exclusive" in printed
    chosen = next(
        row for row in table if row["nms"] == "mask" and row["agnostic_nms"] and row["exclusive"]
    )
    options = ("model.nms=mask", "model.agnostic_nms=true", "model.exclusive=true")
    run_command("evaluate", f"run={run_dir}", *options, f"run_dir={tmp_path}/one")
    run_command(*words, f"run_dir={tmp_path}/predictions")
    alone = read_sealed_json(tmp_path / "one" / "evaluation.json")["metrics"]
    for name, value in chosen["metrics"].items():
        assert alone[name] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert (run_dir / "thresholds_mask_agnostic_nms_exclusive.json").is_file()


def test_what_is_refused_leaves_no_folder(trained: Path, run_dir: Path):
    shutil.copytree(trained, run_dir, ignore=shutil.ignore_patterns("evaluations"))
    message = refused("evaluate", f"run={run_dir}", "tta=flip", "model.nms=soft")
    assert "use model.nms=box, mask, matrix or containment" in message
    assert not (run_dir / "evaluations").exists()


def test_results_of_another_tool_have_one_suppression(tmp_path: Path):
    assert "give run=RUN" in refused("evaluate", f"results={tmp_path}/r.json", "nms=all")
    for option in ("model.nms=mask", "model.agnostic_nms=true", "model.exclusive=true"):
        message = refused("evaluate", f"results={tmp_path}/r.json", "data=shapes", option)
        assert (
            f"{option.replace('true', 'True')} needs a model, and results=FILE has none" in message
        )


def test_a_model_of_one_class_has_its_own_suppression_among_the_choices():
    model, batch = lively(num_classes=1), make_batch()
    batch = {k: v for k, v in batch.items() if k not in ("boxes", "labels", "masks", "mask_boxes")}
    model.set_suppression(Suppression("matrix", agnostic_nms=True, exclusive=True))
    with torch.no_grad():
        before = model(batch).detections
        callback = _choices(model, 1)
        after = model(batch)
    assert callback.own == Suppression("matrix", exclusive=True)
    assert set(after.each) == {Suppression(kind) for kind in KINDS}
    for name in ("boxes", "scores", "masks"):
        assert torch.equal(after.detections[name], before[name])


def test_nothing_is_stored_where_no_ap_is_defined(tmp_path: Path):
    truth, found, _ = rows()
    nothing = {**truth, "annotations": []}
    categories = tuple(Category(entry["id"], entry["name"]) for entry in truth["categories"])
    table = score_choices(found.items(), BOX, nothing, categories, LIMITS)
    assert table[0]["own"]
    assert "nan" not in choices_text(table)
    _store_best(str(tmp_path), table[0])
    assert not list(tmp_path.iterdir())
