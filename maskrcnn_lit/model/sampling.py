"""Which matched candidates a step learns from: fixed counts, and keyed random numbers without a
generator's state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskrcnn_lit.model.matching import BACKGROUND, OBJECT

# Randomness as a function of numbers: of a step, of an image, of each candidate for a sample.  No
# generator holds a state: what is drawn depends neither on what was drawn before nor on which
# process draws.

MAX_SAMPLE = 1_000_000  # of an image: a mistyped number is refused before it asks for terabytes

ANCHORS, REGIONS = 0, 1  # what `random_keys` draws for

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd number next to 2^64 over the golden ratio


def random_keys(seeds: Tensor, purpose: int, count: int) -> Tensor:
    """Uniform numbers for `count` candidates of each image: B int64 -> B count int32 >= 0.

    A function of (seed, purpose, candidate number) alone: neither the other images of the batch nor
    the process has a say, and no generator holds a state. It is SplitMix64 (Steele, Lea and Flood
    2014) from a scrambled seed on; 31 bits of each of its numbers.
    """
    # 1 to `count`, through a bitwise not: of a plain range Inductor (torch 2.14) would make
    # products with _GOLDEN as if they were indices into memory, which are other numbers.
    candidate = ~torch.arange(-2, -count - 2, -1, device=seeds.device)
    state = scramble(seeds + purpose * _GOLDEN)[:, None] + candidate * _GOLDEN
    return (scramble(state) & 0x7FFFFFFF).int()


def scramble(values: Tensor) -> Tensor:
    """SplitMix64's one-to-one mix of 64 bits: int64 -> int64. Products wrap around, as they do on
    every device.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * (factor - 2**64)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left: int64 has a sign."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


class Sample(NamedTuple):
    indices: Tensor  # B S int64: which candidates
    positive: Tensor  # B S bool
    valid: Tensor  # B S bool: False where there were too few candidates to fill the sample


def sample(kind: Tensor, keys: Tensor, *, count: int, positive_fraction: float) -> Sample:
    """Draw `count` candidates an image, at most `positive_fraction` of them objects, the rest
    background.

    Args: kind: B N of OBJECT, BACKGROUND, IGNORED. keys: B N random numbers >= 0 (model/sampling.py);
        the candidates with the largest are drawn, so independent uniform keys draw without
        replacement and uniformly.
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
