"""A project of one's own: the code of docs/extend in a folder beside an installed wheel, trained,
killed, resumed, evaluated and predicted with, without a line changed in the package.
"""

import csv
import json
import re
import shlex
import signal
import site
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from built_wheel import run
from omegaconf import OmegaConf
from own_project import DOCS, PAGES, blocks, write_project
from PIL import Image

pytest_plugins = ("built_wheel",)
pytestmark = pytest.mark.process

SIZE = 64
STEPS = 6  # two epochs of three
OPTIONS = (
    *("model=mine", "backbone=small", "optimizer=nadam", "augment=turned", "callbacks=counted"),
    *("data=cells", "data.root=raw", "data.cache_dir=cache", "data.batch_size=2"),
    *("data.workers=0", f"data.image_size={SIZE}", "trainer=cpu", "trainer.epochs=2"),
    *("trainer.log_every_n_steps=1", "trainer.checkpoint_every_n_steps=2"),
    *("callbacks.panels=null", "callbacks.score_plots=null"),
)

KILLED = """
import os, signal, sys
from maskrcnn_lit.cli import main
from maskrcnn_lit.training.module import DetectionModule

training_step = DetectionModule.training_step

def step_or_die(self, batch, batch_idx):
    if self.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, batch, batch_idx)

DetectionModule.training_step = step_or_die
main.main(sys.argv[2:])
"""

REFUSED = """
import contextlib, io, json, sys
import maskrcnn_lit
from maskrcnn_lit import load_model
from maskrcnn_lit.cli import main
from maskrcnn_lit.errors import UserError

def said(command):
    with contextlib.redirect_stderr(io.StringIO()) as text:
        assert main.main(command) == 2
    return text.getvalue()

sentences = [said(command) for command in json.loads(sys.argv[1])]
try:
    load_model(sys.argv[2])
except UserError as error:
    sentences.append(str(error))
assert not any(name.split(".")[0] == "mylab" for name in sys.modules)
print(json.dumps([maskrcnn_lit.__file__, *sentences]))
"""

PREDICTED = """
import json, sys
from maskrcnn_lit import load_model
from maskrcnn_lit.cli import main

options = ["trust=mylab", "checkpoint=last", "score_threshold=0.0", "run_dir=predicted"]
assert main.main(["predict", f"run={sys.argv[1]}", f"source={sys.argv[2]}", *options]) == 0
model = load_model(sys.argv[1], trust=["mylab"], score_threshold=0.0, checkpoint="last")
(found,) = model.predict(sys.argv[2])
print(json.dumps({"class": type(model.model.mask_head).__name__, "found": len(found.scores)}))
"""


