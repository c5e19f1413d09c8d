"""`maskrcnn-lit import`: a Mask R-CNN of another framework as a run folder of ours."""

import shutil
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.config.overrides import typed
from maskrcnn_lit.errors import plural
from maskrcnn_lit.runs.folder import check_output_folder, program
from maskrcnn_lit.runs.migration.imported import (
    EXPERIMENT,
    TABLE,
    Imported,
    import_model,
    write_imported,
)
from maskrcnn_lit.storage.files import atomic_folder
from maskrcnn_lit.terminal.table import text_table


def run(config: DictConfig, overrides: list[str]) -> None:
    """Read the config and weights, and write the folder `out`; `config` is conf/import.yaml
    composed with `overrides`.
    """
    framework = config["from"]
    check_output_folder(config.out, overwrite=config.overwrite, option="out")
    imported = import_model(
        framework, config.config, config.weights, config.classes, config.norm_eps
    )
    out = Path(config.out).absolute()
    question = f"What does a model imported from {framework} reach, trained as it was there?"
    with atomic_folder(out, replace=True, durable=False) as new:
        write_imported(imported, new, question)
    print("\n".join(message(imported, Path(config.out))))


def message(imported: Imported, out: Path) -> list[str]:
    """Lines to print: what differs, and what to do with the folder."""
    differences = [setting for setting in imported.table if setting.difference]
    same = len(imported.table) - len(differences)
    millions = sum(tensor.numel() for tensor in imported.state.values()) / 1e6
    classes = plural(len(imported.categories), "class", "classes")
    lines = [
        f"{classes}, {millions:.1f} million weights",
        f"{plural(same, 'setting')} as they were, and these differ:",
        *text_table(
            ("theirs", "here", "difference"),
            differences,
            text=(0, 1, 2),
            indent=2,
            width=shutil.get_terminal_size((100, 20)).columns,
        ),
        f"Written to {out}: config.yaml, checkpoints/best.ckpt, {EXPERIMENT},",
        f"  {TABLE} (the settings, and what became of them)",
    ]
    command = program("maskrcnn-lit")
    folder = typed("--config-dir", str(out)).replace("=", " ", 1)
    return [
        *lines,
        "Next:",
        f"  {command} predict {typed('run', str(out))} source=IMAGE_OR_FOLDER",
        f"  {command} evaluate {typed('run', str(out))} data=coco2017 data.root=DIR",
        f"  {command} train {folder} experiment=imported {typed('model.weights', out)} data=DATA",
    ]
