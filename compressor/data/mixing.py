"""Batches of labelled rows with unlabelled ones among them, planned epoch by epoch as lists of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.augment import UNLABELLED_POOL, Views, mixed_up
from compressor.data.batches import UNLABELLED, Batch, BatchLimits, Pool, batch_of, by_length_in_windows, cut, windows
from compressor.data.drawing import Positions, Stream, next_counts, spread, streams_of
from compressor.data.pools import PoolPart
from compressor.data.settings import Mix
from compressor.errors import InputError
from compressor.settings import Number, Ramp, value_at

EPOCHS = 3.0
"""Epochs of a training that names neither epochs nor steps, as train.schedules has it."""

RAMP_PIECES, RAMP_BATCHES = 20, 8
"""A ratio that changes does so at most so many times an epoch, and stays for about so many batches of labelled rows."""


class Length(BatchLimits, Protocol):
    """How long a training is and how large its batches are; train.settings.Train is one."""

    @property
    def epochs(self) -> float | None:
        """Passes over the labelled rows."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps, instead of epochs."""


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a batch holds: positions in the labelled pool, then positions in the unlabelled one."""

    labelled: tuple[int, ...]
    unlabelled: tuple[int, ...] = ()
    epoch: int = 0
    place: int = 0
    """Number of the batch in its epoch."""

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


@dataclass(frozen=True)
class _Start:
    """Where an epoch begins: batches before it, and rows drawn of each stream."""

    steps: int
    drawn: Positions


@dataclass
class MixedBatches:
    """A BatchSource of labelled rows and an unlabelled share; made by `mixed_batches`.

    ratio: unlabelled share of the rows. streams: what is drawn from the pool. factors: (rows of the pool,) float32
    factor of each one's soft terms, None where all are 1. views: changes to all rows, None without. epochs, steps: how
    long the training is, which a changing ratio depends on.
    """

    labelled: Pool
    pool: Pool | None
    ratio: Number
    streams: Sequence[Stream]
    batch_tokens: int | None
    batch_rows: int | None
    seed: int
    epochs: float = EPOCHS
    steps: int | None = None
    factors: NDArray[np.float32] | None = None
    views: Views | None = None
    _last: tuple[int, list[BatchPlan]] | None = field(default=None, init=False, repr=False)
    _starts: list[_Start] = field(init=False, repr=False)
    _labelled_lengths: NDArray[np.int64] = field(init=False, repr=False)
    _lengths: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._starts = [_Start(0, np.zeros(len(self.streams), dtype=np.int64))]
        self._labelled_lengths = self.labelled.lengths
        pools = [self.labelled] if self.pool is None else [self.labelled, self.pool]
        self._lengths = np.concatenate([pool.lengths for pool in pools])

    def steps_per_epoch(self, epoch: int) -> int:
        """Batches in that epoch."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[BatchPlan]:
        """The batches of that epoch: every labelled row once, unlabelled rows where the walk has got to."""
        if self._last is None or self._last[0] != epoch:
            while len(self._starts) <= epoch:
                self._planned(len(self._starts) - 1)
            self._last = (epoch, self._planned(epoch))
        return self._last[1]

    def make(self, item: BatchPlan) -> Batch:
        """The batch of a plan: labelled rows first, in the epoch's view, all padded to the longest."""
        rows = np.array(item.labelled + item.unlabelled, dtype=np.int64)
        mine = np.arange(len(rows)) < len(item.labelled)
        tokens = self.labelled.encoded.take(rows[mine])
        targets = np.full(len(rows), UNLABELLED, dtype=np.int64)
        targets[mine] = self.labelled.targets[rows[mine]]
        if item.unlabelled and self.pool is not None:
            tokens = tokens.and_then(self.pool.encoded.take(rows[~mine]))
        view = 0
        if self.views is not None:
            view = self.views.view_of(item.epoch)
            tokens = self.views.changed(tokens, np.where(mine, 0, UNLABELLED_POOL), rows, view)
        batch = batch_of(tokens, targets, rows, self.labelled.pad_id, unlabelled=~mine)
        batch = replace(batch, epoch=item.epoch, view=view, weights=self._weights(rows, mine))
        if self.views is not None and self.views.augment.mixup:
            batch = mixed_up(batch, self.views.augment.mixup, seed=[self.seed, item.epoch, item.place])
        return batch

    def rows_used(self, steps: int) -> tuple[Positions, Positions]:
        """Positions of the labelled and of the unlabelled rows in the first `steps` batches, ascending, each once."""
        labelled: list[int] = []
        unlabelled: list[int] = []
        epoch = 0
        while steps > 0:
            for item in self.plan(epoch)[:steps]:
                labelled += item.labelled
                unlabelled += item.unlabelled
            steps -= self.steps_per_epoch(epoch)
            epoch += 1
        return np.unique(np.array(labelled, dtype=np.int64)), np.unique(np.array(unlabelled, dtype=np.int64))

    def _weights(self, rows: Positions, mine: NDArray[np.bool_]) -> torch.Tensor | None:
        """Factor of each row's soft terms, 1 for labelled ones; None where all are 1."""
        if self.factors is None:
            return None
        weights = np.ones(len(rows), dtype=np.float32)
        weights[~mine] = self.factors[rows[~mine]]
        return torch.from_numpy(weights)

    def _planned(self, epoch: int) -> list[BatchPlan]:
        """The batches of an epoch whose start is known; makes the next one's start known."""
        random = np.random.default_rng([self.seed, epoch])
        start = self._starts[epoch]
        count = len(self.labelled)
        plans: list[BatchPlan] = []
        drawn, before, owed, done = start.drawn, int(start.drawn.sum()), 0.0, 0
        for piece in np.array_split(random.permutation(count), self._pieces()):
            if self.steps is None:
                progress = steps_done(self.ratio, (epoch + done / count) / self.epochs)
            else:
                progress = (start.steps + len(plans)) / self.steps
            ratio = value_at(self.ratio, progress) if self.streams else 0.0
            owed += len(piece) * ratio / (1.0 - ratio)
            rows, drawn = self._drawn(drawn, before + round(owed))
            plans += self._batched(piece, rows + count, random, epoch, place=len(plans))
            done += len(piece)
        if len(self._starts) == epoch + 1:
            self._starts.append(_Start(start.steps + len(plans), drawn))
        return plans

    def _pieces(self) -> int:
        """Parts of an epoch in each of which the ratio is one number."""
        if not isinstance(self.ratio, Ramp):
            return 1
        lengths = self._labelled_lengths
        return min(RAMP_PIECES, windows(lengths, len(lengths), self.batch_tokens, self.batch_rows, RAMP_BATCHES))

    def _drawn(self, before: Positions, total: int) -> tuple[Positions, Positions]:
        """The pool's rows that lead from `before`, drawn of each stream, to `total` of all; and what is drawn then."""
        if total <= before.sum():
            return np.zeros(0, dtype=np.int64), before
        after = next_counts(before, total, np.array([stream.share for stream in self.streams]))
        ends = zip(before.tolist(), after.tolist(), strict=True)
        walks = [
            stream.walk(start, stop, seed=self.seed, number=number)
            for number, (stream, (start, stop)) in enumerate(zip(self.streams, ends, strict=True), start=1)
        ]
        return spread(walks), after

    def _batched(
        self, labelled: Positions, unlabelled: Positions, random: np.random.Generator, epoch: int, *, place: int
    ) -> list[BatchPlan]:
        """These rows in shuffled batches of similar length and even shares; unlabelled ones count after labelled."""
        count = len(self.labelled)
        whole = len(labelled) + len(unlabelled)
        parts = windows(self._labelled_lengths, whole, self.batch_tokens, self.batch_rows)
        order = by_length_in_windows(labelled, self._lengths, parts)
        if len(unlabelled):
            order = spread([order, by_length_in_windows(unlabelled, self._lengths, parts)])
        batches = [order[start:stop] for start, stop in cut(self._lengths[order], self.batch_tokens, self.batch_rows)]
        return [
            BatchPlan(
                tuple(rows[rows < count].tolist()),
                tuple((rows[rows >= count] - count).tolist()),
                epoch,
                place + number,
            )
            for number, rows in enumerate(batches[batch] for batch in random.permutation(len(batches)))
        ]


