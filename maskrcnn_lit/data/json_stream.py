"""The standard library's JSON parser, walked through a large file: its longest array is never there as a whole."""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

_decode = json.JSONDecoder().raw_decode
_space = re.compile(r"[ \t\n\r]*").match


class NoObjectError(Exception):
    """The JSON is another `value` than an object."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Entries:
    """The values of the array that begins at `start` in `text`, each parsed when it is asked for.

    Iterating raises json.JSONDecodeError where the text is no JSON."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start = text, start
        self.end: int | None = None  # behind the array, once it has been walked through

    def __iter__(self) -> Iterator[Any]:
        text, position = self.text, _after(self.text, self.start + 1)
        more = not text.startswith("]", position)
        while more:
            entry, position = _decode(text, position)
            yield entry
            position = _after(text, position)
            if more := not text.startswith("]", position):
                position = _expect(",", text, position)
        self.end = position + 1


def members(text: str, streamed: str) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of the object that is the whole of `text`; an array under the key `streamed` comes
    as Entries, which the caller may iterate at once or later.

    Raises:
        json.JSONDecodeError: it is no JSON.
        NoObjectError: it is JSON, but no object.
    """
    position = _after(text, 0)
    if not text.startswith("{", position):
        raise NoObjectError(json.loads(text))
    position = _after(text, position + 1)
    more = not text.startswith("}", position)
    while more:
        key, position = _decode(text, position)
        if not isinstance(key, str):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
        position = _expect(":", text, _after(text, position))
        if key == streamed and text.startswith("[", position):
            entries = Entries(text, position)
            yield key, entries
            if entries.end is None:
                deque(entries, maxlen=0)
            position = entries.end or position
        else:
            value, position = _decode(text, position)
            yield key, value
        position = _after(text, position)
        if more := not text.startswith("}", position):
            position = _expect(",", text, position)
    if _after(text, position + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)


def _after(text: str, position: int) -> int:
    """Behind white space."""
    found = _space(text, position)
    return found.end() if found else position


def _expect(sign: str, text: str, position: int) -> int:
    """Behind `sign` and the white space after it."""
    if not text.startswith(sign, position):
        raise json.JSONDecodeError(f"Expecting '{sign}' delimiter", text, position)
    return _after(text, position + 1)
