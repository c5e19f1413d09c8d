"""TensorBoard on the folder of a sweep: what it serves, and what a browser shows of it.

`pytest -m browser` runs the part that needs a browser; with MASKRCNN_LIT_PICTURES=DIR it leaves a
picture of each tab there.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import browser
import pytest
from PIL import Image
from tiny_commands import TINY, coco_data, environment, ground_truth, result, run_command

from maskrcnn_lit.callbacks.hparams import CHARTS
from maskrcnn_lit.data.datasets.shapes import NAMES

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.process

JOBS = {  # folder -> what its options are
    f"backbone={backbone},seed={seed}": {"backbone": backbone, "seed": seed}
    for backbone in ("mobilenet_v3_small", "resnet18", "shufflenet_v2")
    for seed in (1, 2, 3)
}
RUNS = list(JOBS)
STEPS = 2


@pytest.fixture(scope="module")
def sweep(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nine jobs of a sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    model = [text for text in TINY if not text.startswith("backbone=")]
    length = (
        f"trainer.steps={STEPS}",
        "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every_n_steps=null",
    )
    for name, options in JOBS.items():
        varied = [f"{option}={value}" for option, value in options.items()]
        run_command(
            "train", *coco_data(strange), *model, *length, *varied, f"run_dir='{folder / name}'"
        )
        shutil.rmtree(folder / name / "checkpoints")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    """Of a TensorBoard that has read the folder."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(sweep),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    server = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        found = next(
            match[0] for line in server.stdout if (match := re.search(r"http://\S+/", line))
        )
        asked(found, "runs", until=lambda runs: len(runs) == len(RUNS))
        last = {"run": RUNS[-1], "tag": "val/mask_ap"}
        asked(
            found,
            "plugin/scalars/tags",
            until=lambda tags: all(last["tag"] in tags.get(run, ()) for run in RUNS),
        )
        yield found
    finally:
        server.kill()
        server.wait()


def asked(
    address: str,
    path: str,
    post: Any = None,
    until: Callable[[Any], bool] = lambda answer: True,
    **query: str,
) -> Any:
    """What TensorBoard answers to its own page, as soon as `until` holds of it."""
    url = f"{address}data/{path}?{urlencode(query)}"
    body = None if post is None else json.dumps(post).encode()
    for _ in range(240):
        with urlopen(
            Request(url, body, {"Content-Type": "application/json"}), timeout=60
        ) as answer:
            content = answer.read()
        found = json.loads(content) if "json" in answer.headers["Content-Type"] else content
        if until(found):
            return found
        time.sleep(0.25)
    raise AssertionError(f"{url} says {found}")


def test_runs_are_named_by_what_varies(address: str):
    assert sorted(asked(address, "runs")) == RUNS


def test_scalars_are_those_of_the_run(address: str, sweep: Path):
    tags = asked(address, "plugin/scalars/tags")
    for folder, run in zip(JOBS, RUNS, strict=True):
        assert {
            "train/loss",
            "val/loss_mask",
            "val/box_ap",
            "speed/images_per_second",
            "lr/heads",
        } <= set(tags[run])
        points = asked(address, "plugin/scalars/scalars", run=run, tag="train/loss")
        assert [step for _, step, _ in points] == list(range(STEPS))
        (_, step, value), *others = asked(
            address, "plugin/scalars/scalars", run=run, tag="val/loss"
        )
        assert step == STEPS - 1
        assert not others
        assert value == pytest.approx(result(sweep / folder)["metrics"]["val/loss"], rel=1e-6)


