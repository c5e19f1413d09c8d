"""Selects the images of each batch. It depends only on seed, epoch and batch number.

Images come in chains (`buckets.bucket_groups`): groups with one padded size each; an image may also
be padded to the size of a later group in its chain. A batch has images of one group and leftovers
of the groups before.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Ints = NDArray[np.int64]

Key = tuple[int, int]  # epoch, position

BLANK = -1  # the position of a slot without an image: losses and metrics ignore it


class EpochBatches(Sampler[list[Key]]):
    """The batches of one rank: lists of (epoch, position). Over all ranks, each image occurs
    exactly once per epoch.

    The order depends on (seed, epoch) only, not on the workers or on earlier epochs. In each step
    all ranks have images of one group. Leftovers of a group go to the next of its chain; the last
    batch of a chain is filled with BLANK. Keys contain the epoch, since persistent loader processes
    are not notified of a new one.
    """

    def __init__(
        self,
        *,
        chains: Sequence[Sequence[Ints]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.chains, self.batch_size, self.seed = chains, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._resumed = (0, 0)  # epoch, finished batches

    def __len__(self) -> int:
        """Batches of a full epoch, even if `resume` skips some; Lightning compares its counters to
        it.
        """
        together = self.batch_size * self.world_size
        return sum(-(-sum(map(len, chain)) // together) for chain in self.chains)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        together = self.batch_size * self.world_size
        groups = [
            self._cut([rng.permutation(group) for group in chain], together)
            for chain in self.chains
        ]
        batches = np.concatenate(groups)  # batches of all ranks, concatenated
        if sum(map(len, self.chains)) > 1:
            batches = rng.permutation(batches)
        done = self._resumed[1] if epoch == self._resumed[0] else 0
        for batch in batches[done:, self.rank :: self.world_size]:
            yield [(epoch, position) for position in batch.tolist()]

    @staticmethod
    def _cut(groups: list[Ints], size: int) -> Ints:
        """Cut a shuffled chain into batches: number of batches x size."""
        batches, remainder = [], groups[0][:0]
        for group in groups:
            remainder = np.concatenate([remainder, group])
            full = len(remainder) // size * size
            batches.append(remainder[:full])
            remainder = remainder[full:]
        if len(remainder):
            batches += [remainder, np.full(size - len(remainder), BLANK)]
        return np.concatenate(batches).reshape(-1, size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch, but after creating the first iterator; so
        `resume` sets the epoch, too.
        """
        self.epoch = epoch

    def resume(self, epoch: int, batch: int) -> None:
        """Continue in `epoch` after its first `batch` batches; later epochs are full."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"cannot resume after {batch} batches of an epoch of {len(self)}")
        self.epoch, self._resumed = epoch, (epoch, batch)

    @property
    def sampler(self) -> "EpochBatches":
        """Lightning looks for `set_epoch` at `dataloader.batch_sampler.sampler`."""
        return self


def validation_batches(
    chains: Sequence[Sequence[Ints]], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """One rank's share of all images, each once, from small to large shapes; the last batch of a
    chain is filled with BLANK. Ranks may differ by one image per chain; a rank without images gets
    a batch of BLANK, since Lightning needs one.
    """
    batches = []
    for k, chain in enumerate(chains):
        own = np.concatenate(chain)[
            (rank + k) % world_size :: world_size
        ].tolist()  # spread the extra images over the ranks
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            batches.append(
                [(0, position) for position in part + [BLANK] * (batch_size - len(part))]
            )
    return batches or [[(0, BLANK)] * batch_size]
