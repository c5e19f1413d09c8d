"""`data.classes`: the classes of a COCO json to use, and their names.

A list selects classes: `[person, car]`. A mapping renames, merges and leaves out classes and keeps
all others: `{car: vehicle, truck: vehicle, debris: null}`. A list may contain mappings: `[person,
{car: vehicle}]`.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskrcnn_lit.data.coco.arrays import (
    Ints,
    OriginalCategory,
    Packed,
    cannot_write,
    federated_arrays,
    open_if_intact,
    open_packed,
    write_arrays,
)
from maskrcnn_lit.data.coco.categories import Category, some
from maskrcnn_lit.data.coco.faults import Fault, shown
from maskrcnn_lit.errors import UserError

_EXPECTED = (
    "give a list of class names, [person, car], or new names for the json's classes, "
    "{car: "
    "vehicle, debris: null}"
)


@dataclass(frozen=True)
class ClassChoice:
    """The parsed value of `data.classes`.

    Attributes:
        names: name in the json -> new name; None: its objects are left out.
        others: whether classes that are not in `names` are used, under their own names.
    """

    names: Mapping[str, str | None]
    others: bool

    def name_of(self, name: str) -> str | None:
        """The new name of the json's class `name`; None: it is left out."""
        return self.names.get(name, name if self.others else None)

    def unknown(self, known: Collection[str]) -> list[str]:
        """The chosen names that are not in `known`, the classes of the jsons."""
        return [name for name in self.names if name not in known]


def read_choice(value: Any) -> ClassChoice | None:
    """Parse `data.classes` of a config: a list, a mapping, or None.

    Raises:
        UserError: it has another type, is empty, or names a class twice.
    """
    if value is None:
        return None
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not value or not (listed or isinstance(value, Mapping)):
        raise UserError(f"data.classes={shown(value)} must name at least one class: {_EXPECTED}")
    names: dict[str, str | None] = {}
    for old, new in _pairs(value if listed else [value]):
        if old in names:
            raise UserError(f"data.classes names {old} twice: name each class of the json once")
        names[old] = new
    if listed and not any(names.values()):
        raise UserError(f"data.classes={shown(value)} leaves out every class: {_EXPECTED}")
    return ClassChoice(names, others=not listed)


def _pairs(items: Iterable[Any]) -> Iterable[tuple[str, str | None]]:
    for item in items:
        if isinstance(item, Mapping):
            for old, new in item.items():
                yield _name(old), None if new is None else _name(new)
        else:
            yield _name(item), _name(item)


def _name(value: Any) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or value == "":
        raise UserError(f"data.classes has {shown(value)} instead of a name: {_EXPECTED}")
    return str(value)


def choose_classes(packed: Packed, choice: ClassChoice, where: str) -> Packed:
    """`packed` with only the classes of `choice`, stored in a folder beside its own.

    Classes with the same new name are merged; the merged class has their smallest id.

    Args:
        where: the json, for messages.

    Raises:
        UserError: no class of the json is left.
    """
    wanted = repr((sorted(choice.names.items(), key=repr), choice.others)).encode()
    folder = packed.folder.with_name(f"{packed.key}-{hashlib.sha256(wanted).hexdigest()[:16]}")
    there = open_if_intact(folder)
    if there is not None:
        return there
    chosen = [choice.name_of(category.name) for category in packed.categories]
    table = _table(packed.categories, chosen)
    if not table:
        known = source_names(packed)
        unknown = choice.unknown(known)
        why = f"it {_no_such(unknown, known)}" if unknown else "name one to keep"
        raise UserError(f"data.classes leaves out every class of {where}: {why}")
    labels_of = {category.name: label for label, category in enumerate(table, 1)}
    labels = np.array([0, *(labels_of.get(name or "", 0) for name in chosen)])
    counts = np.bincount(packed.arrays.labels[:], minlength=len(labels))
    faulty = Counter(fault.category for fault in packed.faults)
    originals = tuple(
        OriginalCategory(category.id, category.name, name, int(counts[label]), faulty[category.id])
        for label, (category, name) in enumerate(zip(packed.categories, chosen, strict=True), 1)
    )
    try:
        write_arrays(
            folder,
            _of_labels(packed, labels),
            categories=table,
            faults=_of_chosen(packed.faults, originals),
            changes=_of_chosen(packed.changes, originals),
            originals=originals,
            frequencies={
                name: packed.frequencies[category.name]
                for category, name in zip(packed.categories, chosen, strict=True)
                if name is not None and chosen.count(name) == 1
                if category.name in packed.frequencies
            },
        )
    except OSError as error:
        raise cannot_write(folder.parent, error) from None
    return open_packed(folder)