class Project(NamedTuple):
    """A folder with mylab/ and my_conf/, and an environment with the wheel."""

    folder: Path
    python: Path

    def command(self, *arguments: object) -> str:
        """What the installed maskrcnn-lit prints."""
        script = self.python.with_name("maskrcnn-lit")
        return run(script, *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    home = tmp_path_factory.mktemp("outside")
    folder, environment = home / "project", home / "environment"
    write_project(folder)
    draw_cells(folder / "raw")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    # torch and the others are those of this environment; a .pth file there is not read again, so
    # that the checkout stays out of sight
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return Project(folder, python)


def draw_cells(root: Path) -> None:
    """Bright squares on gray noise; the pixels of an object's file are its number."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for kind in ("images", "objects"):
            (root / part / kind).mkdir(parents=True)
        for image in range(count):
            objects = np.zeros((SIZE, SIZE), np.uint8)
            for number, (y, x) in enumerate(((4, 4), (36, 20), (10, 40))[: 1 + image % 3], 1):
                objects[y : y + 20, x : x + 16] = number
            pixels = rng.integers(40, 90, (SIZE, SIZE, 3)) + 120 * (objects > 0)[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / part / "images" / f"{image}.png")
            Image.fromarray(objects).save(root / part / "objects" / f"{image}.png")


@pytest.fixture(scope="module")
def killed(project: Project) -> Path:
    """A run that was killed in its last step."""
    train = ("train", "--config-dir", "my_conf", *OPTIONS, "run_dir=run")
    command = (project.python, "-c", KILLED, STEPS - 1, *train)
    run(*command, cwd=project.folder, code=-signal.SIGKILL)
    return project.folder / "run"


@pytest.fixture(scope="module")
def resumed(project: Project, killed: Path) -> tuple[Path, str]:
    """The run, resumed to its end, and what that printed."""
    return killed, project.command("train", f"resume={killed}", "trust=mylab")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_one_short_example(page: Path):
    files = blocks(page)
    every = re.findall(r"^```(?:python|yaml)\n", page.read_text(), re.MULTILINE)
    assert len(files) == len(every) >= 2, "a block does not begin with the name of its file"
    lines = [line for _, content in files for line in content.splitlines() if line.strip()]
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in PAGES}


def test_the_commands_of_the_pages_compose(project: Project):
    """All of them in one process, with DIR as the folder of the data."""
    commands = []
    for page in PAGES:
        for content in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S):
            commands += [shlex.split(line) for line in content.splitlines()]
    assert len(commands) >= len(PAGES)
    assert all(words[0] == "maskrcnn-lit" for words in commands)
    code = (
        "import json, sys; from maskrcnn_lit.cli import main\n"
        "for words in json.loads(sys.argv[1]): assert main.main([*words, '--cfg']) == 0, words"
    )
    whole = json.dumps([words[1:] for words in commands])
    assert "_target_: mylab." in run(project.python, "-c", code, whole, cwd=project.folder)


def test_without_trust_a_run_is_refused_in_one_sentence(project: Project, killed: Path):
    image = "raw/val/images/0.png"
    commands = [
        ["train", f"resume={killed}"],
        ["evaluate", f"run={killed}"],
        ["predict", f"run={killed}", f"source={image}"],
    ]
    script = (project.python, "-c", REFUSED, json.dumps(commands), killed)
    home, *sentences = json.loads(run(*script, cwd=project.folder).splitlines()[-1])
    assert Path(home).is_relative_to(project.python.parent.parent), "the checkout is importable"
    assert len(sentences) == 4
    for sentence in sentences:
        assert len(sentence.strip().splitlines()) == 1
        assert "trust=mylab" in sentence
        assert "mylab." in sentence


def test_a_killed_run_goes_on_with_trust(resumed: tuple[Path, str]):
    run_dir, printed = resumed
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "finished"
    assert f"resumes from step {STEPS - 2}" in printed
    for name in (
        *("backbone.Small", "box_head.FocalBoxHead", "mask_head.DiceMaskHead", "optimizer.nadam"),
        *("callbacks.WeightNorm", "metric.CountError", "augment.Rotate", "augment.Noise"),
    ):
        assert f"trust: mylab.{name} builds " in printed
    config = OmegaConf.load(run_dir / "config.yaml")
    assert config.data.augment.transforms[0]._target_ == "mylab.augment.Rotate"


def test_what_the_project_adds_is_logged(resumed: tuple[Path, str]):
    run_dir, _ = resumed
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in losses] == list(range(STEPS))
    assert all(np.isfinite(float(row["train/loss_mask_dice"])) for row in losses)
    rates = [float(row["lr/backbone"]) for row in losses]
    assert rates == pytest.approx([1e-3 * 2 / 16 * (1 - n / STEPS) ** 0.9 for n in range(STEPS)])
    assert len([row for row in rows if row["train/parameter_norm"]]) == 2  # an epoch
    errors = [float(row["val/count_error"]) for row in rows if row["val/count_error"]]
    metrics = json.loads((run_dir / "result.json").read_text())["metrics"]
    assert metrics["val/count_error"] == pytest.approx(errors[-1])
    assert "val/loss_mask_dice" in metrics
    assert 0 <= metrics["val/mask_ap"] <= 1


def test_it_is_evaluated_and_predicts_with_trust(project: Project, resumed: tuple[Path, str]):
    run_dir, _ = resumed
    image = "raw/val/images/1.png"
    trusted = (f"run={run_dir}", "trust=mylab", "checkpoint=last")
    project.command("evaluate", *trusted, "report=false", "run_dir=scored")
    scored = json.loads((project.folder / "scored" / "evaluation.json").read_text())["metrics"]
    trained = json.loads((run_dir / "result.json").read_text())["metrics"]
    for name in ("val/mask_ap", "val/box_ap50"):
        assert scored[name] == pytest.approx(trained[name], abs=1e-6)
    script = (project.python, "-c", PREDICTED, run_dir, image)
    loaded = json.loads(run(*script, cwd=project.folder).splitlines()[-1])
    found = json.loads((project.folder / "predicted" / "detections.json").read_text())
    assert loaded == {"class": "DiceMaskHead", "found": len(found)}
