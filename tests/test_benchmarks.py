"""Every benchmark runs, small: what it prints can be read. Its figures are not judged here."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_python
from coco_file import coco_dict, write_coco
from packaging.requirements import Requirement
from repository import REPOSITORY
from tiny_commands import BACKBONE, environment
from warm_python import WARM

from maskrcnn_lit.evaluation.analysis.suspicious_labels import suspicious_labels

pytestmark = pytest.mark.process

Benchmark = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Benchmark:
    """Run a program of benchmarks/ in this process, and read the lines of json that it prints. What
    it starts is forked (warm_python.py).
    """
    monkeypatch.setenv(WARM, "all")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))

    def run(program: str, *arguments: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(REPOSITORY / "benchmarks" / program), run_name="__main__")
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]

    return run


def test_the_round_trip(benchmark: Benchmark, tmp_path: Path):
    options = [f"data.root={tmp_path}", f"data.cache_dir={tmp_path / 'cache'}"]
    for part in ("train", "val"):
        write_coco(tmp_path / part, coco_dict(5))
        options += [f"data.{part}.images={part}/images"]
        options += [f"data.{part}.annotations={part}/instances.json"]
    report = benchmark("round_trip.py", str(tmp_path / "new"), "data=coco_json", *options)[-1]
    rows = {row[0]: row[1:] for row in report["rows"]}
    assert rows["coco"] == rows["mask_folder"] == [18, 18, 0, "-", 0]
    assert rows["yolo_seg"][:3] == [18, 8, 10]
    assert rows["yolo_seg"][4] == 0  # holes


@pytest.mark.slow  # two trainings; tests/training/test_feature_cache.py has the cache's own tests
def test_the_feature_cache(benchmark: Benchmark, test_data: Path):
    small = ["--rounds", "1", "--images", "2", "--epochs", "2"]
    light = ["model=tiny", f"backbone={BACKBONE}", "backbone.weights=none", "data.image_size=64"]
    (report,) = benchmark("feature_cache.py", "--data", str(test_data / "nuclei"), *small, *light)
    assert report["benchmark"] == "feature_cache"
    assert report["gigabytes"] > 0
    for kind in ("filling", "filled"):
        for key in ("epoch_cpu", "epoch_clock", "run_cpu", "run_clock"):
            assert report["times_as_fast"][f"{key}_{kind}"] > 0


@pytest.mark.slow  # a ResNet-50 of ours and one of torchvision
def test_the_training_step(benchmark: Benchmark, test_data: Path, monkeypatch: pytest.MonkeyPatch):
    # Its MALLOC_ variables make memory exact, and only a cold program reads them.
    monkeypatch.setattr(warm_python, "AT_THE_START", ("PYTHON", "LD_", "OMP_"))
    small = ["--size", "96", "128", "--batch", "1", "--steps", "1", "--rounds", "1"]
    report = benchmark("train_step.py", "--coco", str(test_data / "coco_mini"), *small)[-1]
    assert report["benchmark"] == "train_step"
    assert report["images"][:2] == [1, 3]
    for ratio in ("time_ratio", "cpu_ratio", "memory_ratio"):
        assert report[ratio] > 0
    assert set(report["seconds"]) == set(report["peak_mb"]) == {"maskrcnn_lit", "torchvision"}
    assert report["regions"] == {"maskrcnn_lit": 128, "torchvision": 512}


def test_light_heads_cost_a_quarter_at_most(benchmark: Benchmark):
    names = ["mask_rcnn,mobilenet_v3_large", "mask_rcnn_light,mobilenet_v3_large"]
    report = benchmark("model_cost.py", "--rounds", "1", "--models", *names)[-1]
    whole, light = (report["models"][name] for name in names)
    assert report["size"] == 320
    assert whole["gflops"] >= 4 * light["gflops"] > 0
    assert whole["parameters"] > 2 * light["parameters"]
    assert light["milliseconds"] > 0


@pytest.mark.slow  # exports to several runtimes, as tests/launch/test_budget.py does
def test_the_runtimes(benchmark: Benchmark):
    small = ["--size", "64", "--rounds", "1", "--no-others"]
    small += ["--model", "tiny", "--backbones", BACKBONE]
    report = benchmark("runtimes.py", *small, "--runtimes", "pytorch", "onnx_int8")[-1]
    rows = {name.split(", ")[1]: row for name, row in report["models"].items()}
    assert set(rows) == {"PyTorch", "pytorch", "onnx_int8"}
    assert all(row["milliseconds_95"] >= row["milliseconds"] > 0 for row in rows.values())


def test_labels_are_spoilt_and_restored(benchmark: Benchmark, test_data: Path, tmp_path: Path):
    """A model that sees the true labels finds what is spoilt, and nothing else. (It agrees with a
    label that is merged with a far smaller one.)
    """
    json_file = test_data / "nuclei" / "annotations" / "instances_val.json"
    benchmark("spoil_labels.py", "spoil", str(json_file), str(tmp_path))
    record, spoilt, clean = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("spoilt", "a", "clean_a")
    )
    true = json.loads(json_file.read_text())["annotations"]
    assert sum(len(one["ids"]) for one in record) == pytest.approx(0.05 * len(true), abs=2)
    assert len({one["way"] for one in record}) == 5
    own = {image["id"] for image in clean["images"]}
    assert 0.4 < len(own) / 133 < 0.6
    assert spoilt["annotations"] != clean["annotations"]
    results = [
        {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in clean["annotations"]
    ]
    page = tmp_path / "page"
    page.mkdir()
    found = suspicious_labels(spoilt, results, max_detections=400)
    (page / "suspicious_labels.json").write_text(json.dumps(found))
    (page / "detections.json").write_text(json.dumps(results))
    spoilt_here = sum(one["image_id"] in own for one in record)
    assert 0.95 * spoilt_here <= len(found["suspicions"]) <= spoilt_here
    benchmark("spoil_labels.py", "repair", str(tmp_path), "--a", str(page))
    repaired = json.loads((tmp_path / "repaired_a.json").read_text())
    by_id = {a["id"]: a for a in clean["annotations"]}
    wrong = [a for a in repaired["annotations"] if a != by_id.get(a["id"])]
    assert len(wrong) <= 0.05 * spoilt_here
    assert len(repaired["annotations"]) >= len(clean["annotations"]) - len(wrong)


def test_prefetch(benchmark: Benchmark, test_data: Path):
    images = str(test_data / "coco_mini" / "val2017")
    small = ["--images", images, "--count", "9", "--delay", "0.01"]
    report = benchmark("prefetch.py", *small)[-1]
    assert report["benchmark"] == "prefetch"
    assert report["images"] == 9
    assert report["in_flight"] == 8
    assert set(report["images_per_second"]) == {"sequential", "in_flight", "second_pass"}
    assert report["ratio"] > 0


def test_index(benchmark: Benchmark):
    small = ["--images", "50", "--annotations", "400", "--workers", "2"]
    report = benchmark("index.py", *small)[-1]
    assert report["benchmark"] == "index"
    assert report["annotations"] == 400
    assert report["json_mb"] >= 0
    for task in ("json_load", "pycocotools", "packing", "opening"):
        assert report[task]["seconds"] >= 0
        assert report[task]["peak_mb"] >= 0
    assert report["sharing"]["workers"] == 2
    assert report["packing_times_json_load"] > 0


def test_data_loading(benchmark: Benchmark, test_data: Path, tmp_path: Path):
    for folder in ("train2017", "annotations"):
        (tmp_path / folder).mkdir()
    content = json.loads((test_data / "coco_mini/annotations/instances_train2017.json").read_text())
    content["images"] = content["images"][:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    for image in content["images"]:
        (tmp_path / "train2017" / image["file_name"]).symlink_to(
            test_data / "coco_mini/train2017" / image["file_name"]
        )
    small = ["--coco", str(tmp_path), "--sizes", "64", "100,160", "--rounds", "1"]
    reports = benchmark("data_loading.py", *small)
    assert [report["image_size"] for report in reports] == [64, [100, 160]]
    for report in reports:
        assert report["benchmark"] == "data_loading"
        assert report["images"] == 4
        assert report["times_torchvision"]["torchvision"] == 1.0
        assert report["times_torchvision"]["maskrcnn_lit"] > 0
        assert set(report["stages_ms"]) >= {"decode", "boxes and masks", "collate", "sample"}


def test_scoring(benchmark: Benchmark):
    small = ["--images", "60", "--detections", "20", "--rounds", "1", "--resamples", "20"]
    (report,) = benchmark("scoring.py", *small)
    assert report["benchmark"] == "scoring"
    assert report["images"] == 60
    assert report["largest_difference"] <= 1e-9
    assert len(report["numbers"]) == 24
    assert 0.02 < report["numbers"]["mask_ap"] < 0.98
    for figure in ("seconds", "cpu_seconds", "peak_mb"):
        assert set(report[figure]) == {"maskrcnn_lit", "pycocotools"}
        assert min(report[figure].values()) > 0
    assert report["times_faster"] > 0
    assert set(report["intervals"]) == {"box", "mask"}
    assert report["peak_mb_with_intervals"] >= report["peak_mb"]["maskrcnn_lit"]


def test_mask_rle(benchmark: Benchmark, test_data: Path):
    """It compares both ways' RLEs itself."""
    small = ["--rounds", "1", "--detections", "5", "--sizes", "64,48", "50,70"]
    for more, boxes in (
        ([], "log-normal"),
        (["--coco", str(test_data / "coco_mini")], "instances_val2017"),
    ):
        reports = benchmark("mask_rle.py", *small, *more)
        assert [report["size"] for report in reports] == [[64, 48], [50, 70]]
        for report in reports:
            assert report["benchmark"] == "mask_rle"
            assert report["boxes"] == boxes
            assert report["detections"] == 5
            assert set(report["milliseconds"]) == {"maskrcnn_lit", "torchvision"}
            assert report["times_torchvision"] > 0


