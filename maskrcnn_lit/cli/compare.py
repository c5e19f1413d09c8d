"""`maskrcnn-lit compare`: one report on many runs: tables, curves, trade-offs, significance
tests.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.pivot import Request
from maskrcnn_lit.report.comparison.settings import APS
from maskrcnn_lit.report.comparison.write import write_comparison
from maskrcnn_lit.runs.folder import check_output_folder


def run(config: DictConfig, overrides: list[str]) -> None:
    """Compare; `config` is conf/compare.yaml composed with `overrides`."""
    several = config.runs if isinstance(config.runs, ListConfig) else [config.runs]
    if not several:
        raise UserError("runs=[] is empty: give one folder, or several as runs=[A,B]")
    check_output_folder(config.out, overwrite=config.overwrite, option="out")
    sources = [Path(str(source)).expanduser() for source in several]
    metric, table = asked(config)
    page = write_comparison(
        sources,
        Path(config.out) if config.out is not None else sources[0] / "report",
        metric=metric,
        table=table,
        baselines=[Path(folder).expanduser() for folder in _several(config.baseline)],
    )
    print(
        f"Report: {page}; in the same folder: report.md, results.csv, curves.csv, tables.tex, "
        f"references.bib and plots/{'' if table is None else ', table.tex and table.csv'}"
    )


def asked(config: DictConfig) -> tuple[str | None, Request | None]:
    """The metric that ranks the runs, and the table that is asked for, if any."""
    metrics, rows, columns = map(_several, (config.metric, config.rows, config.columns))
    ranks = [full for name in metrics for full in APS if name in (full, full[len("val/") :])]
    if not rows:
        others = [name for name in metrics if name not in APS and f"val/{name}" not in APS]
        if columns:
            raise UserError(f"columns={columns[0]} needs rows: add rows=OPTION")
        if others:
            raise UserError(
                f"metric={others[0]} ranks no runs, mask_ap or box_ap do: add rows=OPTION for a "
                "table of it"
            )
        return (ranks[0] if ranks else None), None
    request = Request(rows, columns, metrics, config.seeds)
    return (ranks[0] if ranks else None), request


def _several(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value if isinstance(value, ListConfig) else [value]))
