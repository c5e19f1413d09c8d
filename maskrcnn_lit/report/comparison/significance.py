"""Significance of differences between the best setting of a ranking, or its baseline, and the
others.

Tested over images by a paired bootstrap, and over seeds by Welch's test if both sides have several.
The p-value of a difference is the larger one, so that it is significant only if both tests agree;
several comparisons are corrected by Holm's method (Holm, "A simple sequentially rejective multiple
test procedure", 1979).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.bootstrap import Difference, Resampled, difference, mean_resampled
from maskrcnn_lit.evaluation.t_test import Welch, holm, welch
from maskrcnn_lit.report.comparison.settings import APS, Ranking, Setting

LEVEL = 0.05  # family-wise, for all comparisons

# maximum comparisons of a ranking: settings that differ from the best one, or the baseline, in the
# fewest options come first
MOST = 8


class Comparison(NamedTuple):
    """The comparison of the best setting with another, or of another with the baseline. value: the
    AP of `first` minus that of `second`; a test is None if impossible.
    """

    first: Setting
    second: Setting
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
    center, *others = settings
    pairs = [(center, other) if ranking.baseline is None else (other, center) for other in others]
    return [_compare(first, second, ranking.ap, resampled) for first, second in pairs]


def compared(ranking: Ranking) -> list[Setting]:
    """The best setting or the baseline, and those that it is compared with."""
    if not ranking.ranked:
        return []
    center = ranking.baseline or ranking.ranked[0]
    others = [setting for setting in ranking.ranked if setting != center]
    return [center, *sorted(others, key=lambda other: _apart(center, other))[:MOST]]


def significant(comparisons: Sequence[Comparison]) -> list[bool | None]:
    """Whether each difference is significant by Holm's method, None if not tested."""
    tested = iter(holm([p for one in comparisons if (p := one.p_value) is not None], LEVEL))
    return [None if one.p_value is None else next(tested) for one in comparisons]


def verdicts(ranking: Ranking, comparisons: Sequence[Comparison]) -> list[str]:
    """Short sentences: which settings the best one, or which differ significantly from the
    baseline.
    """
    outcomes = list(zip(comparisons, significant(comparisons), strict=True))
    if ranking.baseline is None:
        better = _labels(c.second for c, is_so in outcomes if is_so)
        alike = _labels(c.second for c, is_so in outcomes if is_so is False)
        sentences = [
            (better, f"It is significantly better than {better}."),
            (alike, f"Its difference from {alike} is not significant."),
        ]
    else:
        name = ranking.baseline.label
        better = _labels(c.first for c, is_so in outcomes if is_so and c.value > 0)
        worse = _labels(c.first for c, is_so in outcomes if is_so and c.value < 0)
        alike = _labels(c.first for c, is_so in outcomes if is_so is False)
        sentences = [
            (better, f"Significantly better than {name}: {better}."),
            (worse, f"Significantly worse than {name}: {worse}."),
            (alike, f"Not significantly different from {name}: {alike}."),
        ]
    return [sentence for labels, sentence in sentences if labels]


def _labels(settings: Iterable[Setting]) -> str:
    return "; ".join(setting.label for setting in settings)


def sentences(ranking: Ranking, comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each comparison, and one on the tests."""
    if not comparisons:
        return []
    outcomes = zip(comparisons, significant(comparisons), strict=True)
    message = [_sentence(comparison, APS[ranking.ap], is_so) for comparison, is_so in outcomes]
    others = len(ranking.ranked) - 1 - len(comparisons)
    more = (
        f"; the other {others} settings, which differ in more options, were not tested"
        if others > 0
        else ""
    )
    single = any(one.over_seeds is None for one in comparisons)
    alone = " With a single seed, the variance over seeds is unknown." if single else ""
    center = "the best setting" if ranking.baseline is None else ranking.baseline.label
    return [
        *message,
        f"{plural(len(message), 'comparison')} with {center}{more}. Tested over the "
        "validation images (paired "
        "bootstrap) and, where both sides have several seeds, over seeds (Welch's t-test), of "
        "which the larger p "
        f"counts, at {LEVEL:g} for all comparisons together (Holm's method).{alone}",
    ]


def _compare(
    first: Setting, second: Setting, ap: str, resampled: Mapping[str, Resampled]
) -> Comparison:
    drawn = [
        [resampled[name] for job in side.runs(ap) if (name := job.name) in resampled]
        for side in (first, second)
    ]
    complete = all(
        len(one) == len(side.runs(ap)) for one, side in zip(drawn, (first, second), strict=True)
    )
    over_images = difference(*map(mean_resampled, drawn)) if complete else None
    values = [side.values(ap) for side in (first, second)]
    over_seeds = welch(*values) if all(len(side) > 1 for side in values) else None
    value = sum(values[0]) / len(values[0]) - sum(values[1]) / len(values[1])
    return Comparison(first, second, value, over_images, over_seeds)


def _apart(center: Setting, other: Setting) -> int:
    return sum(value != other.options.get(name) for name, value in center.options.items())


def _sentence(comparison: Comparison, ap: str, is_so: bool | None) -> str:
    first, second = comparison.first.label, comparison.second.label
    side = "above" if comparison.value >= 0 else "below"
    numbers = f"{abs(comparison.value):.3f} {ap}"
    if is_so is None:
        return f"{first} is {numbers} {side} {second}; the difference was not tested."
    tests = []
    if (images := comparison.over_images) is not None:
        tests.append(f"over images {_interval(images.interval)}, p {_p(images.p_value)}")
    if (seeds := comparison.over_seeds) is not None:
        tests.append(f"over seeds {_interval(seeds.interval)}, p {_p(seeds.p_value)}")
    else:
        tests.append("too few seeds to test over them")
    message = "; ".join(tests)
    if is_so:
        how = "better" if comparison.value > 0 else "worse"
        return f"{first} is {how} than {second} by {numbers} ({message})."
    return (
        f"The difference between {first} and {second}, {comparison.value:.3f} {ap}, is not "
        f"significant ({message})."
    )


def _interval(interval: tuple[float, float]) -> str:
    return f"95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