def test_hot_spots(benchmark: Benchmark):
    """Each compares its results with torchvision's itself."""
    small = ["--size", "96", "128", "--batch", "2", "--rounds", "1"]
    (report,) = benchmark("hot_spots.py", *small)
    assert report["benchmark"] == "hot_spots"
    assert report["size"] == [96, 128]
    assert report["differ"] == []
    assert set(report["times_torchvision"]) >= {
        "matching",
        "sampling",
        "suppression",
        "roi_align",
        "mask_targets",
    }
    assert all(
        row["maskrcnn_lit"] > 0 < row["torchvision"] for row in report["milliseconds"].values()
    )


def test_crowded_matching(benchmark: Benchmark):
    """It compares the three ways' results itself."""
    small = ["--size", "96", "128", "--batch", "3", "--objects", "20"]
    report = benchmark("crowded_matching.py", *small)[-1]
    assert report["benchmark"] == "crowded_matching"
    assert report["slots"] == 32
    assert set(report["seconds"]) == {"maskrcnn_lit", "static_shapes", "torchvision"}
    assert all(figure >= 0 for figure in report["peak_mb"].values())


def test_the_speed_table_of_the_docs_is_of_the_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/table.py"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (REPOSITORY / "docs/measured.md").read_text(encoding="utf-8")
    inside = page.split("<!-- speed -->\n")[1].split("<!-- /speed -->")[0]
    assert inside.strip() == done.stdout.strip(), (
        "run python benchmarks/table.py and put its table between the marks"
    )


