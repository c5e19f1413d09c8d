import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_lit.data.sampling import EpochBatches, validation_batches


def batches(images: int = 23, size: int = 4, epoch: int = 0, **options: int) -> list[list[tuple[int, int]]]:
    sampler = EpochBatches(images=images, batch_size=size, seed=options.pop("seed", 1), **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_an_epoch_shows_no_image_twice_and_fills_every_batch():
    found = batches()
    positions = [position for batch in found for _, position in batch]
    assert len(found) == 5 and all(len(batch) == 4 for batch in found)
    assert len(set(positions)) == 20 and set(positions) <= set(range(23))
    assert positions != sorted(positions)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert batches(epoch=3) == batches(epoch=3)
    assert {epoch for batch in batches(epoch=3) for epoch, _ in batch} == {3}
    orders = [[p for batch in batches(epoch=e, seed=s) for _, p in batch] for e, s in ((0, 1), (1, 1), (0, 2))]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    shown = {p for e in range(30) for batch in batches(epoch=e) for _, p in batch}
    assert shown == set(range(23))  # what an epoch leaves out others show


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_ranks_share_an_epoch(images: int, size: int, ranks: int):
    if images < size * ranks:
        with pytest.raises(ValueError, match=f"{images} images do not fill {ranks} batches of {size}"):
            batches(images, size, world_size=ranks)
        return
    shares = [batches(images, size, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    positions = [p for share in shares for batch in share for _, p in batch]
    assert len(positions) == len(set(positions)) == images // (size * ranks) * size * ranks
    interleaved = [batch for step in zip(*shares, strict=True) for batch in step]
    assert interleaved == batches(images, size)[: len(interleaved)]  # the global batch is that of one process


def test_resume_yields_the_rest_of_that_epoch_and_later_ones_whole():
    sampler = EpochBatches(images=23, batch_size=4, seed=1)
    sampler.resume(2, 3)
    assert len(sampler) == 5
    assert (
        list(sampler) == list(sampler) == batches(epoch=2)[3:]
    )  # also when it is iterated before set_epoch, and twice
    sampler.set_epoch(2)
    assert list(sampler) == batches(epoch=2)[3:]
    sampler.set_epoch(3)
    assert list(sampler) == batches(epoch=3) and len(sampler) == 5
    sampler.resume(2, 5)
    assert list(sampler) == []
    with pytest.raises(ValueError, match="cannot resume after 6 batches of an epoch of 5"):
        sampler.resume(2, 6)


@pytest.mark.parametrize(("images", "ranks"), [(7, 1), (7, 2), (7, 3), (2, 3)])
def test_validation_shows_every_image_once(images: int, ranks: int):
    shares = [validation_batches(images, 2, rank, ranks) for rank in range(ranks)]
    assert sorted(p for share in shares for batch in share for _, p in batch) == list(range(images))
    assert all(len(batch) <= 2 for share in shares for batch in share)
    assert validation_batches(5, 2) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]
