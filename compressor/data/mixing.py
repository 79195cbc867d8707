"""Batches of labelled rows with unlabelled ones among them, planned epoch by epoch as lists of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.batches import UNLABELLED, Batch, BatchLimits, Pool, by_length_in_windows, cut, windows
from compressor.data.encode import pad
from compressor.data.settings import Mix
from compressor.errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a batch holds: positions in the labelled pool, then positions in the unlabelled one."""

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)


class BatchSource(Protocol):
    """What a training loop reads: the plan of an epoch is a pure function of its number, so a resume can repeat it."""

    def steps_per_epoch(self, epoch: int) -> int:
        """Batches in that epoch."""

    def plan(self, epoch: int) -> Sequence[BatchPlan]:
        """The batches of that epoch, cheaply."""

    def make(self, item: BatchPlan) -> Batch:
        """One of them, ready for a model."""


@dataclass
class MixedBatches:
    """A BatchSource of labelled rows and an unlabelled share; made by `mixed_batches`.

    ratio: unlabelled share of the rows. kept: positions of the unlabelled pool that may be drawn.
    """

    labelled: Pool
    pool: Pool | None
    ratio: float
    kept: NDArray[np.int64]
    batch_tokens: int | None
    batch_rows: int | None
    seed: int
    _last: tuple[int, list[BatchPlan]] | None = field(default=None, init=False, repr=False)
    _labelled_lengths: NDArray[np.int64] = field(init=False, repr=False)
    _pool_lengths: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._labelled_lengths = self.labelled.lengths
        self._pool_lengths = np.zeros(0, dtype=np.int64) if self.pool is None else self.pool.lengths

    @property
    def unlabelled_per_epoch(self) -> int:
        """Unlabelled rows that an epoch draws."""
        if not len(self.kept):
            return 0
        return _owed(len(self.labelled), self.ratio)

    def steps_per_epoch(self, epoch: int) -> int:
        """Batches in that epoch."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[BatchPlan]:
        """The batches of that epoch: every labelled row once, unlabelled rows where the permutation has got to."""
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._planned(epoch))
        return self._last[1]

    def make(self, item: BatchPlan) -> Batch:
        """The batch of a plan: labelled rows first, all padded to the longest."""
        if not item.unlabelled or self.pool is None:
            return self.labelled.batch(item.labelled)
        sources = ((self.labelled.encoded, item.labelled), (self.pool.encoded, item.unlabelled))
        ids = [encoded.ids[index] for encoded, indices in sources for index in indices]
        types = None
        if self.labelled.encoded.types is not None or self.pool.encoded.types is not None:
            types = [
                np.zeros_like(encoded.ids[index]) if encoded.types is None else encoded.types[index]
                for encoded, indices in sources
                for index in indices
            ]
        inputs = {k: torch.from_numpy(v) for k, v in pad(ids, types, self.labelled.pad_id).items()}
        targets = np.full(len(item), UNLABELLED, dtype=np.int64)
        targets[: len(item.labelled)] = self.labelled.targets[list(item.labelled)]
        return Batch(
            inputs,
            torch.from_numpy(targets),
            torch.tensor(item.labelled + item.unlabelled, dtype=torch.int64),
            torch.arange(len(item)) >= len(item.labelled),
        )

    def rows_used(self, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the labelled and of the unlabelled rows in the first `steps` batches, ascending, each once."""
        labelled: set[int] = set()
        unlabelled: set[int] = set()
        epoch = 0
        while steps > 0:
            for item in self.plan(epoch)[:steps]:
                labelled.update(item.labelled)
                unlabelled.update(item.unlabelled)
            steps -= self.steps_per_epoch(epoch)
            epoch += 1
        return np.array(sorted(labelled), dtype=np.int64), np.array(sorted(unlabelled), dtype=np.int64)

    def _drawn(self, start: int, stop: int) -> NDArray[np.int64]:
        """Pool positions from place `start` to `stop` of an endless walk: one seeded permutation after another."""
        size = len(self.kept)
        if not size or stop <= start:
            return np.zeros(0, dtype=np.int64)
        walks = [
            np.random.default_rng([self.seed, turn, 1]).permutation(self.kept)
            for turn in range(start // size, (stop - 1) // size + 1)
        ]
        first = start - start // size * size
        return np.concatenate(walks)[first : first + stop - start]

    def _planned(self, epoch: int) -> list[BatchPlan]:
        random = np.random.default_rng([self.seed, epoch])
        count = len(self.labelled)
        drawn = self.unlabelled_per_epoch
        lengths = np.concatenate([self._labelled_lengths, self._pool_lengths])
        parts = windows(self._labelled_lengths, count + drawn, self.batch_tokens, self.batch_rows)
        order = by_length_in_windows(random.permutation(count), lengths, parts)
        if drawn:
            walk = self._drawn(epoch * drawn, (epoch + 1) * drawn) + count
            order = _interleaved(order, by_length_in_windows(walk, lengths, parts))
        cuts = cut(lengths[order], self.batch_tokens, self.batch_rows)
        batches = [order[start:stop] for start, stop in cuts]
        return [
            BatchPlan(
                tuple(rows[rows < count].tolist()),
                tuple((rows[rows >= count] - count).tolist()),
            )
            for rows in (batches[place] for place in random.permutation(len(batches)))
        ]


def mixed_batches(
    labelled: Pool,
    pool: Pool | None,
    mix: Mix,
    train: BatchLimits,
    *,
    seed: int,
    keep_rows: NDArray[np.int64] | None = None,
) -> MixedBatches:
    """Batches in which `mix.unlabelled.ratio` of the rows come from `pool`; labelled ones alone without a pool.

    An epoch is one pass over the labelled rows; the pool is walked in seeded permutations that go on from epoch to
    epoch. A batch may hold no labelled row where the ratio leaves less than one a batch.

    Args:
        train: batch_tokens or batch_rows; 1024 tokens where neither is given.
        keep_rows: positions of `pool` that may be drawn (`mix.unlabelled.keep`); None means all.
    Raises: InputError without labelled rows.
    """
    if not len(labelled):
        raise InputError("training needs labelled rows, an epoch is one pass over them (got none)")
    used = pool if mix.unlabelled is not None and mix.unlabelled.ratio > 0 and pool is not None and len(pool) else None
    if used is None:
        kept = np.zeros(0, dtype=np.int64)
    else:
        kept = np.arange(len(used)) if keep_rows is None else np.unique(np.asarray(keep_rows, dtype=np.int64))
    return MixedBatches(
        labelled,
        used,
        0.0 if mix.unlabelled is None or used is None else mix.unlabelled.ratio,
        kept,
        train.batch_tokens,
        train.batch_rows,
        seed,
    )


def _owed(labelled: int, ratio: float) -> int:
    """Unlabelled rows that make up `ratio` of a whole with so many labelled ones."""
    return round(labelled * ratio / (1 - ratio))


def _interleaved(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both, each in its order, spread evenly: any stretch holds the shares of the whole to within one."""
    places = np.concatenate(
        [(np.arange(len(first)) + 0.5) / len(first), (np.arange(len(second)) + 0.5) / max(len(second), 1)]
    )
    both = np.concatenate([first, second])
    return both[np.argsort(places, kind="stable")]
