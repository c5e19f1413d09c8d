"""`maskrcnn-lit compare`: one report on many runs: tables, curves, trade-offs, significance
tests.
"""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.write import write_comparison
from maskrcnn_lit.runs.folder import check_output_folder


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compare; `config` is conf/compare.yaml composed with `overrides`."""
    several = config.runs if isinstance(config.runs, ListConfig) else [config.runs]
    if not several:
        raise UserError("runs=[] is empty: give one folder, or several as runs=[A,B]")
    check_output_folder(config.out, overwrite=config.overwrite, option="out")
    sources = [Path(str(source)).expanduser() for source in several]
    page = write_comparison(
        sources,
        Path(config.out) if config.out is not None else sources[0] / "report",
        metric=None if config.metric is None else f"val/{config.metric}",
    )
    print(
        f"Report: {page}; in the same folder: report.md, results.csv, curves.csv, tables.tex, "
        "references.bib and plots/"
    )