def _table(own: Sequence[Category], chosen: Sequence[str | None]) -> tuple[Category, ...]:
    ids: dict[str, int] = {}
    for category, name in zip(own, chosen, strict=True):
        if name is not None:
            ids[name] = min(category.id, ids.get(name, category.id))
    return tuple(Category(ids[name], name) for name in sorted(ids))


def _of_chosen(faults: Sequence[Fault], originals: Sequence[OriginalCategory]) -> list[Fault]:
    """Without those of classes that are left out: whatever is wrong with them, it is asked for."""
    left_out = {category.id for category in originals if category.chosen is None}
    return [fault for fault in faults if fault.category not in left_out]


def _of_labels(packed: Packed, labels: Ints) -> Any:
    """The arrays without the annotations that are left out; labels: old -> new, 0: left out."""
    arrays = packed.arrays
    new = labels[arrays.labels[:]]
    left = new > 0
    before = np.concatenate([[0], np.cumsum(left)])
    columns = (
        *("ids", "crowd", "areas", "amodal_areas", "boxes"),
        *("order", "doubtful", "part_spans", "run_spans"),
    )
    return replace(
        arrays,
        labels=new[left],
        spans=before[arrays.spans[:]],
        **{name: getattr(arrays, name)[:][left] for name in columns},
        **_federated_of_labels(packed, labels),
    )


def _federated_of_labels(packed: Packed, labels: Ints) -> dict[str, Any]:
    """LVIS's labels of each image. A merged class is surely absent if all of its parts are, and
    incomplete if one of them is.
    """
    arrays = packed.arrays
    parts = np.bincount(labels, minlength=1)
    negatives, incompletes = [], []
    for span in arrays.negative_spans[:].tolist():
        counts = np.bincount(labels[arrays.negatives[slice(*span)]], minlength=len(parts))
        absent = np.flatnonzero((counts > 0) & (counts == parts))
        negatives.append(absent[absent > 0].tolist())
    for span in arrays.incomplete_spans[:].tolist():
        partly = np.unique(labels[arrays.incompletes[slice(*span)]])
        incompletes.append(partly[partly > 0].tolist())
    return federated_arrays(negatives, incompletes, packed.federated)


def describe_choice(packed: Packed) -> list[str]:
    """Lines on the changes by `choose_classes`: the objects left out, and the new names."""
    lines = []
    left_out = [category for category in packed.originals if category.chosen is None]
    if left_out:
        objects = sum(category.objects for category in left_out)
        named = some(f"{category.name} {category.objects}" for category in left_out)
        lines.append(
            f"data.classes leaves out {_count(objects, 'object')} of "
            f"{_count(len(left_out), 'class')} ({named}){_faulty(left_out)}"
        )
    new: dict[str, list[str]] = {}
    for category in packed.originals:
        if category.chosen is not None:
            new.setdefault(category.chosen, []).append(category.name)
    renamed = [f"{', '.join(old)} -> {name}" for name, old in new.items() if old != [name]]
    return [*lines, *(["data.classes: " + "; ".join(renamed)] if renamed else [])]


def _faulty(left_out: Sequence[OriginalCategory]) -> str:
    faults = sum(category.faults for category in left_out)
    return f" and {_count(faults, 'faulty annotation')} of theirs" if faults else ""


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def source_names(packed: Packed) -> set[str]:
    """The original class names of the json."""
    return {category.name for category in packed.originals or packed.categories}


def check_names(choice: ClassChoice | None, jsons: Iterable[Packed]) -> None:
    """Raise UserError for a name of `choice` that none of `jsons` has."""
    names = set[str]().union(*map(source_names, jsons))
    unknown = choice.unknown(names) if choice else []
    if unknown:
        raise UserError(f"data.classes {_no_such(unknown, names)}")


def _no_such(unknown: Sequence[str], known: Collection[str]) -> str:
    near = [other for name in unknown for other in _near(name, sorted(known))]
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"has {some(unknown)}, but the classes of the data are {some(known)}{hint}"


def _near(name: str, names: Sequence[str]) -> list[str]:
    """The two of `names` most similar to `name`, ignoring case."""
    folded = {other.casefold(): other for other in names}
    return [folded[near] for near in difflib.get_close_matches(name.casefold(), folded, n=2)]
