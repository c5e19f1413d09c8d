"""Checks overrides, NAME=VALUE, against the config: every mistake becomes a one-sentence
UserError.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from maskrcnn_lit.config import schema
from maskrcnn_lit.errors import UserError

# Options that may be given with resume=RUN for a finished run, to continue it in a new run.
LENGTH = ("trainer.epochs", "trainer.steps", "trainer.patience")

# options of `train` that only the sweep reads, not its runs
FOR_SWEEPS = ("sweep", "sweep_dir", "sweep_scale", "launcher")


# groups with exactly one choice; the others (logger, callbacks) accept several
ONE_OF = ("augment", "backbone", "data", "experiment", "launcher", "model", "optimizer", "trainer")


def is_sweep(overrides: Iterable[str]) -> bool:
    """Whether one of `overrides` asks for a sweep."""
    return any(text.partition("=")[0].split(".")[0] in FOR_SWEEPS for text in overrides)


def is_given(name: str, overrides: Iterable[str]) -> bool:
    """Whether one of `overrides` sets the option `name`."""
    return any(text.partition("=")[0].lstrip("+") == name for text in overrides)


def parse(text: str) -> Override:
    """One override in Hydra's grammar; UserError if it has no name, no value or several values."""
    override = parse_any(text)
    if override.is_sweep_override():
        name = override.key_or_group
        if name in ONE_OF:
            raise UserError(
                f"'{_shown(text)}' has several values: give one; `maskrcnn-lit train -m "
                f"{_shown(text)}` makes a run of each"
            )
        raise UserError(
            f"'{_shown(text)}' has several values: give one, or a list in brackets, "
            f"'{name}=[{_shown(text.partition('=')[2])}]'; "
            "`maskrcnn-lit train -m` makes a run of each"
        )
    return override


def parse_any(text: str) -> Override:
    """As `parse`, but several values (a sweep) are allowed, too."""
    name, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        raise UserError(f"'{_shown(text)}' is not an override: use NAME=VALUE, for example seed=1")
    try:
        override = OverridesParser.create().parse_override(_in_ascii(text))
    except RecursionError:
        raise UserError(
            f"'{_shown(text[:60])}...' is nested too deeply: use fewer brackets"
        ) from None
    except HydraException as error:
        raise UserError(
            f"'{_shown(text)}' cannot be parsed: close every bracket and quote, and "
            f"{_advice(_shown(name), _shown(value))}"
        ) from error
    if text.isascii():
        return override
    key, given = _as_written(override.key_or_group), _as_written(override._value)
    return replace(override, key_or_group=key, _value=given, input_line=text)


def _advice(name: str, value: str) -> str:
    """How to write a value with special characters."""
    if value[:1] == "{":
        return (
            "write names without quotes and with a backslash before each special character, "
            f"'{name}={{cell\\ \\(old\\): cell}}'"
        )
    if value[:1] == "[":
        return f"quote each text with special characters, '{name}=[\"cell (old)\",cell]'"
    return f"quote text with special characters twice, '{name}=\"{value}\"'"


# A letter beyond ASCII, which Hydra's grammar takes only in quotes, and its number in its place.
_LETTER, _NUMBER = re.compile(r"[^\x00-\x7f]"), re.compile("_u([0-9a-f]{6})_")


def _in_ascii(text: str) -> str:
    return _LETTER.sub(lambda letter: f"_u{ord(letter[0]):06x}_", text)


def _as_written(value: Any) -> Any:
    """A parsed value with the letters in place of their numbers."""
    if isinstance(value, str):
        return _NUMBER.sub(lambda number: chr(int(number[1], 16)), value)
    if isinstance(value, QuotedString):
        return replace(value, text=_as_written(value.text))
    if isinstance(value, ChoiceSweep):
        return replace(value, list=_as_written(value.list))
    if isinstance(value, list):
        return [_as_written(one) for one in value]
    if isinstance(value, dict):
        return {_as_written(key): _as_written(one) for key, one in value.items()}
    return value


