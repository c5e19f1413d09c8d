"""The config of another framework: what is read, and the table of it."""

import pytest

from maskrcnn_lit.errors import UserError
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


def test_other_values_are_refused():
    config = TheirConfig({"kind": "PAFPN"})
    with pytest.raises(UserError, match=r"kind=PAFPN cannot be imported, FPN can: use FPN"):
        config.only("kind", ("FPN",), None, "use FPN")
    assert config.only("missing", (1, None), None, "") is None


def test_texts_are_those_of_yaml():
    assert text([None, True, 0.1, "a"]) == "[null, true, 0.1, a]"
    assert text("x" * 100) == "x" * 77 + "..."
    assert plain({"a": (1, (2,))}) == {"a": [1, [2]]}
