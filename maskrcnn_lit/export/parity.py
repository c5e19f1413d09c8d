"""How far the detections of an exported file are from the model's, on the same batch.

Letters: B images, D slots, N and M detections of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# What an exported file in float32 keeps: pixels of the padded image, scores, mask probabilities.
BOX_BOUND, SCORE_BOUND, MASK_BOUND = 0.01, 1e-5, 1e-4

# The share of a mask's pixels that may differ by more with model.mask_refine=points: of two points
# that are equally uncertain but for rounding, either may be predicted again.
SWAPPED_POINTS = 0.005


@dataclass
class Parity:
    """The largest differences so far.

    Attributes: images, detections: how many were compared. unmatched: detections of one of the two
        that the other has not with the same label. boxes (pixels), scores, masks (probabilities):
        the largest difference of a number.
    """

    images: int = 0
    detections: int = 0
    unmatched: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 0.0

    def add(
        self,
        expected: Mapping[str, Tensor],
        actual: Mapping[str, Tensor],
        threshold: float,
        swapped: float = 0.0,
    ) -> None:
        """Compare two batches: boxes B D 4, scores B D, labels B D, masks B D m m (in both or in
        none), valid B D.
        swapped: the share of each mask's pixels that is left out, those that differ most.

        A detection belongs to the nearest one of its label, wherever in the order it stands: two
        whose scores are equal may change places. One at the edge, whose score is the threshold or
        that of the last of all slots, may be in one of the two alone.
        """
        for i in range(len(expected["valid"])):
            ours, theirs = (
                {name: value[i][output["valid"][i]] for name, value in output.items()}
                for output in (expected, actual)
            )
            slots = actual["valid"].shape[1]
            pairs, left = _pair(ours, theirs, _edge(theirs, slots, threshold))
            self.images += 1
            self.detections += len(ours["scores"])
            self.unmatched += left
            if len(pairs):
                first, second = pairs.unbind(1)
                for name in ("boxes", "scores", *(["masks"] if "masks" in theirs else [])):
                    difference = (ours[name][first] - theirs[name][second]).abs()
                    difference = difference.nan_to_num(nan=torch.inf)
                    if name == "masks" and swapped:
                        difference = _without_largest(difference.flatten(1), swapped)
                    largest = float(difference.max())
                    setattr(self, name, max(getattr(self, name), largest))

    def broken(self) -> list[str]:
        """What is beyond its bound, in words."""
        faults = [f"{self.unmatched} detections differ"] if self.unmatched else []
        bounds = {"boxes": BOX_BOUND, "scores": SCORE_BOUND, "masks": MASK_BOUND}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if not value <= bound:
                faults.append(f"{name} differ by {value:.3g}, and the bound is {bound:g}")
        return faults


def _without_largest(values: Tensor, share: float) -> Tensor:
    """Each row of N M values without the given share of it, the largest ones."""
    return values.sort(dim=1).values[:, : values.shape[1] - int(share * values.shape[1])]


def _edge(actual: Mapping[str, Tensor], slots: int, threshold: float) -> float:
    """Up to this score a detection may be missing."""
    full = len(actual["scores"]) == slots
    return (max(threshold, float(actual["scores"].min())) if full else threshold) + SCORE_BOUND


def _pair(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], edge: float
) -> tuple[Tensor, int]:
    """Pairs of detections, and how many above the edge are in none."""
    apart = (ours["boxes"][:, None] - theirs["boxes"][None]).abs().amax(-1)  # N M
    apart = apart.masked_fill(ours["labels"][:, None] != theirs["labels"][None], torch.inf)
    pairs = []
    for i in range(len(apart)):
        if not apart.shape[1] or not float(apart[i].min()) < 1:  # a pixel: another object
            continue
        j = int(apart[i].argmin())
        pairs.append((i, j))
        apart[:, j] = torch.inf
    result = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    left = 0
    for own, column in ((ours, 0), (theirs, 1)):
        alone = torch.ones(len(own["scores"]), dtype=torch.bool)
        alone[result[:, column]] = False
        left += int((alone & (own["scores"] > edge)).sum())
    return result, left
