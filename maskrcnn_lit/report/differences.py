"""Which differences between settings are more than chance: the best one of an arena against the others.

Over images by a paired bootstrap, and over seeds by Welch's test where both sides have several. A difference counts
only if all tests that there are say so, each at 0.05 divided by the number of comparisons (Bonferroni).
"""

from collections.abc import Mapping
from typing import NamedTuple

from maskrcnn_lit.evaluation.bootstrap import Difference, Resampled, difference, mean_resampled
from maskrcnn_lit.evaluation.seeds import Welch, welch
from maskrcnn_lit.report.jobs import APS, Arena, Setting

LEVEL = 0.05  # of all comparisons together
MOST = 8  # comparisons of an arena: first the settings that differ from the best one in the fewest options


class Comparison(NamedTuple):
    """Of the best setting with another. value: its AP minus the other's; a test is None where it could not be made."""

    best: Setting
    other: Setting
    value: float
    over_images: Difference | None
    over_seeds: Welch | None

    def significant(self, level: float) -> bool | None:
        """None: nothing was tested."""
        tests = [test for test in (self.over_images, self.over_seeds) if test is not None]
        return all(test.p_value < level for test in tests) if tests else None


def compare(arena: Arena, resampled: Mapping[str, Resampled]) -> list[Comparison]:
    """`resampled`: name of a job -> its AP on each resample of the images; those that it lacks are not tested so."""
    known = [setting for setting in arena.settings if setting.values(arena.ap)]
    if len(known) < 2:
        return []
    best, *others = known
    chosen = sorted(others, key=lambda other: _apart(best, other))[:MOST]
    return [_compare(best, other, arena.ap, resampled) for other in chosen]


def level(comparisons: list[Comparison]) -> float:
    """Below which p counts."""
    return LEVEL / max(1, len(comparisons))


def verdicts(comparisons: list[Comparison]) -> list[str]:
    """In short: what the best setting is better than, and what it may not be better than."""
    told = []
    for outcome, text in ((True, "It is better than {}."), (False, "Its difference from {} is not significant.")):
        others = [found.other.label for found in comparisons if found.significant(level(comparisons)) is outcome]
        told += [text.format("; ".join(others))] if others else []
    return told


def sentences(arena: Arena, comparisons: list[Comparison]) -> list[str]:
    """One for each comparison, and how they were judged."""
    if not comparisons:
        return []
    told = [_sentence(comparison, APS[arena.ap], level(comparisons)) for comparison in comparisons]
    others = len(arena.settings) - 1 - len(comparisons)
    alone = " Of one seed alone nobody knows what another one would give." * any(
        c.over_seeds is None for c in comparisons
    )
    count = "1 comparison" if len(told) == 1 else f"{len(told)} comparisons"
    more = f"; the other {others} settings, which differ in more options, were not tested" if others > 0 else ""
    return [
        *told,
        f"{count} with the best setting{more}. A difference counts where p is below {level(comparisons):.4g} "
        f"({LEVEL:g} / {len(told)}, Bonferroni) over the validation images (paired bootstrap) and, where both sides "
        f"have several seeds, over seeds (Welch's t-test).{alone}",
    ]


def _compare(best: Setting, other: Setting, ap: str, resampled: Mapping[str, Resampled]) -> Comparison:
    drawn = [[resampled[name] for job in side.runs(ap) if (name := job.name) in resampled] for side in (best, other)]
    whole = all(len(one) == len(side.runs(ap)) for one, side in zip(drawn, (best, other), strict=True))
    over_images = difference(*map(mean_resampled, drawn)) if whole else None
    values = [side.values(ap) for side in (best, other)]
    over_seeds = welch(*values) if all(len(side) > 1 for side in values) else None
    value = sum(values[0]) / len(values[0]) - sum(values[1]) / len(values[1])
    return Comparison(best, other, value, over_images, over_seeds)


def _apart(best: Setting, other: Setting) -> int:
    return sum(value != other.options.get(name) for name, value in best.options.items())


def _sentence(found: Comparison, ap: str, level: float) -> str:
    significant = found.significant(level)
    numbers = f"{found.value:.3f} {ap}"
    if significant is None:
        return f"{found.best.label} is {numbers} above {found.other.label}; the difference was not tested."
    tests = []
    if (images := found.over_images) is not None:
        tests.append(f"over images {_interval(images.interval)}, p {_p(images.p_value)}")
    if (seeds := found.over_seeds) is not None:
        tests.append(f"over seeds {_interval(seeds.interval)}, p {_p(seeds.p_value)}")
    else:
        tests.append("too few seeds to test over them")
    told = "; ".join(tests)
    if significant:
        return f"{found.best.label} is better than {found.other.label} by {numbers} ({told})."
    return f"The difference between {found.best.label} and {found.other.label}, {numbers}, is not significant ({told})."


def _interval(interval: tuple[float, float]) -> str:
    return f"95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
