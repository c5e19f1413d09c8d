"""`maskrcnn-lit lr`, small."""

import json
from pathlib import Path

import pytest
from repository import REPOSITORY
from tiny_commands import TINY, run_command, shapes_data

from maskrcnn_lit.config import compose as config

pytest_plugins = ("tiny_commands",)


@pytest.mark.long
def test_rates_rise_until_the_loss_diverges(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "rate.png"
    options = ("trainer.accumulate=2", "low=1e-5", "high=1e4", "steps=36", "overwrite=true")
    run_command("lr", *shapes_data(shapes), *TINY, *options, f"out={out}")
    report = json.loads(out.with_suffix(".json").read_text())
    rates, losses = report["rates"], report["losses"]
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert 10 <= len(rates) == len(losses) < 36
    assert rates[0] == 1e-5
    assert rates[1] / rates[0] == pytest.approx(1e9 ** (1 / 35))
    assert report["config"]["trainer"]["accumulate"] == 2
    printed = capsys.readouterr().out
    assert f"{len(rates)} steps with optimizer.lr from 1e-05 to " in printed
    if report["suggested"] is not None:
        assert f"optimizer.lr={report['suggested']:g}" in printed


@pytest.mark.long
@pytest.mark.parametrize("command", ["lr", pytest.param("bench", marks=pytest.mark.slow)])
def test_it_takes_the_experiments_of_train(command: str):
    for file in sorted((REPOSITORY / "conf/experiment").glob("*.yaml")):
        config.show(command, [f"experiment={file.stem}"])
