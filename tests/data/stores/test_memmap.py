import errno
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_lit.data.stores.memmap import MemmapStore

SPANS = np.array([[0, 5], [5, 5], [5, 4101], [4101, 10_000_000]])


@pytest.fixture
def stored(tmp_path: Path) -> MemmapStore:
    return MemmapStore(tmp_path / "new" / "pieces.raw", SPANS)


def piece(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def test_a_piece_is_there_once_it_was_put(stored: MemmapStore):
    assert [stored.get(i) for i in range(4)] == [None] * 4
    stored.put(2, piece(4096).reshape(64, 64))
    assert np.array_equal(stored.get(2), piece(4096))
    assert stored.get(0) is None
    stored.put(0, np.zeros(5, np.uint8))  # as a hole looks
    assert np.array_equal(stored.get(0), np.zeros(5))
    with pytest.raises(ValueError, match="piece 0 has 4 bytes; expected 5"):
        stored.put(0, piece(4))


def test_the_next_process_finds_it(stored: MemmapStore):
    stored.put(2, piece(4096))
    again = pickle.loads(pickle.dumps(stored))
    assert np.array_equal(again.get(2), piece(4096))
    child = os.fork()
    if child == 0:
        stored.put(0, piece(5))
        os._exit(0 if np.array_equal(stored.get(2), piece(4096)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(stored.get(0), piece(5))  # and this one what the other wrote


def test_the_file_takes_the_room_of_what_is_in_it(stored: MemmapStore):
    stored.put(0, piece(5))
    assert stored.file.stat().st_size == 10_000_000
    assert stored.file.stat().st_blocks * 512 < 100_000


def test_of_another_stamp_it_is_not_there(stored: MemmapStore):
    stored.put(2, piece(4096), b"yesterday")
    assert stored.get(2, b"today") is None
    assert stored.get(2) is None
    assert np.array_equal(stored.get(2, b"yesterday"), piece(4096))


def test_a_damaged_piece_is_not_there(stored: MemmapStore):
    stored.put(2, piece(4096))
    with open(stored.file, "r+b") as file:
        file.seek(100)
        file.write(b"xyz")
    assert stored.get(2) is None
    stored.put(2, piece(4096))
    assert np.array_equal(stored.get(2), piece(4096))


def test_a_full_disk_is_told_once_and_stops_nothing(
    stored: MemmapStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        stored.put(0, piece(5))
        stored.put(2, piece(4096))
    assert stored.get(0) is None
    (record,) = caplog.records
    assert (
        "pieces.raw ([Errno 28] No space left on device): loading continues" in record.getMessage()
    )


def test_a_folder_that_turned_read_only_is_read(
    stored: MemmapStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    stored.put(0, piece(5))
    again = MemmapStore(stored.file, stored.spans)
    opened = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags != os.O_RDONLY:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(again.get(0), piece(5))
        again.put(2, piece(4096))
        again.put(2, piece(4096))
    assert again.get(2) is None
    assert [record.getMessage().count("cannot write to") for record in caplog.records] == [1]


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("no folder")
    nowhere = MemmapStore(tmp_path / "file" / "pieces.raw", np.array([[0, 5]]))
    with caplog.at_level(logging.WARNING):
        assert nowhere.get(0) is None
        nowhere.put(0, piece(5))
        assert nowhere.get(0) is None
    assert [record.getMessage().count("cannot write to") for record in caplog.records] == [1]
