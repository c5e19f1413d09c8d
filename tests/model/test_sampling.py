import pytest
import torch

from maskrcnn_lit.model.sampling import ANCHORS, POINTS, REGIONS, random_keys, scramble
from maskrcnn_lit.training.module import step_seed


def test_a_seed_is_a_function_of_its_numbers():
    assert step_seed(0, 1, 0, 2, 3) == 15648590059981880493  # of every NumPy, on every machine
    numbers = [
        (kind, seed, epoch, batch)
        for kind in (0, 1)
        for seed in (0, 1)
        for epoch in (0, 1)
        for batch in (0, 1)
    ]
    assert len({step_seed(*n) for n in numbers}) == len(numbers)
    assert 0 <= step_seed(1, 2**40, 5) < 2**64


def splitmix64(state: int) -> int:
    """As Steele, Lea and Flood have it, in Python's whole numbers."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_scramble_is_splitmix64s():
    values = [0, 1, -1, 2**63 - 1, -(2**63), 0x9E3779B97F4A7C15 - 2**64, 123456789]
    found = scramble(torch.tensor(values))
    assert [value % 2**64 for value in found.tolist()] == [splitmix64(value) for value in values]
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF, (
        "the first number of the published generator of seed 0"
    )


def test_a_key_is_a_function_of_seed_purpose_and_candidate_alone():
    seeds = torch.tensor([5, -(2**63), 7])
    keys = random_keys(seeds, REGIONS, 100)
    assert keys.shape == (3, 100)
    assert keys.dtype == torch.int32
    assert (keys >= 0).all()
    assert torch.equal(random_keys(seeds[[2, 0]], REGIONS, 60), keys[[2, 0], :60])
    assert not torch.equal(random_keys(seeds, ANCHORS, 100), keys)
    assert not torch.equal(random_keys(seeds, POINTS, 100), keys)


def test_keys_are_uniform_and_independent():
    """Of images with consecutive seeds, which a weak mix would betray. Bounds are five standard
    deviations or so.
    """
    seeds, count = torch.arange(400), 2000
    keys = random_keys(seeds, ANCHORS, count).double() / 2**31
    cells = torch.histc(keys, 64, 0, 1)
    expected = keys.numel() / 64
    assert ((cells - expected) ** 2 / expected).sum() < 63 + 5 * (2 * 63) ** 0.5
    for bit in range(31):
        share = ((random_keys(seeds, ANCHORS, count) >> bit) & 1).double().mean()
        assert abs(share - 0.5) < 5 * 0.5 / keys.numel() ** 0.5, bit
    z = (keys - 0.5) * 12**0.5
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 5 / keys.numel() ** 0.5, "neighboring candidates"
    assert abs((z[1:] * z[:-1]).mean()) < 5 / keys.numel() ** 0.5, "images with neighboring seeds"
    other = (random_keys(seeds, REGIONS, count).double() / 2**31 - 0.5) * 12**0.5
    assert abs((z * other).mean()) < 5 / keys.numel() ** 0.5, "anchors and regions"
    between = (z @ z.T / count)[~torch.eye(400, dtype=torch.bool)]  # any two images
    assert between.abs().max() < 6.5 / count**0.5
    assert between.std().item() == pytest.approx(count**-0.5, rel=0.03)
    assert len(random_keys(seeds, ANCHORS, count).unique()) > keys.numel() * 0.999, (
        "hardly any ties"
    )


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    "count", [1023, *(pytest.param(count, marks=pytest.mark.slow) for count in (7, 1000))]
)
def test_compiled_keys_are_the_same(count: int):
    """Of C++ that Inductor writes: products wrap around there too, also where the last vector is
    not full.
    """
    seeds = torch.tensor([5, -(2**63), 7])
    compiled = torch.compile(random_keys, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(seeds, REGIONS, count), random_keys(seeds, REGIONS, count))
