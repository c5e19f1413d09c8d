"""What is typed, taken apart; the sentences are read in test_config.py, where a config stands
behind them.
"""

import shlex

import pytest

from maskrcnn_lit.config.compose import compose
from maskrcnn_lit.config.overrides import as_path, check_choice, flat, parse, suggest, typed
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
