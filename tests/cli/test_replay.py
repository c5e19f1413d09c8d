"""A training step whose loss is not finite: what the run leaves, and `maskrcnn-lit replay` of
it.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from tiny_commands import RESNET, SCHEDULE, coco_data, ground_truth, refused, result, run_command

pytest_plugins = ("tiny_commands",)

LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")


@pytest.fixture(scope="module")
def stopped(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a run that a learning rate of 1e30 stopped at its second step, and what it
    said.
    """
    folder = tmp_path_factory.mktemp("stopped")
    options = (
        *coco_data(strange),
        *RESNET,
        *SCHEDULE,
        "optimizer.lr=1.0e+6",
        "trainer.checkpoint_every_n_steps=null",
    )
    with chdir(folder):
        said = refused("train", *options, "run_dir=run")
    yield folder / "run", said
    shutil.rmtree(folder)


def numbers(text: str) -> dict[str, float]:
    """Of lines that end in a name and a number."""
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines()]
    return {name.strip(): float(value) for name, value in lines if not name.startswith("images")}


def test_the_run_stops_and_says_why(stopped: tuple[Path, str], strange: Path):
    run_dir, said = stopped
    (file,) = run_dir.glob("*.pt")
    assert said.startswith(
        "maskrcnn-lit: training stopped at step 1 (epoch 0), because the loss or its gradient is "
        "not finite"
    )
    saved = torch.load(file, weights_only=True)
    for name, value in saved["losses"][0].items():
        assert f"{name} {value:.4g}" in said
    ids = saved["image_ids"][0]
    assert f"images {', '.join(map(str, ids))}." in said
    assert set(ids) < {image["id"] for image in ground_truth(strange, "train")["images"]}
    assert len(ids) == 2
    assert f"`maskrcnn-lit replay file=run/{file.name}`" in said
    assert "lower optimizer.lr" in said
    assert result(run_dir)["status"] == "failed"


def test_the_file_replays_the_step_to_the_same_terms(
    stopped: tuple[Path, str], capsys: pytest.CaptureFixture
):
    (file,) = stopped[0].glob("*.pt")
    run_command("replay", f"file={file}")
    printed = capsys.readouterr().out
    saved = torch.load(file, weights_only=True)
    assert printed.startswith(f"images {', '.join(map(str, saved['image_ids'][0]))}\n")
    found = numbers(printed)
    assert set(found) == {*LOSSES, "gradient norm"}
    for name in LOSSES:
        assert found[name] == pytest.approx(saved["losses"][0][name], rel=1e-5, nan_ok=True)
    assert found["gradient norm"] == pytest.approx(saved["gradient_norm"], rel=1e-5, nan_ok=True)
    assert not all(map(math.isfinite, found.values()))


@pytest.mark.long
def test_a_step_of_a_sound_file_replays_to_its_numbers(
    stopped: tuple[Path, str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """The same file with sound weights: that the terms above are equal is not because all of them
    are NaN.
    """
    (file,) = stopped[0].glob("*.pt")
    saved = torch.load(file, weights_only=True)
    weights = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    saved["model"] = {name.removeprefix("model."): value for name, value in weights.items()}
    torch.save(saved, tmp_path / "sound.pt")
    printed = []
    for _ in range(2):
        run_command("replay", f"file={tmp_path}/sound.pt")
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    found = numbers(printed[0])
    assert all(0 < value < 100 for value in found.values())
    assert 0.5 < found["mask"] < 1
    (tmp_path / "sound.pt").unlink()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "none.pt",
            "none.pt is not a saved step: give a nonfinite_step<n>.pt from a run folder",
        ),
        ("{run}", "{run} is not a saved step"),
        (
            "{run}/checkpoints/last.ckpt",
            "{run}/checkpoints/last.ckpt is not a saved step",
        ),
        ("{run}/config.yaml", "{run}/config.yaml cannot be loaded"),
    ],
)
def test_a_file_that_is_none(file: str, message: str, trained: Path, capsys: pytest.CaptureFixture):
    run_command("replay", f"file={file.format(run=trained)}", code=2)
    assert message.format(run=trained) in capsys.readouterr().err
