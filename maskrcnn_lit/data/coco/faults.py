"""Faults of a COCO json's entries and of their image files.

An entry with a fault is left out; `index.read_index` decides whether faults are errors or only
reported. A change is a correction: the entry is used with another value than the json's.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Key of a json that a reader of another form wrote: {"faults": [[kind, image, what], ...],
# "changes": likewise}, what it left out, and what it filled in.
FINDINGS = "findings"

_WHOLE = re.compile(r"\s*[+-]?\d{1,19}\s*").fullmatch

_repr = reprlib.Repr()  # repr() of a deeply nested list would fail
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 3, 60, 60, 40

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no", "")


class Fault(NamedTuple):
    """A fault, or a change."""

    kind: str  # "missing file", "box without area", ...
    image: str  # file name, or a description
    annotation: int | None  # its id; None if the image itself is at fault
    what: str
    category: int | None = None  # id of the annotation's class, where the json is read


class BadEntryError(Exception):
    """kind, what"""


def integer(entry: dict[str, Any], key: str) -> int:
    """The value of `key`, an integer, possibly in quotes; BadEntryError for anything else."""
    value = integer_or_none(entry.get(key))
    if value is None:
        kind = "incomplete image entry" if "file_name" in entry else "incomplete annotation"
        raise BadEntryError(kind, f"{key} is {shown(entry.get(key))}, not a whole number")
    return value


def integer_or_none(value: Any) -> int | None:
    """A 64-bit integer, possibly in quotes or with .0; None for anything else."""
    if isinstance(value, str) and _WHOLE(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        return None
    return value


def identifier(entry: dict[str, Any], key: str) -> int | str:
    """An id that other entries refer to: an integer or text; BadEntryError for anything else."""
    value = entry.get(key)
    if isinstance(value, str) and value and not _WHOLE(value):
        return value
    return integer(entry, key)


def finite(value: Any) -> float | None:
    """A number, possibly in quotes, as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def flag(entry: dict[str, Any], key: str) -> bool:
    """The value of `key`: 0 or 1, true or false, possibly in quotes, false if missing;
    BadEntryError for anything else.
    """
    value = entry.get(key)
    if value is None or value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in (*_YES, *_NO):
        return value.strip().lower() in _YES
    raise BadEntryError("incomplete annotation", f"{key} is {shown(value)}, neither 0 nor 1")


def shown(value: Any) -> str:
    """A value of a file for messages: shortened, and in ASCII if a terminal could not print it."""
    text = _repr.repr(value)
    return text if printable(text) else ascii(text)


def printable(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8: a json may contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(faults: Sequence[Fault], names: int = 3) -> Iterator[str]:
    """One line for each kind of fault: its count, and the first few by file and annotation id."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    for kind, same in by_kind.items():
        listed = [
            f"{fault.image}: {fault.what}"
            if fault.annotation is None
            else f"annotation {fault.annotation} of {fault.image}: {fault.what}"
            for fault in same[:names]
        ]
        yield f"{len(same)} x {kind} ({'; '.join(listed)}{'; ...' if len(same) > names else ''})"


def with_findings(
    content: Mapping[str, Any], faults: Sequence[Fault], changes: Sequence[Fault]
) -> dict[str, Any]:
    """A COCO instances dict with faults and changes under FINDINGS, if there are any."""
    listed = {
        key: [[fault.kind, fault.image, fault.what] for fault in several]
        for key, several in (("faults", faults), ("changes", changes))
    }
    return {**content, FINDINGS: listed} if any(listed.values()) else dict(content)


def findings_of(content: Mapping[str, Any]) -> tuple[list[Fault], list[Fault]]:
    """The faults and changes that a json has under FINDINGS; none in a json of another writer."""
    own = content.get(FINDINGS)
    lists = [own.get(key) if isinstance(own, dict) else None for key in ("faults", "changes")]
    faults, changes = (
        [
            Fault(entry[0], entry[1], None, entry[2])
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, list) and len(entry) == 3 and set(map(type, entry)) == {str}
        ]
        for entries in lists
    )
    return faults, changes