def check_choice(
    override: Override, command: str, groups: Mapping[str, str | None], choices: Sequence[str]
) -> None:
    """Raise UserError unless `override` names one of the `groups` of `command` (name -> default
    choice), and one of its `choices`.
    """
    group, value = override.key_or_group, override.value()
    if override.is_delete() and groups.get(group) is not None:
        raise UserError(
            f"'{_shown(override.input_line)}' removes a group that {command} needs: choose one of "
            f"{', '.join(sorted(choices))}"
        )
    if group not in groups and not override.is_add():
        raise UserError(
            f"{command} has no group '{_shown(group)}'; its groups are "
            f"{', '.join(sorted(groups)) or 'none'}"
        )
    if isinstance(value, list) and group in ONE_OF:
        listed = ",".join(map(str, value))
        raise UserError(
            f"'{_shown(override.input_line)}' lists several choices, but {group} takes one: give "
            f"one, or use `maskrcnn-lit train -m {group}={_shown(listed)}` for a run of each"
        )
    for choice in value if isinstance(value, list) else ["null" if value is None else value]:
        if not override.is_delete() and str(choice) not in choices:
            raise UserError(
                f"there is no {group} '{_shown(choice)}'{suggest(str(choice), choices)}; "
                f"the choices are {', '.join(sorted(choices))}"
            )


def check_value(
    override: Override, command: str, groups: Iterable[str], config: Mapping[str, Any]
) -> None:
    """Raise UserError unless `config`, nested dicts, has the option that `override` sets. If the
    schema has no row for it (an option of the user's own config), its value must have the type of
    the default.

    Same type: a bool for a bool, a number (or `auto`) for a number, an integer for an integer, no
    single value for a group of options; null is always allowed. `+name=value` adds an argument to
    an object, which accepts or refuses it (instantiate.py); anywhere else nothing would read it.
    """
    name, value, known = override.key_or_group, override.value(), dict(flat(config))
    objects = [
        f"{key}." for key, child in known.items() if isinstance(child, dict) and "_target_" in child
    ]
    if override.is_add() and (name in known or name.startswith(tuple(objects))):
        return
    adds_object = override.is_add() and isinstance(value, dict) and "_target_" in value
    if adds_object and isinstance(known.get(name.rpartition(".")[0]), dict):
        return  # +callbacks.mine={_target_: mylab.Mine}
    for one in (name, *_keys(name, known.get(name), value)):
        if one not in known:
            _refuse_part_of_null(one, command, known)
            hint = suggest(one, [*groups, *known])
            raise UserError(
                f"{command} has no option '{_shown(one)}'{hint}; `maskrcnn-lit {command} --help` "
                "lists its options"
            )
    ruled = schema.applies(name, config) is not None
    fault = None if ruled or override.is_delete() else _fault(name, known[name], value)
    if fault:
        raise UserError(f"'{_shown(override.input_line)}' has the wrong type: {fault}")


