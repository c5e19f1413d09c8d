"""The command hands its config and its command line to launch/train.py."""

import sys

import pytest
from omegaconf import OmegaConf

from maskrcnn_lit.cli import train


def test_the_command_line_goes_with_the_config(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(train, "train", lambda *given, **named: calls.append((given, named)))
    monkeypatch.setattr(sys, "argv", ["maskrcnn-lit", "train", "seed=3"])
    config = OmegaConf.create({"seed": 3})
    train.run(config, ["seed=3"])
    assert calls == [((config, ["seed=3"]), {"command": ["maskrcnn-lit", "train", "seed=3"]})]


def test_without_options_it_says_what_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(train, "train", lambda *given, **named: None)
    train.run(OmegaConf.create({}), [])
    assert "For a demo of a few minutes add experiment=demo" in capsys.readouterr().out
    train.run(OmegaConf.create({}), ["seed=3"])
    assert capsys.readouterr().out == ""
