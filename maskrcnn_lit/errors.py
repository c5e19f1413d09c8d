"""The one exception for what a user can get wrong; it may be raised anywhere below the command
line.
"""

import math
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. The message is one sentence: the value, what was expected,
    the next step.

    `maskrcnn-lit` prints it without a traceback and exits with code 2.
    """


def check_whole(minimum: int, **values: Any) -> None:
    """Raise UserError for a value that is no whole number of at least `minimum`; a name may have
    dots for `__`.
    """
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UserError(f"{_dotted(name)}={value} must be a whole number, {minimum} or more")


def check_within(low: float, high: float, **values: Any) -> None:
    """Raise UserError for a value that is no number from `low` to `high`; a name may have dots for
    `__`.
    """
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not low <= value <= high:
            limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
            raise UserError(f"{_dotted(name)}={value} must be a number {limit}")


def _dotted(name: str) -> str:
    return name.replace("__", ".")
