"""What a run records of its versions, commit, machine and data."""

import subprocess
from pathlib import Path

import pytest
import torch

from maskrcnn_lit import __version__
from maskrcnn_lit.errors import plural
from maskrcnn_lit.runs import provenance as module
from maskrcnn_lit.runs.provenance import (
    changed_data,
    describe_data,
    describe_machine,
    package_commit,
    package_versions,
)

pytest_plugins = ("tiny_commands", "local_server")


def test_versions_are_those_that_run() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__
    assert versions["maskrcnn_lit"] == __version__
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
    monkeypatch.setenv("MASKRCNN_LIT_COMMIT", "a" * 40)
    assert package_commit(package) == {"hash": "a" * 40, "dirty": None}


def test_git_knows_better_than_the_environment(checkout: Checkout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_LIT_COMMIT", "a" * 40)
    assert package_commit(checkout.package) == {"hash": "a" * 40, "dirty": None}
    checkout.git("init", "-q")
    head = checkout.commit()
    assert package_commit(checkout.package) == {"hash": head, "dirty": False}


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
    assert found is not None
    assert found["untracked"] == ["package/new.py"], "of the whole checkout, sources alone"
    assert "-one\n+two\n" in found["diff"]
    assert "+\ufffd" in found["diff"]
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
    assert told.pop("device").endswith(f"({plural(torch.get_num_threads(), 'thread')})")
    assert told == {"processes": 3, "threads": torch.get_num_threads(), "gpu": None}


@pytest.mark.process
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
    assert told["device"] == "A100"
    assert told["processes"] == 2
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
    assert data["name"] == "coco2017"
    assert data["categories"] == [[90, "ant"], [1, "bee"]]
    assert data["train"]["images"] == 3
    assert len(data["train"]["ids_sha256"]) == 64
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


def test_changed_data_are_named_and_what_an_older_record_lacks_is_not():
    now = {
        "train": {"images": 3, "ids_sha256": "a", "annotations_sha256": "b"},
        "val": {"images": 1, "ids_sha256": "c"},
        "categories": [[1, "x"]],
    }
    assert changed_data(now, now) == []
    assert changed_data({}, now) == []
    older = {"train": {"images": 3}, "val": {"images": 2, "ids_sha256": "d"}}
    assert changed_data(older, now) == ["val.images", "val.ids_sha256"]
    assert changed_data({"categories": [[1, "y"]]}, now) == ["categories"]
