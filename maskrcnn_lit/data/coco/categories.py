"""The classes of a json and those of a trained model: matched by name."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError

# begins the name of a class that no data has: a gap in COCO's ids, which torchvision's weights
# count
UNUSED = "N/A"


class Category(NamedTuple):
    id: int  # as in the json
    name: str


def match_categories(
    own: Sequence[Category],
    trained: Sequence[Category],
    where: str,
    used: Collection[int] | None = None,
) -> tuple[tuple[Category, ...], NDArray[np.int64]]:
    """The trained table with the ids of `own`, and for each label of `own` (0..K) its label in that
    table.

    A trained class that `own` lacks gets an id that is free: there are no objects of it here. A
    class of `own` that was not trained gets the label 0, if no object is of it.

    Args:
        own, trained: label l is entry l - 1; where: whose `own` are, for messages; used: the labels
        of `own` that objects have; None: all.

    Raises:
        UserError: no class is common to both, or objects are of a class that was not trained.
    """
    by_name = {category.name: category for category in own}
    names = [category.name for category in trained]
    extra = [
        category.name
        for label, category in enumerate(own, 1)
        if category.name not in names and (used is None or label in used)
    ]
    if extra or not by_name.keys() & set(names):
        raise UserError(_mismatch(where, list(by_name), names, extra))
    absent = [name for name in names if name not in by_name]
    last = max(category.id for category in own)
    by_name |= {name: Category(last + n, name) for n, name in enumerate(absent, 1)}
    labels = [0, *(names.index(c.name) + 1 if c.name in names else 0 for c in own)]
    return tuple(by_name[name] for name in names), np.array(labels)


def _mismatch(where: str, own: list[str], trained: list[str], extra: list[str]) -> str:
    real = [name for name in trained if not name.startswith(UNUSED)]
    spelled = {name.casefold(): name for name in real}
    alike = [name for name in own if name not in real and name.casefold() in spelled]
    problem = f"objects of {some(extra)}, which were not trained" if extra else "no trained class"
    message = f"{where} has {problem}: its classes are {some(own)}, those of training {some(real)}"
    if not alike:
        left_out = f", or leave them out with 'data.classes={{{extra[0]}: null}}'" if extra else ""
        return f"{message}; rename with data.classes={{OLD: NEW}}{left_out}"
    name = spelled[alike[0].casefold()]
    return (
        f"{message}; '{alike[0]}' is spelled '{name}' in training, did you mean {name}? "
        f"'data.classes={{{alike[0]}: {name}}}' renames it"
    )


def some(names: Iterable[str], most: int = 12) -> str:
    """The first of `names` by the alphabet, and how many more there are."""
    names = list(names)
    first, others = sorted(names)[:most], sorted(names)[most:]
    return ", ".join(first) + (f" and {len(others)} more" if others else "")
