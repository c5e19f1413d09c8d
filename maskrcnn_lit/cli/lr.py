"""`maskrcnn-lit lr`: a learning rate to start from, by a range test."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import to_dict
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.launch.rate_test import FEWEST, rate_test
from maskrcnn_lit.report.rate_plot import rate_plot
from maskrcnn_lit.report.theme import LIGHT, render
from maskrcnn_lit.runs.folder import check_output_file
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.storage.files import atomic_write, write_json


def run(config: DictConfig, overrides: list[str]) -> None:
    """Test, print the suggestion, and draw; `config` is conf/lr.yaml composed with `overrides`."""
    check_whole(FEWEST, steps=config.steps)
    check_whole(0, seed=config.seed)
    if config.out is not None and Path(config.out).suffix != ".png":
        raise UserError(f"out={config.out} must end with .png: the plot is a PNG")
    record = None if config.out is None else str(Path(config.out).with_suffix(".json"))
    for file in (config.out, record):
        check_output_file(file, overwrite=config.overwrite)
    test = rate_test(config)
    print(
        f"{len(test.rates)} steps with optimizer.lr from {test.rates[0]:.2g} to "
        f"{test.rates[-1]:.2g}: loss {test.smooth[0]:.3f}, at its least {min(test.smooth):.3f}, at "
        f"the end {test.smooth[-1]:.3f} (moving averages)"
    )
    if test.suggested is None:
        print("The loss never falls: test lower rates (low=...) or more steps (steps=...)")
    else:
        rate = test.suggested
        print(
            f"It falls most steeply at optimizer.lr={rate:g}, a rate to start from. To find a "
            f"better one: train -m optimizer.lr={rate / 3:.2g},{rate:g},{rate * 3:.2g}"
        )
    if config.out is not None and record is not None:
        atomic_write(Path(config.out), render(rate_plot, test._asdict(), LIGHT))
        about = {"versions": package_versions(), "commit": package_commit()}
        write_json(Path(record), {**test._asdict(), **about, "config": to_dict(config)})
        print(f"Written to {config.out} and {record}")
