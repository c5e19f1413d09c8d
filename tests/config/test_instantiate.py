"""Objects from configs: what is built, and what is refused before it can run."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from maskrcnn_lit.config.instantiate import build
from maskrcnn_lit.data.batch import check_batch
from maskrcnn_lit.errors import UserError


def test_parts_are_built_first_and_get_plain_containers():
    config = OmegaConf.create(
        {
            "size": 3,
            "net": {
                "_target_": "torch.nn.Sequential",
                "_args_": [
                    {"_target_": "torch.nn.Linear", "in_features": "${size}", "out_features": 2}
                ],
            },
            "names": [{"a": ["${size}"]}],
        }
    )
    built = build(config)
    assert built["net"][0].weight.shape == (2, 3)
    assert built["names"] == [{"a": [3]}]
    assert type(built["names"][0]["a"]) is list
    assert build(config.net)[0].in_features == 3  # the reference leads out of the node
    assert build(None) is None
    assert build(config.names) == [{"a": [3]}]


def test_arguments_reach_the_target_as_they_are():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = build(
        {"_target_": "torch.optim.AdamW", "lr": 0.5, "betas": [0.9, 0.99]}, params=parameters
    )
    assert optimizer.param_groups[0]["params"][0] is parameters[0]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_partial_waits_for_its_call():
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
    made = build(node, momentum=0.5)
    assert isinstance(made, functools.partial)
    assert made([torch.nn.Parameter(torch.zeros(2))]).defaults["momentum"] == 0.5
    nested = build({"list": [node]})["list"][0]
    assert nested(params=[torch.nn.Parameter(torch.zeros(2))]).defaults["lr"] == 0.5


@pytest.mark.parametrize("target", ["", "system", None, 3, "os.", "torch.nn.functional"])
def test_a_target_is_the_dotted_name_of_something_that_can_be_called(target: object):
    node = {"_target_": target, "x": 1}
    for wrapped in (node, {"a": [node]}, {"_target_": "torch.nn.Sequential", "_args_": [node]}):
        with pytest.raises(UserError, match="_target_"):
            build(wrapped)


def test_what_is_typed_may_be_of_any_package():
    assert build({"_target_": "os.path.join", "_args_": ["a", "b"]}) == "a/b"
    assert build({"_target_": "collections.OrderedDict", "a": 1}) == {"a": 1}


def test_a_module_of_the_working_directory_is_found_behind_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_module_of_test.py").write_text("def make(*, n):\n    return n + 1\n")
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the standard library')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "queue", raising=False)
    assert build({"_target_": "own_module_of_test.make", "n": 1}) == 2
    assert sys.path[-1] == str(tmp_path)
    assert build({"_target_": "queue.Queue", "maxsize": 3}).maxsize == 3
    with pytest.raises(UserError, match=r"'nowhere_at_all.make' in the config cannot be imported"):
        build({"_target_": "nowhere_at_all.make"})


def test_what_does_not_exist_or_fit_is_named():
    with pytest.raises(UserError, match=r"'torch.optim.Adamm' in optimizer cannot be imported"):
        build({"optimizer": {"_target_": "torch.optim.Adamm"}})
    with pytest.raises(
        UserError,
        match=r"torch.optim.SGD in the config has no argument 'momentun'; did you mean momentum\?",
    ):
        build({"_target_": "torch.optim.SGD", "momentun": 1})


def test_what_a_target_raises_passes_through(monkeypatch: pytest.MonkeyPatch):
    def fails(*, what: str) -> None:
        raise UserError(f"no {what}")

    fails.__module__, fails.__qualname__ = "maskrcnn_lit.data.batch", "fails"
    monkeypatch.setattr(sys.modules[check_batch.__module__], "fails", fails, raising=False)
    node = {"_target_": "maskrcnn_lit.data.batch.fails", "what": "luck"}
    for wrapped in (node, {"a": node}, {"_target_": "torch.nn.Sequential", "_args_": [node]}):
        with pytest.raises(UserError, match=r"^no luck$"):
            build(wrapped)
    with pytest.raises(RuntimeError, match="negative dimension"):
        build({"net": {"_target_": "torch.nn.Linear", "in_features": -1, "out_features": 1}})
