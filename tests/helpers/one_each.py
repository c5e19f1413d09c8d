"""Of each family of tests one member."""

from collections.abc import Sequence
from typing import Any


def first_of_each(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The first case of each test function, and the others.

    Args:
        items: pytest's items in the order in which they would run.
    """
    first, others = {}, []
    for item in items:
        family = item.parent.nodeid, getattr(item, "originalname", None) or item.name
        if family in first:
            others.append(item)
        else:
            first[family] = item
    return list(first.values()), others
