import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from repository import REPOSITORY
from tiny_commands import environment
from torch import nn
from wrong_values import CHOICE, TEXT, cases

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
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, [96, 192, 384, 768]),
    ],
)
def test_channels_and_strides_are_measured(
    name: str, options: dict[str, object], channels: list[int] | None
):
    built = backbone(name, options=options).eval()
    with torch.no_grad():
        maps = built(torch.randn(2, 3, 96, 160))
    assert built.strides == [4, 8, 16, 32]
    assert channels in (None, built.channels)
    shapes = [(2, c, 96 // s, 160 // s) for c, s in zip(built.channels, built.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes


ONE_BLOCK = {"depths": (1, 1, 1, 1)}
SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2}

# One model of each family in docs/guide/backbones.md, made small by its options; random weights.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet": ("test_resnet", {}),
    "ConvNeXt V2": ("convnextv2_atto", ONE_BLOCK),
    "EfficientNet": ("test_efficientnet", {}),
    "RegNet": ("regnetx_002", {}),
    "RepViT": ("repvit_m0_9", {}),
    "FastViT": ("fastvit_t8", {"layers": (1, 1, 1, 1)}),
    "Swin": ("swin_tiny_patch4_window7_224", ONE_BLOCK),
    "PVT v2": ("pvt_v2_b0", ONE_BLOCK),
    "DaViT": ("davit_tiny", ONE_BLOCK),
    "Twins": ("twins_svt_small", ONE_BLOCK),
    "ViT": ("vit_tiny_patch16_224", SMALL),
    "MAE": ("vit_base_patch16_224.mae", SMALL),
    "DeiT III": ("deit3_small_patch16_224", SMALL),
    "CLIP": ("vit_base_patch16_clip_224", SMALL),
    "SigLIP": ("vit_base_patch16_siglip_256", SMALL),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL),
    "SAM": ("samvit_base_patch16", SMALL | {"img_size": 64}),
    "XCiT": ("xcit_nano_12_p16_224", SMALL),
}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_every_family(family: str):
    """Strides, the channels as measured, and a finite gradient for every parameter."""
    name, options = FAMILIES[family]
    built = backbone(name, options=options).train()
    maps = built(torch.randn(2, 3, 64, 96))
    assert built.strides == ([16] if len(maps) == 1 else [4, 8, 16, 32])
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(built.channels, built.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes
    sum(m.square().mean() for m in maps).backward()
    for path, parameter in built.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


def test_the_guide_lists_every_family():
    rows = (REPOSITORY / "docs" / "guide" / "backbones.md").read_text().splitlines()
    cells = [row.split("|")[1:3] for row in rows if row.startswith("|")]
    listed = {family.strip(): name.strip().strip("`") for family, name in cells}
    assert {family: name for family, (name, _) in FAMILIES.items()}.items() <= listed.items()


@pytest.mark.long
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
    ("norm", "kind"),
    [("frozen", FrozenBatchNorm), ("sync", nn.SyncBatchNorm), ("group", nn.GroupNorm)],
)
def test_norms(norm: str, kind: type[nn.Module]):
    batch, built = (
        backbone("mobilenetv3_small_050").eval(),
        backbone("mobilenetv3_small_050", norm=norm).eval(),
    )
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
        backbone("coat_tiny", freeze_at=freeze_at)
    assert str(error.value) == (
        "backbone coat_tiny does not accept an image of 64 x 64 pixels (Input height (64) doesn't "
        "match model (224).), but a detector's images have any size: use another timm model "
        "(docs/guide/backbones.md has families that do)"
    )


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("headless", [False, True])
def test_a_state_dict_arrives(norm: str, headless: bool):
    whole = timm.create_model("test_resnet").eval()
    state = {
        name: value
        for name, value in whole.state_dict().items()
        if not (headless and name.startswith("fc."))
    }
    built = backbone(norm=norm, weights="a file")
    chance = torch.get_rng_state()
    mean, std = built.load_pretrained(state)
    assert torch.equal(torch.get_rng_state(), chance), (
        "what is random afterwards is as without weights"
    )
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(built.eval()(images)[-1], whole.forward_features(images), atol=1e-5)


def test_layers_behind_the_last_map_are_left_out_silently(caplog: pytest.LogCaptureFixture):
    backbone("test_efficientnet", weights="a file").load_pretrained(
        timm.create_model("test_efficientnet").state_dict()
    )
    assert not caplog.records


def test_a_scale_that_stayed_where_it_began_is_no_layer_that_is_missing():
    state = timm.create_model("fastvit_t8").state_dict()  # layer scales C 1 1 that begin as 1e-5
    built = backbone("fastvit_t8", weights="a file")
    built.load_pretrained(state)
    for name, value in built.body.state_dict().items():
        assert torch.equal(value, state[re.sub(r"^(stem|stages)_", r"\1.", name)]), name


