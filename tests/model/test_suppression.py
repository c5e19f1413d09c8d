"""Kinds of suppression against their equations, on masks of which every pixel is known."""

from typing import Any

import numpy as np
import pytest
import torch
from exported import lively
from models import make_batch
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model import suppression as module
from maskrcnn_lit.model.boxes import iou
from maskrcnn_lit.model.suppression import (
    BOX_NMS,
    KINDS,
    Suppression,
    greedy,
    mask_overlaps,
    matrix_decay,
    shared_area,
    soft_nms,
    suppress_masks,
)

M = 28


def crossing_bars() -> dict[str, Tensor]:
    """Two bars that cross, with box IoU 0.96, and a worse copy of each."""
    cells = (torch.arange(M) + 0.5) / M
    bar = ((cells[:, None] - cells[None]).abs() < 0.12).float()
    boxes = torch.tensor(
        [[10, 10, 110, 110], [11, 11, 111, 111], [10, 12, 109, 110], [13, 10, 110, 112]]
    )
    return {
        "boxes": boxes.float()[None],
        "scores": torch.tensor([[0.9, 0.8, 0.7, 0.6]]),
        "labels": torch.ones(1, 4, dtype=torch.int64),
        "valid": torch.ones(1, 4, dtype=torch.bool),
        "masks": torch.stack([bar, bar.flip(1), bar, bar.flip(1)])[None] * 0.98 + 0.01,
    }


def run(
    kind: str, detections: dict[str, Tensor], static: bool = False, **more: bool
) -> dict[str, Tensor]:
    return suppress_masks(
        detections,
        Suppression(kind, **more),
        threshold=0.5,
        least_score=0.5,
        count=10,
        static_shapes=static,
    )


@pytest.mark.parametrize("static", [False, True])
def test_crossing_bars_stay_both_and_their_copies_go(static: bool):
    detections = crossing_bars()
    boxes = detections["boxes"]
    assert iou(boxes, boxes)[0, 0, 1] > 0.9  # NMS of boxes removes the second bar
    for kind in ("mask", "containment"):
        found = run(kind, detections, static)
        assert found["scores"][found["valid"]].tolist() == pytest.approx([0.9, 0.8])
        assert torch.equal(found["boxes"][0, :2], boxes[0, :2])
        torch.testing.assert_close(found["masks"][0, :2], detections["masks"][0, :2])
    found = run("matrix", detections, static)
    assert found["valid"].sum() == 2
    assert found["scores"][0, 1] > 0.65


def test_refined_masks_are_compared_by_the_means_of_their_cells():
    detections = crossing_bars()
    masks = detections["masks"].repeat_interleave(8, 2).repeat_interleave(8, 3)  # 224 x 224
    found = run("mask", detections | {"masks": masks})
    assert found["scores"][found["valid"]].tolist() == pytest.approx([0.9, 0.8])
    torch.testing.assert_close(found["masks"][0, :2], masks[0, :2])


