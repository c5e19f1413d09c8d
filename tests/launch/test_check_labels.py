"""`data check run=RUN`: the page of suspicious labels, from end to end."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_commands import coco_data, ground_truth, printed_by, refused, save_ground_truth

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch import check_labels

pytest_plugins = ("tiny_commands",)


def suspicious(folder: Path, part: str) -> tuple[dict, list, str]:
    page = folder / part
    labels = json.loads((page / "suspicious_labels.json").read_text())
    results = json.loads((page / "detections.json").read_text())
    return labels, results, (page / "index.html").read_text()


def test_the_own_data_of_a_run_are_checked(trained: Path, tmp_path: Path):
    """Both parts, without naming them; the page says which labels the model was trained on."""
    out = tmp_path / "pages"
    said = printed_by("data", "check", f"run={trained}", f"run_dir={out}", "first=2")
    for part, was_trained_on in (("train", True), ("val", False)):
        assert f"{part}: suspicious labels, by the AP that they cost: {out / part}" in said
        labels, results, page = suspicious(out, part)
        assert labels["images"] == {"train": 8, "val": 3}[part]
        assert labels["labels"] > 3
        assert results
        assert all(0.05 <= r["score"] <= 1 for r in results)
        assert ("was trained on these labels" in page) is was_trained_on
        shown = len(re.findall(r"<figure>", page))
        assert shown == min(2, len(labels["suspicions"]))
        assert str(trained) in page
        assert "http" not in page.replace("http-equiv", "")
        costs = [one["cost"] for one in labels["suspicions"]]
        assert costs == sorted(costs, reverse=True)


def test_other_labels_of_the_same_classes_are_checked(trained: Path, strange: Path, tmp_path: Path):
    """A label far from everything is unlike the label that was right; ids are the json's own."""
    root = tmp_path / "data"
    shutil.copytree(strange, root)
    content = ground_truth(root)
    save_ground_truth(root, content)
    out = tmp_path / "pages"
    options = [option for option in coco_data(root) if not option.startswith("data.train")]
    printed_by("data", "check", f"run={trained}", *options, f"run_dir={out}")
    labels, results, page = suspicious(out, "val")
    assert not (out / "train").exists()
    assert "was trained on" not in page
    ids = {image["id"] for image in content["images"]}
    assert {r["image_id"] for r in results} <= ids
    numbers = {a["id"] for a in content["annotations"]}
    assert all(s["annotation"] is None or s["annotation"] in numbers for s in labels["suspicions"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("run=none_such",), "none_such is not a run folder"),
        (("run=RUN", "first=-1"), "first"),
        (("run=RUN", "run_dir=FULL"), "is not empty"),
    ],
)
def test_mistakes_end_in_one_sentence(
    options: tuple[str, ...], words: str, trained: Path, tmp_path: Path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"RUN": str(trained), "FULL": str(tmp_path / "full")}
    given = ["=".join(places.get(part, part) for part in option.split("=")) for option in options]
    assert words in refused("data", "check", *given)


def test_no_empty_folder_stays_after_a_mistake(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise UserError("no detections")

    monkeypatch.setattr(check_labels, "_check_part", fails)
    folder = tmp_path / "checked"
    assert "no detections" in refused("data", "check", f"run={trained}", f"run_dir={folder}")
    assert not folder.exists()