def test_the_table_of_runs_has_options_and_final_metrics(address: str, sweep: Path):
    table = asked(
        address, "plugin/hparams/experiment", post={"experimentName": "", "includeMetrics": True}
    )
    names = [info["name"] for info in table["hparamInfos"]]
    assert names[:2] == ["backbone", "seed"], "what varies stands first"
    assert {"optimizer.lr", "data.image_size", "train_images"} <= set(names)
    metrics = [info["name"]["tag"] for info in table["metricInfos"]]
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS"],
        "colParams": [{"hparam": name} for name in names]
        + [{"metric": {"tag": tag}} for tag in metrics],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = asked(address, "plugin/hparams/session_groups", post=request)["sessionGroups"]
    rows = {group["sessions"][0]["name"]: group for group in groups}
    assert sorted(rows) == RUNS
    for (folder, options), run in zip(JOBS.items(), RUNS, strict=True):
        assert {name: rows[run]["hparams"][name] for name in options} == options
        values = {value["name"]["tag"]: value["value"] for value in rows[run]["metricValues"]}
        final = result(sweep / folder)["metrics"]
        for name in ("val/mask_ap", "val/box_ap", "val/roi_accuracy"):
            assert values[name] == pytest.approx(final[name], abs=1e-6)


def test_custom_scalars_group_losses_ap_and_speed(address: str):
    layout = asked(address, "plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == list(CHARTS)
    for category in layout["category"]:
        for chart in category["chart"]:
            assert tuple(chart["multiline"]["tag"]) == CHARTS[category["title"]][chart["title"]]
            for curves in chart["multiline"]["tag"]:
                found = asked(address, "plugin/custom_scalars/scalars", run=RUNS[0], tag=curves)
                assert found["regex_valid"]
                # 64-pixel images have no large object, and none of them has ten objects.
                absent = curves in ("val/mask_ap_", "val/ap_crowded$")
                # Two steps reach no AP, so that a class may have none.
                assert found["tag_to_events"] or absent, f"{chart['title']} is empty"
    terms = asked(address, "plugin/custom_scalars/scalars", run=RUNS[0], tag="train/loss_")[
        "tag_to_events"
    ]
    names = ("rpn_objectness", "rpn_box", "class", "box", "mask")
    assert set(terms) == {f"train/loss_{name}" for name in names}


def test_every_run_has_pictures_and_curves(address: str, strange: Path):
    tags = asked(address, "plugin/images/tags")
    expected = {f"val_images/{image['id']}" for image in ground_truth(strange)["images"]}
    for run in RUNS:
        assert set(tags[run]) == expected | {
            f"val_plots/{plot}" for plot in ("class_ap", "precision_recall", "confusion")
        }
        (picture,) = asked(address, "plugin/images/images", run=run, tag=min(expected), sample="0")
        shown = Image.open(
            io.BytesIO(asked(address, f"plugin/images/individualImage?{picture['query']}&"))
        )
        assert shown.width > 1.8 * shown.height, "ground truth | prediction"
    curves = asked(address, "plugin/pr_curves/tags")
    assert all(
        set(curves[run]) == {"pr/all classes", *(f"pr_class/{name}" for name in NAMES)}
        for run in RUNS
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.fail(f"no browser here: install one of {', '.join(browser.NAMES)}")
    with browser.page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


# tab -> what it says once it is there, besides the names of the runs
SHOWN = {
    "timeseries": ["train", "val", "speed", "val_images"],
    "scalars": ["train", "val", "speed", "lr", "memory", "gradient_norm", "update_ratio"],
    "custom_scalars": [
        *CHARTS,
        *(chart for charts in CHARTS.values() for chart in charts),
        "Matches (18)",  # two terms of the RPN, nine runs
        "Matches (45)",  # the norms of five parts
    ],
    "text": ["about", "config", "val_tables", "changed options", "image ids", "this run"],
    "images": ["val_images", "val_plots", "img "],
    "pr_curves": ["pr/all classes", *(f"pr_class/{name}" for name in NAMES)],
    "hparams": [
        "backbone",
        "seed",
        "val/mask_ap",
        "val/box_ap",
        "val/roi_accuracy",
        "mobilenet_v3_small",
    ],
}


@pytest.mark.browser
@pytest.mark.parametrize("tab", SHOWN)
def test_a_browser_shows_it(tab: str, page: browser.Page, address: str):
    page.open(f"{address}#{tab}")
    wanted = [*RUNS, *SHOWN[tab]]
    said = page.text(until=lambda text: all(word in text for word in wanted))
    if folder := os.environ.get("MASKRCNN_LIT_PICTURES"):
        page.picture(Path(folder, f"{tab}.png"))
    assert [word for word in wanted if word not in said] == [], re.findall(r"Matches .*", said)
