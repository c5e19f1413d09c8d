"""MMDetection's configs as plain data; nothing in them is run."""

from pathlib import Path
from typing import Any

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.python_config import Unread, merged, read_python_config


def read(folder: Path, text: str, name: str = "config.py") -> dict[str, Any]:
    (folder / name).write_text(text)
    return read_python_config(folder / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = dict(x=1, y=[2, (3, 4)], z=None)", {"x": 1, "y": [2, (3, 4)], "z": None}),
        ("b = 2\na = [b * 3, 'x' + 'y', -1.5, 7 // 2, 1 / 4]", [6, "xy", -1.5, 3, 0.25]),
        ("b = dict(x=1, y=2)\na = dict(**b, z=3)", {"x": 1, "y": 2, "z": 3}),
        ("a = {'x': {'y': True}}", {"x": {"y": True}}),
        ("b = [dict(x=5)]\na = b[0]['x']", 5),
        ("a = dict(x=1)\na['x'] = 2", {"x": 2}),
        ("a = dict(x=dict(y=1, z=2))\na.update(x=dict(y=3))", {"x": {"y": 3, "z": 2}}),
        ("from torch.nn import BatchNorm2d\na = dict(type=BatchNorm2d)", {"type": "BatchNorm2d"}),
        ("a = tuple([1, 2])", (1, 2)),
    ],
)
def test_plain_data_is_read(text: str, expected: Any, tmp_path: Path):
    assert read(tmp_path, text)["a"] == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch {mark}')",
        "open('{mark}', 'w')",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "'x' * 10 ** 9",
        "[0] * 999999999",
        "list(3)",
        "f'{{1}}'",
        "1 / 0",
    ],
)
def test_what_is_not_plain_data_is_not_run(expression: str, tmp_path: Path):
    mark = tmp_path / "mark"
    content = read(tmp_path, f"b = 1\na = dict(x={expression.format(mark=mark)}, y=2)")
    assert content["a"]["y"] == 2
    assert content["b"] == 1
    assert content["a"]["x"] == Unread(f"{tmp_path / 'config.py'}, line 2")
    assert not mark.exists()


def test_a_config_inherits(tmp_path: Path):
    read(tmp_path, "model = dict(a=1, b=dict(c=2, d=3))\nother = 4", "base.py")
    read(tmp_path, "schedule = dict(lr=0.1)", "schedule.py")
    text = """
_base_ = ['./base.py', 'schedule.py']
model = dict(b=dict(c={{_base_.other}}), e='{{_base_.schedule.lr}}')
more = _base_.model.a
"""
    content = read(tmp_path, text)
    assert content["model"] == {"a": 1, "b": {"c": 4, "d": 3}, "e": 0.1}
    assert content["other"] == 4
    assert content["schedule"] == {"lr": 0.1}
    assert content["more"] == 1


def test_a_config_inherits_by_read_base(tmp_path: Path):
    (tmp_path / "_base_").mkdir()
    read(tmp_path, "model = dict(a=1, b=2)\nunused = 3", "_base_/one.py")
    read(tmp_path, "lr = 5", "_base_/two.py")
    (tmp_path / "recipes").mkdir()
    text = """
from mmengine.config import read_base
with read_base():
    from .._base_.one import model
    from .._base_.two import *
model.update(dict(b=dict(c=lr)))
"""
    content = read(tmp_path, text, "recipes/new.py")
    assert content == {"model": {"a": 1, "b": {"c": 5}}, "lr": 5}


def test_delete_drops_what_is_inherited():
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged(base, {"a": {"_delete_": True, "z": 4}}) == {"a": {"z": 4}, "b": 3}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.py does not exist"):
        read(tmp_path, "_base_ = 'none.py'")
    with pytest.raises(UserError, match="inherits from itself"):
        read(tmp_path, "_base_ = 'config.py'")
    with pytest.raises(UserError, match=r"config\.py is not a python file"):
        read(tmp_path, "a = = 1")
    with pytest.raises(UserError, match="_base_ that is not plain"):
        read(tmp_path, "_base_ = open('x')")
    with pytest.raises(UserError, match=r"over 1,048,576 bytes"):
        read(tmp_path, "#" * 2**21)
