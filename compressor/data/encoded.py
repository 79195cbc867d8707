"""Rows as token ids in flat arrays, batches padded to their longest row, and whether a vocabulary knows the rows.

Needs numpy alone, so that timing processes start fast.
"""

# B rows of a batch, L tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.data.pools import PoolPart
from compressor.errors import InputError

Kind = TypeVar("Kind", np.int32, np.uint8)

UNKNOWN_SHARE_LIMIT = 0.5
"""Above this share of unknown tokens the vocabulary was not made for the script of the rows."""

FOREIGN_SHARE, FOREIGN_TIMES = 0.1, 5.0
"""A pool with more unknown tokens than this share, and so many times the labelled rows' share, is another language."""


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, in the order of the texts, all in one array.

    ids: (tokens,) int32, special tokens included. offsets: (rows + 1,) int64, where each row starts and the last ends.
    types: (tokens,) uint8 segment ids, None for single texts. own: (rows,) int32, tokens of each row without the
    special ones. unknown_tokens: (rows,) int32, those that the vocabulary lacks. truncated: rows cut to the limit.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.uint8] | None
    own: NDArray[np.int32]
    unknown_tokens: NDArray[np.int32]
    truncated: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Encoded:
        """Rows given as ids; every token counts as the row's own, none as unknown.

        >>> Encoded.of([[2, 7, 3], [2, 3]]).row(1)
        array([2, 3], dtype=int32)
        """
        lengths = [len(row) for row in rows]
        return cls(
            _flat(rows, np.int32),
            offsets_of(lengths),
            None if types is None else _flat(types, np.uint8),
            np.array(lengths, dtype=np.int32),
            np.zeros(len(rows), dtype=np.int32),
            truncated=0,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (rows,)."""
        return np.diff(self.offsets)

    @property
    def total(self) -> int:
        """All tokens, special ones left out."""
        return int(self.own.sum())

    @property
    def unknown(self) -> int:
        """Those of them that the vocabulary lacks."""
        return int(self.unknown_tokens.sum())

    def row(self, index: int) -> NDArray[np.int32]:
        """Ids of one row, shape (tokens of it,)."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def row_types(self, index: int) -> NDArray[np.uint8]:
        """Segment ids of one row, shape (tokens of it,); zeros for single texts."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return np.zeros(part.stop - part.start, dtype=np.uint8) if self.types is None else self.types[part]

    def unknown_share(self, start: int = 0, stop: int | None = None) -> float:
        """Share of the tokens of rows `start` to before `stop` that the vocabulary lacks, special ones left out."""
        total = int(self.own[start:stop].sum())
        return int(self.unknown_tokens[start:stop].sum()) / total if total else 0.0

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Tokens:
        """The rows at `indices` without their padding, in that order."""
        places = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[places + 1] - self.offsets[places]
        ends = np.cumsum(lengths)
        source = np.repeat(self.offsets[places] - (ends - lengths), lengths) + np.arange(lengths.sum())
        return Tokens(self.ids[source], None if self.types is None else self.types[source], lengths)


@dataclass(frozen=True)
class Tokens:
    """Some rows one after the other: ids (tokens,) int32, types alike uint8 or None, lengths (B,) int64."""

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    lengths: NDArray[np.int64]

    def and_then(self, other: Tokens) -> Tokens:
        """These rows, then the others; segments are 0 where one of the two has none."""
        types = None
        if self.types is not None or other.types is not None:
            types = np.concatenate([_segments(self), _segments(other)])
        return Tokens(np.concatenate([self.ids, other.ids]), types, np.concatenate([self.lengths, other.lengths]))

    def padded(self, pad_id: int) -> dict[str, NDArray[np.int64]]:
        """One batch padded to its longest row: input_ids, attention_mask, token_type_ids, each (B, L) int64."""
        longest = int(self.lengths.max(initial=0))
        real_BL = np.arange(longest) < self.lengths[:, None]
        ids_BL = np.full(real_BL.shape, pad_id, dtype=np.int64)
        ids_BL[real_BL] = self.ids
        types_BL = np.zeros(real_BL.shape, dtype=np.int64)
        if self.types is not None:
            types_BL[real_BL] = self.types
        return {"input_ids": ids_BL, "attention_mask": real_BL.astype(np.int64), "token_type_ids": types_BL}


def collate(encoded: Encoded, indices: Sequence[int], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """The rows at `indices` as one batch padded to its longest: input_ids, attention_mask, token_type_ids.

    Each of shape (len(indices), longest), int64.
    """
    return encoded.take(indices).padded(pad_id)


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths start when they stand one after the other, and where the last ends.

    >>> offsets_of([3, 2]).tolist()
    [0, 3, 5]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def check_script(encoded: Encoded, name: str) -> None:
    """Nothing, where the vocabulary knows the script of the rows; `name` says which rows.

    Raises: InputError when over half of the tokens are unknown.
    """
    _check_share(encoded.unknown_share(), name)


def check_pool(
    encoded: Encoded, parts: Sequence[PoolPart], labelled: Encoded, *, name: str = "data.unlabelled"
) -> None:
    """Nothing, where each source of an unlabelled pool is in a language that the vocabulary knows.

    Args:
        encoded: the pool, its sources one after the other.
        parts: the sources; empty means one, called `name`.
        labelled: the labelled rows, of the same tokenizer.
    Raises: InputError naming the source when over half of its tokens are unknown, or over a tenth and over five times
        the share in the labelled rows.
    """
    usual = labelled.unknown_share()
    start = 0
    for source, rows in [(part.name, part.rows) for part in parts] or [(name, len(encoded))]:
        share = encoded.unknown_share(start, start + rows)
        _check_share(share, source)
        if share > FOREIGN_SHARE and share > FOREIGN_TIMES * usual:
            raise InputError(
                f"{source}: {share:.1%} of the tokens are unknown to the model's vocabulary, in the labelled rows "
                f"{usual:.1%}; these rows are in another language or were read in the wrong encoding, leave them out"
            )
        start += rows


def _check_share(share: float, name: str) -> None:
    if share > UNKNOWN_SHARE_LIMIT:
        raise InputError(
            f"{name}: {share:.0%} of the tokens are unknown to the model's vocabulary; its tokenizer was made for "
            "another language or script, or the file was read in the wrong encoding"
        )


def _segments(tokens: Tokens) -> NDArray[np.uint8]:
    return np.zeros(len(tokens.ids), dtype=np.uint8) if tokens.types is None else tokens.types


def _flat(rows: Sequence[Sequence[int]], kind: type[Kind]) -> NDArray[Kind]:
    return np.concatenate([np.zeros(0, dtype=kind), *(np.asarray(row, dtype=kind) for row in rows)])
