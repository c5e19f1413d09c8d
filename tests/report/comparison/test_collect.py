"""Run folders read as jobs: where they are found, what a sweep says of them, the data that they
were scored on.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_sample import IMAGES, draw, make_run, write_sweep

from maskrcnn_lit.config.compose import compose, to_dict
from maskrcnn_lit.config.stored import read_run_config
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.report.comparison.collect import read_runs, validation_index
from maskrcnn_lit.report.comparison.settings import NOT_RUN, option_value
from maskrcnn_lit.runs.result import file_digests, read_result, write_result
from maskrcnn_lit.storage.files import config_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep of three, and one that is no part of it."""
    home = tmp_path_factory.mktemp("runs")
    truth = draw(home / "data")
    make_run(home / "sweep/b", home / "data", truth, "backbone=resnet34", "seed=1", share=0.5)
    make_run(
        home / "sweep/a",
        home / "data",
        truth,
        "backbone=resnet18",
        "seed=1",
        status="failed",
        error="no",
    )
    make_run(home / "alone", home / "data", truth, "backbone=resnet50", share=0.5)
    jobs = [
        ("b", ["backbone=resnet34"]),
        ("c", ["backbone=resnet50", "seed=2"]),
        ("a", ["backbone=resnet18"]),
    ]
    write_sweep(home / "sweep", jobs, "Which?")
    return home


@pytest.mark.long
def test_a_sweep_has_its_order_its_question_and_its_missing_jobs(folder: Path):
    found = read_runs([folder / "sweep"])
    assert [(job.name, job.status) for job in found.jobs] == [
        ("b", "finished"),
        ("c", NOT_RUN),
        ("a", "failed"),
    ]
    assert found.questions == ["Which?"]
    assert found.commands[0][:3] == [
        "maskrcnn-lit",
        "train",
        "-m",
    ]
    assert found.notes == []
    b, c, _ = found.jobs
    assert c.overrides == (
        *(t for t in b.overrides if t.split("=")[0] not in ("backbone", "seed", "run_dir")),
        "backbone=resnet50",
        "seed=2",
    )
    assert c.seed == 2
    assert c.folder is None
    assert b.folder == folder / "sweep/b"


def test_everything_below_is_found_and_a_run_can_be_given_itself(folder: Path):
    assert sorted(job.name for job in read_runs([folder]).jobs) == [
        "alone",
        "c",
        "sweep/a",
        "sweep/b",
    ]
    found = read_runs([folder / "sweep/b", folder / "alone"]).jobs
    assert [job.name for job in found] == ["b", "alone"]
    assert option_value(found[0], "backbone.name") == "resnet34"


def test_runs_of_the_same_name_are_told_apart(folder: Path, tmp_path: Path):
    make_run(
        tmp_path / "alone",
        folder / "data",
        json.loads((folder / "data/annotations/instances_val.json").read_text()),
    )
    names = [job.name for job in read_runs([folder / "alone", tmp_path / "alone"]).jobs]
    assert names == [str(folder / "alone"), str(tmp_path / "alone")]


def test_curves_are_means_and_a_line_that_was_cut_is_dropped(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text('{"status": "running"}')
    rows = "step,epoch,train/loss\n3,0,1.5\n5,0,1\n7,1,\n8,1,0.5\n9,1,0."
    (tmp_path / "run/metrics.csv").write_text(rows)
    found = read_runs([tmp_path / "run"])
    (job,) = found.jobs
    assert job.curves == (
        {"epoch": 0.0, "train/loss": 1.25},
        {"epoch": 1.0, "train/loss": 0.5},
    )
    assert job.config == {}
    assert "has no config.yaml" in found.notes[0]


def test_a_broken_result_is_a_failed_job_with_a_reason(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text("{")
    found = read_runs([tmp_path])
    assert found.jobs[0].status == "failed"
    assert "is not the result of a run" in str(found.jobs[0].result.error)
    assert len(found.notes) == 2


@pytest.mark.long
def test_a_damaged_file_leaves_its_run_out(folder: Path, tmp_path: Path):
    """Flips, cuts and zeros: the run is the same, or it is failed and a note names the file; never
    an exception, and never other numbers.
    """
    run, rng = tmp_path / "run", np.random.default_rng(0)
    shutil.copytree(folder / "alone", run)
    result = read_result(run / "result.json")
    config = read_run_config(run)
    write_result(run / "result.json", replace(result, config_sha256=config_digest(config)))
    (right,) = read_runs([run]).jobs
    assert right.status == "finished"
    for name in ("result.json", "config.yaml", "metrics.csv"):
        whole = (run / name).read_bytes()
        for k in range(40):
            begin = int(rng.integers(len(whole)))
            flipped = whole[:begin] + bytes([whole[begin] ^ 1 << k % 8]) + whole[begin + 1 :]
            damaged = (flipped, whole[:begin], whole[:begin] + bytes(len(whole) - begin))[k % 3]
            (run / name).write_bytes(damaged)
            (job,) = read_runs([run]).jobs
            if name == "metrics.csv":
                assert job.result == right.result
            elif job.status == "finished":
                assert (job.result, job.config) == (right.result, right.config)
            else:
                assert str(run) in str(job.result.error)
        (run / name).write_bytes(whole)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"seed: 1\n", b"a: ${nothing}\n"])
