"""`maskrcnn-lit backbones`: the choices of backbone=..., their costs, and their pretrained weights.

The rows come from backbones.json beside this file, so no backbone has to be built. `maskrcnn-lit
backbones measure=true` measures them (measure/backbones.py) and rewrites the file.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskrcnn_lit.config.compose import conf_dir, config_dirs
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.costs import COSTS
from maskrcnn_lit.storage.files import atomic_write
from maskrcnn_lit.terminal.table import columns, text_table

TABLE = Path(__file__).with_name("backbones.json")
CELL = 32  # pixels: FLOPs grow with the number of cells of 32 x 32 pixels


def run(config: DictConfig, overrides: list[str]) -> None:
    """Print a row for each yaml in conf/backbone; `config` is conf/backbones.yaml composed with
    `overrides`.
    """
    if config.measure:
        write_table()
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    names = choices()
    head = ["backbone", COSTS["parameters"].title, f"GFLOP at {config.size} px", "c2, c3, c4, c5"]
    cells, faults = [], []
    for choice in names:
        try:
            row = rows[choice] if choice in rows else _measured(choice)
        except UserError as error:
            faults.append(f"{choice}: {error}")
            continue
        numbers = [f"{row['parameters'] / 1e6:.1f}", f"{flops(row, config.size) / 1e9:.2f}"]
        channels = ", ".join(map(str, row["channels"]))
        cells.append([choice, *numbers, channels, _weights(choice, row)])
    lines = text_table([*head, "weights"], cells, text=(0, 3, 4), width=columns(sys.stdout))
    print("\n".join([*lines, *faults]))
    print("\nbackbone.weights=... selects weights; imagenet stands for the first name in the row.")
    print("backbone=timm takes any timm model that gives feature maps, plain transformers too:")
    print("  backbone=timm backbone.name=convnextv2_atto")
    print("  backbone=timm backbone.name=vit_small_patch16_dinov3")


def choices() -> list[str]:
    """The choices of backbone=..., including those of the user."""
    return sorted({file.stem for root in config_dirs() for file in root.glob("backbone/*.yaml")})


def flops(row: dict[str, Any], size: int) -> float:
    """FLOPs of a backbone on a `size` x `size` image; exact for multiples of 32."""
    return float(row["fixed_flops"] + row["cell_flops"] * (size / CELL) ** 2)


def write_table() -> None:
    """Measure each backbone of the package and write backbones.json."""
    names = sorted(file.stem for file in conf_dir().glob("backbone/*.yaml"))
    lines = [f'  "{name}": {json.dumps(_measured(name))}' for name in names]
    atomic_write(TABLE, "{\n" + ",\n".join(lines) + "\n}\n")


def _measured(choice: str) -> dict[str, Any]:
    from maskrcnn_lit.measure.backbones import cost  # torch, which a row of the table does not need

    return cost(choice)


def _weights(choice: str, row: dict[str, Any]) -> str:
    if choice == "timm":
        missing = " (pip install 'maskrcnn_lit[timm]')" if find_spec("timm") is None else ""
        return f"by name, from timm's hub{missing}"
    return ", ".join(row["weights"]) or "none"
