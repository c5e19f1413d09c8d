from pathlib import Path

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.checkpoints import best_checkpoint, last_checkpoint


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
