"""What of the model follows the size of the images."""

import re
import sys

import pytest
from omegaconf import OmegaConf
from repository import REPOSITORY

from maskrcnn_lit.cli.data_stats import anchor_grids
from maskrcnn_lit.config.compose import build, compose, describe
from maskrcnn_lit.config.resolvers import pixels, plain, regions, short_side
from maskrcnn_lit.errors import UserError

SIZES = [32, 64, 128, 256, 512]
TRUNK_128 = 17  # GFLOP of a training step of R50-FPN and its RPN, on an image of 128 x 128


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "proposals", "samples", "anchors"),
    [
        (64, 128, 128, [8, 16, 32, 64, 128]),
        (128, 256, 128, [8, 16, 32, 64, 128]),
        (192, 256, 128, [8, 16, 32, 64, 128]),
        (200, 256, 128, [8, 16, 32, 64, 128]),
        (201, 256, 256, [16, 32, 64, 128, 256]),
        (256, 384, 256, [16, 32, 64, 128, 256]),
        (400, 512, 256, [16, 32, 64, 128, 256]),
        (401, 512, 384, SIZES),
        (512, 640, 384, SIZES),
        (800, 1000, 512, SIZES),
        (1024, 1000, 512, SIZES),
    ],
)
def test_numbers_follow_the_short_side(size: int, proposals: int, samples: int, anchors: list[int]):
    assert (regions(1000, size), regions(512, size), pixels(SIZES, size)) == (
        proposals,
        samples,
        anchors,
    )
    config = compose("train", [f"data.image_size=[{size},{2 * size}]"]).model
    assert (config.rpn.post_nms.test, config.box_head.batch_size) == (proposals, samples)
    assert list(config.anchors.sizes) == anchors


@pytest.mark.parametrize("size", [None, [], "large", 0, [None, 3]])
def test_what_is_no_size_has_the_published_numbers(size: object):
    assert (short_side(size), regions(512, size), pixels(SIZES, size)) == (800, 512, SIZES)


@pytest.mark.long
@pytest.mark.parametrize("model", ["torchvision_v1", "torchvision_v2", "detectron2"])
def test_published_models_have_the_published_numbers_at_any_size(model: str):
    small, large = (
        compose("train", [f"model={model}", f"data.image_size={size}"]).model for size in (128, 800)
    )
    assert OmegaConf.to_container(small, resolve=False) == OmegaConf.to_container(
        large, resolve=False
    )
    published = compose("train", ["model=mask_rcnn", "data.image_size=800"]).model
    for part in ("rpn", "box_head"):
        for name in {"rpn": ["pre_nms", "post_nms", "batch_size"], "box_head": ["batch_size"]}[
            part
        ]:
            assert small[part][name] == published[part][name], name
    assert list(small.anchors.sizes) == list(published.anchors.sizes)


def test_at_128_pixels_the_heads_do_not_outweigh_the_trunk_27_times():
    """A training step with 512 sampled regions has 44 GFLOP in the box head, and 409 in the mask
    head.
    """
    samples = compose("train", ["data.image_size=128"]).model.box_head.batch_size
    assert (44 + 409) / TRUNK_128 > 26
    assert (44 + 409) * samples / 512 / TRUNK_128 < 7


def test_given_numbers_stay():
    options = [
        "data.image_size=128",
        "model.box_head.batch_size=500",
        "model.anchors.sizes=[1,2,3,4,5]",
    ]
    config = compose("train", options).model
    assert (config.box_head.batch_size, list(config.anchors.sizes)) == (500, [1, 2, 3, 4, 5])


@pytest.mark.long
@pytest.mark.parametrize("option", ["box_head.batch_size=many", "rpn.post_nms.train=many"])
def test_the_numbers_are_checked_as_numbers(option: str):
    with pytest.raises(
        UserError, match=r"model\.\S+=many must be a whole number from 1 to 1000000"
    ):
        compose("train", [f"model.{option}"])


def test_plain_leaves_other_references():
    config = OmegaConf.create(
        {"data": {"image_size": 128}, "a": "${regions:512}", "b": "${a}", "c": "${pixels:[32]}"}
    )
    assert plain(config) == {"data": {"image_size": 128}, "a": 128, "b": "${a}", "c": [8]}


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ([], 1.5e-3),
        (["backbone.weights=none"], 1.5e-3),
        (["model.weights=none"], 1.5e-3),
        (["backbone.weights=imagenet"], 1e-4),
        (["model.weights=torchvision_v2"], 1e-4),
        (["model.weights=torchvision_v2", "optimizer.lr=3e-4"], 3e-4),
        (["experiment=finetune"], 2e-4),
        (["experiment=finetune", "model.weights=null"], 1.5e-3),
        (["experiment=finetune", "model.weights=null", "backbone.weights=imagenet"], 2e-4),
    ],
)
def test_the_rate_follows_the_weights(options: list[str], rate: float):
    data = [
        f"data.{part}.{kind}=x" for part in ("train", "val") for kind in ("images", "annotations")
    ]
    config = compose("train", ["data=coco_json", *data, *options])
    assert config.optimizer.lr == rate


