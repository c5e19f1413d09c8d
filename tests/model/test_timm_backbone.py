import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from torch import nn

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.norms import FrozenBatchNorm
from maskrcnn_lit.model.timm_backbone import TimmBackbone, check_hub_file


def backbone(name: str = "test_resnet", **options: object) -> TimmBackbone:
    return TimmBackbone(**{"name": name, "norm": "batch", "freeze_at": 0, **options})


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("test_resnet", {}, None),
        ("test_efficientnet", {}, None),
        ("resnet18", {}, [64, 128, 256, 512]),
        ("convnext_atto", {}, [40, 80, 160, 320]),
        ("mobilenetv3_small_050", {}, None),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, [96, 192, 384, 768]),  # channels last
    ],
)
def test_channels_and_strides_are_measured(name: str, options: dict[str, object], channels: list[int] | None):
    built = backbone(name, options=options).eval()
    with torch.no_grad():
        maps = built(torch.randn(2, 3, 96, 160))
    assert built.strides == [4, 8, 16, 32] and channels in (None, built.channels)
    shapes = [(2, c, 96 // s, 160 // s) for c, s in zip(built.channels, built.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_get_no_gradient_and_the_others_do(name: str, freeze_at: int):
    built = backbone(name, freeze_at=freeze_at).train()
    maps = built(torch.randn(2, 3, 64, 64))
    frozen = [m for m in maps if not m.requires_grad]
    assert len(frozen) == max(0, freeze_at - 1), "a map of frozen stages alone has no gradient"
    if freeze_at < 5:
        sum(m.square().mean() for m in maps).backward()
    for parameter in built.parameters():
        assert (parameter.grad is not None) is parameter.requires_grad
    stem = next(built.body.parameters())
    assert stem.requires_grad is (freeze_at == 0)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training is module.weight.requires_grad


@pytest.mark.parametrize(
    ("norm", "kind"), [("frozen", FrozenBatchNorm), ("sync", nn.SyncBatchNorm), ("group", nn.GroupNorm)]
)
def test_norms(norm: str, kind: type[nn.Module]):
    batch, built = backbone("mobilenetv3_small_050").eval(), backbone("mobilenetv3_small_050", norm=norm).eval()
    count = sum(isinstance(m, nn.BatchNorm2d) for m in batch.modules())
    assert sum(isinstance(m, kind) for m in built.modules()) == count > 10
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    batch = backbone("mobilenetv3_small_050").eval()
    torch.manual_seed(1)
    built = backbone("mobilenetv3_small_050", norm=norm).eval()
    if norm != "group":  # the activations inside of timm's norms stay
        for ours, theirs in zip(built(images), batch(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("freeze_at", [0, 2])
def test_a_model_of_one_image_size_is_told_with_what_to_try(freeze_at: int):
    with pytest.raises(UserError) as error:
        backbone("swin_tiny_patch4_window7_224", freeze_at=freeze_at)
    assert str(error.value) == (
        "backbone swin_tiny_patch4_window7_224 does not take an image of 64 x 64 (Input height (64) doesn't match model "
        "(224).), and a detector's are of any size: try 'backbone.options={strict_img_size: false}', or choose another "
        "timm model"
    )


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_weights_from_a_file(tmp_path: Path, norm: str):
    whole = timm.create_model("test_resnet").eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    built = backbone(norm=norm, weights=str(tmp_path / "weights.pth"))
    mean, std = built.load_pretrained(tmp_path / "weights.pth")
    assert (len(mean), len(std)) == (3, 3)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(built.eval()(images)[-1], whole.forward_features(images), atol=1e-5)


def test_mistakes_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"timm cannot build backbone\.name=resnet_none.*list_models"):
        backbone("resnet_none")
    with pytest.raises(UserError, match=r"strides \[16, 16, 16\].*needs \[4, 8, 16, 32\]: choose another"):
        backbone("vit_tiny_patch16_224")
    with pytest.raises(UserError, match="norm=group has no pretrained weights"):
        backbone(norm="group").load_pretrained(None)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"test_resnet cannot be loaded from .*bad\.pth.*backbone\.weights=FILE"):
        backbone().load_pretrained(tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"test_resnet cannot be loaded from .*gone\.pth"):
        backbone().load_pretrained(tmp_path / "gone.pth")


def test_without_timm_the_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'maskrcnn_lit\[timm\]'"):
        backbone()


def test_a_file_of_the_hub_is_checked_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    for name, whole in ((digest, True), ("0" * 64, False)):
        (tmp_path / name).write_bytes(content)
        link = tmp_path / f"model-{name[:4]}.safetensors"
        link.symlink_to(tmp_path / name)
        found = {"model.safetensors": str(link)}
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, found=found: found.get(name))
        if whole:
            check_hub_file("timm/test_resnet.r160_in1k")
        else:
            with pytest.raises(UserError, match=f"{name} is not the file that was published, its sha256"):
                check_hub_file("timm/test_resnet.r160_in1k")


def test_without_a_network_the_hub_is_told(tmp_path: Path):
    code = (
        "from maskrcnn_lit.model.timm_backbone import TimmBackbone\n"
        "TimmBackbone(name='test_resnet', norm='auto', freeze_at='auto', weights='imagenet').load_pretrained(None)"
    )
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "maskrcnn_lit.errors.UserError: timm's weights of test_resnet cannot be loaded from its hub ("
    )
    assert last.endswith("check the network and the name, or give a file with backbone.weights=FILE")
