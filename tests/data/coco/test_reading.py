import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from coco_file import coco_dict, write_coco

from maskrcnn_lit.data.coco.faults import Fault
from maskrcnn_lit.data.coco.index import read_index
from maskrcnn_lit.data.coco.reading import ALL, OneJson, Part, folder_of, load_entries, located
from maskrcnn_lit.data.coco.split import Split
from maskrcnn_lit.errors import UserError

READS: list[str] = []


@dataclass(frozen=True)
class Own:
    """A reader of a set of `write_coco`."""

    faulty: bool = False

    def parts(self, root: Path) -> Sequence[str]:
        return ()

    def sources(self, root: Path) -> Sequence[Path]:
        return (root,)

    def read(self, root: Path, part: str) -> Part:
        READS.append(part)
        content = json.loads((root / "instances.json").read_text())
        faults = [Fault("bad mask", "03.jpg", None, "it is upside down")] if self.faulty else []
        return Part(content, root / "images", faults, [Fault("no box", "x.txt", None, "filled")])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    READS.clear()
    write_coco(tmp_path / "data", coco_dict(6))
    return tmp_path / "data"


def test_a_folder_is_read_once_until_a_file_changes(root: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    first = located(Own(), root, ALL, tmp_path / "cache")[ALL]
    assert located(Own(), root, ALL, tmp_path / "cache")[ALL] == first
    assert READS == [ALL]
    assert first.images == root / "images"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    os.utime(root / "images" / "01.jpg", (1, 1))
    located(Own(), root, ALL, tmp_path / "cache")
    assert READS == [ALL, ALL]
    (root / "new.txt").write_text("")
    located(Own(), root, ALL, tmp_path / "cache")
    located(Own(faulty=True), root, ALL, tmp_path / "cache")  # other options: another reading
    assert len(READS) == 4


def test_a_damaged_json_is_made_again(root: Path, tmp_path: Path):
    file = located(Own(), root, ALL, tmp_path / "cache")[ALL].annotations
    text = file.read_text()
    file.write_text(text[:-10])
    assert located(Own(), root, ALL, tmp_path / "cache")[ALL].annotations.read_text() == text
    file.with_name("record.json").write_text("{")
    located(Own(), root, ALL, tmp_path / "cache")
    assert len(READS) == 3


def test_faults_and_changes_come_with_the_json(root: Path, tmp_path: Path):
    one = located(Own(faulty=True), root, ALL, tmp_path / "cache")[ALL]
    with pytest.raises(UserError, match=r"my data has 1 fault: 1 x bad mask .*upside down"):
        read_index(one.annotations, one.images, "error", cache=tmp_path, where="my data")
    index = read_index(one.annotations, one.images, "skip", cache=tmp_path)
    assert [fault.kind for fault in index.faults] == ["bad mask"]
    assert [change.what for change in index.changes if change.image == "x.txt"] == ["filled"]


def test_a_split_has_the_findings_of_its_own_images(root: Path, tmp_path: Path):
    parts = located(Own(faulty=True), root, ALL, tmp_path / "cache", Split(0.5))
    contents = {name: json.loads(one.annotations.read_text()) for name, one in parts.items()}
    assert list(contents) == ["train", "val"]
    assert READS == [ALL]
    names = {name: {i["file_name"] for i in one["images"]} for name, one in contents.items()}
    assert len(names["train"]) == len(names["val"]) == 3
    for name, one in contents.items():
        faults = one.get("findings", {}).get("faults", [])
        assert len(faults) == ("03.jpg" in names[name])
    assert contents["train"]["findings"]["changes"] == [["no box", "x.txt", "filled"]]


def test_one_json(root: Path, tmp_path: Path):
    reader = OneJson(str(root / "instances.json"), str(root / "images"))
    parts = located(reader, Path(), ALL, tmp_path / "cache", Split(0.34))
    own = [json.loads(one.annotations.read_text())["images"] for one in parts.values()]
    assert [len(images) for images in own] == [4, 2]
    assert READS == []


@pytest.mark.parametrize("text", ["[]", "{", '{"images": 1}', ""])
def test_a_json_that_cannot_be_read(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as a COCO instances json"):
        load_entries(tmp_path / "a.json")


def test_a_json_that_does_not_exist(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"none\.json cannot .* \(No such file or directory\): give"
    ):
        load_entries(tmp_path / "none.json")


@pytest.mark.parametrize("root", ["http://host/data", "none"])
def test_the_root_is_a_folder(root: str):
    with pytest.raises(UserError, match=f"data.root={root} "):
        folder_of(root)


def test_without_a_root_it_is_the_working_directory():
    assert folder_of(None).absolute() == Path.cwd()


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written to .*data.cache_dir=DIR"):
        located(Own(), root, ALL, tmp_path / "cache")
