"""`maskrcnn-lit evaluate`: COCO AP of a run, or of the results of another tool."""

from omegaconf import DictConfig

from maskrcnn_lit.launch.evaluate import evaluate


def run(config: DictConfig, overrides: list[str]) -> None:
    """Score; `config` is conf/evaluate.yaml composed with `overrides`."""
    evaluate(config, overrides)
