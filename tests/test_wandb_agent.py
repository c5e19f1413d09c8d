"""The commands that `wandb agent` makes of the yaml in docs/guide/sweeps.md, by its own code."""

import re
import types
from typing import Any

import pytest
import yaml
from repository import REPOSITORY

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.cli import train

SWEEP = yaml.safe_load(
    re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/guide/sweeps.md").read_text(), re.S)[0]
)
VALUES = [
    {"optimizer.lr": 0.00025, "backbone": "resnet18", "data.image_size": 128},
    {"optimizer.lr": 1e-05, "backbone": "mobilenet_v3_small", "data.image_size": "[128,160]"},
]


def words_of(command: list[str], values: dict[str, Any]) -> list[str]:
    """The command line of a run, as `Agent._command_run` of wandb_agent.py puts it together."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    filled = sweeps.create_sweep_command_args({"args": {k: {"value": values[k]} for k in values}})
    filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": ["maskrcnn-lit"]}
    words: list[str] = []
    for word in sweeps.create_sweep_command(command):
        words += filled[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that `train` would have run with."""
    found: list[Any] = []
    monkeypatch.setattr(train, "run", lambda config, overrides: found.append(config))
    return found


@pytest.mark.parametrize("hyphens", ["${args_no_hyphens}", "${args}"])
@pytest.mark.parametrize("values", VALUES)
def test_the_command_of_an_agent_composes(
    values: dict[str, Any], hyphens: str, configs: list[types.SimpleNamespace]
):
    assert set(values) == set(SWEEP["parameters"])
    command = [hyphens if word.startswith("${args") else word for word in SWEEP["command"]]
    env, program, *words = words_of(command, values)
    assert (env, program) == ("/usr/bin/env", "maskrcnn-lit")
    assert cli.main(words) == 0
    (config,) = configs
    assert config.optimizer.lr == values["optimizer.lr"]
    assert config.backbone.name == values["backbone"]
    assert config.data.image_size == yaml.safe_load(str(values["data.image_size"]))
    assert config.logger.wandb.project == "maskrcnn_lit"


def test_values_that_yaml_writes_in_its_own_way(configs: list[types.SimpleNamespace]):
    """True of Python, and a null in quotes."""
    values = {"model.mask_iou": True, "trainer.clip_norm": "null", "optimizer.lr": 1e-05}
    assert cli.main(words_of(SWEEP["command"], values)[2:]) == 0
    (config,) = configs
    assert config.model.mask_iou is True
    assert config.trainer.clip_norm is None


def test_the_metric_is_one_that_a_run_logs():
    assert SWEEP["metric"] == {"name": "val/mask_ap", "goal": "maximize"}