def _refuse_part_of_null(name: str, command: str, known: Mapping[str, Any]) -> None:
    """Raise UserError if `name` would be an option of a group that is null."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        group = ".".join(parts[:count])
        rule = schema.rule_of(group)
        if group in known and known[group] is None and rule is not None and rule.kind == "group":
            raise UserError(
                f"{command} has no option '{_shown(name)}' here, since {group} is null: leave it "
                f"out, or choose another {parts[0]}"
            )


def _keys(name: str, known: Any, value: Any) -> list[str]:
    """The full names that NAME={key: value, ...} sets in a group of options; none for a dict whose
    keys are the user's, or for an object.
    """
    if not isinstance(known, dict) or not isinstance(value, dict) or "_target_" in value:
        return []
    rule = schema.rule_of(name)
    if rule is not None and rule.kind != "group":
        return []
    return [f"{name}.{key}" for key in value]


def as_null(override: Override, config: Mapping[str, Any]) -> str:
    """`override` for Hydra: `~name` of an option that may be null becomes `name=null`, so the key
    still exists.

    Raises:
        UserError: `~name` of an option that may not be null.
    """
    name, text = override.key_or_group, str(override.input_line)
    rule = schema.applies(name, config)
    needed = rule is not None or schema.is_group(name)
    if not override.is_delete() or not needed or not dict(flat(config)).keys() >= {name}:
        return text
    if rule is None or not rule.null:
        raise UserError(f"'{_shown(text)}' removes a required option: set {_shown(name)} instead")
    return text if rule.kind == "group" else f"{name}=null"


def apply(override: Override, config: DictConfig) -> None:
    """Set, add or delete in `config` what `override`, no choice of a group, says, as Hydra does.

    Raises:
        UserError: it has a package, adds a value that exists, or deletes one that does not.
    """
    name, value, text = override.key_or_group, override.value(), _shown(override.input_line)
    if override.package is not None:
        raise UserError(
            f"'{text}' has an @, which is for groups, and {_shown(name)} is an option: write "
            f"{_shown(name)}=..."
        )
    if override.is_delete():
        _delete(override, config)
        return
    adds = override.is_add() or override.is_force_add()
    single = not isinstance(value, dict | list)
    if override.is_add() and single and OmegaConf.select(config, name) is not None:
        raise UserError(f"'{text}' adds a value that exists: leave out the +")
    adds_keys = isinstance(value, dict) and isinstance(OmegaConf.select(config, name), DictConfig)
    OmegaConf.update(config, name, value, merge=adds_keys, force_add=adds)


def _delete(override: Override, config: DictConfig) -> None:
    name, value = override.key_or_group, override.value()
    present = OmegaConf.select(config, name)
    if present is None or value not in (None, present):
        raise UserError(
            f"'{_shown(override.input_line)}' deletes what does not exist: {_shown(name)} is "
            f"{'null' if present is None else _shown(present)}"
        )
    group, _, key = name.rpartition(".")
    with open_dict(config):
        del (OmegaConf.select(config, group) if group else config)[key]


def _shown(text: Any) -> str:
    """What was typed, in one line: a line break is written as \\n."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def _fault(name: str, default: Any, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.startswith("${")):
        return None
    if isinstance(default, dict):
        inside = ", ".join(f"{name}.{key}" for key in default if not str(key).startswith("_"))
        return (
            None
            if isinstance(value, dict)
            else f"{name} is a group of options, set one of {inside}"
        )
    if isinstance(default, bool):
        return None if isinstance(value, bool) else f"{name} is true or false"
    text = isinstance(value, str) and value != "auto"
    if isinstance(default, (int, float)) and (isinstance(value, bool) or text):
        return f"{name} is a number, {default} by default"
    if isinstance(default, int) and isinstance(value, float):
        return f"{name} is a whole number, {default} by default"
    return None


def assign(name: str, value: Any, *, quote: bool = False) -> str:
    """NAME=VALUE in Hydra's grammar, with any special characters escaped; with `quote` the value is
    text even if it looks like a number.
    """
    text = str(value)
    if not quote and re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{name}={text}"
    ends = text[len(text.rstrip("\\")) :]  # before a quote every backslash is doubled
    return f"{name}=" + '"' + re.sub(r'(\\*)"', r"\1\1\"", text) + ends + '"'


def typed(name: str, value: Any) -> str:
    """NAME=VALUE, quoted for a shell."""
    return (
        shlex.quote(assign(name, value))
        if assign(name, value) != f"{name}={value}"
        else f"{name}={value}"
    )


def as_path(text: str) -> str:
    """An override of a path (schema.py), quoted for Hydra: special characters (spaces, brackets,
    commas, umlauts) are text, and `~` is the home folder. Lists, null, references and quoted text
    are unchanged. A choice is quoted where it has special characters.

    Raises:
        UserError: the path is empty.
    """
    name, equals, value = text.partition("=")
    if value in schema.choices_of(name.lstrip("+")):
        return assign(name, value)  # mean±std is not in Hydra's alphabet
    if not schema.is_path(name.lstrip("+")) or not equals:
        return text
    if not value.strip():
        raise UserError(f"{name}= is empty: give a path, or leave {name} out")
    if value == "null" or value[0] in "'\"[$" or "${" in value:
        return text
    return assign(name, os.path.expanduser(value), quote=True)


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the most similar of `known`, by full name, else by last part
    (shortest names only), or "".
    """
    scores = {
        other: max(_likeness(name, other), 0.9 * _likeness(_last(name), _last(other)))
        for other in known
    }
    best = max(scores.values(), default=0.0)
    near = [other for other, score in scores.items() if score == best >= 0.6]
    least = min(
        (other.count(".") for other in near), default=0
    )  # trainer.epochs, not a deeper copy of it
    near = [other for other in near if other.count(".") == least][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every entry and every dict in nested dicts."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
