"""What is wrong with an entry of a COCO json, or with its image file.

One policy for every fault: it is noted and the entry left out. Whether faults stop the program or
are only told is for `index.read_index` to decide.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Fault(NamedTuple):
    kind: str  # "missing file", "box without area", ...
    image: str  # file name, or what is known of it
    annotation: int | None  # its id; None if the image itself is at fault
    what: str


class BadEntryError(Exception):
    """kind, what"""


def whole(entry: dict[str, Any], key: str) -> int:
    """The value of `key`, a whole number; BadEntryError for anything else."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        kind = "incomplete image entry" if "file_name" in entry else "incomplete annotation"
        raise BadEntryError(kind, f"{key} is {entry.get(key)!r}, not a whole number")
    return value


def describe(faults: Sequence[Fault], names: int = 3) -> Iterator[str]:
    """One line for each kind of fault: how many, and the first few by file and annotation id."""
    for kind in dict.fromkeys(fault.kind for fault in faults):
        same = [fault for fault in faults if fault.kind == kind]
        told = [
            f"{fault.image}: {fault.what}"
            if fault.annotation is None
            else f"annotation {fault.annotation} of {fault.image}: {fault.what}"
            for fault in same[:names]
        ]
        yield f"{len(same)} x {kind} ({'; '.join(told)}{'; ...' if len(same) > names else ''})"
