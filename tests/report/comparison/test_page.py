"""The page and the Markdown of a comparison: every section, every number of the data, nothing that
is loaded.
"""

import pytest
from comparison_sample import job
from report_sample import Page

from maskrcnn_lit.report.comparison.examples import Example
from maskrcnn_lit.report.comparison.page import Ranked, Report, build_markdown, build_page
from maskrcnn_lit.report.comparison.plots import plots_of
from maskrcnn_lit.report.comparison.sentences import (
    DEFINITIONS,
    cautions,
    differences,
    ranking_sentences,
)
from maskrcnn_lit.report.comparison.settings import Job, rankings
from maskrcnn_lit.report.comparison.tables import (
    command,
    cost_rows,
    failure_rows,
    score_rows,
    setting_rows,
)
from maskrcnn_lit.runs.result import RunResult


def report(*more: Job, **given) -> Report:
    jobs = []
    for name, ap in (("small <b>", 0.2), ("large", 0.3)):
        for seed in (1, 2):
            config = {"backbone": {"name": name}, "trainer": {"epochs": 2}}
            curve = [{"epoch": 0, "val/mask_ap": ap / 2}, {"epoch": 1, "val/mask_ap": ap}]
            cost = {"parameters": len(name) * 10**6}
            one = job(
                f"{name}-{seed}",
                f"backbone={name}",
                f"seed={seed}",
                ap=ap + seed / 100,
                seed=seed,
                config=config,
                curves=curve,
                cost=cost,
                metrics={"val/roi_accuracy": ap},
                commit={"hash": "ab" * 20, "dirty": True},
            )
            jobs.append(one)
    jobs += more
    found = rankings(jobs)
    ranked = []
    for i, ranking in enumerate(found):
        plots = {
            name: (f"{name} light".encode(), f"{name} dark".encode()) for name in plots_of(ranking)
        }
        examples = [
            Example(
                "7.png", 7, [("ground truth: 3", b"jpeg", 64, 48), ("large: 2", b"jpeg", 64, 48)]
            )
        ] * (i == 0)
        ranked.append(Ranked(ranking, {}, plots, examples, f"{i + 1}_" if i else ""))
    return Report("Comparison of <it>", "2026-11-27 12:00", jobs, ranked, **given)


def failed() -> tuple[Job, Job]:
    broken = job(
        "broken",
        "backbone=<x>",
        status="failed",
        error="UserError: no memory: take a smaller batch",
    )
    return broken, Job("never", None, ("backbone=y", "seed=3"), {}, RunResult(status="failed"))


def test_every_section_stands_and_is_linked():
    page = Page(build_page(report(*failed())))
    assert page.ids == [
        *(
            "summary",
            "settings",
            "differences",
            "jobs",
            "curves",
            "cost",
            "examples",
            "costs",
            "failures",
            "reproduce",
            "about",
        )
    ]
    assert [link for link in page.loads if not link.startswith("data:")] == [
        f"#{name}" for name in page.ids
    ]
    assert "failures" not in Page(build_page(report())).ids


def test_the_tables_are_those_of_the_data():
    made = report(*failed())
    page, ranking = Page(build_page(made)), made.rankings[0]
    for caption, (head, rows) in {
        "Settings by AP: means over seeds": setting_rows(ranking),
        "Every scored job": score_rows(ranking, made.numbers),
        "Cost of each job": cost_rows(made.jobs),
        "Jobs that have not finished": failure_rows(made.jobs),
    }.items():
        assert page.tables[caption] == [head, *rows]
    assert (
        page.tables["Jobs that have not finished"][1][-1]
        == "UserError: no memory: take a smaller batch"
    )


def test_the_sentences_stand_on_the_page_and_in_the_markdown():
    made = report(
        *failed(),
        questions=["Which one?"],
        commands=["maskrcnn-lit train -m"],
        notes=["b cannot be read"],
    )
    page, text = Page(build_page(made)).text, build_markdown(made)
    told = [
        *ranking_sentences(made.rankings[0], {}),
        *differences(made.rankings[0], {}),
        *cautions(made.jobs, made.rankings),
        "Which one?",
        "b cannot be read",
        *DEFINITIONS,
    ]
    for sentence in told:
        assert " ".join(sentence.split()) in page
        assert sentence in text
    assert "6 jobs: 4 finished, 1 failed, 1 not run." in page
    assert "maskrcnn-lit train -m" in page
    assert "ab" * 6 + " with changes" in page


def test_each_job_can_be_reproduced():
    made = report(*failed())
    page, text = Page(build_page(made)).text, build_markdown(made)
    for one in made.jobs:
        assert command(one) in page
        assert f"`{command(one)}`" in text
    assert "maskrcnn-lit reproduce run=RUN" in page


def test_plots_and_examples_stand_in_light_and_dark():
    made = report()
    (ranked,) = made.ranked
    assert set(ranked.plots) == {
        "scores",
        "curve_val_mask_ap",
        "cost_parameters",
    }
    page = Page(build_page(made))
    assert len(page.images) == 2 * len(ranked.plots) + 2
    assert "7.png (id 7) ground truth: 3 large: 2" in page.text
    for name in ranked.plots:
        assert f"(plots/{name}.png)" in build_markdown(made)


def test_a_second_ranking_has_sections_of_its_own():
    other = [
        job(
            f"o{s}",
            f"backbone=o{s}",
            ap=0.9,
            config={"backbone": {"name": f"o{s}"}},
            data={"name": "easy"},
        )
        for s in "ab"
    ]
    made = report(*other)
    page = Page(build_page(made))
    assert {"settings", "settings-2", "jobs-2"} <= set(page.ids)
    assert "Settings (2) On the 50 validation images of easy." in page.text
    assert "They are 2 rankings" in page.text
    assert "(plots/2_scores.png)" in build_markdown(made)


@pytest.mark.parametrize("text", [build_page(report(*failed())), build_page(report())])
def test_the_page_loads_nothing_and_runs_nothing(text: str):
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "url(" not in text
    assert all(link.startswith(("data:image/", "#")) for link in Page(text).loads)
    assert "small &lt;b&gt;" in text
    assert "small <b>" not in text
