"""The generated part of an experiment's folder, from a report of `maskrcnn-lit compare`.

    python experiments/write.py REPORT experiments/02_data_size
    python experiments/write.py REPORT experiments/12_paper_tables nuclei

Copies results.csv and the plots, and puts the report's tables between the marks <!-- compare -->
and <!-- /compare --> of README.md; what stands around them is written by hand. An experiment of
several reports names each: results_nuclei.csv, plots/nuclei_*.png, <!-- compare nuclei -->. Where
data lay on the machine of the runs becomes DIR.
"""

import re
import shutil
import sys
from pathlib import Path

END = "<!-- /compare -->"
CACHE = re.compile(r" data\.cache_dir=[^\s`,\"]+")
PLACE = re.compile(r"(?<=[=,| ])/\w[^\s`,\"|]*")


def main() -> None:
    report, folder, *names = sys.argv[1:]
    write(Path(report), Path(folder), *names)


def write(report: Path, folder: Path, name: str = "") -> None:
    """The files of `folder` that come from `report`."""
    start = f"<!-- compare {name} -->" if name else "<!-- compare -->"
    prefix = f"{name}_" if name else ""
    text = anywhere((report / "report.md").read_text(encoding="utf-8"))
    tables = "## " + text.partition("\n## ")[2].partition("\n## About")[0].strip()
    tables = tables.replace("](plots/", f"](plots/{prefix}")
    page = folder / "README.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition(start)
    if not mark:
        sys.exit(f"{page} has no line {start}: write one, and {END}, where the tables shall stand")
    after = rest.partition(END)[2]
    page.write_text(f"{before}{start}\n{tables}\n{END}{after}", encoding="utf-8")
    results = (report / "results.csv").read_text(encoding="utf-8")
    ending = f"_{name}" if name else ""
    (folder / f"results{ending}.csv").write_text(anywhere(results), encoding="utf-8")
    _copy_plots(report / "plots", folder / "plots", prefix)


def _copy_plots(source: Path, plots: Path, prefix: str) -> None:
    """The PNGs of `source` in place of those of the last time; other reports keep theirs."""
    plots.mkdir(exist_ok=True)
    named = tuple(
        f"{csv.stem.removeprefix('results_')}_" for csv in plots.parent.glob("results_*.csv")
    )
    for old in plots.iterdir():
        if old.name.startswith(prefix) if prefix else not old.name.startswith(named):
            old.unlink()
    for plot in source.glob("*.png"):
        shutil.copy(plot, plots / (prefix + plot.name))


def anywhere(text: str) -> str:
    """`text` with data.root=DIR and the like in its commands."""
    return PLACE.sub("DIR", CACHE.sub("", text))


if __name__ == "__main__":
    main()