def test_a_run_with_another_config_is_left_out_and_the_rest_stays(
    folder: Path, tmp_path: Path, content: bytes | None
):
    home = tmp_path / "sweep"
    shutil.copytree(folder / "sweep", home)
    result = read_result(home / "b" / "result.json")
    result.config_sha256 = config_digest(read_run_config(home / "b"))
    write_result(home / "b" / "result.json", result)
    shutil.copytree(home / "b", home / "d")
    file = home / "b" / "config.yaml"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    found = read_runs([home])
    status = {job.name: job.status for job in found.jobs}
    assert (status["b"], status["d"]) == ("failed", "finished")
    assert len(found.notes) == 1
    assert found.notes[0].startswith("b is left out: ")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"step,epoch\nx,1\n", b"step\n1,2\n", b"a\n\0\n"])
def test_damaged_curves_are_left_out(folder: Path, tmp_path: Path, content: bytes):
    shutil.copytree(folder / "alone", tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_bytes(content)
    found = read_runs([tmp_path / "run"])
    assert found.jobs[0].status == "finished"
    assert found.jobs[0].curves == ()
    assert "metrics.csv cannot be read" in found.notes[0]


def test_curves_that_are_not_those_of_the_run_are_left_out(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(folder / "alone", run)
    result = read_result(run / "result.json")
    write_result(run / "result.json", replace(result, files=file_digests(run)))
    assert read_runs([run]).jobs[0].curves != ()
    assert read_runs([run]).notes == []
    table = run / "metrics.csv"
    table.write_text(table.read_text().replace("1", "2"))
    found = read_runs([run])
    assert found.jobs[0].status == "finished"
    assert found.jobs[0].curves == ()
    assert "metrics.csv does not match its checksum" in found.notes[0]


def test_a_damaged_sweep_json_leaves_its_runs(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "sweep", tmp_path / "sweep")
    (tmp_path / "sweep" / "sweep.json").write_text('{"jobs": 3}')
    found = read_runs([tmp_path / "sweep"])
    assert {job.name for job in found.jobs} == {"a", "b"}
    assert "sweep.json cannot be read" in found.notes[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda home: None, "is not a folder: give run folders"),
        (lambda home: home.mkdir(), "no run in"),
        (
            lambda home: (home.mkdir(), (home / "sweep.json").write_text('{"jobs": 3}')),
            "sweep.json cannot be read",
        ),
    ],
)
def test_mistakes_are_told(make, said: str, tmp_path: Path):
    make(tmp_path / "home")
    with pytest.raises(UserError, match=said):
        read_runs([tmp_path / "home"])


def test_a_sweep_of_which_nothing_has_run_is_all_missing(tmp_path: Path):
    write_sweep(tmp_path, [("a", ["seed=1"])])
    (job,) = read_runs([tmp_path]).jobs
    assert (job.name, job.status, job.overrides) == ("a", NOT_RUN, ("seed=1",))


def test_the_validation_images_are_those_of_the_config(folder: Path):
    (job,) = read_runs([folder / "alone"]).jobs
    index = validation_index(job)
    assert len(index) == IMAGES
    assert len(index.coco_ground_truth()["annotations"]) > IMAGES
    job.config["data"]["val"]["annotations"] = "none.json"
    with pytest.raises(UserError, match=r"none\.json"):
        validation_index(job)


def test_data_that_is_gone_is_neither_drawn_nor_fetched(folder: Path, tmp_path: Path):
    (job,) = read_runs([folder / "alone"]).jobs
    for choice in ("shapes", "coco2017"):
        job.config["data"] |= to_dict(
            compose("train", [f"data={choice}", f"data.root={tmp_path}/gone"])
        )["data"]
        with pytest.raises(UserError, match="gone"):
            validation_index(job)
        assert not (tmp_path / "gone").exists()
