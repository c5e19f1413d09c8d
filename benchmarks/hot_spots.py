"""Each hot spot of the model against torchvision's operator on the same tensors: first whether they
give the same (`differ` names those that do not), then time.

    python benchmarks/hot_spots.py [--size 480 640] [--batch 2] [--rounds 7] [--device cpu] [--only
    matching ...]

Anchors, proposals and features are those of a pyramid over a batch of this size with 20 objects an
image; boxes and numbers are random. Both take turns; the CPU is one thread, and its time the
processor's, as others may use the machine. Prints one line of JSON: median milliseconds of each,
and how many times as long torchvision's operator takes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scene import (
    CHANNELS,
    CLASSES,
    OBJECTS,
    POSITIVES,
    PROPOSALS,
    REGIONS,
    STRIDES,
    Scene,
    heads,
    make_scene,
    random_by,
    torchvision_mask_head,
)
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou

from maskrcnn_lit.model.boxes import batched_nms as our_batched_nms
from maskrcnn_lit.model.mask_head import mask_targets
from maskrcnn_lit.model.matching import BACKGROUND, OBJECT, match
from maskrcnn_lit.model.roi_align import RoIs, roi_align
from maskrcnn_lit.model.sampling import sample
from maskrcnn_lit.runs.provenance import package_commit, package_versions
from maskrcnn_lit.training.devices import device_name


class Pair(NamedTuple):
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    equal: Callable[[Any, Any], bool]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=list(SPOTS), choices=list(SPOTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    scene = make_scene(arguments.batch, tuple(arguments.size), device)
    rows, differ = {}, []
    for name in arguments.only:
        pair = SPOTS[name](scene)
        if not pair.equal(pair.ours(), pair.theirs()):
            differ.append(name)
        rows[name] = measure(pair, arguments.rounds, device)
    report = {
        "benchmark": "hot_spots",
        **{key: vars(arguments)[key] for key in ("size", "batch", "rounds")},
        "differ": differ,
        **{"device": device_name(device), "date": time.strftime("%Y-%m-%d")},
        "milliseconds": {
            name: {who: round(ms, 2) for who, ms in row.items()} for name, row in rows.items()
        },
        "times_torchvision": {
            name: round(r["torchvision"] / r["maskrcnn_lit"], 2) for name, r in rows.items()
        },
        **{"versions": package_versions(), "commit": package_commit()},
    }
    print(json.dumps(report))


def matching(scene: Scene) -> Pair:
    """Of all anchors with the objects: the RPN's targets."""
    held = torch.ones_like(scene.boxes[..., 0], dtype=torch.bool)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def ours() -> tuple[Tensor, Tensor]:
        options = {"object_iou": 0.7, "background_iou": 0.3, "keep_best": True}
        return match(scene.anchors[None], scene.boxes, held, ~held, **options)

    def theirs() -> Tensor:
        return torch.stack([matcher(box_iou(boxes, scene.anchors)) for boxes in scene.boxes])

    def equal(mine: tuple[Tensor, Tensor], other: Tensor) -> bool:
        index, kind = mine
        expected = torch.where(other >= 0, OBJECT, torch.where(other == -1, BACKGROUND, -1))
        return torch.equal(kind, expected) and torch.equal(index[kind == OBJECT], other[other >= 0])

    return Pair(ours, theirs, equal)


def sampling(scene: Scene) -> Pair:
    """256 anchors an image, at most half of them objects. Given the same random numbers, the same
    ones.
    """
    kind = matching(scene).ours()[1]
    keys = torch.rand(kind.shape, device=kind.device, dtype=torch.float64)
    sampler = BalancedPositiveNegativeSampler(256, 0.5)

    def theirs() -> list[Tensor]:
        return [p.bool() | n.bool() for p, n in zip(*sampler(list(kind)), strict=True)]

    def equal(mine: Any, other: Any) -> bool:
        with random_by(keys, kind):
            other = theirs()
        chosen = [
            torch.zeros_like(one).index_fill(0, rows[ok], True)
            for one, rows, ok in zip(other, *mine[::2], strict=True)
        ]
        return torch.equal(torch.stack(chosen), torch.stack(other))

    return Pair(lambda: sample(kind, keys, count=256, positive_fraction=0.5), theirs, equal)


def suppression(scene: Scene) -> Pair:
    """Of the proposals of each image."""
    images, count = scene.proposals.shape[:2]
    scores = -torch.arange(count, device=scene.boxes.device, dtype=torch.float32)
    image = torch.arange(images, device=scene.boxes.device).repeat_interleave(count)

    def theirs() -> Tensor:
        kept = batched_nms(scene.proposals.flatten(0, 1), scores.repeat(images), image, 0.7)
        return (
            torch.zeros_like(image, dtype=torch.bool).index_fill(0, kept, True).view(images, count)
        )

    return Pair(lambda: our_batched_nms(scene.proposals, 0.7), theirs, torch.equal)


def regions(scene: Scene, backward: bool) -> Pair:
    """Box features of 512 regions an image, from the level that fits each."""
    boxes = scene.proposals[:, :REGIONS].contiguous()
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    pyramid = [level.detach().requires_grad_(backward) for level in scene.pyramid[:4]]
    named = {str(number): level for number, level in enumerate(pyramid)}
    theirs = MultiScaleRoIAlign(list(named), 7, 2)
    gradient = torch.rand(len(image), CHANNELS, 7, 7, device=boxes.device)

    def run(pool: Callable[[], Tensor]) -> Any:
        with torch.set_grad_enabled(backward):
            return torch.autograd.grad(pool(), pyramid, gradient) if backward else [pool()]

    def close(mine: Any, other: Any) -> bool:
        return all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(mine, other, strict=True)
        )

    pooled = [RoIs(boxes.flatten(0, 1), image, 7)]
    return Pair(
        lambda: run(lambda: roi_align(pyramid, pooled, strides=STRIDES)[0]),
        lambda: run(lambda: theirs(named, list(boxes), [scene.size] * len(boxes))),
        close,
    )


