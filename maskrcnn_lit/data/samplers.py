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

Floats = NDArray[np.float64]

# draw, position. The draw is the epoch, plus AGAIN for each earlier use of the image in it: every
# use is augmented otherwise.
Key = tuple[int, int]

AGAIN = 2**31  # more than epochs

BLANK = -1  # the position of a slot without an image: losses and metrics ignore it


class EpochBatches(Sampler[list[Key]]):
    """The batches of one rank: lists of (draw, position). Over all ranks, each image occurs exactly
    once per epoch, or as often as `repeats` says.

    repeats: the factor of each position, 1 or more, for rare classes (`repeat_factors`). Each epoch
    rounds them up or down at random, so that their mean is right. The number of images of an epoch
    is always the same, the sum of the factors of each chain, rounded up.

    The order depends on (seed, epoch) only, not on the workers or on earlier epochs. In each step
    all ranks have images of one group. Leftovers of a group go to the next of its chain; the last
    batch of a chain is filled with BLANK. Keys contain the epoch, since persistent loader processes
    are not notified of a new one.

    `together` is the number of images of a batch of all ranks. After `resume` it may be a multiple
    of batch_size * world_size: then `parts` batches of all ranks divide one of the epoch's order.
    """

    def __init__(
        self,
        *,
        chains: Sequence[Sequence[Ints]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: Floats | None = None,
    ) -> None:
        self.repeats = repeats
        self.chains, self.batch_size, self.seed = chains, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.together = batch_size * world_size
        self.epoch = 0
        self._resumed = (0, 0)  # epoch, finished batches

    @property
    def parts(self) -> int:
        return self.together // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        """Batches of a full epoch, even if `resume` skips some; Lightning compares its counters to
        it.
        """
        return self.parts * self._batches()

    def _batches(self) -> int:
        """Batches of `together` images in an epoch."""
        return sum(-(-self._images(chain) // self.together) for chain in self.chains)

    def _images(self, chain: Sequence[Ints]) -> int:
        """Images of a chain in an epoch."""
        if self.repeats is None:
            return sum(map(len, chain))
        return whole_sum(self.repeats[np.concatenate(chain)])

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        groups = [
            self._cut(
                [rng.permutation(group) for group in self._repeated(chain, rng)], self.together
            )
            for chain in self.chains
        ]
        batches = np.concatenate(groups)  # batches of all ranks, concatenated
        if sum(map(len, self.chains)) > 1:
            batches = rng.permutation(batches)
        draws = epoch + AGAIN * _earlier_uses(batches)
        done = self._resumed[1] if epoch == self._resumed[0] else 0
        shares = self.parts * self.world_size
        for uses, positions in zip(draws[done:], batches[done:], strict=True):
            for part in range(self.parts):
                own = slice(self.parts * self.rank + part, None, shares)
                yield list(zip(uses[own].tolist(), positions[own].tolist(), strict=True))

    def _repeated(self, chain: Sequence[Ints], rng: np.random.Generator) -> Sequence[Ints]:
        """The groups of a chain with each position as often as it occurs in this epoch."""
        if self.repeats is None:
            return chain
        counts = round_at_random(self.repeats[np.concatenate(chain)], rng)
        cuts = np.cumsum([len(group) for group in chain])[:-1]
        return [
            np.repeat(group, count)
            for group, count in zip(chain, np.split(counts, cuts), strict=True)
        ]

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

    def resume(self, epoch: int, batch: int, together: int | None = None) -> None:
        """Continue in `epoch` after its first `batch` batches of `together` images; later epochs
        are full.

        Args:
            together: of the run that is resumed; None: unchanged. It must be a multiple of
                batch_size * world_size.
        """
        together = together or self.together
        if together % (self.batch_size * self.world_size):
            raise ValueError(
                f"{self.world_size} ranks with {self.batch_size} images each do not divide a batch "
                f"of {together}"
            )
        self.together = together
        if not 0 <= batch <= self._batches():
            raise ValueError(
                f"cannot resume after {batch} batches of an epoch of {self._batches()}"
            )
        self.epoch, self._resumed = epoch, (epoch, batch)

    @property
    def sampler(self) -> "EpochBatches":
        """Lightning looks for `set_epoch` at `dataloader.batch_sampler.sampler`."""
        return self


def _earlier_uses(batches: Ints) -> Ints:
    """How often each position occurred before, in the same shape; 0 for BLANK."""
    flat = batches.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    uses = np.empty(len(flat), np.int64)
    uses[order] = np.arange(len(flat)) - np.searchsorted(ordered, ordered)
    return np.where(batches == BLANK, 0, uses.reshape(batches.shape))


def whole_sum(factors: Floats) -> int:
    """The sum, rounded up, without the error of floating point."""
    return int(np.ceil(factors.sum() - 1e-6))


def round_at_random(factors: Floats, rng: np.random.Generator) -> Ints:
    """Each factor rounded up with the probability of its fraction, else down; the sum is
    `whole_sum`. (Where the random sum is one less, one more image is drawn.)
    """
    order = rng.permutation(len(factors))
    upto = np.floor(np.cumsum(factors[order]) + rng.random() + 1e-9).astype(np.int64)
    counts = np.empty(len(factors), np.int64)
    counts[order] = np.diff(upto, prepend=0)
    missing = whole_sum(factors) - int(counts.sum())
    fractional = np.flatnonzero(counts < np.ceil(factors))
    if missing > 0 and len(fractional):
        counts[rng.choice(fractional, missing, replace=False)] += 1
    return counts


def repeat_factors(spans: Ints, labels: Ints, threshold: float) -> Floats:
    """I: how often each image is drawn in an epoch, so that rare classes are seen more often (Gupta
    et al. 2019, "LVIS", arXiv:1908.03195, section 4.1; Detectron2's RepeatFactorTrainingSampler).

    A class in a share f of the images has the factor max(1, sqrt(threshold / f)); an image has the
    largest factor of its classes.

    Args:
        spans: I 2, begin and end of each image's annotations in `labels`.
        labels: N, 1..K; 0: does not count.
        threshold: the share of the images up to which a class is rare, above 0.
    """
    counts = spans[:, 1] - spans[:, 0]
    images = np.repeat(np.arange(len(spans)), counts)
    places = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts - spans[:, 0], counts)
    own = labels[places]
    pairs = np.unique(np.stack([images, own], 1)[own > 0], axis=0)
    with_class = np.bincount(pairs[:, 1], minlength=1)
    shares = np.maximum(with_class, 1) / len(spans)
    of_class = np.maximum(1.0, np.sqrt(threshold / shares))
    factors = np.ones(len(spans))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


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
