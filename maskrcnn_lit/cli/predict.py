"""`maskrcnn-lit predict`: see maskrcnn_lit/launch/predict.py."""

from omegaconf import DictConfig

from maskrcnn_lit.launch.predict import predict


def run(config: DictConfig, overrides: list[str]) -> None:
    predict(config)