def test_a_row_says_where_and_when(tmp_path: Path):
    """And what does not is left out."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import table
    finally:
        sys.path.pop(0)
    times = {"maskrcnn_lit": 0.5, "torchvision": 1.25}
    report = {
        "benchmark": "train_step",
        "device": "A GPU",
        "images": [2, 3, 8, 9],
        "precision": "bf16-mixed",
    }
    report |= {"seconds": times, "cpu_seconds": {"maskrcnn_lit": 9, "torchvision": 9}}
    report |= {"regions": {"maskrcnn_lit": 128, "torchvision": 512}, "compile": "auto"}
    assert list(table.of(report)) == []
    assert list(table.of({"benchmark": "index", "date": "2026-01-02"})) == []
    (row,) = table.of(report | {"date": "2026-01-02"})
    what = (
        "training step, R50-FPN, 2 x 8 x 9, 128 regions an image against 512, bf16-mixed, compiled"
    )
    assert row == (what, "500 ms", "1250 ms", "2.50", "A GPU, 2026-01-02")


def test_a_hot_spot_that_differs_is_written_and_in_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A GPU's rounding must not cost the other rows."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import hot_spots
    import table

    def pair(equal: bool) -> hot_spots.Pair:
        return hot_spots.Pair(lambda: 1, lambda: 2, lambda mine, other: equal)

    monkeypatch.setattr(
        hot_spots, "SPOTS", {"matching": lambda _: pair(False), "sampling": lambda _: pair(True)}
    )
    monkeypatch.setattr(sys, "argv", ["hot_spots.py", "--size", "96", "128", "--rounds", "1"])
    times = {"maskrcnn_lit": 1.0, "torchvision": 2.0}
    monkeypatch.setattr(hot_spots, "measure", lambda *given: times)
    threads = torch.get_num_threads()
    hot_spots.main()
    torch.set_num_threads(threads)
    report = json.loads(capsys.readouterr().out)
    assert report["differ"] == ["matching"]
    assert set(report["milliseconds"]) == {"matching", "sampling"}
    (row,) = table.of(report)
    assert row[0].startswith(table.SPOTS["sampling"])


def test_the_gpu_script_is_sound(tmp_path: Path):
    script = str(REPOSITORY / "benchmarks" / "gpu.sh")
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "give a folder with val2017/" in done.stderr


def with_requirements(*packages: str) -> set[str]:
    """`packages` and all that they need, without extras."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or not is_installed(name):
            continue
        found.add(name)
        needed = map(Requirement, metadata.requires(name) or [])
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate()]
    return found


