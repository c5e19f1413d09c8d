"""Randomness as a function of numbers: of a step, of an image, of each candidate for a sample.

No generator holds a state: what is drawn depends neither on what was drawn before nor on which process draws.
"""

import numpy as np
import torch
from torch import Tensor

ANCHORS, REGIONS = 0, 1  # what `random_keys` draws for
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd number next to 2^64 over the golden ratio


def step_seed(*numbers: int) -> int:
    """64 bits that are a function of `numbers` (each >= 0) alone, on every machine and version of NumPy."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def random_keys(seeds: Tensor, purpose: int, count: int) -> Tensor:
    """Uniform numbers for `count` candidates of each image: B int64 -> B count int32 >= 0.

    A function of (seed, purpose, candidate number) alone: neither the other images of the batch nor the process has a
    say, and no generator holds a state. It is SplitMix64 (Steele, Lea and Flood 2014) from a scrambled seed on; 31 bits
    of each of its numbers.
    """
    # 1 to `count`, through a bitwise not: of a plain range Inductor (torch 2.14) would make products with _GOLDEN as if
    # they were indices into memory, which are other numbers.
    candidate = ~torch.arange(-2, -count - 2, -1, device=seeds.device)
    state = scramble(seeds + purpose * _GOLDEN)[:, None] + candidate * _GOLDEN
    return (scramble(state) & 0x7FFFFFFF).int()


def scramble(values: Tensor) -> Tensor:
    """SplitMix64's one-to-one mix of 64 bits: int64 -> int64. Products wrap around, as they do on every device."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * (factor - 2**64)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left: int64 has a sign."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
