"""The layout of the comparison as HTML (templates/comparison.html) and Markdown. Its content comes
from tables.py and sentences.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.bootstrap import Resampled
from maskrcnn_lit.report.comparison.examples import SCORE, Example
from maskrcnn_lit.report.comparison.pivot import Pivot, table_of, title_of
from maskrcnn_lit.report.comparison.plots import AGAINST, CELLS, CURVES, ROWS
from maskrcnn_lit.report.comparison.search import (
    SearchRecord,
    cost_rows_of,
    search_sentences,
    trial_rows,
)
from maskrcnn_lit.report.comparison.search_plots import search_titles
from maskrcnn_lit.report.comparison.sentences import (
    DEFINITIONS,
    cautions,
    counts,
    differences,
    ranking_sentences,
)
from maskrcnn_lit.report.comparison.settings import APS, Job, Ranking
from maskrcnn_lit.report.comparison.tables import (
    command,
    cost_rows,
    failure_rows,
    hidden_rows,
    markdown,
    score_rows,
    setting_rows,
)
from maskrcnn_lit.report.elements import render_page
from maskrcnn_lit.report.format import number
from maskrcnn_lit.runs.costs import COSTS, MODEL_COSTS

REPRODUCE = (
    "These commands train the jobs again, in new folders. `maskrcnn-lit reproduce "
    "run=RUN` "
    "runs a finished job again from its folder, and compares the results."
)

Pngs = Mapping[str, tuple[bytes, bytes]]  # name of a plot -> light, dark

SEARCH_TEXT = (
    "Pruned trials ended early; they are drawn at their last validation, whose score may be on "
    "fewer images. Values of a search are the best of many, so they are a little too good: train "
    "the best settings again with other seeds to compare them."
)

HIDDEN_TEXT = (
    "Recall at IoU 0.5 of objects by the share that others hide; of occluded objects (one part, a "
    "tenth or more hidden) and of separated ones (several parts) at IoU 0.75 and score 0.3. "
    "Merged: detections over several objects. Split: objects under several detections."
)


@dataclass(frozen=True)
class Ranked:
    """A ranking with its plots and examples. prefix: of the file names of its plots."""

    ranking: Ranking
    resampled: Mapping[str, Resampled]
    plots: Pngs
    examples: Sequence[Example]
    prefix: str = ""


@dataclass(frozen=True)
class Tabled:
    """A table that was asked for, and its plot: light, dark."""

    table: Pivot
    plot: tuple[bytes, bytes]


@dataclass(frozen=True)
class Searched:
    """A search with its plots. prefix: of the file names of its plots."""

    record: SearchRecord
    plots: Pngs
    prefix: str = ""


@dataclass(frozen=True)
class Report:
    """The content of the page. questions, commands: of the sweeps; notes: problems, with their
    reasons; searches: those among the sweeps.
    """

    title: str
    written: str
    jobs: Sequence[Job]
    ranked: Sequence[Ranked]
    questions: Sequence[str] = ()
    commands: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)
    table: Tabled | None = None
    searches: Sequence[Searched] = ()

    @property
    def rankings(self) -> list[Ranking]:
        return [ranked.ranking for ranked in self.ranked]

    @property
    def numbers(self) -> dict[str, int]:
        return {job.name: i for i, job in enumerate(self.jobs, start=1)}


def build_page(report: Report) -> str:
    several = len(report.ranked) > 1
    searches = {
        f"search-{i}" if i > 1 else "search": _search_part(searched)
        for i, searched in enumerate(report.searches, start=1)
    }
    parts = (
        _table_part(report.table)
        | searches
        | {
            f"{name}-{i}" if i > 1 else name: part
            | {"title": f"{part['title']} ({i})" if several else part["title"]}
            for i, ranked in enumerate(report.ranked, start=1)
            for name, part in _parts(report, ranked)
        }
    )
    failures = any(job.status != "finished" for job in report.jobs)
    sections = {
        "summary": "Summary",
        **{name: part["title"] for name, part in parts.items()},
        "costs": "Costs",
        **({"failures": "Not finished"} if failures else {}),
        "reproduce": "How to reproduce each row",
        "about": "About this comparison",
    }
    return render_page(
        "comparison.html",
        title=report.title,
        sections=sections,
        questions=report.questions,
        lead=f"{counts(report.jobs)} {report.written}",
        tiles=list(_tiles(report)),
        sentences=_sentences(report),
        parts=parts,
        costs=cost_rows(report.jobs),
        devices=_devices(report),
        failures=failure_rows(report.jobs) if failures else None,
        reproduce=REPRODUCE.replace("`", ""),
        commands=[command(job) for job in report.jobs],
        facts=_facts(report),
        definitions=DEFINITIONS,
    )


def build_markdown(report: Report) -> str:
    """The report as Markdown, without images; plots are linked as files."""
    lines = [f"# {report.title}", *report.questions, f"{counts(report.jobs)} {report.written}"]
    lines.append(
        "\n".join(f"- {text}" for text in [*report.notes, *cautions(report.jobs, report.rankings)])
    )
    if report.table is not None:
        table = report.table.table
        head, rows, bold = table_of(table)
        for i, j in bold:
            rows[i][j] = f"**{rows[i][j]}**"
        lines += ["## Table", table.caption, markdown(head, rows), "![table](plots/table.png)"]
    for searched in report.searches:
        lines += _search_lines(searched)
    for ranked in report.ranked:
        ranking = ranked.ranking
        lines.append(f"## {ranking.title[0].upper()}{ranking.title[1:]}")
        lines.append(
            "\n".join(f"- {text}" for text in ranking_sentences(ranking, ranked.resampled))
        )
        lines += [markdown(*setting_rows(ranking)), markdown(*score_rows(ranking, report.numbers))]
        if (hidden := hidden_rows(ranking, report.numbers))[1]:
            lines.append(markdown(*hidden))
        lines.append("\n".join(f"- {text}" for text in differences(ranking, ranked.resampled)))
        lines += [f"![{name}](plots/{ranked.prefix}{name}.png)" for name in ranked.plots]
    lines += ["## Costs", markdown(*cost_rows(report.jobs))]
    if any(job.status != "finished" for job in report.jobs):
        lines += ["## Not finished", markdown(*failure_rows(report.jobs))]
    lines += ["## How to reproduce each row", REPRODUCE, _commands(report.jobs)]
    lines += ["## About", *DEFINITIONS]
    return "\n\n".join(line for line in lines if line) + "\n"


def _table_part(tabled: Tabled | None) -> dict[str, dict[str, Any]]:
    if tabled is None:
        return {}
    head, rows, _ = table_of(tabled.table)
    title = f"Table: {', '.join(map(title_of, tabled.table.request.metrics))}"
    return {
        "table": {
            "title": title,
            "kind": "settings",
            "text": tabled.table.caption,
            "figures": [(tabled.plot, title, title)],
            "table": (title, head, rows),
        }
    }


def _commands(jobs: Sequence[Job]) -> str:
    return "\n".join(f"{i}. `{command(job)}`" for i, job in enumerate(jobs, start=1))


def _sentences(report: Report) -> list[str]:
    sentences = [
        text
        for ranked in report.ranked
        for text in ranking_sentences(ranked.ranking, ranked.resampled)
    ]
    return [*sentences, *cautions(report.jobs, report.rankings), *report.notes]


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    finished = sum(job.status == "finished" for job in report.jobs)
    yield "finished", f"{finished} of {len(report.jobs)}", "jobs"
    for ranking in report.rankings:
        best = ranking.settings[0]
        mean = best.mean(ranking.ap)
        seeds = plural(len(best.values(ranking.ap)), "seed")
        yield (
            f"best {APS[ranking.ap]}",
            number(mean.value if mean else None),
            f"{best.label}, {seeds}, {ranking.title}",
        )


def _parts(report: Report, ranked: Ranked) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each section about a ranking; the template shows it by its "kind"."""
    ranking, plots = ranked.ranking, ranked.plots
    ap = APS[ranking.ap]
    bars = {"scores": f"{ap} of each setting: a dot for each seed, the bar is their mean"}
    yield (
        "settings",
        {
            "title": "Settings",
            "kind": "settings",
            "text": f"On the {ranking.title}.",
            "figures": _figures(plots, bars),
            "table": ("Settings by AP: means over seeds", *setting_rows(ranking)),
        },
    )
    if message := differences(ranking, ranked.resampled):
        center = "the best setting" if ranking.baseline is None else ranking.baseline.label
        title = f"Differences from {center}"
        yield "differences", {"title": title, "kind": "sentences", "text": "", "sentences": message}
    rows = score_rows(ranking, report.numbers)
    yield (
        "jobs",
        {"title": "Jobs", "kind": "table", "text": "", "table": ("Every scored job", *rows)},
    )
    hidden = hidden_rows(ranking, report.numbers)
    if hidden[1]:
        table = ("Recall by hidden share, merged and split objects", *hidden)
        yield (
            "hidden",
            {"title": "Hidden objects", "kind": "table", "text": HIDDEN_TEXT, "table": table},
        )
    for name, title, text, titles in _plotted(ap):
        if figures := _figures(plots, titles):
            yield name, {"title": title, "kind": "figures", "text": text, "figures": figures}
    if ranked.examples:
        text = (
            "The same random validation images for all runs. Detections with a score of "
            f"{SCORE:.2f} or more are drawn; the number after a name is their count."
        )
        yield (
            "examples",
            {"title": "Examples", "kind": "examples", "text": text, "examples": ranked.examples},
        )