def is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_gpu_script_names_every_package_that_a_machine_with_torch_lacks():
    comment = (REPOSITORY / "benchmarks/gpu.sh").read_text().partition("set -uo")[0]
    words = " ".join(comment.replace("\n#", " ").split())
    there = re.search(r"A bare machine is enough: ([\w, ]+);", words)[1]
    wheels = re.search(r"missing there \(3 MB\): ([\w -]+)\.", words)[1].split()
    base = with_requirements(*re.split(r", | and ", there))
    assert with_requirements("maskrcnn_lit") - base - {"maskrcnn-lit"} <= set(wheels)
    assert set(wheels) <= with_requirements("maskrcnn_lit")


def test_the_gpu_script_runs_on_a_bare_machine(test_data: Path, tmp_path: Path):
    """Without the package installed, without .git: as it is copied to a machine with a GPU. Its
    first steps, small and on the CPU.
    """
    code, out, python = tmp_path / "code", tmp_path / "out", tmp_path / "python"
    for folder in ("maskrcnn_lit", "conf", "benchmarks"):
        hidden = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(REPOSITORY / folder, code / folder, ignore=hidden)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # no .pth files are read
    python.chmod(0o755)
    given = environment() | {
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PYTHON": str(python),
        **{"DEVICE": "cpu", "SMALL": "1", "STEPS": "probe loop", "COMMIT": "c" * 40},
        **{"SLOW": "5", "LIMIT": "2000"},
    }
    alone = subprocess.run(
        [
            str(python),
            "-c",
            "import importlib.util as u; u.find_spec('torch').name; import maskrcnn_lit",
        ],
        cwd=tmp_path,
        env=given,
        capture_output=True,
        text=True,
    )
    assert "No module named 'maskrcnn_lit'" in alone.stderr
    command = ["bash", str(code / "benchmarks/gpu.sh"), str(test_data / "coco_mini"), str(out)]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    parts = {row["part"]: row for row in rows}
    assert list(parts) == ["env", "ops", "eager", "compiled", "speed"]
    assert parts["env"]["commit"] == {"hash": "c" * 40, "dirty": None}
    for kind in ("keeps_that_differ", "kinds_that_differ"):
        counts = parts["ops"][kind]
        assert counts["eager"] == counts["compiled"] == 0 < counts["of"]
    assert parts["ops"]["roi_align_differs_by"] < 1e-4
    assert parts["compiled"]["graph_breaks"] == {}
    assert parts["compiled"]["regions_that_failed"] == []
    assert parts["compiled"]["largest_relative_difference"] < 1e-3
    assert parts["speed"]["compiled"]
    assert parts["speed"]["images_per_second"] > 0
    loop = json.loads((out / "train_loop_cpu.json").read_text())
    assert loop["benchmark"] == "train_loop"
    assert loop["images_per_second"] > 0
    assert loop["steps"] == 2
    assert loop["different_images"] > 10
    assert 0 <= loop["data_wait"] <= 1
    assert parts["env"]["images"][2:] == [64, 96] == loop["size"]
    assert '"train_loop"' in (out / "log.txt").read_text()


