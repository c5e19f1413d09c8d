"""What is typed, taken apart; the sentences are read in test_config.py, where a config stands
behind them.
"""

import shlex
from typing import Any

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.overrides import (
    apply,
    as_path,
    check_choice,
    flat,
    parse,
    parse_any,
    suggest,
    typed,
)
from maskrcnn_lit.errors import UserError


def test_parse_reads_values_in_hydras_grammar():
    assert parse("optimizer.lr=5e-4").value() == 5e-4
    assert parse("data.image_size=[800,1333]").value() == [800, 1333]
    assert parse("source=photos/*.jpg").value() == "photos/*.jpg"
    assert parse("run=outputs/2026-11-23/10-00-00").value() == "outputs/2026-11-23/10-00-00"
    assert parse("~logger").is_delete()


def test_the_advice_for_a_value_that_cannot_be_read_works():
    with pytest.raises(UserError) as error:
        parse("source=my cat (1).jpg")
    advised = str(error.value).rsplit("twice, '", 1)[1].removesuffix("'")
    assert parse(advised).value() == "my cat (1).jpg"


def test_suggest_prefers_the_whole_name_then_the_last_part():
    known = ["optimizer.lr", "optimizer.lr_min", "trainer.epochs", "data.epochs", "backbone"]
    assert suggest("optimizer.lr_mn", known) == "; did you mean optimizer.lr_min?"
    assert suggest("epochs", known) == "; did you mean trainer.epochs or data.epochs?"
    assert suggest("epoch", known) == "; did you mean trainer.epochs or data.epochs?"
    assert suggest("bakbone", known) == "; did you mean backbone?"
    assert suggest("temperature", known) == ""


@pytest.mark.parametrize(
    "value", ["outputs/a-b_c.d", "a b", "r ü/four", "it's", 'a"b', "x=y", "a,b", "[1]", "7"]
)
def test_what_is_typed_arrives(value: str):
    (word,) = shlex.split(typed("run_dir", value))
    assert parse(as_path(word)).value() == value


def test_flat_names_every_entry():
    nested = {"a": {"b": {"c": 1}}, "d": [{"e": 2}]}
    assert list(flat(nested)) == [
        ("a", {"b": {"c": 1}}),
        ("a.b", {"c": 1}),
        ("a.b.c", 1),
        ("d", [{"e": 2}]),
    ]


def test_a_group_of_which_one_holds_takes_no_list():
    listed = parse("backbone=[a,b]")
    with pytest.raises(UserError, match="`maskrcnn-lit train -m backbone=a,b` for a run of each"):
        check_choice(listed, "train", {"backbone": "a"}, ["a", "b"])
    check_choice(parse("logger=[a,b]"), "train", {"logger": "a"}, ["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "metrics={}",
        "nosuch{}=1",
        "backbone={}",
        "trainer={}",
        "{}",
        "seed={}",
        "~{}",
        "data={}",
        "[",
    ],
)
def test_a_message_is_one_line_whatever_was_typed(text: str):
    for odd in ('"a\nb"', "a\tb\rc", '"\u2028"', "a\nb"):
        with pytest.raises(UserError) as error:
            compose("train", [text.format(odd)])
        assert str(error.value).isprintable(), str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rate=0.5", {"rate": 0.5}),
        ("head.width=8", {"head": {"width": 8, "norm": None}}),
        ("head={width: 8}", {"head": {"width": 8, "norm": None}}),
        ("sizes=[3]", {"sizes": [3]}),
        ("sizes={a: 1}", {"sizes": {"a": 1}}),  # the schema refuses it
        ("head=[3]", {"head": [3]}),
        ("rate=${head.width}", {"rate": 4}),
        ("+seed=7", {"seed": 7}),
        ("+head.depth=2", {"head": {"width": 4, "norm": None, "depth": 2}}),
        ("+head={depth: 2}", {"head": {"width": 4, "norm": None, "depth": 2}}),
        ("+head.norm=batch", {"head": {"width": 4, "norm": "batch"}}),
        ("++rate=0.5", {"rate": 0.5}),
        ("++seed=7", {"seed": 7}),
        ("~rate", {"rate": None}),
        ("~rate=0.1", {"rate": None}),
        ("~head.width", {"head": {"norm": None}}),
    ],
)
def test_a_value_is_set_added_or_deleted(override: str, expected: dict[str, Any]):
    values = {"rate": 0.1, "head": {"width": 4, "norm": None}, "sizes": [1, 2]}
    config = OmegaConf.create(values, flags={"struct": True})
    apply(parse(override), config)
    changed = values | expected
    if override.startswith("~rate"):
        del changed["rate"]
    assert OmegaConf.to_container(config, resolve=True) == changed
    assert OmegaConf.is_struct(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+rate=1", r"'\+rate=1' adds a value that exists: leave out the \+"),
        (
            "rate@head=1",
            "'rate@head=1' has an @, which is for groups, and rate is an option: write rate=",
        ),
        ("~seed", "'~seed' deletes what does not exist: seed is null"),
        ("~rate=2", "'~rate=2' deletes what does not exist: rate is 0.1"),
    ],
)
def test_what_cannot_be_applied_is_told(override: str, message: str):
    config = OmegaConf.create({"rate": 0.1, "head": {}}, flags={"struct": True})
    with pytest.raises(UserError, match=message):
        apply(parse(override), config)
    assert config == {"rate": 0.1, "head": {}}


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("Zellkörper", "Zellkörper"),
        ("[Zelle ü,b]", ["Zelle ü", "b"]),
        ('["Zelle ü: 1",细胞]', ["Zelle ü: 1", "细胞"]),
        ("{Zelle ü:cell,b:Kern ö}", {"Zelle ü": "cell", "b": "Kern ö"}),
        ("'ü'", "ü"),
    ],
)
def test_letters_beyond_ascii_need_no_quotes(typed: str, value: Any):
    override = parse(f"data.classes={typed}")
    assert override.value() == value
    assert override.input_line == f"data.classes={typed}"
    config = OmegaConf.create({"data": {"classes": None}})
    apply(override, config)
    assert config.data.classes == value


def test_several_values_beyond_ascii_are_a_sweep():
    assert list(parse_any("name=ü,b").sweep_iterator()) == ["ü", "b"]
