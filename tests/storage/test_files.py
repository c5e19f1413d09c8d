import errno
import fcntl
import json
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskrcnn_lit.storage import files
from maskrcnn_lit.storage.files import (
    atomic_folder,
    atomic_write,
    default_cache,
    is_locked,
    locked,
    move_into_place,
    temporary_file,
    write_json,
)


@pytest.mark.parametrize("data", ["naïve\nlines\r\n", b"\x00\xff"])
def test_the_bytes_are_those_that_were_given(tmp_path: Path, data: str | bytes):
    atomic_write(tmp_path / "a" / "b" / "file", data)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == (
        data.encode() if isinstance(data, str) else data
    )
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_it(tmp_path: Path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        atomic_write(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder", replace=False):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_where_writing_fails_the_old_file_stays_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    atomic_write(tmp_path / "file", "old")
    monkeypatch.setattr(files.os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_meets_the_old_file_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, replace, seen = tmp_path / "file", os.replace, []

    def look_then_replace(source: str, destination: Path) -> None:
        seen.append((target.read_text(), Path(source).read_text(), Path(source).parent))
        replace(source, destination)

    atomic_write(target, "old")
    monkeypatch.setattr(files.os, "replace", look_then_replace)
    atomic_write(target, "new")
    assert seen == [("old", "new", tmp_path)]
    assert target.read_text() == "new"


def test_a_temporary_file_that_is_not_moved_is_removed(tmp_path: Path):
    with temporary_file(tmp_path / "a" / "file") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path / "a"
    assert os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize("unique", [True, False])
def test_two_temporary_files_of_one_path(tmp_path: Path, unique: bool):
    with (
        temporary_file(tmp_path / "file", unique=unique) as first,
        temporary_file(tmp_path / "file", unique=unique) as second,
    ):
        assert (first != second) == unique


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path):
    with pytest.raises(OSError) as caught, temporary_file(tmp_path / "file") as temporary:
        (temporary / "below").write_text("x")
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize(("durable", "count"), [(True, 1), (False, 0)])
def test_only_a_durable_file_is_flushed_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, count: int
):
    flushed = list[int]()
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    with temporary_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
        move_into_place(temporary, tmp_path / "file", durable=durable)
    assert len(flushed) == count
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(("replace", "content"), [(True, "new"), (False, "old")])
def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path, replace: bool, content: str):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "folder", replace=replace) as new:
            (new / "file").write_text(text)
            assert text == "new" or not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "file").read_text() == content
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_completed_leaves_the_old_one(tmp_path: Path):
    with atomic_folder(tmp_path / "folder", replace=True) as new:
        (new / "file").write_text("old")
    with (
        pytest.raises(OSError, match="No space"),
        atomic_folder(tmp_path / "folder", replace=True) as new,
    ):
        (new / "file").write_text("new")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_json_has_null_where_there_is_no_number(tmp_path: Path):
    value = {
        "a": [math.nan, 1.5, (math.inf, "NaN")],
        "b": {"c": -math.inf, "d": None, "e": 2**60, "f": True},
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {
        "a": [None, 1.5, [None, "NaN"]],
        "b": {"c": None, "d": None, "e": 2**60, "f": True},
    }
    assert "NaN," not in text
    assert "Infinity" not in text
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_no_file(tmp_path: Path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert os.listdir(tmp_path) == []


def test_a_lock_is_held_by_one_thread_at_a_time(tmp_path: Path):
    inside: list[int] = []

    def work(_: int) -> int:
        with locked(tmp_path / "lock"):
            inside.append(0)
            found = len(inside)
            inside.pop()
            return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) == {1}
    assert os.listdir(tmp_path) == ["lock"]


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path):
    (tmp_path / "count").write_text("0")
    child = os.fork()
    for _ in range(50):
        with locked(tmp_path / "lock"):
            (tmp_path / "count").write_text(str(int((tmp_path / "count").read_text()) + 1))
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "count").read_text() == "100"


def test_whether_a_lock_is_taken(tmp_path: Path):
    assert is_locked(tmp_path / "lock") is False
    assert os.listdir(tmp_path) == [], "it makes no file"
    with locked(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock") is True
    assert is_locked(tmp_path / "lock") is False


def test_a_look_at_a_lock_keeps_nobody_from_it(tmp_path: Path):
    """Who does not wait tries again, as a look takes the lock for an instant."""
    path, slept = tmp_path / "lock", []
    with open(path, "ab") as look, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(look, fcntl.LOCK_SH)

        def leave(seconds: float) -> None:
            slept.append(seconds)
            fcntl.flock(look, fcntl.LOCK_UN)

        patch.setattr("maskrcnn_lit.storage.files.time.sleep", leave)
        with locked(path, wait=False) as free:
            assert free
    assert len(slept) == 1


def test_where_the_file_system_has_no_locks_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(code: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOSYS)
    with locked(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock") is None
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock"):
        pass


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "maskrcnn_lit"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "maskrcnn_lit"
