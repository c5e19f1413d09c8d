from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_lit.data.samplers import (
    AGAIN,
    BLANK,
    EpochBatches,
    Ints,
    repeat_factors,
    validation_batches,
)

Chains = list[list[Ints]]


def chains(*lengths: list[int]) -> Chains:
    """Groups of these sizes over consecutive positions."""
    ends = np.cumsum([n for chain in lengths for n in chain])
    groups = iter(np.split(np.arange(ends[-1]), ends[:-1]))
    return [[next(groups) for _ in chain] for chain in lengths]


def batches(
    of: Chains, size: int = 4, epoch: int = 0, seed: int = 1, **options: int
) -> list[list[tuple[int, int]]]:
    sampler = EpochBatches(chains=of, batch_size=size, seed=seed, **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def positions(found: list[list[tuple[int, int]]]) -> list[int]:
    return [position for batch in found for _, position in batch]


CHAINS = st.lists(
    st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=2
).filter(lambda lengths: sum(map(sum, lengths)) > 0)


@pytest.mark.long
@given(CHAINS, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_each_image_comes_once_an_epoch_over_all_ranks(
    lengths: list[list[int]], size: int, ranks: int
):
    of = chains(*lengths)
    images = sum(map(sum, lengths))
    for epoch in range(3):
        shares = [batches(of, size, epoch, rank=rank, world_size=ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1  # no rank waits for another at the end
        assert all(len(batch) == size for share in shares for batch in share)
        counts = Counter(p for share in shares for p in positions(share))
        blanks = counts.pop(BLANK, 0)
        assert counts == dict.fromkeys(range(images), 1)
        assert blanks < size * ranks * len(lengths)  # less than one step for each orientation


@given(CHAINS, st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_all_ranks_together_are_one_process_with_a_batch_as_large(
    lengths: list[list[int]], size: int, ranks: int
):
    of = chains(*lengths)
    shares = [batches(of, size, rank=rank, world_size=ranks) for rank in range(ranks)]
    steps = [sorted(positions(list(step))) for step in zip(*shares, strict=True)]
    assert steps == [sorted(positions([batch])) for batch in batches(of, size * ranks)]


@given(CHAINS, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_batch_is_of_one_group_and_what_those_before_it_left(lengths: list[list[int]], size: int):
    of = chains(*lengths)
    groups = {
        p: (c, g)
        for c, chain in enumerate(of)
        for g, group in enumerate(chain)
        for p in group.tolist()
    }
    mixed = 0
    for batch in batches(of, size):
        found = [groups[p] for _, p in batch if p != BLANK]
        assert len({chain for chain, _ in found}) == 1
        mixed += len(set(found)) > 1
    assert mixed <= sum(len(chain) - 1 for chain in of)


def test_the_order_is_a_function_of_seed_and_epoch():
    of = chains([23])
    assert batches(of, epoch=3) == batches(of, epoch=3)
    assert {epoch for batch in batches(of, epoch=3) for epoch, _ in batch} == {3}
    orders = [positions(batches(of, epoch=e, seed=s)) for e, s in ((0, 1), (1, 1), (0, 2))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_no_image_is_more_often_with_some_than_with_others():
    """Neither is its place in the epoch settled by its group."""
    of = chains([8, 8], [8])
    place, together = np.zeros(24), np.zeros((24, 24))
    epochs = 400
    for epoch in range(epochs):
        for n, batch in enumerate(batches(of, 2, epoch)):
            mine = [p for _, p in batch]
            place[mine] += n / epochs
            together[mine[0], mine[1]] += 1
    assert np.abs(place - place.mean()).max() < 0.75  # of 12 batches
    assert (
        np.abs((together + together.T)[:8, :8][~np.eye(8, dtype=bool)] - epochs / 7).max()
        < 0.45 * epochs / 7
    )


def test_resume_yields_the_rest_of_that_epoch_and_later_ones_whole():
    of = chains([9, 6], [8])
    sampler = EpochBatches(chains=of, batch_size=4, seed=1)
    sampler.resume(2, 3)
    assert len(sampler) == 6
    # also when it is iterated before set_epoch, and twice
    assert list(sampler) == list(sampler) == batches(of, epoch=2)[3:]
    sampler.set_epoch(2)
    assert list(sampler) == batches(of, epoch=2)[3:]
    sampler.set_epoch(3)
    assert list(sampler) == batches(of, epoch=3)
    assert len(sampler) == 6
    sampler.resume(2, 6)
    assert list(sampler) == []
    with pytest.raises(ValueError, match="cannot resume after 7 batches of an epoch of 6"):
        sampler.resume(2, 7)


@given(CHAINS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_resumed_with_other_ranks_the_rest_of_the_epoch_is_the_same(
    lengths: list[list[int]], size: int, ranks: int, parts: int, data: st.DataObject
):
    """Batches of size * ranks * parts images, of one rank, go on with `ranks` ranks, which take
    each in `parts` parts.
    """
    of, together = chains(*lengths), size * ranks * parts
    whole = batches(of, together, epoch=2)
    done = data.draw(st.integers(0, len(whole)))
    shares = []
    for rank in range(ranks):
        sampler = EpochBatches(chains=of, batch_size=size, seed=1, rank=rank, world_size=ranks)
        sampler.resume(2, done, together)
        assert sampler.parts == parts
        assert len(sampler) == parts * len(whole)
        shares.append(list(sampler))
    steps = list(zip(*shares, strict=True))
    again = [
        sorted(key for step in steps[begin : begin + parts] for batch in step for key in batch)
        for begin in range(0, len(steps), parts)
    ]
    assert again == [sorted(batch) for batch in whole[done:]]


def test_ranks_that_do_not_divide_a_batch_are_refused():
    sampler = EpochBatches(chains=chains([9]), batch_size=2, seed=1, world_size=2)
    with pytest.raises(ValueError, match="2 ranks with 2 images each do not divide a batch of 6"):
        sampler.resume(0, 1, together=6)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("lengths", [([7],), ([2],), ([3, 1], [2, 1]), ([0, 2], [0])])
def test_validation_shows_every_image_once(lengths: tuple[list[int], ...], ranks: int):
    of = chains(*lengths)
    shares = [validation_batches(of, 2, rank, ranks) for rank in range(ranks)]
    shown = [p for share in shares for p in positions(share) if p != BLANK]
    assert sorted(shown) == list(range(sum(map(sum, lengths))))
    assert all(len(batch) == 2 for share in shares for batch in share)
    assert all(batch[0][1] != BLANK for share in shares for batch in share if len(share) > 1)


def test_validation_goes_in_order_and_fills_its_last_batch():
    assert validation_batches(chains([5]), 2) == [
        [(0, 0), (0, 1)],
        [(0, 2), (0, 3)],
        [(0, 4), (0, BLANK)],
    ]
    assert validation_batches(chains([2]), 2, rank=2, world_size=3) == [[(0, BLANK), (0, BLANK)]]


def repeated(factors: list[float], epoch: int, **options: Any) -> list[list[tuple[int, int]]]:
    sampler = EpochBatches(
        chains=chains([len(factors) - 3, 0], [3]),
        batch_size=4,
        seed=1,
        repeats=np.array(factors),
        **options,
    )
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)  # the same in each epoch: Lightning counts on it
    return found


FACTORS = [1.0] * 6 + [1.5, 2.25, 3.0, 1.0, 1.7, 1.0]


def test_an_image_is_drawn_as_often_as_its_factor_says():
    """Each epoch rounds up or down; the mean over epochs is the factor, but for the one image that
    an epoch may have more.
    """
    factors = np.array(FACTORS * 20)
    total = np.zeros(len(factors))
    for epoch in range(100):
        counts = Counter(positions(repeated(factors.tolist(), epoch)))
        counts.pop(BLANK, 0)
        drawn = np.array([counts[i] for i in range(len(factors))])
        assert (drawn >= np.floor(factors)).all()
        assert (drawn <= np.ceil(factors)).all()
        assert drawn[:-3].sum() == 326
        assert drawn[-3:].sum() == 4  # 325.3 and 3.7, rounded up
        total += drawn
    mean = total.reshape(20, -1)[:19].mean(0) / 100
    assert np.abs(mean - FACTORS).max() < 0.05


def test_each_use_of_an_image_is_another_draw():
    keys = [key for batch in repeated(FACTORS, 5) for key in batch if key[1] != BLANK]
    assert len(set(keys)) == len(keys)
    assert {draw % AGAIN for draw, _ in keys} == {5}
    assert sorted(draw // AGAIN for draw, i in keys if i == 8) == [0, 1, 2]


def test_repeats_depend_on_seed_and_epoch_alone():
    """Not on the processes, earlier epochs or a resume in the middle."""
    whole = repeated(FACTORS, 3)
    assert whole == repeated(FACTORS, 3) != repeated(FACTORS, 4)
    shares = [repeated(FACTORS, 3, rank=rank, world_size=2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    both = Counter(p for share in shares for p in positions(share) if p != BLANK)
    assert sum(both.values()) == 17
    sampler = EpochBatches(
        chains=chains([9, 0], [3]), batch_size=4, seed=1, repeats=np.array(FACTORS)
    )
    sampler.resume(3, 2)
    assert list(sampler) == whole[2:]


def test_factors_of_one_are_every_image_once():
    of = chains([9, 0], [3])
    plain = EpochBatches(chains=of, batch_size=4, seed=1)
    ones = EpochBatches(chains=of, batch_size=4, seed=1, repeats=np.ones(12))
    assert len(plain) == len(ones)
    assert Counter(positions(list(plain))) == Counter(positions(list(ones)))


def test_factors_are_those_of_the_paper():
    """Eight images: class 1 is in all, class 2 in two, class 3 in one; a crowd does not count."""
    labels = np.array([1, 1, 1, 2, 1, 2, 2, 1, 3, 1, 1, 0, 1, 1])
    spans = np.array([[0, 1], [1, 2], [2, 4], [4, 7], [7, 9], [9, 10], [10, 12], [12, 14]])
    factors = repeat_factors(spans, labels, 0.5)
    rare, rarer = np.sqrt(0.5 / (2 / 8)), np.sqrt(0.5 / (1 / 8))
    assert factors.tolist() == [1, 1, rare, rare, rarer, 1, 1, 1]
    order = np.array([3, 0, 7])  # a part of the images, in another order
    part = repeat_factors(spans[order], labels, 0.5)
    assert part.tolist() == pytest.approx([np.sqrt(0.5 / (1 / 3)), 1, 1])
    assert repeat_factors(np.zeros((2, 2), np.int64), labels[:0], 0.5).tolist() == [1, 1]
