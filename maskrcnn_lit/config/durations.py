"""Durations as a user writes and reads them."""

import re

from maskrcnn_lit.errors import UserError

_UNITS = {"d": 86_400, "h": 3600, "min": 60, "s": 1}
_WORDS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)min)?(?:(\d+)s)?")
_COLONS = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


def seconds(text: str, option: str) -> int:
    """The seconds of 90min, 3h, 1d12h or 00:11:30:00 (days:hours:minutes:seconds).

    Raises: UserError: `text` is neither, or no time at all; `option` names it.
    """
    match = _COLONS.fullmatch(text) or _WORDS.fullmatch(text)
    numbers = [int(number or 0) for number in match.groups()] if match else []
    total = sum(number * unit for number, unit in zip(numbers, _UNITS.values(), strict=False))
    if not 0 < total < 2**31:
        raise UserError(
            f"{option}={text} must be a duration such as 90min, 3h, 1d12h, or "
            "days:hours:minutes:seconds as in 00:11:30:00"
        )
    return total


def duration(seconds: float) -> str:
    """A readable duration: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
