"""Runs of several processes: who starts them, that they end together, that they learn as one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import HELPERS
from tiny_verbs import (
    MODEL,
    checkpoint,
    coco_data,
    environment,
    ground_truth,
    metric_rows,
    refused,
    result,
    run_script,
    same,
    save_ground_truth,
)

pytest_plugins = ("tiny_verbs",)


WITNESS = HELPERS / "rank_witness.py"


SHORT = (
    "trainer.epochs=1",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=4.0e-3",
    "callbacks.panels=null",
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
    done = run_script(
        "train",
        *coco_data(strange),
        *MODEL,
        *SHORT,
        "trainer.devices=2",
        f"run_dir={run_dir}",
        cwd=run_dir.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: 8 images") == 1, (
        "the first process tells, the others are silent"
    )
    return run_dir


def test_a_run_starts_its_own_processes(two: Path):
    told = result(two)
    assert told["status"] == "finished" and "trainer.devices=2" in told["overrides"]
    assert told["command"][1] == "train", "what the user typed, not how the processes were started"
    assert checkpoint(two)["global_step"] == 2, "8 images, 2 processes with 2 images a step"
    assert told["metrics"]["val/images"] == 3


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
    common = (*coco_data(strange), *MODEL, *SHORT, "data.batch_size=1")
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
    assert "devices: 2\n" in config and "num_nodes: 2\n" in config, (
        "what torchrun has started, whatever was typed"
    )


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


def test_a_batch_without_objects_does_not_hang_the_others(strange: Path, tmp_path: Path):
    """One of the two processes meets images without any object."""
    options = (*coco_data(annotated(strange, tmp_path, 1)), *MODEL, *SHORT, "trainer.devices=2")
    done = run_script("train", *options, f"run_dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("with_objects", [8, 1])
def test_two_processes_learn_as_one_with_both_batches(
    strange: Path, tmp_path: Path, with_objects: int
):
    """Losses of every step and the weights after six: the same samples of each image, and means
    over all of them.

    With objects in one of the eight images, one process or both meet none in every step.
    """
    few = annotated(strange, tmp_path, with_objects)
    options = (
        *coco_data(few),
        *MODEL,
        *SHORT,
        "backbone.norm=group",
        "trainer.epochs=3",
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
    assert len(losses[0]) == 6 and len(losses[0][0]) == 7, (
        "five terms, their sum, the norm of the gradient"
    )
    for one, two in zip(*losses, strict=True):
        assert two == pytest.approx(one, rel=1e-6)
    if with_objects == 8:
        assert all(term > 0 for step in losses[0] for term in step)
    for name, value in weights[0].items():
        assert value.dtype == torch.float64 and torch.allclose(
            value, weights[1][name], rtol=1e-7, atol=1e-9
        ), name


def test_a_process_that_fails_ends_all_with_its_reason(strange: Path, tmp_path: Path):
    options = (*coco_data(strange), *MODEL, *SHORT, "data.train_images=999", "trainer.devices=2")
    done = run_script("train", *options, f"run_dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "999 images were asked for" in done.stderr
    told = result(tmp_path / "run")
    assert told["status"] == "failed" and "999 images were asked for" in told["error"]


def test_many_machines_need_a_launcher(strange: Path, tmp_path: Path):
    said = refused(
        "train", *coco_data(strange), *MODEL, "trainer.num_nodes=2", f"run_dir={tmp_path}/run"
    )
    assert "trainer.num_nodes=2 needs torchrun on each machine, or srun" in said
