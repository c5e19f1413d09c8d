"""The config of another framework: what is read, and the table of it."""

from typing import Any

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.python_config import Unread
from maskrcnn_lit.runs.migration.their_config import Setting, TheirConfig, plain, text


def test_values_by_path():
    config = TheirConfig({"a": {"b": [{"c": (1, 2)}]}})
    assert config.take("a.b.0.c") == [1, 2]
    assert config.take("a.b.1.c", 7) == 7
    assert config.take("a.x") is None
    assert config.has("a.b.0")
    assert not config.has("a.b.1")


def test_the_table():
    config = TheirConfig({"depth": 50, "width": 3, "extra": {"x": 1, "y": [1]}})
    assert config.same("depth", "model.depth") == 50
    config.same("missing", "model.missing", 4)
    config.as_option("width", "model.width", 6, "twice as wide")
    config.differs("extra.x", "here it is 2")
    assert config.options == {"model.depth": 50, "model.missing": 4, "model.width": 6}
    assert config.table == [
        Setting("depth=50", "model.depth=50"),
        Setting("missing, by default", "model.missing=4"),
        Setting("width=3", "model.width=6", "twice as wide"),
        Setting("extra.x=1", "", "here it is 2"),
    ]
    assert list(config.left("extra")) == [Setting("extra.y=[1]", "", "not imported")]


def test_the_table_lists_steps_in_lists():
    steps = [{"type": "A", "scales": [[1, 2], [3, 4]]}, {"transforms": [[{"x": 1}]]}, "name"]
    config = TheirConfig({"steps": steps})
    config.take("steps.0.type")
    assert [row.theirs for row in config.left("steps")] == [
        *("steps.0.scales=[[1, 2], [3, 4]]", "steps.1.transforms.0.0.x=1", "steps.2=name"),
    ]


UNREAD = Unread("a.py, line 3")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"head": {"classes": UNREAD}}, "head.classes"),
        ({"head": {"classes": [1, {"x": UNREAD}]}}, r"head.classes.1.x"),
        ({"head": UNREAD}, "head"),
    ],
)
def test_a_value_that_is_not_plain_is_refused_where_it_is_used(values: dict[str, Any], named: str):
    config = TheirConfig(values)
    message = rf"^{named} at a\.py, line 3 is not plain data: write its value, or give the dumped"
    with pytest.raises(UserError, match=message):
        config.take("head.classes")
    with pytest.raises(UserError, match=message):
        config.same("head.classes", "model.num_classes")
    with pytest.raises(UserError, match=message):
        config.only("head.classes", (80,), 80, "")


def test_a_value_that_is_not_plain_is_no_fault_where_nobody_uses_it():
    config = TheirConfig({"head": {"depth": 4, "note": UNREAD, "extra": UNREAD}})
    assert config.take("head.depth") == 4
    assert list(config.part("head")) == ["depth", "note", "extra"]
    config.ignore("head.note")
    row = Setting("head.extra=not plain data (a.py, line 3)", "", "not imported")
    assert list(config.left("head")) == [row]
    with pytest.raises(UserError, match=r"^head\.extra at a\.py"):
        config.part("head.extra")


def test_other_values_are_refused():
    config = TheirConfig({"kind": "PAFPN"})
    with pytest.raises(UserError, match=r"kind=PAFPN cannot be imported, FPN can: use FPN"):
        config.only("kind", ("FPN",), None, "use FPN")
    assert config.only("missing", (1, None), None, "") is None


def test_texts_are_those_of_yaml():
    assert text([None, True, 0.1, "a"]) == "[null, true, 0.1, a]"
    assert text("x" * 100) == "x" * 77 + "..."
    assert plain({"a": (1, (2,))}) == {"a": [1, [2]]}
