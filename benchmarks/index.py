"""Time and memory of the annotation index on a json of train2017's size, against json.load and
pycocotools.

    python benchmarks/index.py [--images 118287] [--annotations 860001] [--workers 8] [--folder DIR]

The json is made by make_index_json.py (440 MB; in DIR, or in a temporary folder). Each figure is of
a process of its own: seconds of processor time, and memory beyond what it had after its imports, in
MB.

- json.load: the file as Python objects. pycocotools: a COCO object. packing: read_instances and
write_packed.
- opening: what open_json does when the index is there. Private is memory that no other process
shares.
- workers: forked after the opening, each touches every annotation of every image. `per_worker` is
    the private memory of one; `share_growth` is the proportional set size of all of them and their
    parent, against that of one and its.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(TASKS[arguments.task](arguments.folder, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        print(json.dumps(measure(folder, arguments)), flush=True)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from make_index_json import write

    from maskrcnn_lit.runs.provenance import package_commit, package_versions

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "index.json").is_file():
        write(folder / "index.json", arguments.images, arguments.annotations)
    figures = {task: alone(task, folder, arguments.workers) for task in TASKS}
    return {
        "benchmark": "index",
        "images": arguments.images,
        "annotations": arguments.annotations,
        "json_mb": round((folder / "index.json").stat().st_size / 1e6),
        **figures,
        "packing_times_json_load": round(
            figures["packing"]["seconds"] / figures["json_load"]["seconds"], 2
        ),
        "packing_peak_of_pycocotools": round(
            figures["packing"]["peak_mb"] / figures["pycocotools"]["peak_mb"], 2
        ),
        "versions": package_versions(),
        "commit": package_commit(),
    }


def alone(task: str, folder: Path, workers: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--task",
        task,
        "--folder",
        str(folder),
        "--workers",
        str(workers),
    ]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[
            -1
        ]
    )


def load_json(folder: Path, workers: int) -> dict[str, float]:
    def read() -> Any:
        with open(folder / "index.json") as file:
            return json.load(file)

    return measured(read)


def make_pycocotools(folder: Path, workers: int) -> dict[str, float]:
    from pycocotools.coco import COCO

    return measured(lambda: COCO(str(folder / "index.json")))


def pack(folder: Path, workers: int) -> dict[str, float]:
    """Also leaves the index for the tasks after it."""
    import shutil

    from maskrcnn_lit.data.coco.arrays import open_json
    from maskrcnn_lit.storage.sources import Folder

    shutil.rmtree(folder / "cache", ignore_errors=True)
    return measured(lambda: open_json(Folder(folder), "index.json", folder / "cache"))


def open_again(folder: Path, workers: int) -> dict[str, float]:
    from maskrcnn_lit.data.coco.arrays import open_json
    from maskrcnn_lit.storage.sources import Folder

    return measured(lambda: open_json(Folder(folder), "index.json", folder / "cache"))


def share(folder: Path, workers: int) -> dict[str, float]:
    from maskrcnn_lit.data.coco.arrays import open_json
    from maskrcnn_lit.data.coco.index import full_index
    from maskrcnn_lit.storage.sources import Folder

    index = full_index(open_json(Folder(folder), "index.json", folder / "cache"), Folder(folder))
    one, private = touching(index, 1)
    many, _ = touching(index, workers)
    return {
        "workers": workers,
        "per_worker_private_mb": round(private, 1),
        "share_growth": round(many / one, 3),
    }


def touching(index: Any, workers: int) -> tuple[float, float]:
    """MB: proportional set size of this process and so many forked ones that have touched
    everything; the most that one of them has for itself, beyond what it had when it began.
    """
    finished, go = os.pipe(), os.pipe()
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            before = memory(
                "Private_Dirty"
            )  # what it has in common with its parent becomes its own when written to
            for i in range(len(index)):
                for j in range(len(index.annotations(i)["ids"])):
                    index.outline(i, j)
            os.write(finished[1], f"{memory('Private_Dirty') - before:.3f}\n".encode())
            os.read(go[0], 1)
            os._exit(0)
        children.append(child)
    told = b""
    while told.count(b"\n") < workers:
        told += os.read(finished[0], 4096)
    total = sum(memory("Pss", process) for process in ("self", *children))
    os.write(go[1], b"x" * workers)
    for child in children:
        os.waitpid(child, 0)
    return total, max(map(float, told.split()))


def measured(work: Callable[[], Any]) -> dict[str, float]:
    before, peak_before = memory("Anonymous"), resident()
    processor, wall = time.process_time(), time.perf_counter()
    kept = work()
    figures = {
        "seconds": round(time.process_time() - processor, 3),
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "private_mb": round(memory("Anonymous") - before, 1),
        "peak_mb": round(resident() - peak_before, 1),
    }
    del kept
    return figures


def memory(kind: str, process: int | str = "self") -> float:
    """MB of a process: Anonymous is memory that is no file's, Pss its proportional set."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1000


def resident() -> float:
    """MB of the largest resident set so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


TASKS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "json_load": load_json,
    "pycocotools": make_pycocotools,
    "packing": pack,
    "opening": open_again,
    "sharing": share,
}

if __name__ == "__main__":
    main()
