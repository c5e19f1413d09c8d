"""Values of the wrong kind for an option, by what the option should be. None is wrong everywhere
here; options that may be null say so themselves.
"""

import math
from typing import Any

NOT_A_NUMBER: list[Any] = [None, True, "1", "many", [], [1], {"a": 1}, math.nan]
NUMBER = [*NOT_A_NUMBER, -1, -0.5, math.inf, -math.inf]
COUNT = [*NUMBER, 0, 1.5, 2.0]  # 1 or more
COUNT_OR_NONE = [*NUMBER, 1.5]  # 0 or more
SHARE = [*NUMBER, 1.01, 2]  # from 0 to 1
FLAG: list[Any] = [None, 0, 1, "true", "no", [], math.nan]
TEXT: list[Any] = [1, True, 1.5, [], ["a"], {"a": 1}]  # or None
CHOICE: list[Any] = ["other", "", True, 1, [], ["a"], {"a": 1}, math.nan]


def positive_list(count: int) -> list[Any]:
    """For an option of `count` numbers above 0."""
    whole = [0.5] * count
    wrong = [whole[:-1], [*whole, 0.5], [], None, 0.5, "0.5", True, {"a": 1}]
    return wrong + [[*whole[:-1], bad] for bad in (0, -1, *NOT_A_NUMBER, math.inf)]


def cases(**options: list[Any]) -> list[tuple[str, Any]]:
    """Each option with each of its wrong values: for pytest.mark.parametrize."""
    return [(name, value) for name, values in options.items() for value in values]
