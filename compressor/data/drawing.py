"""Which rows of the unlabelled pool are drawn, and in which order: by source, by the teacher's class, by its answers.

Every stream of rows is walked in seeded permutations that go on from epoch to epoch, so that all its rows are drawn
before one comes again. Pure arithmetic on positions; nothing heavy.
"""

# N rows of the pool, C classes, S streams

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.data.pools import PoolPart
from compressor.data.settings import Keep
from compressor.errors import InputError

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """What the teacher's answers say of the pool."""

    rows: Positions
    """Positions that may be drawn, ascending."""
    classes: NDArray[np.int64] | None
    """(N,) the teacher's class of each row; None unless the classes are to be drawn equally often."""
    factors: NDArray[np.float32] | None
    """(N,) factor of each row's terms, mean 1 over the rows that may be drawn; None where all count alike."""


def choose(logits: NDArray[np.float32], keep: Keep) -> Chosen:
    """The rows that `keep` lets be drawn, by the teacher's logits (N, C); NaN where no teacher answered.

    A row without an answer may be drawn only where `keep` asks nothing of the answers.

    >>> choose(np.array([[3, 0], [0.1, 0], [0, 2]], dtype=np.float32), Keep(confidence=0.8)).rows
    array([0, 2])
    """
    whole = np.arange(len(logits))
    if not (keep.confidence or keep.weigh or keep.balance):
        return Chosen(whole, None, None)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    first = 1.0 / np.exp(shifted).sum(axis=1)
    rows = whole[first >= keep.confidence]  # false where the answer is NaN
    factors = None
    if keep.weigh and len(rows):
        factors = np.nan_to_num(first / first[rows].mean()).astype(np.float32)
    classes = np.where(np.isnan(first), -1, logits.argmax(axis=1)) if keep.balance else None
    return Chosen(rows, classes, factors)


@dataclass(frozen=True)
class Stream:
    """Rows that are drawn in turn, all of them before one comes again."""

    rows: Positions
    share: float
    """Share of all drawn rows; the shares of the streams sum to 1."""

    def walk(self, start: int, stop: int, *, seed: int, number: int) -> Positions:
        """The rows from place `start` to before `stop` of an endless walk, one seeded permutation after another."""
        size = len(self.rows)
        if stop <= start:
            return np.zeros(0, dtype=np.int64)
        turns = range(start // size, (stop - 1) // size + 1)
        walks = [np.random.default_rng([seed, turn, number]).permutation(self.rows) for turn in turns]
        first = start % size
        return np.concatenate(walks)[first : first + stop - start]


def streams_of(
    kept: Positions, parts: Sequence[PoolPart], classes: NDArray[np.int64] | None, *, rows: int
) -> list[Stream]:
    """The streams that the rows at `kept` are drawn from, without empty ones.

    Sources with a share are a stream each, the others one together. With `classes` each of them becomes one a class,
    with equal shares.

    Args:
        kept: positions in the pool, ascending.
        parts: the pool's sources in their order; empty means one.
        classes: (rows,) class of each row; those below 0 are left out.
        rows: rows of the whole pool.
    Raises: InputError where a source with a share has no row that may be drawn; ValueError where the sources are not
        those of the pool.
    """
    if parts and sum(part.rows for part in parts) != rows:
        raise ValueError(f"the sources hold {sum(part.rows for part in parts)} rows, the pool {rows}; they must agree")
    if classes is not None:
        kept = kept[classes[kept] >= 0]
    if not len(kept):
        return []
    groups = _by_source(kept, parts)
    if classes is None:
        return groups
    split = [
        (group, [group.rows[classes[group.rows] == c] for c in np.unique(classes[group.rows])]) for group in groups
    ]
    return [Stream(of_class, group.share / len(found)) for group, found in split for of_class in found]


def _by_source(kept: Positions, parts: Sequence[PoolPart]) -> list[Stream]:
    """A stream for each source with a share, after one for all others together."""
    ends = np.cumsum([part.rows for part in parts])
    of_part = np.searchsorted(ends, kept, side="right")
    shared = [(number, part.name, part.share) for number, part in enumerate(parts) if part.share is not None]
    others = kept[~np.isin(of_part, [number for number, _name, _share in shared])]
    rest = 1.0 - sum(share for _number, _name, share in shared)
    found = [Stream(others, rest)] if len(others) and rest > 1e-9 else []
    for number, name, share in shared:
        mine = kept[of_part == number]
        if not len(mine):
            raise InputError(
                f"data.unlabelled: {name} has share {share:g}, but none of its rows may be drawn; lower "
                "mix.unlabelled.keep.confidence or leave its share out"
            )
        found.append(Stream(mine, share))
    whole = sum(stream.share for stream in found)
    return [Stream(stream.rows, stream.share / whole) for stream in found]


def next_counts(before: Positions, total: int, shares: NDArray[np.float64]) -> Positions:
    """Rows drawn of each stream once `total` are drawn of all, shape (S,): never fewer than before, near its share.

    Within one row of `share * total`, unless a handful of rows are drawn at a time from many streams.

    >>> next_counts(np.array([1, 0]), 4, np.array([0.7, 0.3])).tolist()
    [3, 1]
    """
    wanted = shares * total
    counts = np.maximum(before, np.floor(wanted + 1e-9).astype(np.int64))
    missing = total - int(counts.sum())
    order = np.argsort(counts - wanted, kind="stable")
    if missing >= 0:
        counts[order[:missing]] += 1
        return counts
    for place in order[::-1]:  # streams that ran ahead leave too little for all the others
        back = min(-missing, int(counts[place] - before[place]))
        counts[place] -= back
        missing += back
    return counts


def spread(parts: Sequence[Positions]) -> Positions:
    """All parts, each in its order, spread evenly: any stretch holds the shares of the whole to within about one."""
    places = [(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts]
    return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]
