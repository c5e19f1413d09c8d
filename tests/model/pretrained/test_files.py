"""What a file of weights holds, in every format; that nothing in it is run is in
test_pretrained.py.
"""

import io
import pickle
import sys
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import read_file, read_with_placeholders, state_of


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


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.weight": torch.zeros(3)}


@pytest.mark.parametrize(
    "content",
    [
        {"model_state_dict": prefixed(""), "epoch": 3},
        {"ema_state_dict": prefixed("module.") | {"steps": torch.tensor(7)}},
        {"model": prefixed("module.") | {"n_averaged": torch.tensor(7)}},
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
        {"state_dict": prefixed("model._orig_mod.module.")},
        {"state_dict": prefixed(""), "ema_state_dict": prefixed("other.")},
        {"state_dict": prefixed("") | {"ema_a_weight": torch.zeros(2)}},
        prefixed("module."),
    ],
)
def test_the_state_dict_in_a_wrapper(content: dict[str, object]):
    state = state_of(content)
    assert list(state) == ["a.weight", "b.weight"]
    assert torch.equal(state["a.weight"], torch.ones(2))
    assert torch.equal(state["b.weight"], torch.zeros(3))


@pytest.mark.parametrize("extra", ["criterion.weight", "module"])
def test_a_prefix_that_not_all_names_have_stays(extra: str):
    state = prefixed("model.") | {extra: torch.ones(1)}
    assert state_of({"state_dict": state}).keys() == state.keys()
    state = prefixed("") | {"ema_of_something": torch.ones(1)}
    assert state_of(state).keys() == state.keys()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (deque([1, 2], maxlen=3), r"\(collections\.deque\)"),
        (defaultdict(list, {"a": [1]}), r"collections\.defaultdict"),
        (torch.nn.Conv2d(1, 1, 1), r"torch\.nn\.modules\.conv\.Conv2d"),
    ],
)
def test_objects_in_a_file_are_named(other: object, named: str, tmp_path: Path):
    torch.save({"model": prefixed(""), "other": other}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"it contains more than tensors.*{named}") as error:
        read_file(tmp_path / "weights.pth")
    assert "save the state dict alone" in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": prefixed(""), "log": deque([1, 2])}, r"more than tensors.*collections\.deque"),
        (
            torch.nn.Conv2d(1, 1, 1),
            r"more than tensors.*Conv2d.*save the state dict alone",
        ),
    ],
)
def test_files_that_placeholders_do_not_help(content: object, said: str, tmp_path: Path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=said):
        read_with_placeholders(tmp_path / "weights.pth")
