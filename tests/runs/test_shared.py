import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs import shared
from maskrcnn_lit.runs.shared import FACTS, WEIGHTS, hub_name, is_shared, local, read_shared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2)}, tmp_path / WEIGHTS)
    facts = {"version": 1, "categories": [[3, "cat"], [7, "dog"]]}
    (tmp_path / FACTS).write_text(json.dumps(facts))
    (tmp_path / "config.yaml").write_text("model: {mean: [0.5]}")
    return tmp_path


def test_a_folder_is_read(folder: Path):
    assert is_shared(folder)
    assert not is_shared(folder.parent)
    config, categories, state = read_shared(folder)
    assert config == {"model": {"mean": [0.5]}}
    assert state["a"].tolist() == [1, 1]
    assert [(own.id, own.name) for own in categories] == [(3, "cat"), (7, "dog")]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 1}', "cannot be read"),
        ('{"version": 1, "categories": [[1]]}', "cannot be read"),
        (
            '{"version": 9, "categories": []}',
            "is of version 9, and this maskrcnn_lit reads version",
        ),
    ],
)
def test_wrong_facts(folder: Path, facts: str, message: str):
    (folder / FACTS).write_text(facts)
    with pytest.raises(UserError, match=rf"{FACTS} {message}"):
        read_shared(folder)


def test_weights_that_are_no_numbers(folder: Path):
    save_file({"a": torch.tensor([1.0, float("nan")])}, folder / WEIGHTS)
    with pytest.raises(UserError, match=WEIGHTS):
        read_shared(folder)


def test_names_on_the_hub(tmp_path: Path):
    assert hub_name("hf:lab/net-1.0") == "lab/net-1.0"
    assert hub_name("folder/hf") is None
    for name in ("hf:", "hf:lab", "hf:a/b/c", "hf:../x", "hf:lab/na me"):
        with pytest.raises(UserError, match=r"must be hf:USER/NAME"):
            hub_name(name)
    assert local(tmp_path) == tmp_path


def test_a_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch):
    class Hub:
        @staticmethod
        def snapshot_download(*_: Any, **__: Any) -> str:
            raise OSError("no route to host")

    monkeypatch.setattr(shared, "hub", lambda wanted: Hub)
    with pytest.raises(UserError, match=r"hf:lab/net cannot be fetched .*no route to host.*check"):
        local("hf:lab/net")
