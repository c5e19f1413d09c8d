"""The command hands its config to launch/evaluate.py."""

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.cli import evaluate


def test_the_config_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: calls.append(given))
    config = OmegaConf.create({"run": "RUN"})
    evaluate.run(config, ["run=RUN"])
    assert calls == [(config, ["run=RUN"])]
