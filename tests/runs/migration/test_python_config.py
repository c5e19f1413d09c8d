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
        ("a = dict(x=dict(y=1, z=2))\na.update(x=dict(y=3))", {"x": {"y": 3}}),  # as in Python
        ("from torch.nn import BatchNorm2d\na = dict(type=BatchNorm2d)", {"type": "BatchNorm2d"}),
        ("from torch import nn\na = dict(type=nn.BatchNorm2d)", {"type": "BatchNorm2d"}),
        ("a = tuple([1, 2])", (1, 2)),
        ("names = ('x', 'y')\na = len(names)", 2),
        (
            "e = 24\na = [int(e * 0.7), round(e / 7, 2), float(e), max(e, 30), min([e, 3])]",
            [16, 3.43, 24.0, 30, 3],
        ),
        ("a = [(1333, s) for s in range(640, 801, 80)]", [(1333, 640), (1333, 720), (1333, 800)]),
        ("a = tuple(2 * x for x in [1, 2])", (2, 4)),
        ("a = 0.02\na *= 0.5", 0.01),
        ("a = [1]\nb = a\nb += [2]", [1, 2]),
        ("a = dict(x=1)\na |= dict(y=2)", {"x": 1, "y": 2}),
        ("a: int = 3\nb: int", 3),
        ("b, (a, c) = 1, (2, 3)", 2),
        ("b = {'x': 1, 'y': 2}\na = {**b, 'y': 3}", {"x": 1, "y": 3}),
        ("a = dict(x=dict(y=1))\na.x.y = 2\na['x']['z'] = 3", {"x": {"y": 2, "z": 3}}),
        ("b = [1, 2, 3]\na = [*b[:2], 4]", [1, 2, 4]),
        ("a = [1, 2]\na.insert(0, 5)\na.append(6)\na.pop(1)", [5, 2, 6]),
        ("a = dict(x=1, y=2)\ndel a['x']\nb = a.pop('y')\na.setdefault('z', b)", {"z": 2}),
        ("from copy import deepcopy\nb = [1]\na = deepcopy(b)\nb += [2]", [1]),
        ("a = 8 * 10 ** -2 % 1", 0.08),
        ("n = 8\na = [2 if n > 4 else 1, n if n == 4 else None]", [2, None]),
        ("n = 8\na = [4 < n <= 8 < 9, n != 8, n in (1, 8), n is None, not n]", [1, 0, 1, 0, 0]),
        ("n = None\na = [n or 3, n and 3, 0 or [] or 5, 1 and 2]", [3, None, 5, 2]),
        ("root, n = 'data', 2\na = f'{root}/train{n}-{0.5}'", "data/train2-0.5"),
    ],
)
def test_plain_data_is_read(text: str, expected: Any, tmp_path: Path):
    assert read(tmp_path, text)["a"] == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch {mark}')",
        "open('{mark}', 'w')",
        "[x for x in open('{mark}', 'w')]",
        "len(open('{mark}', 'w'))",
        "[x for x in range(10 ** 9)]",
        "2 ** 10 ** 9",
        "(-1) ** 0.5",
        "int('x')",
        "max(b, open)",
        "[*open('{mark}', 'w')]",
        "{{**open('{mark}', 'w')}}",
        "[list([0] * 9000) for _ in range(20)]" + "[-1]",
        "'{{{{ fileDirname }}}}'",
        "(lambda: 1)()",
        "'x' * 10 ** 9",
        "[0] * 999999999",
        "list(3)",
        "f'{{b:>99999999}}'",
        "f'{{b!r}}'",
        "f'{{[b]}}'",
        "f'{{open}}'",
        "1 if open('{mark}', 'w') else 2",
        "b == open('{mark}', 'w')",
        "0 or open('{mark}', 'w')",
        "b < 'x'",
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


def test_what_follows_from_unread_values_is_unread(tmp_path: Path):
    content = read(tmp_path, "n = f()\na = 2 * n\nb, c = n\nd = 3\nd *= n\ne = max(n)")
    assert all(isinstance(content[name], Unread) for name in "nabcde")
    assert content["a"] == Unread(f"{tmp_path / 'config.py'}, line 1"), "where it begins"


HARMLESS = '''"""A docstring."""
import os
import warnings
from pathlib import Path
a = dict(x=1)
b = 2
del b
assert a
print(a)
warnings.filterwarnings('ignore')
os.environ['X'] = '1'
if os.sep:
    print('x')
def f(x):
    return x + 1
class C:
    pass
'''


