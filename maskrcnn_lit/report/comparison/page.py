"""The layout of the comparison as HTML and Markdown. Its content comes from tables.py and
sentences.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from maskrcnn_lit.errors import plural
from maskrcnn_lit.evaluation.bootstrap import Resampled
from maskrcnn_lit.report import elements as html
from maskrcnn_lit.report.comparison.examples import SCORE, Example
from maskrcnn_lit.report.comparison.plots import AGAINST, CELLS, COSTS, CURVES
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
    markdown,
    score_rows,
    setting_rows,
)
from maskrcnn_lit.report.format import number

REPRODUCE = (
    "These commands train the jobs again, in new folders. `maskrcnn-lit reproduce "
    "run=RUN` "
    "runs a finished job again from its folder, and compares the results."
)

Pngs = Mapping[str, tuple[bytes, bytes]]  # name of a plot -> light, dark


@dataclass(frozen=True)
class Ranked:
    """A ranking with its plots and examples. prefix: of the file names of its plots."""

    ranking: Ranking
    resampled: Mapping[str, Resampled]
    plots: Pngs
    examples: Sequence[Example]
    prefix: str = ""


@dataclass(frozen=True)
class Report:
    """The content of the page. questions, commands: of the sweeps; notes: problems, with their
    reasons.
    """

    title: str
    written: str
    jobs: Sequence[Job]
    ranked: Sequence[Ranked]
    questions: Sequence[str] = ()
    commands: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)

    @property
    def rankings(self) -> list[Ranking]:
        return [ranked.ranking for ranked in self.ranked]

    @property
    def numbers(self) -> dict[str, int]:
        return {job.name: i for i, job in enumerate(self.jobs, start=1)}


def build_page(report: Report) -> str:
    parts: dict[str, tuple[str, list[str]]] = {"summary": ("Summary", list(_summary(report)))}
    for i, ranked in enumerate(report.ranked, start=1):
        for name, title, content in _ranking(report, ranked):
            if content:
                parts[f"{name}-{i}" if i > 1 else name] = (
                    f"{title} ({i})" if len(report.ranked) > 1 else title,
                    content,
                )
    parts["costs"] = ("Costs", list(_costs(report)))
    if any(job.status != "finished" for job in report.jobs):
        parts["failures"] = (
            "Not finished",
            [html.table("Jobs that have not finished", *failure_rows(report.jobs), "told")],
        )
    parts["reproduce"] = ("How to reproduce each row", list(_reproduce(report)))
    parts["about"] = ("About this comparison", list(_about(report)))
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, (title, _) in parts.items())
    head = (
        f"<header>\n<h1>{escape(report.title)}</h1>\n"
        + "\n".join(html.paragraph(question) for question in report.questions)
        + html.paragraph(f"{counts(report.jobs)} {report.written}", "soft")
        + f'\n<nav aria-label="Sections">{links}</nav>\n</header>\n<main class="comparison">'
    )
    body = [html.section(name, title, *content) for name, (title, content) in parts.items()]
    return html.page(report.title, [head, *body, "</main>"])


def build_markdown(report: Report) -> str:
    """The report as Markdown, without images; plots are linked as files."""
    lines = [f"# {report.title}", *report.questions, f"{counts(report.jobs)} {report.written}"]
    lines.append(
        "\n".join(f"- {text}" for text in [*report.notes, *cautions(report.jobs, report.rankings)])
    )
    for ranked in report.ranked:
        ranking = ranked.ranking
        lines.append(f"## {ranking.title[0].upper()}{ranking.title[1:]}")
        lines.append(
            "\n".join(f"- {text}" for text in ranking_sentences(ranking, ranked.resampled))
        )
        lines += [markdown(*setting_rows(ranking)), markdown(*score_rows(ranking, report.numbers))]
        lines.append("\n".join(f"- {text}" for text in differences(ranking, ranked.resampled)))
        lines += [f"![{name}](plots/{ranked.prefix}{name}.png)" for name in ranked.plots]
    lines += ["## Costs", markdown(*cost_rows(report.jobs))]
    if any(job.status != "finished" for job in report.jobs):
        lines += ["## Not finished", markdown(*failure_rows(report.jobs))]
    lines += ["## How to reproduce each row", REPRODUCE, _commands(report.jobs)]
    lines += ["## About", *DEFINITIONS]
    return "\n\n".join(line for line in lines if line) + "\n"


def _commands(jobs: Sequence[Job]) -> str:
    return "\n".join(f"{i}. `{command(job)}`" for i, job in enumerate(jobs, start=1))


def _summary(report: Report) -> Iterator[str]:
    yield html.tiles(_tiles(report))
    sentences = [
        text
        for ranked in report.ranked
        for text in ranking_sentences(ranked.ranking, ranked.resampled)
    ]
    yield html.bullets([*sentences, *cautions(report.jobs, report.rankings), *report.notes])


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


def _ranking(report: Report, ranked: Ranked) -> Iterator[tuple[str, str, list[str]]]:
    """Name, title, content of each section about a ranking."""
    ranking, plots = ranked.ranking, ranked.plots
    ap = APS[ranking.ap]
    best_first = html.table("Settings by AP: means over seeds", *setting_rows(ranking))
    bars = _figures(
        plots, {"scores": f"{ap} of each setting: a dot for each seed, the bar is their mean"}
    )
    yield (
        "settings",
        "Settings",
        [html.paragraph(f"On the {ranking.title}.", "soft"), *bars, best_first],
    )
    message = differences(ranking, ranked.resampled)
    yield (
        "differences",
        "Differences from the best setting",
        [html.bullets(message)] if message else [],
    )
    yield "jobs", "Jobs", [html.table("Every scored job", *score_rows(ranking, report.numbers))]
    curves = _figures(
        plots, {f"curve_{column.replace('/', '_')}": title for column, title in CURVES.items()}
    )
    yield (
        "curves",
        "Curves over epochs",
        _captioned("Mean over seeds, in a band from the lowest to the highest seed.", curves),
    )
    costs = _figures(
        plots, {f"cost_{name}": f"{ap} against {title}" for name, (title, _) in COSTS.items()}
    )
    letters = (
        "Each setting by its letter in the table of settings, with a bar from its lowest to "
        "its highest seed. Diamonds are the Pareto front: no cheaper setting is better."
    )
    yield "cost", f"{_upper(ap)} against cost", _captioned(letters, costs)
    varied = _figures(
        plots, {name: f"{ap} against {title}" for name, (_, title) in AGAINST.items()}
    )
    varied += _figures(
        plots,
        {"epochs_learning_rate": f"{ap} by epochs and learning rate, of the {CELLS} best maps"},
    )
    seeds = "Means over seeds; a bar goes from the lowest to the highest seed."
    yield "varied", f"{_upper(ap)} against what was varied", _captioned(seeds, varied)
    yield "examples", "Examples", list(_examples(ranked.examples))


def _figures(plots: Pngs, titles: Mapping[str, str]) -> list[str]:
    return [
        html.plot(*plots[name], title, _upper(title))
        for name, title in titles.items()
        if name in plots
    ]


def _captioned(text: str, figures: Sequence[str]) -> list[str]:
    return [html.paragraph(text, "soft"), html.pair(*figures)] if figures else []


def _examples(examples: Sequence[Example]) -> Iterator[str]:
    if not examples:
        return
    yield html.paragraph(
        "The same random validation images for all runs. Detections with a score of "
        f"{SCORE:.2f} or more are drawn; the number after a name is their count.",
        "soft",
    )
    for example in examples:
        figures = [
            html.photo(jpeg, width, height, f"{example.name}, {title}", title)
            for title, jpeg, width, height in example.pictures
        ]
        yield f"<h3>{escape(example.name)} (id {example.image_id})</h3>"
        yield '<div class="side">\n' + "\n".join(figures) + "\n</div>"


def _costs(report: Report) -> Iterator[str]:
    yield html.table("Cost of each job", *cost_rows(report.jobs))
    devices = sorted(
        {str(job.result.cost["device"]) for job in report.jobs if job.result.cost.get("device")}
    )
    if devices:
        yield html.paragraph(f"Measured on {'; '.join(devices)}.", "soft")


def _reproduce(report: Report) -> Iterator[str]:
    yield html.paragraph(REPRODUCE.replace("`", ""), "soft")
    lines = [f"<li><code>{escape(command(job))}</code></li>" for job in report.jobs]
    yield '<ol class="commands">\n' + "\n".join(lines) + "\n</ol>"


def _about(report: Report) -> Iterator[str]:
    rows = [("command", text) for text in report.commands] + [("written", report.written)]
    commits = sorted({_commit(job) for job in report.jobs if job.result.commit})
    rows += [("commits", ", ".join(commits))] if commits else []
    lines = "\n".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows
    )
    yield f'<dl class="facts">\n{lines}\n</dl>'
    yield from (html.paragraph(text, "soft") for text in DEFINITIONS)
    yield html.paragraph(
        "All numbers are in results.csv and curves.csv beside this page, for a paper in tables.tex "
        "and "
        "references.bib, its plots in plots/ as PNG and PDF.",
        "soft",
    )


def _upper(title: str) -> str:
    return title if "_" in title.split()[0] else f"{title[0].upper()}{title[1:]}"


def _commit(job: Job) -> str:
    commit = job.result.commit or {}
    return f"{str(commit.get('hash'))[:12]}{' with changes' if commit.get('dirty') else ''}"
