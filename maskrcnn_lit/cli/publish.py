"""`maskrcnn-lit publish`: a trained run for others, as a folder or on the Hugging Face hub."""

from omegaconf import DictConfig

from maskrcnn_lit.launch.publish import publish


def run(config: DictConfig, overrides: list[str]) -> None:
    """Publish; `config` is conf/publish.yaml composed with `overrides`."""
    where = publish(config)
    source = config.to
    print(f"Published to {where}. In Python: maskrcnn_lit.load_model({source!r})")