def test_statements_that_change_no_setting_are_read(tmp_path: Path):
    assert read(tmp_path, HARMLESS) == {"a": {"x": 1}}


@pytest.mark.parametrize(
    "statement",
    [
        "if True:\n    a = 3",
        "for a in (1, 2):\n    b = a",
        "while True:\n    a = 3",
        "with open('x') as f:\n    a = 3",
        "try:\n    a = 3\nexcept OSError:\n    pass",
        "if True:\n    with read_base():\n        from mmdet import *",
        "if '_base_':\n    from .base import *",
        "from .base import *",
        "def f():\n    global a\n    a = 3",
        "def f():\n    a['x'] = 3",
        "def f():\n    pass\nf()",
        "(b := 3)",
        "b, c = 1, 2, 3",
        "a[0:1] = [3]",
        "a.x.y.z = 3",
        "a['x']['y'] = 3",
        "change(a)",
        "a.clear()",
        "b = a.popitem()",
        "[a.update(x=3) for _ in range(1)]",
        "a.update(f())",
        "globals()['a'] = 3",
        "exec('a = 3')",
        "del a['z']",
    ],
)
def test_a_statement_that_may_change_settings_is_refused(statement: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"config\.py, line \d, '.+', cannot be read.*dumped"):
        read(tmp_path, f"a = dict(x=1)\n{statement}")


@pytest.mark.parametrize(
    "text",
    [
        "a = dict()\n" + "a = dict(x=a, y=a)\n" * 40,
        "a = dict()\na['x'] = a",
        "a = dict()\n" + "a = dict(x=a)\n" * 2000,
        "a = []\n" + "a = [a, a]\n" * 40 + "a = a == a",
    ],
)
def test_values_that_never_end_are_refused(text: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"over 1,000,000 settings, or over 100 in each other"):
        read(tmp_path, text)


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


def test_what_read_base_imports_is_replaced_as_in_python(tmp_path: Path):
    base = "loop = dict(type='Epochs', max_epochs=12)\nhead = dict(a=dict(b=1, c=2), d=3)\nlr = 1"
    read(tmp_path, base, "base.py")
    text = """
from mmengine.config import read_base
with read_base():
    from .base import *
    from .base import lr as rate
loop = dict(type='Steps', max_iters=90000)
head.update(dict(a=dict(b=4)), d=5)
head.a.merge(dict(e=6))
"""
    assert read(tmp_path, text, "new.py") == {
        **{"loop": {"type": "Steps", "max_iters": 90000}, "lr": 1, "rate": 1},
        "head": {"a": {"b": 4, "c": 2, "e": 6}, "d": 5},
    }


def test_what_base_inherits_is_changed_in_place(tmp_path: Path):
    read(tmp_path, "model = dict(head=dict(classes=80, width=8), depth=50)", "base.py")
    text = "_base_ = 'base.py'\nmodel = _base_.model\nmodel.head.classes = 3\n"
    content = read(tmp_path, f"{text}_base_.model.update(dict(head=dict(width=9)))")
    assert content == {"model": {"head": {"classes": 3, "width": 9}, "depth": 50}}


def test_merge_deletes(tmp_path: Path):
    read(tmp_path, "a = dict(x=dict(y=1), z=2)", "base.py")
    text = "_base_ = 'base.py'\n_base_.a.merge(dict(x=dict(_delete_=True, w=3)))"
    assert read(tmp_path, text) == {"a": {"x": {"w": 3}, "z": 2}}


def test_installed_packages_are_not_read(tmp_path: Path):
    message = (
        r"line 2, 'from mmdet\.configs\.a import \*', cannot be read: read_base\(\) may import "
        r"files beside this one \(from \.x import \*\), not installed packages; give the dumped"
    )
    with pytest.raises(UserError, match=message):
        read(tmp_path, "with read_base():\n    from mmdet.configs.a import *")
    with pytest.raises(UserError, match=r"line 1 inherits from mmdet::a\.py.*dumped"):
        read(tmp_path, "_base_ = ['mmdet::a.py']")
    read(tmp_path, "a = 1", "base.py")
    with pytest.raises(UserError, match=r"line 2 imports b, which .*base\.py does not have"):
        read(tmp_path, "with read_base():\n    from .base import b")


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
