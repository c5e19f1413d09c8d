"""The sentences of a comparison. Every number in them comes from the jobs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.bootstrap import Resampled
from maskrcnn_lit.evaluation.coco.scores import NEAR_ZERO
from maskrcnn_lit.report.comparison.plots import cost_points, varied_costs
from maskrcnn_lit.report.comparison.settings import APS, Job, Ranking, limit, pareto, repeated_seeds
from maskrcnn_lit.report.comparison.significance import compare, sentences, verdicts
from maskrcnn_lit.report.comparison.tables import interval, kinds, roi_boxes
from maskrcnn_lit.report.format import number
from maskrcnn_lit.runs.costs import COSTS

DEFINITIONS = (
    "AP is COCO's mean over the IoU thresholds 0.50 to 0.95 and over the classes, for the final "
    "weights. Over images: 95 % interval of a bootstrap over the validation images, for fixed "
    "weights. Over seeds: mean and 95 % interval by Student's t over runs that differ only in the "
    "seed; a single run has no interval.",
    "Images/s in training: images trained on over the time of the whole training, its validations "
    "included. "
    "Inference: a forward pass of the model alone, images in the device's memory, in batches "
    "of the training's size; latency and FLOPs (two for a multiply-add) are of one image, the one "
    "of median size. Peak "
    "memory: of tensors on a GPU, of the whole process on a CPU. Energy: of the GPUs over the "
    "training, whatever ran "
    "on them.",
)

_ACCURACY = (
    "roi_accuracy is the share of ground-truth boxes that the box head, given the box, "
    "assigns to the right class. It is not an AP, and not part of the ranking."
)


def counts(jobs: Sequence[Job]) -> str:
    """ "12 jobs: 10 finished, 2 failed." """
    statuses = [job.status for job in jobs]
    message = [
        f"{statuses.count(status)} {status}"
        for status in dict.fromkeys(["finished", *statuses])
        if status in statuses
    ]
    return f"{plural(len(jobs), 'job')}: {', '.join(message)}."


def ranking_sentences(ranking: Ranking, resampled: Mapping[str, Resampled]) -> list[str]:
    """Sentences on the best setting, its significance, and the Pareto fronts."""
    first = [*_best(ranking), *verdicts(ranking, compare(ranking, resampled))]
    return [" ".join(first), *_fronts(ranking)]


def differences(ranking: Ranking, resampled: Mapping[str, Resampled]) -> list[str]:
    """Sentences on the significance of the best setting, or the baseline, against each other."""
    return sentences(ranking, compare(ranking, resampled))


def cautions(jobs: Sequence[Job], rankings: Sequence[Ranking]) -> list[str]:
    """Warnings about numbers that must not be compared."""
    return list(_cautions(jobs, rankings))


def _best(ranking: Ranking) -> Iterator[str]:
    best = ranking.settings[0]
    if (mean := best.mean(ranking.ap)) is None:
        return
    seeds = len(best.values(ranking.ap))
    if mean.interval is not None:
        sure = f"the mean of {seeds} seeds, 95 % interval {interval(mean.interval)}"
    else:
        ends = best.runs(ranking.ap)[0].result.intervals.get(ranking.ap)
        sure = f"one seed, 95 % interval over images {interval(ends)}"
    if _nothing_learned(ranking):
        yield f"No model detects anything: no {APS[ranking.ap]}50 is above {NEAR_ZERO:g}."
    ap = APS[ranking.ap]
    if len(ranking.settings) == 1:
        yield f"The {ap} on the {ranking.title} is {number(mean.value)} ({sure})."
    elif len(ranking.ranked) == 1:
        yield (
            f"{best.label} alone has a {ap} on the {ranking.title}: {number(mean.value)} ({sure})."
        )
    else:
        yield (
            f"Of {_count(ranking)} on the {ranking.title}, {best.label} has the highest {ap}: "
            f"{number(mean.value)} ({sure})."
        )


def _count(ranking: Ranking) -> str:
    """ "3 settings", or "2 settings with a mask AP" if others have none."""
    among = "" if ranking.ranked == ranking.settings else f" with a {APS[ranking.ap]}"
    return f"{len(ranking.ranked)} settings{among}"


def _nothing_learned(ranking: Ranking) -> bool:
    scores = [job.metric(f"{ranking.ap}50") for job in ranking.jobs]
    known = [score for score in scores if score is not None]
    return bool(known) and max(known) < NEAR_ZERO


def _fronts(ranking: Ranking) -> Iterator[str]:
    among = "" if ranking.ranked == ranking.settings else f"Of the {_count(ranking)}: "
    fronts: dict[tuple[str, ...], list[str]] = {}
    for name in varied_costs(replace(ranking, settings=ranking.ranked)):
        points = cost_points(ranking, name)
        front = tuple(
            points[i][0].label for i in pareto((cost, score) for _, cost, score in points)
        )
        fronts.setdefault(front, []).append(name)
    for front, costs in fronts.items():
        names = [COSTS[name].phrase for name in costs]
        against = " and ".join([*[", ".join(names[:-1])] * (len(names) > 1), names[-1]])
        if len(front) == 1:
            message = [
                f"the best {APS[ranking.ap]}",
                *(f"the {COSTS[cost].least}" for cost in costs),
            ]
            yield f"{among}{front[0]} has {', '.join(message[:-1])} and {message[-1]}."
        else:
            yield (
                f"{among}Pareto front of {APS[ranking.ap]} against {against}, from the cheapest: "
                f"{'; '.join(front)}."
            )


def _cautions(jobs: Sequence[Job], rankings: Sequence[Ranking]) -> Iterator[str]:
    if len(rankings) > 1:
        titles = "; ".join(
            f"{ranking.title} ({plural(len(ranking.jobs), 'job')})" for ranking in rankings
        )
        yield (
            "These jobs were not all scored on the same images, objects and classes with the same "
            "number of "
            f"detections: {titles}. They are {len(rankings)} rankings: APs of different rankings "
            "are not comparable."
        )
    if len({ranking.ap for ranking in rankings}) > 1:
        yield "Some jobs have a mask AP and others only a box AP: these are not compared."
    unscored = [job.name for job in jobs if job.status == "finished" and not job.scored]
    if unscored:
        yield f"Finished without an AP, so in no ranking: {', '.join(unscored)}."
    if any(job.metric("val/roi_accuracy") is not None for job in jobs):
        yield _ACCURACY
    if len(kinds(jobs)) > 1:
        study = [
            job.name
            for job in jobs
            if job.metric("val/roi_accuracy") is not None and roi_boxes(job) == "study"
        ]
        yield (
            f"roi_accuracy counts the study's 15 slots per image in {', '.join(study)}: it has "
            "its own column."
        )
    devices = sorted(
        {str(job.result.cost["device"]) for job in jobs if job.result.cost.get("device")}
    )
    if len(devices) > 1:
        yield (
            f"Times were measured on different devices ({'; '.join(devices)}), so they do not "
            "compare the models."
        )
    for ranking in rankings:
        for setting in ranking.settings:
            if repeated := repeated_seeds(setting):
                seeds = ", ".join(map(str, repeated))
                yield (
                    f"{setting.label} was trained more than once with seed {seeds}: the last "
                    "run "
                    "counts."
                )
    yield from _parents(jobs)
    yield from _limits(rankings)


def _parents(jobs: Sequence[Job]) -> Iterator[str]:
    names = {str(job.folder.resolve()): job.name for job in jobs if job.folder is not None}
    for job in jobs:
        if parent := job.result.parent:
            name = names.get(str(parent.get("run")), parent.get("run"))
            yield (
                f"{job.name} continues {name} from step {parent.get('step')}: its costs include "
                "those of that run."
            )


def _limits(rankings: Sequence[Ranking]) -> Iterator[str]:
    limits = sorted({limit(job) for ranking in rankings for job in ranking.jobs})
    if limits and limits != [100]:
        yield (
            f"AP counts up to {' or '.join(map(str, limits))} detections per image and class; "
            "COCO uses 100."
        )