STAND_IN = """#!/bin/sh
case "$1" in
  *gpu_probe.py) exit 3;;
  *train_step.py) echo '{"ours": 1}'; sleep "$SLEEP"; exit 3;;
  *inference.py) echo no json;;
  *) echo '{"first": 1}'; echo "{\\"ran\\": \\"$1\\"}";;
esac
"""


def test_a_step_of_the_gpu_script_that_fails_does_not_stop_the_others(tmp_path: Path):
    """And what was known before is written."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(steps: str, **more: str) -> tuple[int, str, dict[str, Any]]:
        out = Path(steps.replace(" ", "_"))  # from the folder in which it was typed
        given = {"PYTHON": str(python), "DEVICE": "cpu", "STEPS": steps, **more}
        command = ["bash", str(REPOSITORY / "benchmarks/gpu.sh"), str(tmp_path), str(out)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment() | given, capture_output=True, text=True
        )
        files = {
            file.stem: json.loads(file.read_text()) for file in (tmp_path / out).glob("*.json")
        }
        return done.returncode, done.stdout, files

    code, told, files = run("probe torchvision loop inference hot_spots graphs", SLEEP="0")
    assert code == 1
    assert "probe failed, or took more than" in told
    assert "torchvision_800 failed" in told
    assert files == {
        "torchvision_800_cpu": {"ours": 1},
        "train_loop_cpu": {"ran": "benchmarks/train_loop.py"},
        "hot_spots_cpu": {"ran": "benchmarks/hot_spots.py"},
    }
    code, told, files = run("torchvision loop", SLEEP="60", LIMIT="2")
    assert code == 1
    assert files == {"torchvision_800_cpu": {"ours": 1}}
    assert "torchvision_800 failed, or took more than 2 s" in told
    assert "no time is left for train_loop" in told
    code, told, files = run("hot_spots", SLEEP="0")
    assert code == 0
    assert list(files) == ["hot_spots_cpu"]


def test_the_gpu_script_reads_only_the_files_that_have_tests_for_a_gpu(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "asked: $*"\n')
    python.chmod(0o755)
    given = environment() | {"PYTHON": str(python), "DEVICE": "cuda", "STEPS": "tests"}
    command = ["bash", str(REPOSITORY / "benchmarks/gpu.sh"), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    (asked,) = [line for line in done.stdout.splitlines() if line.startswith("asked: ")]
    assert done.returncode == 0
    assert "-m pytest" in asked
    assert "-m gpu" in asked
    files = {word for word in asked.split() if word.startswith("tests")}
    assert "tests/training/test_gpu.py" in files
    assert len(files) < 10
    assert "tests/test_benchmarks.py" not in files
    assert "tests/test_pretend_gpu.py" not in files


@pytest.mark.slow
def test_inference(benchmark: Benchmark, test_data: Path):
    """Both models are of full size."""
    small = ["--coco", str(test_data / "coco_mini"), "--images", "1", "--rounds", "1"]
    (report,) = benchmark("inference.py", *small)
    assert report["benchmark"] == "inference"
    assert report["size"] == [480, 640]
    assert sum(report["detections"]) > 5
    assert min(row["share"] for row in report["reproduced"].values()) > 0.9
    assert (
        report["cpu_times_torchvision"]["torchvision"]
        == 1.0
        < 2 * report["cpu_times_torchvision"]["maskrcnn_lit"]
    )


def test_tiles(benchmark: Benchmark):
    (report,) = benchmark("tiles.py", "--side", "1500", "--tile", "600", "--suffix", ".png")
    assert report["benchmark"] == "tiles"
    assert set(report["ways"]) == {"maskrcnn_lit", "supervision"}
    assert (report["ways"]["maskrcnn_lit"]["objects"], report["ways"]["maskrcnn_lit"]["whole"]) == (
        9,
        9,
    )
    assert all(way["peak_mb"] > 0 and way["seconds"] > 0 for way in report["ways"].values())
