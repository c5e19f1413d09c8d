"""Significance of differences between the best setting of a ranking and the others.

Tested over images by a paired bootstrap, and over seeds by Welch's test if both sides have several.
The p-value of a difference is the larger one, so that it is significant only if both tests agree;
several comparisons are corrected by Holm's method (Holm, "A simple sequentially rejective multiple
test procedure", 1979).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.bootstrap import Difference, Resampled, difference, mean_resampled
from maskrcnn_lit.evaluation.t_test import Welch, holm, welch
from maskrcnn_lit.report.comparison.settings import APS, Ranking, Setting

LEVEL = 0.05  # family-wise, for all comparisons

# maximum comparisons of a ranking: settings that differ from the best one in the fewest options
# come first
MOST = 8


class Comparison(NamedTuple):
    """The comparison of the best setting with another. value: its AP minus the other's; a test is
    None if impossible.
    """

    best: Setting
    other: Setting
    value: float
    over_images: Difference | None
    over_seeds: Welch | None

    @property
    def p_value(self) -> float | None:
        """The larger p-value of the tests; None: not tested."""
        return max(
            (test.p_value for test in (self.over_images, self.over_seeds) if test is not None),
            default=None,
        )


def compare(ranking: Ranking, resampled: Mapping[str, Resampled]) -> list[Comparison]:
    """`resampled`: name of a job -> its AP on each resample of the images; others are not tested
    over images.
    """
    if len(settings := compared(ranking)) < 2:
        return []
    best, *others = settings
    return [_compare(best, other, ranking.ap, resampled) for other in others]


def compared(ranking: Ranking) -> list[Setting]:
    """The best setting, and those that it is compared with."""
    known = [setting for setting in ranking.settings if setting.values(ranking.ap)]
    if not known:
        return []
    best, *others = known
    return [best, *sorted(others, key=lambda other: _apart(best, other))[:MOST]]


def significant(comparisons: Sequence[Comparison]) -> list[bool | None]:
    """Whether each difference is significant by Holm's method, None if not tested."""
    tested = iter(holm([p for one in comparisons if (p := one.p_value) is not None], LEVEL))
    return [None if one.p_value is None else next(tested) for one in comparisons]


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """Short sentences: the settings that the best one is, or is not, significantly better than."""
    message = []
    outcomes = list(zip(comparisons, significant(comparisons), strict=True))
    texts = {
        True: "It is significantly better than {}.",
        False: "Its difference from {} is not significant.",
    }
    for outcome, text in texts.items():
        others = [comparison.other.label for comparison, is_so in outcomes if is_so is outcome]
        message += [text.format("; ".join(others))] if others else []
    return message


def sentences(ranking: Ranking, comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each comparison, and one on the tests."""
    if not comparisons:
        return []
    outcomes = zip(comparisons, significant(comparisons), strict=True)
    message = [_sentence(comparison, APS[ranking.ap], is_so) for comparison, is_so in outcomes]
    others = len(ranking.settings) - 1 - len(comparisons)
    more = (
        f"; the other {others} settings, which differ in more options, were not tested"
        if others > 0
        else ""
    )
    single = any(one.over_seeds is None for one in comparisons)
    alone = " With a single seed, the variance over seeds is unknown." if single else ""
    return [
        *message,
        f"{plural(len(message), 'comparison')} with the best setting{more}. Tested over the "
        "validation images (paired "
        "bootstrap) and, where both sides have several seeds, over seeds (Welch's t-test), of "
        "which the larger p "
        f"counts, at {LEVEL:g} for all comparisons together (Holm's method).{alone}",
    ]


def _compare(
    best: Setting, other: Setting, ap: str, resampled: Mapping[str, Resampled]
) -> Comparison:
    drawn = [
        [resampled[name] for job in side.runs(ap) if (name := job.name) in resampled]
        for side in (best, other)
    ]
    complete = all(
        len(one) == len(side.runs(ap)) for one, side in zip(drawn, (best, other), strict=True)
    )
    over_images = difference(*map(mean_resampled, drawn)) if complete else None
    values = [side.values(ap) for side in (best, other)]
    over_seeds = welch(*values) if all(len(side) > 1 for side in values) else None
    value = sum(values[0]) / len(values[0]) - sum(values[1]) / len(values[1])
    return Comparison(best, other, value, over_images, over_seeds)


def _apart(best: Setting, other: Setting) -> int:
    return sum(value != other.options.get(name) for name, value in best.options.items())


def _sentence(comparison: Comparison, ap: str, is_so: bool | None) -> str:
    numbers = f"{comparison.value:.3f} {ap}"
    if is_so is None:
        return (
            f"{comparison.best.label} is {numbers} above {comparison.other.label}; the "
            "difference was not tested."
        )
    tests = []
    if (images := comparison.over_images) is not None:
        tests.append(f"over images {_interval(images.interval)}, p {_p(images.p_value)}")
    if (seeds := comparison.over_seeds) is not None:
        tests.append(f"over seeds {_interval(seeds.interval)}, p {_p(seeds.p_value)}")
    else:
        tests.append("too few seeds to test over them")
    message = "; ".join(tests)
    if is_so:
        return (
            f"{comparison.best.label} is better than {comparison.other.label} by {numbers} "
            f"({message})."
        )
    return (
        f"The difference between {comparison.best.label} and {comparison.other.label}, {numbers}, "
        "is not "
        f"significant ({message})."
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
