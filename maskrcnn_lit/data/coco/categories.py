"""The classes of a json and those of a trained model: matched by name."""

from collections.abc import Iterable, Sequence
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
    own: Sequence[Category], trained: Sequence[Category], where: str
) -> tuple[tuple[Category, ...], NDArray[np.int64]]:
    """The trained table with the ids of `own`, and for each label of `own` (0..K) its label in that
    table.

    A trained class that no data has (UNUSED) gets an id that is free.

    Raises: UserError: the names differ; both lists and what only one has are told. `where` says
        whose `own` are.
    """
    by_name = {category.name: category for category in own}
    names = [category.name for category in trained]
    unused = {name for name in names if name.startswith(UNUSED)} - by_name.keys()
    if by_name.keys() != set(names) - unused:
        parts = [
            ("only here", by_name.keys() - set(names)),
            ("only there", set(names) - by_name.keys() - unused),
        ]
        difference = ", ".join(f"{which} {_some(several)}" for which, several in parts if several)
        raise UserError(
            f"the categories of {where} are {_some(by_name)} and those trained are "
            f"{_some(set(names) - unused)}: {difference}; give both the same names"
        )
    last = max(category.id for category in own)
    by_name |= {name: Category(last + n, name) for n, name in enumerate(sorted(unused), 1)}
    labels = np.array([0] + [names.index(category.name) + 1 for category in own])
    return tuple(by_name[name] for name in names), labels


def _some(names: Iterable[str], most: int = 12) -> str:
    first, rest = sorted(names)[:most], sorted(names)[most:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")