def _search_part(searched: Searched) -> dict[str, Any]:
    """The section of a search."""
    record = searched.record
    return {
        "title": "Search",
        "kind": "search",
        "text": SEARCH_TEXT,
        "sentences": search_sentences(record),
        "figures": _figures(searched.plots, search_titles(record)),
        "tables": [
            ("What the search cost", *cost_rows_of(record)),
            ("Every trial, the best first", *trial_rows(record)),
        ],
    }


def _search_lines(searched: Searched) -> list[str]:
    """The section of a search, as Markdown."""
    record = searched.record
    return [
        "## Search",
        "\n".join(f"- {text}" for text in search_sentences(record)),
        markdown(*cost_rows_of(record)),
        markdown(*trial_rows(record)),
        *(f"![{name}](plots/{searched.prefix}{name}.png)" for name in searched.plots),
    ]


def _plotted(ap: str) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """Name, title and text of each section of plots, and the plots with their titles."""
    yield (
        "curves",
        "Curves over epochs",
        f"Mean over seeds, in a band from the lowest to the highest seed. At most the {ROWS} best "
        "settings are drawn.",
        {f"curve_{column.replace('/', '_')}": title for column, title in CURVES.items()},
    )
    yield (
        "cost",
        f"{_upper(ap)} against cost",
        "Each setting by its letter in the table of settings, with a bar from its lowest to its "
        "highest seed. Diamonds are the Pareto front: no cheaper setting is better.",
        {f"cost_{name}": f"{ap} against {COSTS[name].title}" for name in MODEL_COSTS},
    )
    yield (
        "varied",
        f"{_upper(ap)} against what was varied",
        "Means over seeds; a bar goes from the lowest to the highest seed.",
        {
            **{name: f"{ap} against {title}" for name, (_, title) in AGAINST.items()},
            "epochs_learning_rate": f"{ap} by epochs and learning rate, of the {CELLS} best maps",
        },
    )


def _figures(plots: Pngs, titles: Mapping[str, str]) -> list[tuple[tuple[bytes, bytes], str, str]]:
    """Images, what can be seen in them, and caption, of the plots that there are."""
    return [(plots[name], title, _upper(title)) for name, title in titles.items() if name in plots]


def _devices(report: Report) -> list[str]:
    devices = {job.result.cost.get("device") for job in report.jobs}
    return sorted(str(device) for device in devices if device)


def _facts(report: Report) -> list[tuple[str, str]]:
    rows = [("command", text) for text in report.commands] + [("written", report.written)]
    commits = sorted({_commit(job) for job in report.jobs if job.result.commit})
    return [*rows, *([("commits", ", ".join(commits))] if commits else [])]


def _upper(title: str) -> str:
    return title if "_" in title.split()[0] else f"{title[0].upper()}{title[1:]}"


def _commit(job: Job) -> str:
    commit = job.result.commit or {}
    return f"{str(commit.get('hash'))[:12]}{' with changes' if commit.get('dirty') else ''}"
