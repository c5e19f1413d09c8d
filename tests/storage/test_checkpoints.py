import hashlib
from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import (
    best_checkpoint,
    check_weights,
    last_checkpoint,
    weights_digest,
)


def test_where_checkpoints_are(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(
        UserError,
        match=rf"{tmp_path}.* has no checkpoint: continue the run first, maskrcnn-lit train "
        r"resume=",
    ):
        best_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert (
        best_checkpoint(tmp_path)
        == last_checkpoint(tmp_path)
        == tmp_path / "checkpoints" / "last.ckpt"
    )
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "best.ckpt"


def test_a_result_belongs_to_the_weights_it_was_made_with(tmp_path: Path):
    assert weights_digest(tmp_path) is None
    check_weights("any", tmp_path)  # without weights nothing can be compared
    (tmp_path / "model.safetensors").write_bytes(b"shared")
    shared = weights_digest(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"last")
    last = weights_digest(tmp_path)
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"best")
    best = weights_digest(tmp_path)
    assert best == hashlib.sha256(b"best").hexdigest()
    assert len({shared, last, best}) == 3
    check_weights(best, tmp_path)
    check_weights(None, tmp_path)  # of an earlier version
    with pytest.raises(ValueError, match="other weights than the run has now"):
        check_weights(last, tmp_path)