def targets(scene: Scene) -> Pair:
    """Masks of 64 positives an image. Ours read crops of 112 x 112, torchvision's whole images:
    first they are compared with crops that are the whole image, whose pixels' corners lie where
    torchvision has their centers.
    """
    images, device = len(scene.boxes), scene.boxes.device
    whole = (torch.rand(images * OBJECTS, *scene.size, device=device) > 0.5).to(torch.uint8)
    crops = (torch.rand(images * OBJECTS, 112, 112, device=device) > 0.5).to(torch.uint8)
    positives = scene.proposals[:, :POSITIVES]
    own = torch.arange(POSITIVES, device=device) % OBJECTS
    instance = (own + OBJECTS * torch.arange(images, device=device)[:, None]).flatten()
    side = max(scene.size)

    def theirs() -> Tensor:
        pairs = zip(whole.split(OBJECTS), positives, strict=True)
        return torch.cat([project_masks_on_boxes(masks, boxes, own, 28) for masks, boxes in pairs])

    def equal(mine: Tensor, other: Tensor) -> bool:
        square = torch.nn.functional.pad(whole, (0, side - scene.size[1], 0, side - scene.size[0]))
        corners = torch.tensor([-0.5, -0.5, side - 0.5, side - 0.5], device=device).expand(
            len(square), 4
        )
        mine = mask_targets(positives.flatten(0, 1), square, corners, instance, 28)
        inside = (
            positives.flatten(0, 1) < torch.tensor(scene.size, device=device).flip(0).repeat(2) - 1
        ).all(1)
        return bool((mine - other)[inside].abs().max() < 1e-3) and bool(inside.sum() > 10)

    boxes = scene.boxes.flatten(0, 1)
    return Pair(
        lambda: mask_targets(positives.flatten(0, 1), crops, boxes, instance, 28), theirs, equal
    )


def masks_of_positives(scene: Scene) -> Pair:
    """The mask head's logits of 64 regions, each of its own class."""
    _, head = heads(scene)
    device, theirs = scene.boxes.device, torchvision_mask_head(head)
    features = torch.randn(POSITIVES, CHANNELS, 14, 14, device=device).to(
        memory_format=torch.channels_last
    )
    labels = torch.randint(1, CLASSES + 1, (POSITIVES,), device=device)
    rows = torch.arange(POSITIVES, device=device)
    return Pair(
        torch.no_grad()(lambda: head(features, labels)),
        torch.no_grad()(lambda: theirs(features)[rows, labels]),
        lambda mine, other: torch.allclose(mine, other, rtol=1e-3, atol=1e-4),
    )


def post_processing(scene: Scene) -> Pair:
    """Class logits and deltas of 1000 proposals an image -> detections."""
    head, _ = heads(scene)
    device, images = scene.boxes.device, len(scene.boxes)
    logits = torch.randn(images * PROPOSALS, CLASSES + 1, device=device) * 2
    logits[:, 0] += 9  # some hundreds of scores above 0.05
    deltas = torch.randn(images * PROPOSALS, CLASSES + 1, 4, device=device) * 0.3
    sizes = torch.tensor([scene.size] * images, device=device)
    held = torch.ones(images, PROPOSALS, dtype=torch.bool, device=device)
    theirs = RoIHeads(
        *[None] * 3, 0.5, 0.5, 1, 1.0, head.box_weights, head.score_threshold, head.nms_iou, 100
    )
    theirs.box_coder = BoxCoder(head.box_weights)

    def equal(mine: dict[str, Tensor], other: tuple[list[Tensor], ...]) -> bool:
        for number, (boxes, scores, labels) in enumerate(zip(*other, strict=True)):
            found = {
                key: mine[key][number][mine["valid"][number]]
                for key in ("boxes", "scores", "labels")
            }
            near = (
                torch.allclose(found["boxes"], boxes, atol=1e-2),
                torch.allclose(found["scores"], scores, atol=1e-5),
            )
            if not all(near) or not torch.equal(found["labels"], labels):
                return False
        return True

    arguments = (logits, deltas.flatten(1), list(scene.proposals), [scene.size] * images)
    return Pair(
        lambda: head.detect(logits, deltas[:, 1:], scene.proposals, held, sizes),
        torch.no_grad()(lambda: theirs.postprocess_detections(*arguments)),
        equal,
    )


SPOTS: dict[str, Callable[[Scene], Pair]] = {
    "matching": matching,
    "sampling": sampling,
    "suppression": suppression,
    "roi_align": lambda scene: regions(scene, backward=False),
    "roi_align_and_backward": lambda scene: regions(scene, backward=True),
    "mask_targets": targets,
    "mask_head": masks_of_positives,
    "post_processing": post_processing,
}


def measure(pair: Pair, rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of both, after they have been compared (which warms up, too)."""
    seconds: dict[str, list[float]] = {"maskrcnn_lit": [], "torchvision": []}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(rounds):
        for who, run in zip(seconds, pair[:2], strict=True):
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[who].append(clock() - start)
    return {who: 1000 * statistics.median(row) for who, row in seconds.items()}


if __name__ == "__main__":
    main()