def blocks(*spans: tuple[int, int, int, int]) -> Tensor:
    """Masks of N M M: rows and columns (from, to) that are in."""
    masks = torch.zeros(len(spans), M, M, dtype=torch.float64)
    for mask, (top, bottom, left, right) in zip(masks, spans, strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def test_shared_areas_are_those_of_the_pixels():
    """Boxes at whole pixels whose cells are 1, 2, 3 and 4 pixels: the areas can be counted."""
    torch.manual_seed(0)
    boxes, pictures, masks = [], [], []
    for factor, x, y in ((1, 40, 35), (2, 30, 30), (3, 0, 20), (4, 3, 0), (2, 31, 33)):
        mask = (torch.rand(M, M) > 0.5).double()
        picture = torch.zeros(130, 130, dtype=torch.float64)
        side = M * factor
        picture[y : y + side, x : x + side] = mask.repeat_interleave(factor, 0).repeat_interleave(
            factor, 1
        )
        boxes.append([x, y, x + side, y + side])
        pictures.append(picture)
        masks.append(mask)
    corners = torch.tensor(boxes, dtype=torch.float64)
    count = len(boxes)
    counted = torch.stack([(a * b).sum() for a in pictures for b in pictures]).view(count, count)
    stacked = torch.stack(masks)
    direct = shared_area(stacked[:, None], corners[:, None], stacked[None], corners[None])
    torch.testing.assert_close(direct, counted)
    groups = torch.tensor([[1, 1, 2, 1, 0]])
    upper = torch.ones(count, count).triu(1) * (groups[0, :, None] == groups[0]) * (groups[0] > 0)
    for static in (False, True):
        shared, areas = mask_overlaps(stacked[None], corners[None], groups, static)
        torch.testing.assert_close(shared[0], counted * upper)
        torch.testing.assert_close(areas[0], counted.diagonal())


def test_chunks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    masks = (torch.rand(2, 9, M, M) > 0.3).double()
    boxes = torch.rand(2, 9, 4, dtype=torch.float64) * 30
    boxes[..., 2:] += boxes[..., :2] + 5
    groups = torch.randint(1, 3, (2, 9))
    whole, _ = mask_overlaps(masks, boxes, groups)
    for pairs in (1, 7, 40):
        monkeypatch.setattr(module, "PAIRS", pairs)
        for static in (False, True):
            torch.testing.assert_close(mask_overlaps(masks, boxes, groups, static)[0], whole)


def test_greedy_suppression_is_one_after_the_other():
    torch.manual_seed(2)
    rivals = (torch.rand(3, 40, 40) < 0.15).triu(1)
    expected = torch.ones(3, 40, dtype=torch.bool)
    for image, keep in enumerate(expected):
        for j in range(40):
            keep[j] = not any(rivals[image, i, j] and keep[i] for i in range(j))
    assert 0 < expected.sum() < 120
    for static in (False, True):
        assert torch.equal(greedy(rivals, static), expected)
    chain = torch.zeros(1, 60, 60, dtype=torch.bool)
    chain[0, torch.arange(59), torch.arange(1, 60)] = True  # each pulls the next
    assert greedy(chain)[0].tolist() == [n % 2 == 0 for n in range(60)]


def test_soft_nms_lowers_scores_as_in_the_paper():
    torch.manual_seed(3)
    boxes = torch.rand(2, 30, 4, dtype=torch.float64) * 20
    boxes[..., 2:] += boxes[..., :2] + 5
    scores = torch.rand(2, 30, dtype=torch.float64).sort(1, descending=True).values
    groups = torch.randint(1, 3, (2, 30))
    values, picked = soft_nms(boxes, scores, groups, 12)
    overlap = iou(boxes, boxes).numpy()
    for image in range(2):  # Bodla et al. 2017, figure 2
        left, rest = scores[image].numpy().copy(), set(range(30))
        for n in range(12):
            best = max(rest, key=lambda i: left[i])
            rest.remove(best)
            assert picked[image, n] == best
            assert values[image, n] == pytest.approx(left[best])
            for i in rest:
                if groups[image, i] == groups[image, best]:
                    left[i] *= np.exp(-(overlap[image, best, i] ** 2) / 0.5)
    assert (values.diff(dim=1) <= 0).all()


def test_matrix_nms_lowers_scores_as_in_the_paper():
    torch.manual_seed(4)
    overlap = torch.rand(1, 20, 20, dtype=torch.float64).triu(1)
    factors = matrix_decay(overlap)[0]
    for j in range(20):  # Wang et al. 2020, equation 5
        decays = []
        for i in range(j):
            most = max([overlap[0, k, i].item() for k in range(i)], default=0.0)
            f = [np.exp(-2.0 * value**2) for value in (overlap[0, i, j].item(), most)]
            decays.append(f[0] / f[1])
        assert factors[j].item() == pytest.approx(min(decays, default=1.0), abs=1e-12)


def several(*spans: tuple[int, int, int, int], labels: list[int]) -> dict[str, Tensor]:
    count = len(spans)
    return {
        "boxes": torch.tensor([[0.0, 0, 56, 56]]).expand(1, count, 4),
        "scores": torch.linspace(0.9, 0.8, count)[None],
        "labels": torch.tensor([labels]),
        "valid": torch.ones(1, count, dtype=torch.bool),
        "masks": blocks(*spans)[None].float(),
    }


@pytest.mark.parametrize("static", [False, True])
def test_what_overlap_each_kind_goes_by(static: bool):
    small_in_large = several((0, 28, 0, 28), (0, 10, 0, 10), labels=[1, 1])
    assert run("mask", small_in_large, static)["valid"].sum() == 2  # IoU 100 / 784
    assert run("containment", small_in_large, static)["valid"].sum() == 1  # all of the smaller
    over_half = several((0, 28, 0, 20), (0, 28, 6, 20), labels=[1, 2])  # IoU 0.7, two classes
    assert run("mask", over_half, static)["valid"].sum() == 2
    found = run("mask", over_half, static, agnostic_nms=True)
    assert found["valid"].tolist() == [[True, False]]
    assert found["labels"].tolist() == [[1, 0]]


def test_empty_slots_suppress_nothing_and_stay_empty():
    detections = several((0, 28, 0, 28), (0, 28, 0, 28), (0, 28, 0, 28), labels=[1, 1, 1])
    detections["valid"] = torch.tensor([[False, True, True]])
    for static in (False, True):
        found = run("mask", detections, static)
        assert found["valid"].tolist() == [[True, False, False]]
        assert found["scores"][0].tolist() == pytest.approx([0.85, 0, 0])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agnostic", [False, True])
def test_every_kind_gives_the_same_with_fixed_shapes(kind: str, agnostic: bool):
    model = lively()
    batch = make_batch()
    expected = model(batch).detections
    model.set_suppression(Suppression(kind, agnostic))
    with torch.no_grad():
        found, static = (
            model.infer(batch["images"], batch["image_sizes"], fixed) for fixed in (False, True)
        )
    count = found["valid"].shape[1]
    assert static["valid"].shape == (2, 100)
    assert not static["valid"][:, count:].any()
    there = found["valid"]
    assert 10 < there.sum() <= 200
    assert (found["scores"].diff(dim=1) <= 0).all()
    for name in ("valid", "labels"):
        assert torch.equal(found[name], static[name][:, :count])
    for name in ("boxes", "scores", "masks"):
        torch.testing.assert_close(
            found[name][there], static[name][:, :count][there], atol=1e-5, rtol=1e-5
        )
    same = torch.equal(found["scores"], expected["scores"])
    assert same == (kind == "box" and not agnostic)  # the switch does something
    model.set_suppression(BOX_NMS)
    assert torch.equal(model(batch).detections["scores"], expected["scores"])  # and goes back


@pytest.mark.long
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"mask_iou": True, "mask_refine": "points", "cascade": [0.5, 0.6, 0.7], "occluder": True},
    ],
    ids=["plain", "all_parts"],
)
def test_each_choice_of_one_pass_is_that_of_a_pass_of_its_own(parts: dict[str, Any]):
    model, batch = lively(**parts), make_batch()
    model.choices = tuple(Suppression(kind, over) for kind in KINDS for over in (False, True))
    with torch.no_grad():
        each = model(batch).each
        assert each is not None
        assert tuple(each) == model.choices
        model.choices = ()
        for choice, found in each.items():
            model.set_suppression(choice)
            expected = model.infer(batch["images"], batch["image_sizes"])
            assert expected["valid"].any()
            assert set(found) == set(expected)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_exclusive_masks_are_marked_and_nothing_else_changes():
    model, batch = lively(), make_batch()
    expected = model(batch).detections
    model.set_suppression(Suppression(exclusive=True))
    found = model(batch).detections
    assert torch.equal(found["exclusive"], found["valid"])
    assert torch.equal(found["scores"], expected["scores"])
    assert "exclusive" not in expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Suppression(nms="boxes"), r"model\.nms=boxes must be one of box, mask, soft"),
        (Suppression(agnostic_nms=1), r"model\.agnostic_nms=1 must be true or false"),
        (Suppression(exclusive="yes"), r"model\.exclusive=yes must be true or false"),
    ],
)
def test_wrong_values_are_refused(wrong: Suppression, message: str):
    with pytest.raises(UserError, match=message):
        lively().set_suppression(wrong)
