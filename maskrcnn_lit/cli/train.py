"""`maskrcnn-lit train`: one training run."""

import sys

from omegaconf import DictConfig

from maskrcnn_lit.launch.train import train

WITHOUT_OPTIONS = (
    "Without options this trains a ResNet-50 on synthetic shapes, which takes hours "
    "on a CPU. For a demo of a few minutes add experiment=demo; --help lists all "
    "options"
)


def run(config: DictConfig, overrides: list[str]) -> None:
    """Train, score and draw one model; `config` is conf/train.yaml composed with `overrides`."""
    if not overrides:
        print(WITHOUT_OPTIONS, flush=True)
    train(config, overrides, command=sys.argv)
