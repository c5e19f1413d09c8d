"""Every option with a dozen wrong kinds of value: a config that the schema allows, or one sentence.

The schema sees every option with every value. Whole command lines are a sample of them, drawn with
a fixed seed, because each takes a tenth of a second.
"""

import math
import random
from typing import Any

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.cli.main import COMMANDS
from maskrcnn_lit.config import schema
from maskrcnn_lit.config.compose import NOT_ASKED, compose, show, to_dict
from maskrcnn_lit.config.overrides import flat, parse
from maskrcnn_lit.errors import UserError

LONG = "x" * 100_000

TYPED: dict[str, Any] = {  # as it is typed -> as it arrives; None: it cannot be read
    "text": "text",
    "[1,2]": [1, 2],
    "[]": [],
    "[[a],{b:1}]": [["a"], {"b": 1}],
    "{a:1}": {"a": 1},
    "{}": {},
    "null": None,
    "''": "",
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "0.5": 0.5,
    "1e400": math.inf,
    str(2**70): 2**70,
    "9" * 4000: int("9" * 4000),
    "true": True,
    "auto": "auto",
    LONG: LONG,
    '"a\\nb"': "a\\nb",
    '"🙂"': "🙂",
    '"a\nb"': "a\nb",
}
UNREADABLE = ["[", "", "a: b: {", "${", "${nowhere}", "${seed", "'", "1,2", "[" * 3000, "choice(1)"]
SCALARS = {name: rule for name, rule in schema.OPTIONS.items() if rule.kind not in ("group", "any")}
CASES = 50  # command lines


def known_wrong(rule: schema.Rule, value: Any) -> bool:
    """Whether `value` is wrong for `rule`, whatever its range: said without the schema's own
    code.
    """
    kind = type(value)
    if value is None:
        return not rule.null
    if rule.kind == "classes" and kind in (dict, list):  # of which some are right
        return False
    if kind is dict or (value == "" and "" not in rule.words):
        return True
    if kind is list:
        return rule.count is None or any(type(item) in (list, dict) for item in value)
    if not rule.single:
        return True
    if kind is float and not math.isfinite(value):
        return True
    right = {"flag": (bool,), "whole": (int,), "number": (int, float)}.get(rule.kind, (str,))
    return kind not in right and value not in rule.words and str(value) not in rule.choices


def test_every_option_with_every_value():
    cases = refused = 0
    for name, rule in SCALARS.items():
        for value in TYPED.values():
            fault = schema.fault_of(name, value, rule)
            cases += 1
            refused += fault is not None
            assert fault is not None or not known_wrong(rule, value), (name, repr(value)[:80])
            if fault is not None:
                assert fault.startswith(f"{name}=")
                assert "\n" not in fault
                assert len(fault) < 400
    assert cases > 3000
    assert cases > refused > cases / 2


@pytest.mark.parametrize("text", TYPED, ids=lambda text: text[:12])
def test_what_is_typed_arrives(text: str):
    value = parse(f"seed={text}").value()
    assert repr(value) == repr(TYPED[text])


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    """Command -> the names of its options."""
    return {
        command: [name for name in dict(flat(to_plain(command))) if not name.startswith("sweep.")]
        for command in COMMANDS
    }


def to_plain(command: str) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(show(command)).items()}


@pytest.mark.long
def test_a_command_line_composes_or_is_refused_in_one_sentence(names):
    drawn = random.Random(0)
    texts = [*TYPED, *UNREADABLE]
    taken = 0
    for _ in range(CASES):
        command = drawn.choice(list(names))
        name = drawn.choice(names[command])
        text = f"{name}={drawn.choice(texts)}"
        try:
            config = compose(command, [text])
        except UserError as error:
            assert str(error), text[:200]
            assert "\n" not in str(error).strip(), text[:200]
        else:
            taken += 1
            schema.check(to_dict(config), skip=NOT_ASKED.get(command, ()))
    assert taken < CASES
