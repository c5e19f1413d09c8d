"""The plots of a comparison show the numbers of the jobs; what does not vary has none."""

import io

import numpy as np
import pytest
from colored import colors_of
from comparison_sample import job
from PIL import Image

from maskrcnn_lit.report.comparison.plots import (
    ROWS,
    curves,
    heat_map,
    over_epochs,
    plots_of,
    scores,
    series,
)
from maskrcnn_lit.report.comparison.settings import Ranking, rankings
from maskrcnn_lit.report.theme import DARK, LIGHT, render

CURVE = (
    {"epoch": 0, "train/loss": 3.0},
    {"epoch": 0, "train/loss": 1.0},
    {"epoch": 0, "val/mask_ap": 0.1},
    {"epoch": 1, "train/loss": 0.5},
    {"epoch": 1, "val/mask_ap": 0.2},
    {"epoch": 2, "val/mask_ap": 0.25},  # of all images, after the end
)


def ranking(**more) -> Ranking:
    made = []
    for i, name in enumerate(("resnet18", "resnet50")):
        config = {"backbone": {"name": name}, "trainer": {"epochs": 2}}
        curve = [row | {k: v + i for k, v in row.items() if k != "epoch"} for row in CURVE]
        made += [
            job(
                f"{name}{s}",
                f"backbone={name}",
                ap=0.3 + i / 10 + s / 100,
                seed=s,
                config=config,
                curves=curve,
                **more,
            )
            for s in (1, 2)
        ]
    (found,) = rankings(made)
    return found


def test_epochs_count_from_one_and_the_validation_after_the_end_is_left_out():
    one = ranking().jobs[-1]
    assert over_epochs(one, "train/loss") == [(1, 2.0), (2, 0.5)]
    assert over_epochs(one, "val/mask_ap") == [(1, 0.1), (2, 0.2)]
    assert over_epochs(one, "val/none") == []


def test_what_varies_has_a_plot_and_nothing_else():
    assert list(plots_of(ranking())) == ["scores", "curve_train_loss", "curve_val_mask_ap"]
    (single,) = rankings([job("a", ap=0.1)])
    assert plots_of(single) == {}
    costs = [
        job(n, f"x={n}", ap=0.1, cost={"parameters": i, "flops": None}, config={"x": n})
        for i, n in enumerate("ab")
    ]
    (found,) = rankings(costs)
    assert list(plots_of(found)) == ["scores", "cost_parameters"]


def test_a_curve_of_a_single_epoch_has_no_plot():
    points = [{"epoch": 0, "train/loss": 2.0}, {"epoch": 1, "train/loss": 1.0}]
    points += [{"epoch": 1, "val/mask_ap": 0.2}]  # validated once
    config = {"trainer": {"epochs": 2}}
    jobs = [
        job(str(s), "a=1", ap=0.2, seed=s, config=config, curves=points[: s + 1]) for s in (1, 2)
    ]
    (found,) = rankings(jobs)
    assert list(plots_of(found)) == ["curve_train_loss"]


@pytest.mark.parametrize(
    ("epochs", "rates", "expected"),
    [
        ((1, 1), (0.1, 0.1), []),
        ((1, 2), (0.1, 0.1), ["epochs"]),
        ((1, 1), (0.1, 0.2), ["learning_rate"]),
        ((1, 2), (0.1, 0.2), ["epochs_learning_rate"]),
    ],
)
def test_a_heat_map_stands_only_where_epochs_and_learning_rate_vary(epochs, rates, expected):
    made = []
    for i, (epoch, rate) in enumerate(zip(epochs, rates, strict=True)):
        config = {"trainer": {"epochs": epoch}, "optimizer": {"lr": rate}, "x": i}
        made.append(
            job(str(i), f"trainer.epochs={epoch}", f"optimizer.lr={rate}", ap=0.1, config=config)
        )
    (found,) = rankings(made)
    assert [name for name in plots_of(found) if name != "scores"] == expected


def test_scores_show_each_seed_and_the_mean():
    (axes,) = scores(ranking(), LIGHT).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.315, 0.415])
    assert [list(line.get_xdata()) for line in axes.lines] == [
        pytest.approx([0.31, 0.32]),
        pytest.approx([0.41, 0.42]),
    ]
    assert [text.get_text() for text in axes.texts] == ["0.315", "0.415"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["resnet18", "resnet50"]


def test_a_long_name_takes_several_lines():
    names = ("a_backbone_of_a_long_name", "another_backbone_of_a_long_name")
    made = [
        job(n, f"backbone={n}", "data.train_images=1000", ap=0.1, config={"backbone": n})
        for n in names
    ]
    made.append(
        job(
            "x", "backbone=x", "data.train_images=50", ap=0.2, config={"data": {"train_images": 50}}
        )
    )
    (found,) = rankings(made)
    (axes,) = scores(found, LIGHT).axes
    assert axes.get_yticklabels()[-1].get_text() == "x, train_images=50"
    assert "a_backbone_of_a_long_name,\ntrain_images=1000" in [
        label.get_text() for label in axes.get_yticklabels()
    ]


def test_of_many_settings_the_best_are_drawn():
    made = [job(str(i), f"x={i}", ap=i / 100, config={"x": i}) for i in range(ROWS + 5)]
    (found,) = rankings(made)
    (axes,) = scores(found, LIGHT).axes
    assert len(axes.patches) == ROWS
    assert axes.get_yticklabels()[-1].get_text() == str(ROWS + 4)


def test_curves_are_means_in_a_band_of_the_seeds():
    (axes,) = curves(ranking(), LIGHT, column="train/loss", title="training loss").axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"resnet18": [2.0, 0.5], "resnet50": [3.0, 1.5]}
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    assert len(axes.collections) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "training loss")


def test_seeds_of_which_one_stopped_early_are_compared_over_what_both_have():
    found = ranking()
    short = found.settings[0].jobs[0]
    object.__setattr__(short, "curves", short.curves[:3])
    (axes,) = curves(found, LIGHT, column="train/loss", title="training loss").axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1]]


@pytest.mark.long
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_plot_can_be_drawn(theme):
    for draw in plots_of(ranking()).values():
        image = np.asarray(Image.open(io.BytesIO(render(draw, ranking(), theme))).convert("RGB"))
        assert image.shape[1] == 960
        assert len(colors_of(image)) > 10


def test_settings_whose_long_labels_begin_alike_have_lines_and_maps_of_their_own():
    jobs = []
    for ending in ("a", "b"):
        backbone = f"a_backbone_whose_name_is_longer_than_a_plot_has_room_for_{ending}"
        for images in (60, 200):
            options = (f"backbone={backbone}", f"data.train_images={images}")
            train = {"images": images, "ids_sha256": "x"}
            one = job(f"{ending}{images}", *options, ap=0.2, data={"train": train})
            one.config["backbone"] = {"name": backbone}
            one.config["data"] = {"train_images": images}
            one.config["optimizer"] = {"lr": 0.1}
            one.config["trainer"] = {"epochs": 5}
            jobs.append(one)
    (ranking,) = rankings(jobs)
    lines = series(ranking, "data_size")
    assert [[x for x, _ in members] for members in lines.values()] == [[60, 200], [60, 200]]
    maps = heat_map(ranking, LIGHT).axes
    assert len({ax.get_title() for ax in maps}) == len(maps) == 4
    for one in jobs:
        object.__setattr__(one, "curves", ({"epoch": 0.0, "train/loss": 1.0},))
    (ax,) = curves(ranking, LIGHT, column="train/loss", title="training loss").axes
    assert len({line.get_label() for line in ax.lines}) == len(ax.lines) == 4
