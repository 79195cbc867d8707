"""Tokenised rows and the batches made of them: rows of similar length together, in an order that a seed decides."""

# B rows of a batch, L tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.data.encode import Encoder
from compressor.data.encoded import Encoded, Tokens

if TYPE_CHECKING:
    from compressor.data.rows import Rows

UNLABELLED = -100
"""Target of a unit without a label; torch's cross-entropy ignores it."""

BATCH_TOKENS = 1024
"""Tokens a batch, padding included, where neither batch_tokens nor batch_rows is given."""

WINDOW_BATCHES = 50
"""Rows are sorted by length within windows of about so many batches: little padding, much shuffling."""


class BatchLimits(Protocol):
    """How large a batch may be; train.settings.Train is one. At most one of the two is given."""

    @property
    def batch_tokens(self) -> int | None:
        """Tokens a batch, padding included."""

    @property
    def batch_rows(self) -> int | None:
        """Rows a batch."""


@dataclass(frozen=True)
class Batch:
    """Some rows, ready for a model.

    inputs: input_ids, attention_mask, token_type_ids, each (B, L) int64. targets: (B,) int64, -100 unlabelled; (B, L)
    for token units, (B, 2) for spans. rows: (B,) int64, each row's position in its own pool. unlabelled: (B,) bool,
    True for rows of the unlabelled pool, whose positions count in that pool. valid: (B, L) bool, the tokens that are
    units (token tasks) or may hold the answer (spans); None for row units. epoch: the epoch it belongs to, from 0.
    view: number of the rows' view, 0 where nothing changes them. weights: (B,) float32 factor of each row's soft terms,
    None where all are 1. partner, kept: (B,) int64 place in the batch of the row whose embeddings are mixed in, and
    (B,) float32 share of the row's own ones, 1 where it is not mixed; None without mixup.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    rows: Tensor
    unlabelled: Tensor
    valid: Tensor | None = None
    epoch: int = 0
    view: int = 0
    weights: Tensor | None = None
    partner: Tensor | None = None
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        names = ("targets", "rows", "unlabelled", "valid", "weights", "partner", "kept")
        tensors = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(
            self,
            inputs={name: value.to(device, non_blocking=True) for name, value in self.inputs.items()},
            **{name: value.to(device, non_blocking=True) for name, value in tensors.items()},
        )


@dataclass(frozen=True)
class Pool:
    """Tokenised rows with their targets: (rows,) int64, -100 where unlabelled."""

    encoded: Encoded
    targets: NDArray[np.int64]
    pad_id: int

    @classmethod
    def of(cls, rows: Rows, encoder: Encoder) -> Pool:
        """The rows, tokenised."""
        targets = np.array([UNLABELLED if label is None else label for label in rows.labels], dtype=np.int64)
        return cls(encoder.encode(rows.texts), targets, encoder.pad_id)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (rows,)."""
        return self.encoded.lengths

    def batch(self, indices: Sequence[int], *, unlabelled: bool = False) -> Batch:
        """The rows at `indices`, in that order; `unlabelled` says that this pool is the unlabelled one."""
        rows = np.array(indices, dtype=np.int64)
        return batch_of(self.encoded.take(rows), self.targets[rows], rows, self.pad_id, unlabelled=unlabelled)

    def in_order(self, *, batch_tokens: int = 8192) -> Iterator[Batch]:
        """Every row once, shortest first; `batch.rows` says which they are. For scoring, not for training."""
        for indices in bucketed(self.lengths, batch_tokens=batch_tokens, shuffle=False):
            yield self.batch(indices)


def batch_of(
    tokens: Tokens,
    targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    pad_id: int,
    *,
    unlabelled: bool | NDArray[np.bool_] = False,
) -> Batch:
    """Tokens as a batch padded to its longest row; targets, rows and unlabelled are (B,), the last also one for all."""
    return Batch(
        {name: torch.from_numpy(values) for name, values in tokens.padded(pad_id).items()},
        torch.from_numpy(targets),
        torch.from_numpy(rows),
        torch.from_numpy(np.broadcast_to(unlabelled, len(rows)).copy()),
    )


def bucketed(
    lengths: NDArray[np.int64] | Sequence[int],
    *,
    batch_tokens: int | None = None,
    batch_rows: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> list[list[int]]:
    """Every row once, in batches of similar length that stay within the limit; the same for the same seed and epoch.

    Args:
        lengths: tokens of each row, shape (rows,).
        batch_tokens: tokens a batch, padding included; a longer row stands alone.
        batch_rows: rows a batch; 1024 tokens where neither is given.
        shuffle: False gives the rows from short to long, for scoring.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not shuffle:
        order = np.argsort(lengths, kind="stable")
        return [order[a:b].tolist() for a, b in cut(lengths[order], batch_tokens, batch_rows)]
    random = np.random.default_rng([seed, epoch])
    order = by_length_in_windows(
        random.permutation(len(lengths)), lengths, windows(lengths, len(lengths), batch_tokens, batch_rows)
    )
    batches = [order[a:b].tolist() for a, b in cut(lengths[order], batch_tokens, batch_rows)]
    return [batches[place] for place in random.permutation(len(batches))]


def windows(
    lengths: NDArray[np.int64],
    rows: int,
    batch_tokens: int | None,
    batch_rows: int | None,
    batches: int = WINDOW_BATCHES,
) -> int:
    """Into how many windows of so many `batches` `rows` rows of these lengths fall; at least 1."""
    if batch_rows is None:
        mean = float(lengths.mean()) if len(lengths) else 1.0
        batch_rows = max(1, round((batch_tokens or BATCH_TOKENS) / max(mean, 1.0)))
    return max(1, round(rows / (batches * batch_rows)))


def by_length_in_windows(order: NDArray[np.int64], lengths: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`order` in `count` equal windows, each sorted by length, upwards and downwards in turn so that the seams fit."""
    ends = np.linspace(0, len(order), count + 1).round().astype(np.int64)
    parts = []
    for number, (start, stop) in enumerate(pairwise(ends.tolist())):
        part = order[start:stop]
        part = part[np.argsort(lengths[part], kind="stable")]
        parts.append(part if number % 2 == 0 else part[::-1])
    return np.concatenate(parts)


def cut(lengths: NDArray[np.int64], batch_tokens: int | None, batch_rows: int | None) -> list[tuple[int, int]]:
    """(start, stop) of each batch when rows of these lengths are taken in order, as many as the limit allows."""
    if batch_rows is not None:
        return [(start, min(start + batch_rows, len(lengths))) for start in range(0, len(lengths), batch_rows)]
    limit = batch_tokens or BATCH_TOKENS
    cuts: list[tuple[int, int]] = []
    start = longest = 0
    for place, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if place > start and longest * (place + 1 - start) > limit:
            cuts.append((start, place))
            start, longest = place, length
    if start < len(lengths):
        cuts.append((start, len(lengths)))
    return cuts
