import os
from pathlib import Path

import pytest

from maskrcnn_lit.data.stores.feature_folder import disk_bytes, make_room, mark_used, room

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
        assert not oldest.exists() and not oldest.with_suffix(".crc").exists()
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
