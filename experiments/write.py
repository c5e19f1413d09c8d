"""The generated part of an experiment's folder, from a report of `maskrcnn-lit compare`.

    python experiments/write.py REPORT experiments/02_data_size

Copies results.csv and the plots, and puts the report's tables between the marks <!-- compare -->
and <!-- /compare --> of README.md; what stands around them is written by hand. Where data lay on
the machine of the runs becomes DIR.
"""

import re
import shutil
import sys
from pathlib import Path

MARKS = ("<!-- compare -->", "<!-- /compare -->")
CACHE = re.compile(r" data\.cache_dir=[^\s`,\"]+")
PLACE = re.compile(r"(?<=[=,| ])/\w[^\s`,\"|]*")


def main() -> None:
    report, folder = map(Path, sys.argv[1:])
    text = anywhere((report / "report.md").read_text(encoding="utf-8"))
    tables = "## " + text.partition("\n## ")[2].partition("\n## About")[0].strip()
    page = folder / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{after}", encoding="utf-8")
    results = (report / "results.csv").read_text(encoding="utf-8")
    (folder / "results.csv").write_text(anywhere(results), encoding="utf-8")
    shutil.rmtree(folder / "plots", ignore_errors=True)
    others = shutil.ignore_patterns("*.pdf", "*.svg")
    shutil.copytree(report / "plots", folder / "plots", ignore=others)


def anywhere(text: str) -> str:
    """`text` with data.root=DIR and the like in its commands."""
    return PLACE.sub("DIR", CACHE.sub("", text))


if __name__ == "__main__":
    main()