def test_timm_renames_what_it_published_under_other_names():
    """ConvNeXt's own file: timm's filter reads it, and drops the classifier."""
    renames = (("stem.", "downsample_layers.0."), (".blocks.", "."), (".conv_dw.", ".dwconv."))
    renames += (
        (".mlp.fc1.", ".pwconv1."),
        (".mlp.fc2.", ".pwconv2."),
        (".downsample.", ".downsample_layers."),
    )
    whole = timm.create_model("convnext_atto").eval()
    theirs = {}
    for name, value in whole.state_dict().items():
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        for ours, original in renames:
            name = name.replace(ours, original)
        theirs[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = value
    assert "downsample_layers.0.0.weight" in theirs
    assert "stages.0.0.dwconv.weight" in theirs
    built = backbone("convnext_atto", weights="a file")
    built.load_pretrained(theirs)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(built.eval()(images)[-1], whole.stages(whole.stem(images)), atol=1e-5)


def test_weights_of_another_model_are_told():
    """Those of which timm takes nothing, a part, or none for the shape of one."""
    said = {
        "resnet18": r"^timm's weights of test_resnet cannot be loaded from the file \(Error\(s\) "
        r"in loading state_dict "
        r"for ResNet: size mismatch for .*\): give a file with timm's weights of test_resnet, "
        r"backbone\.weights=FILE$",
        "convnext_atto": r"^the weights from the file are not those of timm's test_resnet: 15 of "
        r"15 layers are missing "
        r"\(conv1\.0\.weight and so on\): give a file with timm's weights of test_resnet, "
        r"backbone\.weights=FILE$",
    }
    for name, message in said.items():
        built = backbone()
        before = {key: value.clone() for key, value in built.state_dict().items()}
        with pytest.raises(UserError, match=message):
            built.load_pretrained(timm.create_model(name).state_dict())
        assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    part = timm.create_model("test_resnet").state_dict()
    part.pop("layer3.0.conv1.weight")
    with pytest.raises(
        UserError, match=r": 1 of \d+ layers are missing \(layer3\.0\.conv1\.weight and so on\)"
    ):
        backbone().load_pretrained(part)
    with pytest.raises(
        UserError,
        match=r"the file has no weights: give a file with timm's weights of test_res",
    ):
        backbone().load_pretrained({})


def test_mistakes_are_told():
    with pytest.raises(
        UserError, match=r"timm cannot build backbone\.name=resnet_none.*list_models"
    ):
        backbone("resnet_none")
    with pytest.raises(
        UserError, match=r"strides \[12, 17\].*needs \[4, 8, 16, 32\], or maps at one stride: use"
    ):
        backbone("crossvit_tiny_240")
    for option in ({"recompute": True}, {"square": 64}):
        with pytest.raises(UserError, match="needs a plain transformer of timm, but test_resnet"):
            backbone(**option)
    with pytest.raises(UserError, match="norm=group has no pretrained weights"):
        backbone(norm="group").load_pretrained(None)


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
        monkeypatch.setattr(
            huggingface_hub,
            "try_to_load_from_cache",
            lambda repo, name, found=found: found.get(name),
        )
        if whole:
            check_hub_file("timm/test_resnet.r160_in1k")
        else:
            with pytest.raises(
                UserError, match=f"checksum mismatch: .*{name} differs from the published file"
            ):
                check_hub_file("timm/test_resnet.r160_in1k")


@pytest.mark.process
def test_without_a_network_the_hub_is_told(tmp_path: Path):
    code = (
        "from maskrcnn_lit.model.timm_backbone import TimmBackbone\n"
        "TimmBackbone(name='test_resnet', norm='auto', freeze_at='auto', "
        "weights='imagenet').load_pretrained(None)"
    )
    offline = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**offline), capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "maskrcnn_lit.errors.UserError: timm's weights of test_resnet cannot be loaded from its "
        "hub ("
    )
    assert last.endswith(
        "check the network and the name, or give a file with timm's weights of test_resnet, "
        "backbone.weights=FILE"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        name=TEXT,
        norm=CHOICE,
        freeze_at=[-1, 6, 1.5, True, None, "none", []],
        weights=TEXT,
        options=["a", 5, True, [1], {1: 2}],
    ),
)
def test_options_of_the_wrong_kind_are_named(option: str, value: Any):
    with pytest.raises(UserError) as caught:
        backbone(**{option: value})
    assert str(caught.value).startswith(f"backbone.{option}={value} ")
