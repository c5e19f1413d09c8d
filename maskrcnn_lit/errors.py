"""UserError, the exception for mistakes of the user, and checks that raise it. Any module may
import it.
"""

import math
from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """A mistake that the user can fix. The message is one sentence: the value, what was expected,
    the next step.

    `maskrcnn-lit` prints it without a traceback and exits with code 2.
    """


def plural(count: int, noun: str, several: str | None = None) -> str:
    """1 image, 1,000 images; `several`: an irregular plural."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def check_whole(minimum: int, maximum: int | None = None, /, **values: Any) -> None:
    """Raise UserError for a value that is not an integer from `minimum` to `maximum` (None: no
    limit). Write dots in a name as `__`.
    """
    for name, value in values.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or value < minimum:
            raise UserError(f"{_dotted(name)}={value} must be a whole number, {minimum} or more")
        if maximum is not None and value > maximum:
            raise UserError(f"{_dotted(name)}={value} must be a whole number, {maximum} or less")


def check_within(low: float, high: float, /, **values: Any) -> None:
    """Raise UserError for a value that is not a number from `low` to `high`. Write dots in a name
    as `__`.
    """
    for name, value in values.items():
        if not _is_within(low, high, value):
            limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
            raise UserError(f"{_dotted(name)}={value} must be a number {limit}")


def check_list(low: float, high: float, count: int | None = None, /, **values: Any) -> None:
    """Raise UserError for a value that is not a list of `count` (None: one or more) numbers from
    `low` to `high`. Write dots in a name as `__`.
    """
    many = f"a list of {count} numbers" if count else "a list of one or more numbers"
    for name, value in values.items():
        listed = isinstance(value, (list, tuple)) and len(value) == (count or max(1, len(value)))
        if not listed or not all(_is_within(low, high, item) for item in value):
            raise UserError(f"{_dotted(name)}={value} must be {many} from {low:g} to {high:g}")


def check_flag(**values: Any) -> None:
    """Raise UserError for a value that is neither True nor False. Write dots in a name as `__`."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f"{_dotted(name)}={value} must be true or false")


def check_choice(choices: Collection[str], optional: bool = False, /, **values: Any) -> None:
    """Raise UserError for a value that is not one of `choices` (optional: nor None). Write dots in
    a name as `__`.
    """
    for name, value in values.items():
        if value is None and optional:
            continue
        if not isinstance(value, str) or value not in choices:
            some = f"{'null or ' if optional else ''}one of {', '.join(choices)}"
            raise UserError(f"{_dotted(name)}={value} must be {some}")


def check_text(**values: Any) -> None:
    """Raise UserError for a value that is neither text nor None. Write dots in a name as `__`."""
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise UserError(f"{_dotted(name)}={value} must be text")


def _is_within(low: float, high: float, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and low <= value <= high


def _dotted(name: str) -> str:
    return name.replace("__", ".")
