"""Runs of several processes: who starts them, that they end together, that they learn as one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from repository import HELPERS, REPOSITORY
from tiny_commands import (
    MODEL,
    checkpoint,
    coco_data,
    environment,
    ground_truth,
    metric_rows,
    one_sentence,
    refused,
    result,
    run_script,
    same,
    save_ground_truth,
    script,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from maskrcnn_lit.launch.processes import _cause, _passed_on
from maskrcnn_lit.training.stop import SIGNALS

pytest_plugins = ("tiny_commands",)
pytestmark = pytest.mark.process


WITNESS = HELPERS / "rank_witness.py"


SHORT = (
    "trainer.epochs=1",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=4.0e-3",
)


def torchrun(*arguments: object, processes: int = 2, **options: object) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        *given,
    ]
    return [*command, str(WITNESS), *map(str, arguments)]


def witnesses(folder: Path) -> list[dict[str, str]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def two(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that the command starts itself."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    # of the user: no process takes it for the standard library's
    (run_dir.parent / "queue.py").write_text("raise RuntimeError('not the standard library')\n")
    done = run_script(
        "train",
        *coco_data(strange),
        *MODEL,
        *SHORT,
        "trainer.devices=2",
        f"run_dir={run_dir}",
        cwd=run_dir.parent,
        warm=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: 8 images") == 1, (
        "the first process tells, the others are silent"
    )
    return run_dir


def test_a_run_starts_its_own_processes(two: Path):
    told = result(two)
    assert told["status"] == "finished"
    assert "trainer.devices=2" in told["overrides"]
    assert told["command"][1] == "train", "what the user typed, not how the processes were started"
    assert checkpoint(two)["global_step"] == 2, "8 images, 2 processes with 2 images a step"
    assert told["metrics"]["val/images"] == 3


def test_no_python_that_is_started_looks_into_the_working_directory_first():
    """`python -m` does, unless it has -P."""
    started = 0
    for file in (REPOSITORY / "maskrcnn_lit").rglob("*.py"):
        text = file.read_text()
        found = re.findall(r'("-P",\s*)?"-m", "maskrcnn_lit|("-P",\s*)?"-m",\s*"maskrcnn_lit', text)
        assert all(any(flags) for flags in found), file
        started += len(found)
    parts = ("reproduce", "ranks", "jobs", "trials", "the report of a sweep", "tries of a batch")
    assert started == len(parts)


def test_under_torchrun_all_have_one_config_one_folder_and_equal_weights(
    strange: Path, two: Path, tmp_path: Path
):
    """No run_dir is given: the time of day, which differs between the processes, names it."""
    options = (*coco_data(strange), *MODEL, *SHORT)
    command = torchrun(tmp_path, "train", *options, standalone="")
    command = [text.removesuffix("=") for text in command]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=600)
    first, second = witnesses(tmp_path)
    assert first == second
    (run_dir,) = [path.parent for path in tmp_path.glob("outputs/*/*/config.yaml")]
    assert first["config"] == result(run_dir)["config_sha256"]
    assert first["run_dir"] == str(run_dir.relative_to(tmp_path))
    assert same(checkpoint(run_dir)["state_dict"], checkpoint(two)["state_dict"]), (
        "whoever starts the processes"
    )


def test_two_machines_of_two_processes_are_four_processes(strange: Path, tmp_path: Path):
    """Two agents of torchrun on this machine, as on two; and four processes of one."""
    folders = [tmp_path / "machines", tmp_path / "one"]
    for folder in folders:
        folder.mkdir()
    common = (*coco_data(strange), *MODEL, *SHORT, "data.batch_size=1", "callbacks.evaluation=null")
    arguments = (folders[0], "train", *common, f"run_dir={folders[0]}/run")
    place = {
        "nnodes": 2,
        "rdzv_backend": "static",
        "master_addr": "127.0.0.1",
        "master_port": free_port(),
    }
    agents = [
        subprocess.Popen(
            torchrun(*arguments, node_rank=rank, **place), cwd=tmp_path, env=environment()
        )
        for rank in (1, 0)
    ]
    assert [agent.wait(timeout=600) for agent in agents] == [0, 0]
    command = torchrun(
        folders[1],
        "train",
        *common,
        f"run_dir={folders[1]}/run",
        processes=4,
        master_port=free_port(),
    )
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=600)
    machines, one = witnesses(folders[0]), witnesses(folders[1])
    assert len(machines) == len(one) == 4
    assert len({told["config"] for told in machines}) == 1
    assert len({told["weights"] for told in machines + one}) == 1
    config = (folders[0] / "run" / "config.yaml").read_text()
    assert "devices: 2\n" in config
    assert "num_nodes: 2\n" in config, "what torchrun has started, whatever was typed"


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def annotated(root: Path, folder: Path, images: int) -> Path:
    """The data set of `root` with objects in its first `images` training images alone."""
    few = folder / "few"
    (few / "annotations").mkdir(parents=True)
    for name in ("train", "val", "annotations/instances_val.json"):
        (few / name).symlink_to(root / name)
    truth = ground_truth(root, "train")
    kept = sorted(image["id"] for image in truth["images"])[:images]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    save_ground_truth(few, truth, "train")
    return few


@pytest.mark.parametrize("with_objects", [8, 1])
def test_two_processes_learn_as_one_with_both_batches(
    strange: Path, tmp_path: Path, with_objects: int
):
    """Losses of every step and the weights after four: the same samples of each image, and means
    over all of them.

    With objects in one of the eight images, one process or both meet none in every step, and none
    waits for the other.
    """
    few = annotated(strange, tmp_path, with_objects)
    options = (
        *coco_data(few),
        *MODEL,
        *SHORT,
        "backbone.norm=group",
        "trainer.epochs=2",
        "callbacks.evaluation=null",
    )
    weights, losses = [], []
    for processes in (1, 2):
        run_dir = tmp_path / f"of{processes}"
        run_dir.mkdir()
        arguments = (
            run_dir,
            "train",
            *options,
            f"data.batch_size={4 // processes}",
            f"run_dir={run_dir}/run",
        )
        command = torchrun(*arguments, processes=processes, master_port=free_port())
        if processes == 1:
            command = [sys.executable, str(WITNESS), *map(str, arguments)]
        subprocess.run(
            command, cwd=tmp_path, env=environment(WITNESS_DOUBLE="1"), check=True, timeout=600
        )
        rows = [row for row in metric_rows(run_dir / "run") if row["train/loss"]]
        losses.append(
            [
                [float(row[name]) for name in sorted(row) if name.startswith("train/")]
                for row in rows
            ]
        )
        weights.append(checkpoint(run_dir / "run")["state_dict"])
    assert [len(step) for step in losses[0]] == [8] * 4, (
        "five terms, their sum, the norms of gradient and weights"
    )
    for one, two in zip(*losses, strict=True):
        assert two == pytest.approx(one, rel=1e-6)
    if with_objects == 8:
        assert all(term > 0 for step in losses[0] for term in step)
    for name, value in weights[0].items():
        assert value.dtype == torch.float64, name
        assert torch.allclose(value, weights[1][name], rtol=1e-7, atol=1e-9), name


def test_a_process_that_fails_ends_all_with_its_reason(strange: Path, tmp_path: Path):
    options = (*coco_data(strange), *MODEL, *SHORT, "data.train_images=999", "trainer.devices=2")
    done = run_script("train", *options, f"run_dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "999 images were requested" in done.stderr
    told = result(tmp_path / "run")
    assert told["status"] == "failed"
    assert "999 images were requested" in told["error"]


STILL = """
import time
from lightning.pytorch import Callback


