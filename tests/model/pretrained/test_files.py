"""What a file of weights holds, in every format; that nothing in it is run is in
test_pretrained.py.
"""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import read_file, state_of


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_damaged_file_is_told(suffix: str, tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(100)}}, buffer)
    whole = {
        ".pth": buffer.getvalue(),
        ".pkl": pickle.dumps({"model": {"w": np.ones(100)}}),
        ".safetensors": safetensors.torch.save({"w": torch.ones(100)}),
    }[suffix]
    contents = [
        whole[:-1],
        whole[: len(whole) // 2],
        b"",
        b"<html>404 Not Found</html>",
        b"version https://git-lfs",
    ]
    for content in contents[1:] if suffix == ".pth" else contents:
        (tmp_path / f"weights{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=rf"weights{suffix} cannot be loaded") as error:
            read_file(tmp_path / f"weights{suffix}")
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_the_weights_is_damage(tmp_path: Path):
    """torch reads other numbers there without a word."""
    file = tmp_path / "weights.pth"
    torch.save({"model": {"w": torch.ones(100)}}, file)
    content = bytearray(file.read_bytes())
    content[content.find(torch.ones(100).numpy().tobytes()) + 203] ^= 1
    file.write_bytes(content)
    assert torch.load(file)["model"]["w"][50] != 1
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded, since it is damaged"):
        read_file(file)


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(UserError, match=rf"{tmp_path} does not exist: give a file of weights"):
        read_file(tmp_path)


def test_safetensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = {"conv.weight": torch.randn(2, 3), "count": torch.tensor(7)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    found = read_file(tmp_path / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        UserError,
        match=r"model\.safetensors needs safetensors: pip install 'maskrcnn_lit\[timm\]'$",
    ):
        read_file(tmp_path / "model.safetensors")


def test_the_state_dict_of_a_file():
    tensors = {"a": torch.ones(2), "b": np.arange(3)}
    for content in (
        tensors,
        {"model": tensors},
        {"state_dict": tensors},
        {"model": "resnet", "state_dict": tensors},
    ):
        state = state_of(content | {"__author__": "me"})
        assert list(state) == ["a", "b"]
        assert all(isinstance(value, Tensor) for value in state.values())
