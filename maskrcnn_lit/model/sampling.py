"""Samples matched candidates: fixed counts, and counter-based random numbers without generator
state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.model.matching import BACKGROUND, OBJECT

# Random numbers are a function of a seed and a candidate's number. They depend neither on earlier
# draws nor on the process.

MAX_SAMPLE = 1_000_000  # per image: reject a mistyped number before it allocates terabytes

ANCHORS, REGIONS, POINTS = 0, 1, 2  # purposes of `random_keys`

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd number nearest to 2^64 / golden ratio


def random_keys(seeds: Tensor, purpose: int, count: int) -> Tensor:
    """Uniform numbers for `count` candidates of each image: B int64 -> B count int32 >= 0.

    They depend only on (seed, purpose, candidate number), not on other images, the process or a
    generator state. SplitMix64 (Steele, Lea and Flood 2014), started from a scrambled seed; 31 bits
    of each number.
    """
    # 1 to `count`, by a bitwise not: for a plain range Inductor (torch 2.14) computes the product
    # with _GOLDEN as a memory index, with another result.
    candidate = ~torch.arange(-2, -count - 2, -1, device=seeds.device)
    start = (purpose * _GOLDEN + 2**63) % 2**64 - 2**63  # wraps around as int64 does
    state = scramble(seeds + start)[:, None] + candidate * _GOLDEN
    return (scramble(state) & 0x7FFFFFFF).int()


def scramble(values: Tensor) -> Tensor:
    """SplitMix64's bijective mix of 64 bits: int64 -> int64. Products wrap around on every
    device.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * (factor - 2**64)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A logical right shift of int64."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


class Sample(NamedTuple):
    indices: Tensor  # B S int64: candidate indices
    positive: Tensor  # B S bool
    valid: Tensor  # B S bool: False where candidates were too few to fill the sample


def sample(kind: Tensor, keys: Tensor, *, count: int, positive_fraction: float) -> Sample:
    """Sample `count` candidates per image: at most a share of `positive_fraction` objects, the
    others background.

    Args: kind: B N of OBJECT, BACKGROUND, IGNORED. keys: B N random numbers >= 0 (`random_keys`);
        the candidates with the largest keys are selected, so independent uniform keys sample
        uniformly without replacement.
    """
    count = min(count, kind.shape[1])
    most = max(1, int(count * positive_fraction))
    objects, object_index = torch.where(kind == OBJECT, keys, -1).topk(most, dim=1)
    others, other_index = torch.where(kind == BACKGROUND, keys, -1).topk(count, dim=1)
    positives = (objects >= 0).sum(dim=1, keepdim=True)
    negatives = torch.minimum((others >= 0).sum(dim=1, keepdim=True), count - positives)
    slot = torch.arange(count, device=kind.device).expand(len(kind), count)
    negatives_index = other_index.gather(1, (slot - positives).clamp(min=0))
    index = torch.where(
        slot < positives, object_index.gather(1, slot.clamp(max=most - 1)), negatives_index
    )
    return Sample(index, slot < positives, slot < positives + negatives)
