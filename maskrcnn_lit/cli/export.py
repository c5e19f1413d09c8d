"""`maskrcnn-lit export`: a run as files for ONNX Runtime, OpenVINO or PyTorch, certified."""

from omegaconf import DictConfig

from maskrcnn_lit.launch.export import export


def run(config: DictConfig, overrides: list[str]) -> int:
    """Export; `config` is conf/export.yaml composed with `overrides`. 1 where a bound is broken."""
    return export(config, overrides)
