"""Which images a training batch holds: a function of seed, epoch and batch number alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one rank: lists of (epoch, position), each image at most once an epoch over all ranks.

    The order is drawn from (seed, epoch), so it depends neither on the workers nor on the past. What does not fill a
    batch on every rank is left out of that epoch (other images in each). The epoch travels with the positions, as
    loader processes that live on would not hear of a new one.
    """

    def __init__(self, *, images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if images < batch_size * world_size:
            raise ValueError(f"{images} images do not fill {world_size} batches of {batch_size}")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._resumed = (0, 0)  # epoch, batches of it that are done

    def __len__(self) -> int:
        """Batches of a whole epoch, also where `resume` has skipped some: what Lightning counts against."""
        return self.images // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        batches = order[: len(self) * self.world_size * self.batch_size].reshape(len(self), self.world_size, -1)
        done = self._resumed[1] if epoch == self._resumed[0] else 0
        for batch in batches[done:, self.rank]:
            yield [(epoch, position) for position in batch.tolist()]

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before every epoch, but after the first iterator is made: hence `resume` sets it too."""
        self.epoch = epoch

    def resume(self, epoch: int, batch: int) -> None:
        """Go on in `epoch` after `batch` batches of it; later epochs are whole."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"cannot resume after {batch} batches of an epoch of {len(self)}")
        self.epoch, self._resumed = epoch, (epoch, batch)

    @property
    def sampler(self) -> "EpochBatches":
        """Lightning looks for `set_epoch` at `dataloader.batch_sampler.sampler`."""
        return self


def validation_batches(images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[tuple[int, int]]]:
    """One rank's share of all images, in order, none twice; ranks may differ by one image, and have none."""
    own = [(0, position) for position in range(rank, images, world_size)]
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
