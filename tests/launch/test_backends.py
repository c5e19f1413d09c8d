"""Each command runs once, where the launcher says, and gives its exit code."""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from warm_python import WARM

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch import backends as launchers
from maskrcnn_lit.launch.backends import Command, local_gpus, sequential, slurm

pytestmark = pytest.mark.process

SLURM = {"cluster": "local", "partition": None, "gpus": 0, "cpus": 1, "memory_gb": 1, "hours": 0.1}
NOTE = (  # a file with what it saw, and from when to when
    "import json, os, sys, time; began = time.time(); time.sleep(0.3); "
    "json.dump([os.environ.get('CUDA_VISIBLE_DEVICES'), began, time.time()], open(sys.argv[1], "
    "'w')); print('done')"
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's jobs are asked after without a wait of two seconds, and forked (warm_python.py)."""
    monkeypatch.setattr(launchers, "POLL_SECONDS", 0.1)
    monkeypatch.setenv(WARM, "all")


def command(folder: Path, name: str, code: str = NOTE) -> Command:
    return Command(
        name, [sys.executable, "-c", code, str(folder / f"{name}.json")], folder / f"{name}.txt"
    )


def test_one_after_the_other(tmp_path: Path):
    commands = [
        command(tmp_path, "a"),
        command(tmp_path, "b", "import sys; sys.exit('no such file')"),
    ]
    running = sequential(commands)
    assert next(running) == ("a", 0)
    assert not (tmp_path / "b.txt").exists()
    assert list(running) == [("b", 1)]
    assert (tmp_path / "a.txt").read_text() == "done\n"
    assert (tmp_path / "b.txt").read_text() == "no such file\n"


def test_a_killed_one_gives_its_signal(tmp_path: Path):
    killed = command(tmp_path, "a", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert list(sequential([killed])) == [("a", -9)]


def test_each_gpu_has_one_at_a_time_and_the_others_wait(tmp_path: Path):
    names = list("abcde")
    ended = list(local_gpus([command(tmp_path, name) for name in names], devices=[0, 3]))
    assert sorted(ended) == [(name, 0) for name in names]
    seen = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    for device in ("0", "3"):
        times = sorted((began, end) for where, began, end in seen if where == device)
        assert times, "both are used"
        assert all(end <= began for (_, end), (began, _) in pairwise(times))
    assert {where for where, _, _ in seen} == {"0", "3"}


def test_each_gpu_has_its_share_of_the_cores(tmp_path: Path):
    code = (
        "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1], 'w'))"
    )
    cores = sorted(os.sched_getaffinity(0))
    slow = f"import time; time.sleep(0.5); {code}"  # not before it is told which
    assert (
        len(list(local_gpus([command(tmp_path, name, slow) for name in "ab"], devices=[0, 1]))) == 2
    )
    shares = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    assert sorted(shares[0] + shares[1]) == cores or len(cores) < 2


def test_the_gpus_are_those_that_the_user_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert list(local_gpus([command(tmp_path, "a")])) == [("a", 0)]
    assert json.loads((tmp_path / "a.json").read_text())[0] == "5"


def test_without_a_gpu_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="no CUDA device here: use launcher=sequential"):
        list(local_gpus([command(tmp_path, "a")]))


def test_submitit_runs_them_and_a_failure_is_no_end(tmp_path: Path):
    commands = [command(tmp_path, "b", "import sys; sys.exit(3)"), command(tmp_path, "c")]
    assert sorted(slurm(commands, **SLURM)) == [("b", 3), ("c", 0)]
    assert (tmp_path / "c.txt").read_text() == "done\n"


SAVES = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]).parent
def save(number, frame):
    (folder / "saved").touch()
    sys.exit(130)
signal.signal(signal.SIGUSR1, save)
if (folder / "saved").exists():
    print("goes on", flush=True)
    sys.exit(0)
os.kill(int((folder / "parent").read_text()), signal.SIGUSR2)
time.sleep(60)
"""


def test_a_job_at_its_time_limit_saves_and_is_queued_again(tmp_path: Path):
    """The job itself sends its parent the notice of SLURM (submitit's signal)."""
    of_parent = "open(sys.argv[1].rsplit('/', 1)[0] + '/parent', 'w').write(str(os.getppid()))"
    code = f"import os, sys; {of_parent}\n{SAVES}"
    assert list(slurm([command(tmp_path, "a", code)], **SLURM, requeues=1)) == [("a", 0)]
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "a.txt").read_text().splitlines()[0] == "goes on"


def chosen_late(folder: Path, ended: list[str]) -> Iterator[Command]:
    """Commands that know which others had ended when they were chosen."""
    for name in "abc":
        yield command(folder, f"{name}-after-{''.join(ended)}")


@pytest.mark.parametrize("launcher", ["sequential", "local_gpus", "slurm"])
def test_a_command_is_taken_when_it_can_start(tmp_path: Path, launcher: str):
    launch = {
        "sequential": sequential,
        "local_gpus": partial(local_gpus, devices=[0]),
        "slurm": partial(slurm, **SLURM, at_once=1),
    }[launcher]
    ended: list[str] = []
    names = []
    for name, code in launch(chosen_late(tmp_path, ended)):
        assert code == 0
        names.append(name)
        ended.append(name[0])
    assert names == ["a-after-", "b-after-a", "c-after-ab"]


def test_submitit_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        UserError, match=r"launcher=slurm needs submitit: pip install 'maskrcnn_lit\[slurm\]'"
    ):
        list(slurm([command(tmp_path, "a")], **SLURM))


def test_options_of_slurm_are_checked(tmp_path: Path):
    with pytest.raises(UserError, match=r"launcher\.cluster is 'pbs'; expected slurm or local"):
        list(slurm([command(tmp_path, "a")], **{**SLURM, "cluster": "pbs"}))
    with pytest.raises(UserError, match=r"launcher\.cpus"):
        list(slurm([command(tmp_path, "a")], **{**SLURM, "cpus": 0}))


def test_an_interrupted_launcher_waits_for_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An interruption is passed on, and the process may write its last checkpoint before the prompt
    comes back.
    """
    script = tmp_path / "job.py"
    script.write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "def note(*_):\n"
        "    Path(sys.argv[1]).write_text('interrupted')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, note)\n"
        "Path(sys.argv[1]).write_text('ready')\n"
        "time.sleep(60)\n"
    )
    out = tmp_path / "a.txt"
    waits = []

    class Process(launchers.subprocess.Popen):  # type: ignore[type-arg, misc]
        def wait(self, timeout: float | None = None) -> int:
            waits.append(time.time())
            if len(waits) == 1:
                while not out.is_file() or out.read_text() != "ready":
                    time.sleep(0.05)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(launchers.subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        launchers.run(launchers.Command("a", [sys.executable, script, out], tmp_path / "log"))
    assert len(waits) == 2
    assert out.read_text() == "interrupted"