def steps_done(ratio: Number, passed: float) -> float:
    """Share of the steps done once a share `passed` of the labelled rows is, under a ratio that follows the steps.

    Batches hold the same rows, so with p of the steps done the labelled rows pass at a rate of 1 - ratio(p), and
    passed = integral of 1 - ratio from 0 to p over that from 0 to 1; inverted on a grid.

    >>> steps_done(0.5, 0.25), round(steps_done(Ramp.model_validate({"from": 0.0, "to": 0.5}), 0.5), 3)
    (0.25, 0.419)
    """
    if not isinstance(ratio, Ramp):
        return passed
    grid = np.linspace(0.0, 1.0, 1001)
    rate = np.array([1.0 - value_at(ratio, float(progress)) for progress in grid])
    done = np.append(0.0, np.cumsum((rate[1:] + rate[:-1]) / 2.0))
    return float(np.interp(passed * done[-1], done, grid))


def mixed_batches(
    labelled: Pool,
    pool: Pool | None,
    mix: Mix,
    train: Length,
    *,
    seed: int,
    keep_rows: Positions | None = None,
    parts: Sequence[PoolPart] = (),
    row_classes: NDArray[np.int64] | None = None,
    row_factors: NDArray[np.float32] | None = None,
    views: Views | None = None,
) -> MixedBatches:
    """Batches in which `mix.unlabelled.ratio` of the rows come from `pool`; labelled ones alone without a pool.

    An epoch is one pass over the labelled rows; the pool is walked in seeded permutations that go on from epoch to
    epoch. A batch may hold no labelled row where the ratio leaves less than one a batch. A ratio that changes is taken
    at up to 20 places of an epoch. What `keep` needs comes from `drawing.choose`.

    Args:
        train: length, and batch_tokens or batch_rows; 1024 tokens where neither is given.
        keep_rows: positions of `pool` that may be drawn (`mix.unlabelled.keep`); None means all.
        parts: the sources of `pool`, whose shares are kept to within a row an epoch (`DataSets.pools`).
        row_classes: (rows of pool,) the teacher's class of each, below 0 without one; with keep.balance they are drawn
            equally often.
        row_factors: (rows of pool,) factor of each one's soft terms; with keep.weigh.
        views: changes to all rows, which mix.augment needs (`Views.of`).
    Raises: InputError without labelled rows, or where a source with a share has no row to draw; ValueError where the
        settings need an argument that is not given.
    """
    if not len(labelled):
        raise InputError("training needs labelled rows, an epoch is one pass over them (got none)")
    if mix.augment.changes and (views is None or views.augment != mix.augment):
        raise ValueError("mix.augment changes rows, which needs views=Views.of(mix.augment, encoder, seed=...)")
    used = pool if mix.unlabelled is not None and pool is not None and len(pool) else None
    streams: list[Stream] = []
    if used is not None and mix.unlabelled is not None and mix.unlabelled.ratio != 0:
        given = {"confidence": keep_rows, "balance": row_classes, "weigh": row_factors}
        for name, value in given.items():
            if getattr(mix.unlabelled.keep, name) and value is None:
                raise ValueError(f"mix.unlabelled.keep.{name} needs what drawing.choose makes of the teacher's answers")
        kept = np.arange(len(used)) if keep_rows is None else np.unique(np.asarray(keep_rows, dtype=np.int64))
        streams = streams_of(kept, parts, row_classes, rows=len(used))
    return MixedBatches(
        labelled,
        used if streams else None,
        0.0 if mix.unlabelled is None else mix.unlabelled.ratio,
        streams,
        train.batch_tokens,
        train.batch_rows,
        seed,
        epochs=EPOCHS if train.epochs is None else train.epochs,
        steps=train.steps,
        factors=row_factors if streams else None,
        views=views,
    )
