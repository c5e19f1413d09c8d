"""`maskrcnn-lit train`: one training run."""

import sys

from omegaconf import DictConfig

from maskrcnn_lit.launch.train import train


def run(config: DictConfig, overrides: list[str]) -> None:
    """Train, score and draw one model; `config` is conf/train.yaml composed with `overrides`."""
    train(config, overrides, command=sys.argv)
