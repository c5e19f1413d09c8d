from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn_lit.cli import publish


def test_it_says_how_to_load_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(publish, "publish", lambda config: "https://HUB/lab/net")
    config: Any = SimpleNamespace(to="hf:lab/net")
    publish.run(config, [])
    assert capsys.readouterr().out == (
        "Published to https://HUB/lab/net. In Python: maskrcnn_lit.load_model('hf:lab/net')\n"
    )
