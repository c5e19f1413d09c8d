from collections.abc import Sequence

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from maskrcnn_lit.model import matching
from maskrcnn_lit.model.anchors import Anchors
from maskrcnn_lit.model.boxes import intersection
from maskrcnn_lit.model.matching import BACKGROUND, IGNORED, OBJECT, match, take
from maskrcnn_lit.model.sampling import REGIONS, random_keys, sample

RPN = {"object_iou": 0.7, "background_iou": 0.3, "keep_best": True}
HEAD = {"object_iou": 0.5, "background_iou": 0.5, "keep_best": False}


def random_boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2, dtype=torch.float64) * 100
    return torch.cat(
        [corner, corner + 20 + torch.rand(*shape, 2, dtype=torch.float64) * 40], dim=-1
    )


def scene(images: int = 3, slots: int = 6, candidates: int = 500) -> tuple[torch.Tensor, ...]:
    """Candidates, many of them near the boxes; boxes; valid: image 0 is full, others have fewer,
    the last has none.
    """
    boxes = random_boxes(images, slots)
    valid = torch.arange(slots) < torch.linspace(slots, 0, images).long()[:, None]
    near = boxes.repeat(1, 30, 1) + torch.randn(images, 30 * slots, 4, dtype=torch.float64) * 3
    return (
        torch.cat([near, random_boxes(images, candidates)], dim=1),
        boxes * valid[..., None],
        valid,
    )


@pytest.mark.parametrize(
    "rule",
    [RPN, HEAD, HEAD | {"object_iou": 0.6, "background_iou": 0.4}],
    ids=["rpn", "head", "gap"],
)
def test_equals_torchvision(rule: dict[str, float]):
    candidates, boxes, valid = scene()
    index, kind = match(candidates, boxes, valid, torch.zeros_like(valid), **rule)
    matcher = Matcher(
        rule["object_iou"], rule["background_iou"], allow_low_quality_matches=rule["keep_best"]
    )
    for i in range(2):
        expected = matcher(box_iou(boxes[i][valid[i]], candidates[i]))
        assert torch.equal(kind[i] == OBJECT, expected >= 0)
        assert torch.equal(kind[i] == BACKGROUND, expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(kind[i] == IGNORED, expected == Matcher.BETWEEN_THRESHOLDS)
        assert torch.equal(index[i][expected >= 0], expected[expected >= 0])
        assert (expected >= 0).sum() > 10
        assert (expected == -1).sum() > 10
    assert not valid[2].any()
    assert (kind[2] == BACKGROUND).all(), "without an object all is background"


def test_every_object_keeps_its_best_candidate_only_where_asked():
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    candidates = torch.tensor(
        [[[0.0, 0, 10, 2], [0, 0, 4, 10], [6, 0, 10, 10], [50, 50, 60, 60]]]
    )  # 0.2, 0.4, 0.4, 0
    valid, crowd = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    _, kind = match(
        candidates, box, valid, crowd, object_iou=0.7, background_iou=0.3, keep_best=True
    )
    assert kind.tolist() == [[BACKGROUND, OBJECT, OBJECT, BACKGROUND]]
    _, kind = match(
        candidates, box, valid, crowd, object_iou=0.7, background_iou=0.3, keep_best=False
    )
    assert kind.tolist() == [[BACKGROUND, IGNORED, IGNORED, BACKGROUND]]


def test_at_the_limits():
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    candidates = torch.tensor(
        [[[0.0, 0, 10, 5], [0, 0, 10, 2.5], [0, 0, 10, 2.4]]]
    )  # IoU 0.5, 0.25, 0.24
    valid, crowd = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    _, kind = match(
        candidates, box, valid, crowd, object_iou=0.5, background_iou=0.25, keep_best=False
    )
    assert kind.tolist() == [[OBJECT, IGNORED, BACKGROUND]], "at least the one, less than the other"


def test_padding_is_never_matched():
    candidates, boxes, valid = scene()
    garbage = torch.where(
        valid[..., None], boxes, candidates[:, : boxes.shape[1]]
    )  # boxes that candidates hit exactly
    crowd = torch.zeros_like(valid)
    for rule in (RPN, HEAD):
        index, kind = match(candidates, garbage, valid, crowd, **rule)
        assert valid.gather(1, index)[kind == OBJECT].all()
        clean_index, clean_kind = match(candidates, boxes, valid, crowd, **rule)
        assert torch.equal(kind, clean_kind)
        assert torch.equal(index[kind == OBJECT], clean_index[kind == OBJECT])


def test_shared_candidates_are_matched_for_each_image():
    candidates, boxes, valid = scene()
    shared = match(candidates[:1], boxes, valid, torch.zeros_like(valid), **RPN)
    own = match(candidates[:1].expand(3, -1, -1), boxes, valid, torch.zeros_like(valid), **RPN)
    assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))


