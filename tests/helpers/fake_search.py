"""A search whose jobs are `fake_objective.py`: `python fake_search.py SECONDS OVERRIDE ...`. It
writes no report.
"""

import sys
from pathlib import Path
from unittest.mock import patch

from maskrcnn_lit.launch import console, search
from maskrcnn_lit.launch.backends import Command
from maskrcnn_lit.launch.grid import Job


def command(folder: Path, job: Job) -> Command:
    words = [str(Path(__file__).with_name("fake_objective.py")), str(job.run_dir), sys.argv[1]]
    return Command(job.name, [sys.executable, "-S", *words, *job.overrides], folder / "log.txt")


def main() -> int:
    with (
        patch.object(search, "job_command", command),
        patch.object(search, "ending", lambda folder, jobs: 0),
    ):
        return search.run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(console.run_and_report_errors(main))
