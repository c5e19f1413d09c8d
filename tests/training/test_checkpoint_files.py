import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.training import checkpoint_files
from maskrcnn_lit.training.checkpoint import AtomicCheckpointIO
from maskrcnn_lit.training.checkpoint_files import load_plain, save_plain


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def test_a_file_is_complete_or_as_it_was(tmp_path: Path, monkeypatch: Any):
    path = tmp_path / "a" / "last.ckpt"
    save_plain(path, {"step": 1})

    def fails_halfway(value: Any, file: Any) -> None:
        file.write(b"PK")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails_halfway)
    with pytest.raises(OSError, match="no space"):
        save_plain(path, {"step": 2})
    assert load_plain(path) == {"step": 1}
    monkeypatch.undo()
    save_plain(path, {"step": 3})
    assert load_plain(path) == {"step": 3}
    assert [file.name for file in path.parent.iterdir()] == [
        "last.ckpt"
    ]  # the half file was overwritten


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path):
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"state_dict": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.ckpt")
        for load in (load_plain, AtomicCheckpointIO().load_checkpoint):
            with pytest.raises(
                UserError,
                match=r"bomb.ckpt cannot be loaded, since it is damaged or contains more than "
                r"tensors",
            ):
                load(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_damaged_file_is_named(tmp_path: Path, size: int):
    save_plain(tmp_path / "whole.ckpt", {"weights": torch.zeros(1000)})
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut.ckpt cannot be loaded.*damaged"):
        load_plain(tmp_path / "cut.ckpt")


def test_no_flipped_bit_gives_other_weights(tmp_path: Path):
    file, weights = tmp_path / "a.ckpt", torch.arange(50.0)
    save_plain(file, {"weights": weights, "step": 7})
    whole = file.read_bytes()
    for position in range(3, len(whole), 11):
        file.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        try:
            loaded = load_plain(file)
        except UserError:
            continue
        assert loaded["step"] == 7, position
        assert torch.equal(loaded["weights"], weights), position


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"the checkpoint .*none.ckpt does not exist: give the folder of a run that has",
    ):
        load_plain(tmp_path / "none.ckpt")


def test_a_full_disk_is_told_and_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.save makes a RuntimeError of it."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    save_plain(tmp_path / "a.ckpt", {"step": 1})
    monkeypatch.setattr(checkpoint_files, "open", lambda path, mode: Full(path, "w"), raising=False)
    with pytest.raises(OSError, match="No space left") as error:
        save_plain(tmp_path / "a.ckpt", {"weights": torch.zeros(1000)})
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert load_plain(tmp_path / "a.ckpt") == {"step": 1}