@pytest.mark.parametrize("rule", [RPN, HEAD], ids=["rpn", "head"])
def test_a_crowd_region_hides_background_and_nothing_else(rule: dict[str, float]):
    boxes = torch.tensor([[[0.0, 0, 100, 100], [10, 10, 30, 30], [0, 0, 0, 0]]])
    crowd, valid = torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]])
    candidates = torch.tensor(
        [
            [10.0, 10, 30, 30],  # the object in the crowd
            [50, 50, 60, 60],  # in the crowd
            [95, 0, 105, 10],  # half of it: not more
            [94, 0, 104, 10],  # more than half
            [0, 0, 100, 100],  # exactly the crowd's box: no object either
            [200, 200, 220, 220],  # far away
        ]
    )[None]
    _, kind = match(candidates, boxes, valid, crowd, **rule)
    assert kind.tolist() == [[OBJECT, IGNORED, BACKGROUND, IGNORED, IGNORED, BACKGROUND]]
    _, kind = match(candidates, boxes, valid, torch.zeros_like(crowd), **rule)
    assert kind.tolist() == [[OBJECT] + [BACKGROUND] * 5]


def scattered(counts: Sequence[int], slots: int) -> tuple[torch.Tensor, ...]:
    """Small objects, of some of which no anchor overlaps any, and crowd regions among them."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.zeros(len(counts), slots, 4)
    used = torch.arange(slots) < torch.tensor(counts)[:, None]
    corner = torch.rand(len(counts), slots, 2, generator=generator) * 100
    side = 1 + torch.rand(len(counts), slots, 2, generator=generator) * 20
    boxes[used] = torch.cat([corner, corner + side], dim=-1)[used]
    crowd = used & (torch.arange(slots) % 7 == 3)
    return boxes, used & ~crowd, crowd


def small_anchors() -> torch.Tensor:
    cells = [torch.empty(1).expand(1, 1, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    return Anchors(sizes=[2, 3, 4, 6, 8], ratios=[0.5, 1, 2])(cells, (128, 128))


def test_an_object_that_no_anchor_overlaps_gets_none():
    """Its best overlap is 0, which all anchors have: torchvision takes every one of them."""
    anchors = small_anchors()
    box = torch.tensor([[[125.5, 125.5, 127, 127]]])
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assert box_iou(box[0], anchors).max() == 0
    _, kind = match(anchors[None], box, yes, no, **RPN)
    assert (kind == BACKGROUND).all()
    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(box[0], anchors))
    assert (theirs >= 0).all()


def test_small_objects_have_few_anchors_and_those_that_overlap_one_have_some():
    anchors = small_anchors()
    boxes, valid, crowd = scattered([200], 200)
    for i in range(200):
        rows = (slice(None), slice(i, i + 1))
        _, kind = match(anchors[None], boxes[rows], valid[rows] | crowd[rows], ~valid[:, :1], **RPN)
        best = box_iou(boxes[0, i : i + 1], anchors)
        expected = (best == best.max()) & (best > 0) | (best >= 0.7)
        assert torch.equal(kind == OBJECT, expected)
        assert expected.sum() < 50


@pytest.mark.parametrize("rule", [RPN, HEAD], ids=["rpn", "head"])
@pytest.mark.parametrize("chunk", [1, 40_000, 1 << 26])
def test_chunks_and_empty_slots_change_nothing(
    rule: dict[str, float], chunk: int, monkeypatch: pytest.MonkeyPatch
):
    """As the CPU does it, image by image, and as a GPU does, all slots: one answer."""
    boxes, valid, crowd = scattered([60, 0, 5, 64], 64)
    anchors = torch.cat([small_anchors()[None].expand(4, -1, -1), boxes], dim=1)
    expected = match(anchors, boxes, valid, crowd, **rule)
    monkeypatch.setattr(matching, "CHUNK", chunk)
    monkeypatch.setattr(matching, "CPU_CHUNK", chunk)
    for static in (True, False):
        found = match(anchors, boxes, valid, crowd, **rule, static_shapes=static)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert set(expected[1].unique().tolist()) == {OBJECT, BACKGROUND, IGNORED}


def test_the_work_is_bounded_whatever_the_fullest_image_has(monkeypatch: pytest.MonkeyPatch):
    """One image with 300 objects among 16: the CPU looks at the objects that there are, and static
    shapes hold no more than a chunk of the 16 x 512 slots at once.
    """
    sizes: list[int] = []
    monkeypatch.setattr(
        matching,
        "intersection",
        lambda *boxes: sizes.append(intersection(*boxes).numel()) or intersection(*boxes),
    )
    monkeypatch.setattr(matching, "CHUNK", 1 << 19)
    monkeypatch.setattr(matching, "CPU_CHUNK", 1 << 16)
    anchors = small_anchors()[None]
    boxes, valid, crowd = scattered([300] + [5] * 15, 512)
    expected = match(anchors, boxes, valid, crowd, **RPN)
    assert max(sizes) <= 1 << 16
    assert sum(sizes) == (300 + 5 * 15) * anchors.shape[1]
    sizes.clear()
    found = match(anchors, boxes, valid, crowd, **RPN, static_shapes=True)
    assert max(sizes) <= 1 << 19
    assert sum(sizes) == 16 * 512 * anchors.shape[1]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def kinds(images: int = 4, candidates: int = 300) -> torch.Tensor:
    """Few, some, many objects, and none."""
    draw = torch.rand(images, candidates)
    share = torch.tensor([0.02, 0.2, 0.9, 0.0])[:, None]
    kind = torch.where(draw < share, OBJECT, BACKGROUND)
    return torch.where(torch.rand(images, candidates) < 0.1, IGNORED, kind)


def test_the_sample_has_the_counts_asked_for_and_no_candidate_twice():
    kind = kinds()
    drawn = sample(kind, torch.rand(kind.shape), count=64, positive_fraction=0.25)
    assert drawn.indices.shape == drawn.positive.shape == drawn.valid.shape == (4, 64)
    objects, background = (kind == OBJECT).sum(1), (kind == BACKGROUND).sum(1)
    positives = drawn.positive.sum(1)
    assert torch.equal(positives, objects.clamp(max=16))
    assert torch.equal(drawn.valid.sum(1), positives + torch.minimum(background, 64 - positives))
    assert positives.tolist()[1:] == [16, 16, 0]
    assert 0 < positives[0] < 16
    assert drawn.valid[2].sum() < 64
    for i in range(4):
        chosen = drawn.indices[i][drawn.valid[i]]
        assert len(chosen.unique()) == len(chosen)
        assert (kind[i][drawn.indices[i][drawn.positive[i]]] == OBJECT).all()
        assert (kind[i][drawn.indices[i][drawn.valid[i] & ~drawn.positive[i]]] == BACKGROUND).all()
        assert not (drawn.positive[i] & ~drawn.valid[i]).any()
    assert (drawn.indices >= 0).all()
    assert (drawn.indices < kind.shape[1]).all(), "empty slots point at something too"


def test_a_sample_larger_than_the_candidates_takes_them_all():
    kind = torch.tensor([[OBJECT, BACKGROUND, IGNORED, BACKGROUND]])
    drawn = sample(kind, torch.rand(1, 4), count=256, positive_fraction=0.5)
    assert drawn.indices.shape == (1, 4)
    assert sorted(drawn.indices[drawn.valid].tolist()) == [0, 1, 3]


def test_candidates_with_negative_keys_are_not_drawn():
    kind = torch.tensor([[OBJECT, OBJECT, BACKGROUND, BACKGROUND]])
    drawn = sample(kind, torch.tensor([[0.0, -1, -1, 0.0]]), count=4, positive_fraction=0.5)
    assert sorted(drawn.indices[drawn.valid].tolist()) == [0, 3], "a key of zero is a key"


def test_every_candidate_is_drawn_as_often():
    torch.manual_seed(1)
    kind = torch.tensor([OBJECT] * 20 + [BACKGROUND] * 40 + [IGNORED] * 5)[None].expand(20000, -1)
    drawn = sample(kind, torch.rand(kind.shape), count=16, positive_fraction=0.25)
    often = (
        torch.zeros(65).index_add(0, drawn.indices.flatten(), drawn.valid.flatten().float()) / 20000
    )
    assert torch.allclose(
        often[:20], torch.full((20,), 4 / 20), atol=0.012
    )  # four standard deviations
    assert torch.allclose(often[20:60], torch.full((40,), 12 / 40), atol=0.014)
    assert not often[60:].any()
    pairs = torch.zeros(
        20000, 20
    )  # and two of them together as often as chance has it: independent draws
    pairs.scatter_(1, torch.where(drawn.positive, drawn.indices, 0), 1.0)
    together = (pairs.T @ pairs / 20000)[1:, 1:]
    assert torch.allclose(
        together[~torch.eye(19, dtype=torch.bool)], torch.tensor(4 / 20 * 3 / 19), atol=0.008
    )


def test_the_same_keys_draw_what_torchvision_draws(monkeypatch: pytest.MonkeyPatch):
    kind, keys = kinds(), torch.rand(4, 300, dtype=torch.float64)
    drawn = sample(kind, keys, count=64, positive_fraction=0.25)
    theirs = BalancedPositiveNegativeSampler(64, 0.25)
    for i in range(4):
        held = [keys[i][kind[i] == k].argsort(descending=True) for k in (OBJECT, BACKGROUND)]
        monkeypatch.setattr(torch, "randperm", lambda *_, held=held, **__: held.pop(0))
        (positive,), (negative,) = theirs([kind[i]])
        monkeypatch.undo()
        ours = [
            drawn.indices[i][m] for m in (drawn.positive[i], drawn.valid[i] & ~drawn.positive[i])
        ]
        assert torch.equal(ours[0].sort().values, positive.nonzero()[:, 0])
        assert torch.equal(ours[1].sort().values, negative.nonzero()[:, 0])


def test_every_candidate_is_drawn_as_often_with_them():
    kind = torch.tensor([OBJECT] * 20 + [BACKGROUND] * 40)[None].expand(20000, -1)
    drawn = sample(
        kind, random_keys(torch.arange(20000), REGIONS, 60), count=16, positive_fraction=0.25
    )
    often = (
        torch.zeros(60).index_add(0, drawn.indices.flatten(), drawn.valid.flatten().float()) / 20000
    )
    assert torch.allclose(often[:20], torch.full((20,), 4 / 20), atol=0.012)
    assert torch.allclose(often[20:], torch.full((40,), 12 / 40), atol=0.014)


def test_take():
    values = torch.arange(24).view(2, 3, 4)
    index = torch.tensor([[2, 0], [1, 1]])
    assert take(values, index).tolist() == [[[8, 9, 10, 11], [0, 1, 2, 3]], [[16, 17, 18, 19]] * 2]
    assert take(values[..., 0], index).tolist() == [[8, 0], [16, 16]]
