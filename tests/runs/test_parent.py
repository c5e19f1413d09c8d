"""What a new run takes from the finished run that it goes on from."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.parent import check_longer, read_parent, start_from
from maskrcnn_lit.storage.files import file_digest
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    checkpoint = {
        "global_step": 8,
        "epoch": 1,
        "position": {"epoch": 2, "batch": 0, "batches": 4},
        "state_dict": {"model.a": torch.ones(2)},
        "callbacks": {"StopWithoutProgress": {"best": 0.5, "validations": 3}},
    }
    save_plain(folder / "checkpoints" / "last.ckpt", checkpoint)
    save_plain(folder / "checkpoints" / "best.ckpt", checkpoint)
    save_plain(folder / "checkpoints" / "epoch_1.ckpt", checkpoint)
    (folder / "metrics.csv").write_text("step\n0\n")
    (folder / "events.out.tfevents.3.host").write_bytes(b"events")
    (folder / "tensorboard").mkdir()  # of an older version
    (folder / "tensorboard" / "events.out.tfevents.1.host").write_bytes(b"events")
    (folder / "tensorboard" / "other").write_bytes(b"other")
    (folder / "tensorboard" / "events.out.tfevents.2.link").symlink_to("/etc/hostname")
    return folder


def test_a_parent_is_described(parent: Path):
    described, checkpoint = read_parent(parent)
    assert described == {
        "run": str(parent),
        "checkpoint_sha256": file_digest(parent / "checkpoints" / "last.ckpt", "sha256"),
        "step": 8,
        "epoch": 2,
    }
    assert checkpoint["global_step"] == 8


def test_the_new_folder_begins_where_the_parent_ended(parent: Path, tmp_path: Path):
    child = tmp_path / "child"
    start_from(parent, child, read_parent(parent)[1])
    last = load_plain(child / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8
    assert last["callbacks"]["StopWithoutProgress"] == {"best": 0.5, "validations": 0}
    files = {str(path.relative_to(child)) for path in child.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "checkpoints/epoch_1.ckpt",
        "metrics.csv",
        "events.out.tfevents.3.host",
        "tensorboard/events.out.tfevents.1.host",
    }, "no link of the parent's is followed, and nothing else is copied"
    before = load_plain(parent / "checkpoints" / "last.ckpt")
    assert before["callbacks"]["StopWithoutProgress"]["validations"] == 3


def test_a_parent_without_its_last_checkpoint(parent: Path):
    last = parent / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be loaded, since it is damaged"):
        read_parent(parent)
    last.unlink()
    with pytest.raises(UserError, match=r"has no checkpoints/last\.ckpt"):
        read_parent(parent)


@pytest.mark.parametrize(
    ("epochs", "steps", "fault"),
    [
        (3, None, None),
        (None, 9, None),
        (3, 9, None),
        (2, None, "trainer.epochs=2 is not more: give a larger one, for example trainer.epochs=4"),
        (3, 8, "trainer.steps=8 is not more: give a larger one, for example trainer.steps=16"),
    ],
)
def test_the_new_length_is_longer(
    parent: Path, epochs: int | None, steps: int | None, fault: str | None
):
    config = OmegaConf.create({"trainer": {"epochs": epochs, "steps": steps}})
    described, _ = read_parent(parent)
    if fault is None:
        check_longer(config, described, "runs/a")
        return
    with pytest.raises(UserError, match=f"runs/a has finished . .*{fault}"):
        check_longer(config, described, "runs/a")