def test_help_shows_the_rate_as_a_number():
    options = {option.name: option for option in describe("train").options}
    assert options["optimizer.lr"].value == 1.5e-3
    assert "with trained weights, with random ones" in options["optimizer.lr"].comment


def test_small_images_have_anchors_that_fit_into_them():
    anchors = build(compose("train", ["data.image_size=128"]).model.anchors)
    sides = [level[..., 2:] - level[..., :2] for level in anchor_grids(anchors, (128, 128))]
    assert [round(float(side.prod(-1).mean() ** 0.5)) for side in sides] == [8, 16, 32, 64, 128]


@pytest.mark.long
def test_the_docs_have_the_numbers_of_each_preset():
    page = (REPOSITORY / "docs/guide/train.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.endswith(" px |")
    ]
    assert len(rows) == 8
    for case, *numbers in rows:
        names = case.partition(", any size")[0]
        presets = re.findall(r"`(\w+)`", names) or ["mask_rcnn"]
        sides = [int(case.split()[0])] if case[0].isdigit() else [128, 800]
        for options in (
            [f"model={preset}", f"data.image_size={side}"] for preset in presets for side in sides
        ):
            model = compose("train", options).model
            pre, post, sizes = model.rpn.pre_nms, model.rpn.post_nms, model.anchors.sizes
            kept = (
                f"{post.train}" if post.train == post.test else f"{post.train}, at test {post.test}"
            )
            anchors = f"{sizes[0]} to {sizes[-1]} px"
            assert numbers == [
                f"{pre.train}, {pre.test}",
                kept,
                str(model.box_head.batch_size),
                anchors,
            ], options


@pytest.mark.parametrize(
    ("options", "lengths", "slots"),
    [
        ([], 3, 8),
        (["trainer.compile=off"], 3, 8),
        (["trainer.compile=auto"], 1, 64),
        (["trainer.compile=always"], 1, 64),
        (["trainer.compile=auto", "data.lengths=2", "data.slots=32"], 2, 32),
    ],
)
def test_a_compiled_run_has_few_shapes_of_batches(options: list[str], lengths: int, slots: int):
    data = compose("train", ["data=coco2017", *options]).data
    assert (data.lengths, data.slots) == (lengths, slots)


def test_without_a_trainer_there_are_the_shapes_of_a_run_that_is_not_compiled():
    assert compose("data stats", ["data=coco2017"]).data.lengths == 3


def test_shapes_of_each_overlap_have_a_folder_of_their_own():
    for words, folder in (
        ([], "data/shapes"),
        (["data.overlap=0.5"], "data/shapes_overlap_0.5"),
        (["data.overlap=0.5", "data.root=mine"], "mine"),
    ):
        data = compose("train", ["data=shapes", *words]).data
        assert (data.root, data.prepare.root) == (folder, folder)
        assert data.prepare.overlap == data.overlap


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [
        ([], 1),
        (["data.batch_size=auto"], "auto"),
        (["data.batch_size=auto", "trainer.accumulate=2"], 2),
        (["trainer.accumulate=auto"], "auto"),
    ],
)
def test_steps_are_filled_by_default_where_the_batch_is_chosen(
    options: list[str], accumulate: int | str
):
    assert compose("train", options).trainer.accumulate == accumulate


def test_timm_says_how_its_pixels_are_normalized(monkeypatch: pytest.MonkeyPatch):
    def statistics(name: str) -> tuple[list[float], list[float]]:
        config = compose("train", ["backbone=timm", f"backbone.name={name}"])
        return list(config.model.mean), list(config.model.std)

    imagenet = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert statistics("vit_base_patch16_clip_224.openai")[0][0] == pytest.approx(0.48145466)
    assert statistics("resnet50.no_such_tag") == imagenet
    assert statistics("no_such_model") == imagenet
    monkeypatch.setitem(sys.modules, "timm.models", None)
    assert statistics("vit_base_patch16_clip_224.openai") == imagenet
