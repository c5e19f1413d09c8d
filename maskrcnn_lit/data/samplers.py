"""Which images a batch holds: a function of seed, epoch and batch number alone, whatever the loader
processes.

Images come in chains (`padding.chains`): groups of one padded size, of which each may also be
padded to a later one of its chain. A batch takes its images from one group, or what is left over of
the groups before.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Ints = NDArray[np.int64]

Key = tuple[int, int]  # epoch, position

BLANK = -1  # the position of a slot without an image: no loss looks at it and no metric counts it


class EpochBatches(Sampler[list[Key]]):
    """The batches of one rank: lists of (epoch, position), each image exactly once an epoch over
    all ranks.

    The order is drawn from (seed, epoch), so it depends neither on the workers nor on the past. In
    each step all ranks have images of one group. What is left over of a group goes to the next of
    its chain; the last batch of a chain is filled with BLANK. The epoch travels with the positions,
    as loader processes that live on would not hear of a new one.
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
        self._resumed = (0, 0)  # epoch, batches of it that are done

    def __len__(self) -> int:
        """Batches of a whole epoch, also where `resume` has skipped some: what Lightning counts
        against.
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
        batches = np.concatenate(groups)  # batches of all ranks, their images side by side
        if sum(map(len, self.chains)) > 1:
            batches = rng.permutation(batches)
        done = self._resumed[1] if epoch == self._resumed[0] else 0
        for batch in batches[done:, self.rank :: self.world_size]:
            yield [(epoch, position) for position in batch.tolist()]

    @staticmethod
    def _cut(groups: list[Ints], size: int) -> Ints:
        """Batches x size."""
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
        """Lightning calls it before every epoch, but after the first iterator is made: hence
        `resume` sets it too.
        """
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


def validation_batches(
    chains: Sequence[Sequence[Ints]], batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """One rank's share of all images, none twice, from small to large shapes; the last batch of a
    chain is filled with BLANK. Ranks may differ by one image a chain; one that has none has a batch
    of BLANK, as Lightning wants one.
    """
    batches = []
    for k, chain in enumerate(chains):
        own = np.concatenate(chain)[
            (rank + k) % world_size :: world_size
        ].tolist()  # not all ones more to one rank
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            batches.append(
                [(0, position) for position in part + [BLANK] * (batch_size - len(part))]
            )
    return batches or [[(0, BLANK)] * batch_size]
