"""Programs that tests fork from a process with torch imported are as those that are started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_commands import environment, script
from warm_python import WARM, request

pytestmark = pytest.mark.process

# How a program that was forked differs from one that was started: torch is there before it asks.
KIND = "print('torch' in __import__('sys').modules)"


def run(code: str, *words: str, warm: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    given = environment(warm, **more)
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=given, cwd="/", capture_output=True, text=True)


@pytest.mark.parametrize("warm", [True, False])
def test_it_has_its_own_words_folder_variables_and_parent(warm: bool):
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['MINE'], os.getppid(), 'é')"
    done = run(code, "a b", warm=warm, MINE="yes")
    assert done.stdout == f"['-c', 'a b'] / yes {os.getpid()} é\n"
    assert done.stderr == ""
    assert run(KIND, warm=warm).stdout == f"{warm}\n"


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('why')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT),
        ("import atexit; atexit.register(print, 'at the end')", 0),
    ],
)
def test_it_ends_as_it_would(end: str, code: int, warm: bool):
    done = run(f"print('begun', flush=True); {end}", warm=warm)
    assert done.returncode == code
    assert done.stdout == "begun\n" + ("at the end\n" if not code else "")
    last = {7: "", 1: ("why", "ZeroDivisionError: division by zero")}.get(code)
    assert last is None or done.stderr.strip().endswith(last)


def test_nothing_of_one_is_left_in_the_next():
    run("import os, torch; torch.manual_seed(5); os.environ['LEFT'] = '1'")
    done = run("import os, torch; print(os.environ.get('LEFT'), torch.initial_seed() == 5)")
    assert done.stdout == "None False\n"
    draw = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert run(draw).stdout != run(draw).stdout
    ours = "import sys; print([name for name in sys.modules if 'maskrcnn' in name])"
    assert run(ours).stdout == "[]\n"


def test_a_session_of_its_own_can_be_killed(tmp_path: Path):
    code = "import os, time; print(os.getsid(0), os.getpid(), flush=True); time.sleep(99)"
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == f"{program.pid} {program.pid}\n"
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait(timeout=60) == -signal.SIGKILL
    program.stdout.close()


def test_what_differs_at_the_start_of_python_starts_cold():
    words = [script(), "train"]
    given = environment()
    assert request(words, None, given, False) is not None
    for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "COVERAGE_PROCESS_CONFIG"):
        assert request(words, None, given | {name: "3"}, False) is None, name
    assert request(words, None, {k: v for k, v in given.items() if k != WARM}, False) is None
    assert request(["/usr/bin/python3", "-c", ""], None, given, False) is None
    assert request([sys.executable, "-S", "-c", ""], None, given, False) is None
    # the package measures memory so
    code = [sys.executable, "-c", ""]
    assert request(code, None, given | {WARM: "commands"}, False) is None
