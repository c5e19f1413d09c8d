import builtins
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from maskrcnn_lit.data.stores.feature_folder import (
    disk_bytes,
    make_room,
    mark_used,
    one_at_a_time,
    reserve,
    room,
)

KB = 1024 * 64  # bytes of a file, whole blocks


def maps(folder: Path, name: str, last_use: int) -> Path:
    file = folder / f"{name}.raw"
    file.write_bytes(os.urandom(KB))
    file.with_suffix(".crc").write_bytes(b"1234")
    mark = file.with_suffix(".used")
    mark.touch()
    os.utime(mark, (last_use, last_use))
    return file


def test_the_least_recently_used_maps_that_no_run_uses_are_removed(tmp_path: Path):
    oldest, used, newer, newest, own = (
        maps(tmp_path, name, when)
        for name, when in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("own", 0))
    )
    before = os.stat(used.with_suffix(".used")).st_mtime
    with mark_used(used), mark_used(own):
        assert os.stat(used.with_suffix(".used")).st_mtime > before, "this use is the last one"
        limit = 4.5 * KB / 1e9
        assert room(tmp_path, [own], limit) == pytest.approx(3.5 * KB, abs=1)
        removed = make_room(tmp_path, [own], 2 * KB, limit)
        assert removed == [oldest, newer], "two others and 2 KB of its own are within 4.5"
        assert not oldest.exists()
        assert not oldest.with_suffix(".crc").exists()
        assert all(file.exists() for file in (used, newest, own))
        assert make_room(tmp_path, [own], 2 * KB, limit) == []
        assert make_room(tmp_path, [own], 10 * KB, limit) == [newest], "one in use stays"
    assert room(tmp_path, [own], limit) == pytest.approx(4.5 * KB, abs=1), "nothing is in use"


def test_there_is_never_more_room_than_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = maps(tmp_path, "own", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": KB}))
    assert room(tmp_path, [own], 1.0) == int(0.8 * 2 * KB), "what its own file takes counts"


def test_a_sparse_file_takes_what_was_written(tmp_path: Path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(100 * KB)
    assert disk_bytes([tmp_path / "sparse", tmp_path / "missing"]) < KB


def test_maps_in_use_count_with_all_that_they_will_take(tmp_path: Path):
    """Two runs that begin at the same time do not take the same room."""
    begun, half, own = tmp_path / "begun.raw", maps(tmp_path, "half", 1), tmp_path / "own.raw"
    limit = 10 * KB / 1e9
    with mark_used(begun), mark_used(half):
        reserve(begun, 4 * KB)
        reserve(begun, 3 * KB)  # another run with fewer of these images
        reserve(half, 2 * KB)
        assert room(tmp_path, [own], limit) == pytest.approx(4 * KB, abs=1)
        assert room(tmp_path, [begun], limit) == pytest.approx(8 * KB, abs=1)
        assert make_room(tmp_path, [own], 5 * KB, limit) == [], "both are in use"
        for damaged in (b"", b"\xff\xfe", b"-5", b"1 2"):
            half.with_suffix(".used").write_bytes(damaged)
            assert room(tmp_path, [own], limit) == pytest.approx(5 * KB, abs=1)
        reserve(half, 2 * KB)
    assert room(tmp_path, [own], limit) == pytest.approx(10 * KB, abs=1), "nothing is in use"
    assert make_room(tmp_path, [own], 19 * KB // 2, limit) == [half], "it counts what it takes"
    assert half.with_suffix(".used").read_bytes() == b""
    assert not half.exists()


def test_one_run_at_a_time_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flock, waits = fcntl.flock, []

    def no_wait(file: IO[Any], how: int) -> None:
        try:
            flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            waits.append(file.name)
            raise

    monkeypatch.setattr(fcntl, "flock", no_wait)
    with one_at_a_time(tmp_path / "features"):
        with suppress(BlockingIOError), one_at_a_time(tmp_path / "features"):
            pass
        assert len(waits) == 1
    with one_at_a_time(tmp_path / "features"):
        pass


def test_locks_are_those_that_nfs_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There a shared lock needs a file that can be read, and one for a single process a file that
    can be written. A file of another user is as one in use.
    """
    flock, kinds = fcntl.flock, set()

    def as_nfs(file: IO[Any], how: int) -> None:
        needs = file.readable() if how & fcntl.LOCK_SH else file.writable()
        if not needs:
            raise OSError(9, "Bad file descriptor")
        kinds.add(how)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    used, idle, own = (maps(tmp_path, name, 1) for name in ("used", "idle", "own"))
    limit = 2.5 * KB / 1e9
    with mark_used(used), mark_used(own):
        assert room(tmp_path, [own], limit) == pytest.approx(1.5 * KB, abs=1)
        assert kinds == {fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB}
        assert make_room(tmp_path, [own], KB, limit) == [idle]
    idle = maps(tmp_path, "idle", 1)
    opened = builtins.open

    def of_another(path: Any, mode: str = "r", *options: Any, **more: Any) -> Any:
        if Path(path) == idle.with_suffix(".used") and mode not in ("r", "rb"):
            raise PermissionError
        return opened(path, mode, *options, **more)

    monkeypatch.setattr(builtins, "open", of_another)
    assert room(tmp_path, [own], limit) == pytest.approx(1.5 * KB, abs=1)
    assert make_room(tmp_path, [own], 2 * KB, limit) == [used]
