"""Matches the classes of a json to those of a trained model by name."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskrcnn_lit.errors import UserError

# prefix of classes that no data has: torchvision's weights include the gaps in COCO's ids
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
    """The trained categories with the ids of `own`, and the trained label of each label of `own`
    (0..K).

    A trained class that `own` lacks gets a free id: it has no objects here. A class of `own` that
    was not trained gets the label 0 if it has no objects.

    Args:
        own, trained: label l is entry l - 1; where: the source of `own`, for messages; used: the
            labels of `own` that have objects; None: all.

    Raises:
        UserError: the two have no class in common, or a class with objects was not trained.
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
    message = (
        f"{where} has {problem}: its classes are {some(own)}, the trained classes are {some(real)}"
    )
    if not alike:
        left_out = f", or leave them out with 'data.classes={{{extra[0]}: null}}'" if extra else ""
        return f"{message}; rename classes with data.classes={{OLD: NEW}}{left_out}"
    name = spelled[alike[0].casefold()]
    return (
        f"{message}; '{alike[0]}' is spelled '{name}' in training, did you mean {name}? "
        f"'data.classes={{{alike[0]}: {name}}}' renames it"
    )


def some(names: Iterable[str], most: int = 12) -> str:
    """The first of `names` in alphabetical order, and the number of the others."""
    names = list(names)
    first, others = sorted(names)[:most], sorted(names)[most:]
    return ", ".join(first) + (f" and {len(others)} more" if others else "")