class Still(Callback):
    def on_train_batch_end(self, trainer, *args):
        while trainer.global_rank == 1 and trainer.global_step == 1:
            time.sleep(1)
"""


def test_a_process_that_stands_still_ends_all_with_its_number(strange: Path, tmp_path: Path):
    (tmp_path / "still.py").write_text(STILL)
    options = (
        *coco_data(strange),
        *MODEL,
        *SHORT,
        "+callbacks.still={_target_: still.Still}",
        "trainer.devices=2",
        "trainer.checkpoint_every_n_steps=1",
        "trainer.rank_timeout_minutes=0.1",
    )
    done = run_script("train", *options, f"run_dir={tmp_path}/run", cwd=tmp_path)
    said = one_sentence(done)
    assert "process 1 of 2 on " in said
    assert "has not moved for 6 s (still.py:9 in on_train_batch_end)" in said
    assert said.endswith(f"train resume={tmp_path}/run")
    told = result(tmp_path / "run")
    assert told["status"] == "failed"
    assert f"maskrcnn-lit: {told['error']}" == said
    assert alive(f"{tmp_path}") == []


def test_a_process_that_never_comes_ends_the_run_with_its_number(strange: Path, tmp_path: Path):
    """The first of two, as torchrun starts it, alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    more = {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    more["TORCHELASTIC_RUN_ID"] = "alone"
    options = (*coco_data(strange), *MODEL, *SHORT, "trainer.rank_timeout_minutes=0.05")
    before = sorted(tmp_path.rglob("*"))
    done = run_script(
        "train", *options, cwd=tmp_path, **{name: str(value) for name, value in more.items()}
    )
    assert "process 1 of 2 has not come within 3 s, and the others wait" in one_sentence(done)
    assert sorted(tmp_path.rglob("*")) == before


SLOW = """
import time
from lightning.pytorch import Callback


class Slow(Callback):
    def on_train_batch_end(self, trainer, *args):
        time.sleep(0.05)
"""


def test_a_signal_to_the_run_saves_a_checkpoint_and_leaves_no_process(
    strange: Path, tmp_path: Path
):
    """To the process that the scheduler knows: the one that was typed."""
    (tmp_path / "slow.py").write_text(SLOW)
    options = (
        *coco_data(strange),
        *MODEL,
        *SHORT,
        "+callbacks.slow={_target_: slow.Slow}",
        "trainer.epochs=400",
        "callbacks.evaluation=null",
        "trainer.devices=2",
        f"run_dir={tmp_path}/run",
    )
    running = subprocess.Popen(
        [script(), "train", *options],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        out, error = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 130, error
    assert "Traceback" not in out + error
    last = error.splitlines()[-1]
    assert last.startswith("maskrcnn-lit: interrupted: resume with ")
    assert last.endswith(f"train resume={tmp_path}/run")
    assert result(tmp_path / "run")["status"] == "interrupted"
    step = checkpoint(tmp_path / "run")["global_step"]
    rows = [row for row in metric_rows(tmp_path / "run") if row["train/loss"]]
    assert 2 < step < 800
    assert int(rows[-1]["step"]) < step, "the checkpoint is of the last step"
    assert alive(f"{tmp_path}") == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_the_processes(number: signal.Signals, tmp_path: Path):
    before = signal.getsignal(number)
    waits = [sys.executable, "-c", "import time; time.sleep(99)"]
    # nohup, under which the tests may run, has its children ignore SIGHUP
    begin = partial(signal.signal, number, signal.SIG_DFL)
    processes = [subprocess.Popen(waits, preexec_fn=begin) for _ in range(2)]
    try:
        with _passed_on(tmp_path, 2) as passed:
            (tmp_path / f"{processes[0].pid}.pid").touch()
            with pytest.raises(SignalException):  # one of them has not begun
                os.kill(os.getpid(), number)
            (tmp_path / f"{processes[1].pid}.pid").touch()
            os.kill(os.getpid(), number)
            assert [process.wait(timeout=60) for process in processes] == [-number, -number]
            os.kill(os.getpid(), number)  # they have ended, which is no fault
        assert passed == [number] * 3
    finally:
        for process in processes:
            process.kill()
    assert signal.getsignal(number) == before


def alive(text: str) -> list[str]:
    """Command lines or working folders of processes that have `text` in them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace")
            if text in words + os.readlink(folder / "cwd") and int(folder.name) != os.getpid():
                found.append(words)
        except OSError:  # it has ended
            continue
    return found


def test_many_machines_need_a_launcher(strange: Path, tmp_path: Path):
    said = refused(
        "train", *coco_data(strange), *MODEL, "trainer.num_nodes=2", f"run_dir={tmp_path}/run"
    )
    assert "trainer.num_nodes=2 needs a launcher on each machine" in said


@pytest.mark.parametrize(("exits", "rank"), [({0: 1, 1: -9}, 1), ({0: -9, 1: 1}, 0), ({1: 2}, 1)])
def test_the_cause_is_the_process_that_was_killed(exits: dict[int, int], rank: int):
    failures = {r: ProcessFailure(r, 100 + r, code, "") for r, code in exits.items()}
    found, failure = _cause(ChildFailedError("run", failures))
    assert (found, failure.exitcode) == (rank, exits[rank])
