"""`maskrcnn-lit top`: the jobs of a sweep in the terminal, while it runs."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.launch.top import watch


def run(config: DictConfig, overrides: list[str]) -> None:
    """Show the jobs until they have ended, or Ctrl-C; `config` is conf/top.yaml composed with
    `overrides`.
    """
    folder = Path(config.sweep_dir).expanduser()
    watch(folder, metric=config.metric, seconds=config.seconds, once=config.once)
