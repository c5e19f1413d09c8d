import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from maskrcnn_lit import __version__
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs import result as module
from maskrcnn_lit.runs.provenance import (
    describe_data,
    describe_machine,
    package_commit,
    package_versions,
)
from maskrcnn_lit.runs.result import RunResult, read_result, write_result


def test_a_result_comes_back_as_it_was_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "run/result.json"
    result = RunResult(
        status="finished",
        metrics={"val/mask_ap": 0.1 + 0.2, "val/mask_ap_small": math.nan},
        overrides=["seed=1"],
        command=["maskrcnn-lit", "train", "seed=1"],
        versions=package_versions(),
        commit={"hash": "abc", "dirty": True, "diff": "-a\n+b\n", "untracked": ["c.py"]},
        machine=describe_machine(torch.device("cpu"), 2),
        data=describe_data(
            name="shapes", subset_ids={"train": [1], "val": []}, categories=[(1, "ant")]
        ),
        cost={"seconds": 1.5},
        seed=1,
    )
    write_result(path, result)
    assert json.loads(path.read_text())["metrics"] == {
        "val/mask_ap": 0.1 + 0.2,
        "val/mask_ap_small": None,
    }
    again = read_result(path)
    assert math.isnan(again.metrics.pop("val/mask_ap_small")) and result.metrics.pop(
        "val/mask_ap_small"
    )
    assert again == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_status_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'done'; expected one of running, finished, failed, interrupted"
    ):
        RunResult(status="done")


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"metrics": {}}', '{"status": "done"}', '{"metrics": 3}']
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="give the folder of a run") as error:
        read_result(path)
    assert str(path) in str(error.value)


def test_versions_are_those_that_run() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__ and versions["maskrcnn_lit"] == __version__
    assert set(versions) == {
        *(
            "python",
            "torch",
            "torchvision",
            "lightning",
            "hydra",
            "pycocotools",
            "numpy",
            "pillow",
            "maskrcnn_lit",
        )
    }


class Checkout:
    """A folder under git with a package in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.package = root, root / "package"
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("one\n")
        (root / ".gitignore").write_text(".venv\n")

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(
            command, cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self) -> str:
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "first")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Checkout(tmp_path / "checkout")


def test_commit_is_of_the_folder_of_the_code_and_tells_changes(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
):
    package, other = checkout.package, checkout.root / ".venv/package"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    assert package_commit(package) is None  # no checkout
    checkout.git("init", "-q")
    assert package_commit(package) is None  # no commit
    head = checkout.commit()
    assert package_commit(package) == {"hash": head, "dirty": False}
    assert package_commit(package, changes=True) == {
        "hash": head,
        "dirty": False,
        "diff": "",
        "untracked": [],
    }
    assert package_commit(other) is None  # installed inside of somebody's checkout
    (package / "new.py").write_text("")
    assert package_commit(package) == {"hash": head, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert package_commit(package) is None  # no git


def test_the_changes_of_a_checkout_can_be_made_again(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
):
    checkout.commit()
    for name in ("new.py", "weights.pt"):
        (checkout.package / name).write_text("")
    (checkout.package / "__init__.py").write_text("two\n")
    (checkout.root / ".gitignore").write_bytes(b".venv\n\xff\n")  # no text
    checkout.git("add", ".gitignore")  # staged or not
    found = package_commit(checkout.package, changes=True)
    assert found is not None and found["untracked"] == ["package/new.py"], (
        "of the whole checkout, sources alone"
    )
    assert "-one\n+two\n" in found["diff"] and "+\ufffd" in found["diff"]
    (checkout.root / ".gitignore").write_text(".venv\n")
    diff = package_commit(checkout.package, changes=True)["diff"]
    checkout.git("checkout", "HEAD", ".")
    subprocess.run(["git", "apply"], cwd=checkout.root, input=diff.encode(), check=True)
    assert (checkout.package / "__init__.py").read_text() == "two\n"


def test_changes_are_cut_where_they_are_long(checkout: Checkout, monkeypatch: pytest.MonkeyPatch):
    checkout.commit()
    (checkout.package / "__init__.py").write_text("x" * 5000)
    for i in range(12):
        (checkout.package / f"new{i:02}.py").write_text("")
    whole = package_commit(checkout.package, changes=True)
    monkeypatch.setattr(module, "DIFF_CHARACTERS", 300)
    monkeypatch.setattr(module, "UNTRACKED_FILES", 2)
    cut = package_commit(checkout.package, changes=True)
    characters = len(whole["diff"])
    assert characters > 5000
    assert (
        cut["diff"] == f"{whole['diff'][:300]}\n[cut: the first 300 of {characters} characters]\n"
    )
    assert cut["untracked"] == [
        "package/new00.py",
        "package/new01.py",
        "[cut: the first 2 of 12 names]",
    ]


def test_the_machine_of_a_run_on_the_cpu():
    told = describe_machine(torch.device("cpu"), 3)
    assert told.pop("device").endswith(f"({torch.get_num_threads()} threads)")
    assert told == {"processes": 3, "threads": torch.get_num_threads(), "gpu": None}


def test_the_machine_of_a_run_on_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What torch and nvidia-smi say, here from a stand-in for each."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    told = describe_machine(torch.device("cuda", 0), 2)
    assert told["device"] == "A100" and told["processes"] == 2
    built = {"cuda": torch.version.cuda, "cudnn": 91900}
    assert told["gpu"] == {"names": ["A100", "A100"], "count": 2, "driver": "580.65.06", **built}
    monkeypatch.setenv("PATH", "")
    assert describe_machine(torch.device("cuda", 0), 2)["gpu"]["driver"] is None


def test_data_digest_is_of_the_choice_of_images_and_not_of_their_order() -> None:
    def describe(ids: list[int]) -> dict:
        return describe_data(
            name="coco2017", subset_ids={"train": ids}, categories=[(90, "ant"), (1, "bee")]
        )

    data = describe([3, 1, 2])
    assert data["name"] == "coco2017" and data["categories"] == [[90, "ant"], [1, "bee"]]
    assert data["train"]["images"] == 3 and len(data["train"]["ids_sha256"]) == 64
    assert describe([1, 2, 3]) == data != describe([1, 2, 4])


def test_what_else_tells_a_split_from_others_stands_beside_its_ids():
    data = describe_data(
        name="any",
        subset_ids={"train": [1], "val": [2]},
        categories=[(1, "ant")],
        fingerprints={"train": {"images_sha256": "a"}, "val": {"images_sha256": "b"}},
    )
    assert (data["train"]["images_sha256"], data["val"]["images_sha256"]) == ("a", "b")
    assert list(data["val"]) == ["images", "ids_sha256", "images_sha256"]
