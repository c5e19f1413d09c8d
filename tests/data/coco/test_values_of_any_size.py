"""No number in a json of annotations or results ends the process or a command in a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repository import REPOSITORY
from tiny_commands import environment

pytestmark = pytest.mark.process

FUZZ = REPOSITORY / "tests" / "helpers" / "coco_fuzz.py"


@pytest.mark.parametrize(("kind", "count"), [("annotations", 20), ("results", 100)])
def test_values_of_any_size_and_kind(kind: str, count: int, tmp_path: Path):
    """Each case is read, sampled, evaluated and checked in a process of its own kind: it must end
    with neither a signal nor a traceback.
    """
    done = subprocess.run(
        [sys.executable, str(FUZZ), kind, str(tmp_path), "0", str(count)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    case = (tmp_path / "case").read_text()
    assert done.returncode == 0, f"{kind} {case}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == count
    assert outcomes["refused in a sentence"] > 0
    assert outcomes["read" if kind == "annotations" else "scored"] > count / 20


CHANGES = {  # what ended the process once -> objects that are left
    "a['bbox'] = [94.999999, 10, 60, 50]": 0,  # 1e-6 px are inside of the image
    "a['segmentation'][0][2] = 1e9": 1,
    "a['segmentation'][0][2] = -1e300": 1,
    "a['segmentation'] = [[1e9, 1e9, 2e9, 1e9, 2e9, 2e9], a['segmentation'][0]]": 1,
}


def test_far_and_thin_shapes_are_sampled(tmp_path: Path):
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom coco_file import coco_dict, write_coco\n"
        "from maskrcnn_lit.data.coco.index import read_index\n"
        "from maskrcnn_lit.data.dataset import CocoDataset\n"
        "cache = Path(sys.argv[1]) / 'cache'\n"
        "for n, change in enumerate(json.loads(sys.argv[2])):\n"
        "    content = coco_dict(2)\n    (a,) = content['annotations']\n    exec(change)\n"
        "    files = write_coco(Path(sys.argv[1]) / str(n), content)\n"
        "    index = read_index(*files, 'skip', cache=cache)\n"
        "    sample = CocoDataset(index=index, image_size=64, cache=cache)[(0, 1)]\n"
        "    print(len(sample['boxes']), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(list(CHANGES))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        cwd=FUZZ.parent,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert list(map(int, done.stdout.split())) == list(CHANGES.values())
