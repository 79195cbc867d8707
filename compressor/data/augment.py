"""Views of rows that teacher and student see alike: tokens masked, left out, cut to a run of words, or mixed.

Which tokens change depends on the seed, the row, its pool and the number of the view, never on the batch, so that the
teacher's answers to a view can be kept. The draws are hashes, all those of a batch at once.
"""

# B rows of a batch, L tokens padded, T tokens of all rows, O ordinary (not special) ones, G texts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.batches import UNLABELLED, Batch, Pool, batch_of
from compressor.data.encode import Encoder
from compressor.data.encoded import Tokens
from compressor.data.settings import Augment
from compressor.errors import InputError

LABELLED_POOL, UNLABELLED_POOL = 0, 1
"""Numbers of the two pools."""

NGRAM_WORDS = 5
"""Most words in a run that n-gram sampling keeps."""

MIXUP_BETA = 0.4
"""Both parameters of the Beta distribution that the mixed share is drawn from (Zhang et al. 2018)."""

DELETE, MASK, IS_NGRAM, NGRAM_LENGTH, NGRAM_START, MIXUP = range(6)
"""What a draw is for; draws for different ends are independent."""


@dataclass(frozen=True)
class Views:
    """The changes to every row, one view after the other.

    augment: shares, as in a recipe. mask_id: of the mask token, None where the vocabulary has none. special_ids: tokens
    that never change, such as [CLS], [SEP] and padding. seed: of all draws, at least 0. continues: (vocabulary,) bool,
    tokens that go on with a word (`Encoder.continues`); None lets every token be a word.
    """

    augment: Augment
    mask_id: int | None
    special_ids: Sequence[int]
    seed: int
    continues: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.augment.mask and self.mask_id is None:
            raise InputError("mix.augment.mask needs a mask token, which the vocabulary lacks; leave it out")

    @classmethod
    def of(cls, augment: Augment, encoder: Encoder, *, seed: int) -> Views:
        """The views in a tokenizer's ids; unknown words and mask tokens in the text change like any other."""
        fixed = tuple(set(encoder.special_ids) - {encoder.unknown_id, encoder.mask_id})
        return cls(augment, encoder.mask_id, fixed, seed, encoder.continues() if augment.ngram else None)

    @property
    def changes_tokens(self) -> bool:
        """Whether a row's own tokens change; mixup alone leaves them."""
        return any((self.augment.mask, self.augment.delete, self.augment.ngram))

    def view_of(self, epoch: int) -> int:
        """Number of the view that an epoch shows."""
        if not self.changes_tokens:
            return 0
        return epoch if self.augment.views is None else epoch % self.augment.views

    def apply(
        self, ids: NDArray[np.int32], types: NDArray[np.uint8] | None, *, pool: int, row: int, view: int
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
        """One view of one row's ids, and its segments.

        Args:
            ids: (tokens,), special ones included, without padding.
            types: alike, None for single texts.
            pool: 0 labelled, 1 unlabelled.
            row: its position in that pool.
            view: number of the view, such as `view_of(epoch)`.
        """
        seen = self.changed(Tokens(ids, types, np.array([len(ids)])), np.array([pool]), np.array([row]), view)
        return seen.ids, seen.types

    def changed(self, tokens: Tokens, pools: NDArray[np.int64], rows: NDArray[np.int64], view: int) -> Tokens:
        """One view of several rows, whose pools and positions there are given, each (B,)."""
        if not self.changes_tokens or not len(tokens.ids):
            return tokens
        lengths = tokens.lengths
        row_T = np.repeat(np.arange(len(lengths)), lengths)
        place_T = np.arange(len(row_T)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        key_B = _hashed(np.full(len(lengths), self.seed), pools, rows, np.full(len(lengths), view))
        special_T = np.isin(tokens.ids, np.array(list(self.special_ids), dtype=np.int32))
        texts = _Texts.of(special_T, row_T, place_T, key_B)
        kept_T = np.ones(len(row_T), dtype=np.bool_)
        kept_T[texts.at] = self._stays(texts, tokens.ids)
        ids_T = tokens.ids
        if self.augment.mask and self.mask_id is not None:
            masked_T = (_uniform(_hashed(key_B[row_T], MASK, place_T)) < self.augment.mask) & ~special_T
            ids_T = np.where(masked_T, np.int32(self.mask_id), ids_T)
        return Tokens(
            ids_T[kept_T],
            None if tokens.types is None else tokens.types[kept_T],
            np.bincount(row_T[kept_T], minlength=len(lengths)),
        )

    def _stays(self, texts: _Texts, ids_T: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which ordinary tokens stay, shape (O,), at least one of each text."""
        stays_O = np.ones(len(texts.at), dtype=np.bool_)
        if not len(stays_O):
            return stays_O
        if self.augment.ngram:
            stays_O = self._in_run(texts, ids_T)
        if self.augment.delete:
            draw_O = np.where(stays_O, _uniform(_hashed(texts.key, DELETE, texts.place)), -1.0)
            largest_G = np.maximum.reduceat(draw_O, texts.first)
            stays_O = (draw_O >= self.augment.delete) | (draw_O == largest_G[texts.text])
        return stays_O

    def _in_run(self, texts: _Texts, ids_T: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which ordinary tokens are in their text's run of words, shape (O,); all where the row is not cut to runs."""
        begins_O = np.ones(len(texts.at), dtype=np.bool_)
        if self.continues is not None:
            begins_O = ~self.continues[ids_T[texts.at]]
        begins_O[texts.first] = True
        words_G = np.add.reduceat(begins_O.astype(np.int64), texts.first)
        word_O = np.cumsum(begins_O) - 1 - (np.cumsum(words_G) - words_G)[texts.text]
        key_G, place_G = texts.key[texts.first], texts.place[texts.first]
        length_G = 1 + (_uniform(_hashed(key_G, NGRAM_LENGTH, place_G)) * NGRAM_WORDS).astype(np.int64)
        length_G = np.minimum(length_G, words_G)
        start_G = (_uniform(_hashed(key_G, NGRAM_START, place_G)) * (words_G - length_G + 1)).astype(np.int64)
        cut_O: NDArray[np.bool_] = _uniform(_hashed(texts.key, IS_NGRAM)) < self.augment.ngram
        offset_O = word_O - start_G[texts.text]
        inside_O: NDArray[np.bool_] = (offset_O >= 0) & (offset_O < length_G[texts.text])
        return inside_O | ~cut_O


@dataclass(frozen=True)
class _Texts:
    """The ordinary tokens of some rows, and the texts (runs between special tokens) that they make up.

    at: (O,) places of the ordinary tokens among all. text: (O,) each one's text, counted over all rows. place: (O,) its
    place in its row. key: (O,) its row's key for draws. first: (G,) first ordinary token of each text, as an index into
    the others.
    """

    at: NDArray[np.int64]
    text: NDArray[np.int64]
    place: NDArray[np.int64]
    key: NDArray[np.uint64]
    first: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        special_T: NDArray[np.bool_],
        row_T: NDArray[np.int64],
        place_T: NDArray[np.int64],
        key_B: NDArray[np.uint64],
    ) -> _Texts:
        """The texts, from which tokens are special, their rows, their places there and the rows' keys."""
        at_O = np.flatnonzero(~special_T)
        run_O = np.cumsum(special_T | (place_T == 0))[at_O]
        new_O = np.diff(run_O, prepend=-1) != 0
        return cls(at_O, np.cumsum(new_O) - 1, place_T[at_O], key_B[row_T[at_O]], np.flatnonzero(new_O))


def mixed_up(batch: Batch, share: float, *, seed: Sequence[int]) -> Batch:
    """The batch with `share` of its rows, drawn one by one, to be mixed with another row of it.

    Such a row keeps at least half of its own embeddings, by Beta(0.4, 0.4) folded to the upper half (Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412), sees its own tokens and its partner's, and has no label.

    Args:
        share: probability of each row, 0 to 1; a row alone in its batch stays as it is.
        seed: of the draws, such as (seed, epoch, number of the batch).
    """
    count = len(batch)
    random = np.random.default_rng([*seed, MIXUP])
    drawn = (random.random(count) < share) & (count > 1)
    step = random.integers(1, max(count, 2), size=count)
    own = random.beta(MIXUP_BETA, MIXUP_BETA, size=count)
    partner = torch.from_numpy(np.where(drawn, (np.arange(count) + step) % max(count, 1), np.arange(count)))
    kept = torch.from_numpy(np.where(drawn, np.maximum(own, 1.0 - own), 1.0).astype(np.float32))
    mask_BL = batch.inputs["attention_mask"]
    return replace(
        batch,
        inputs={**batch.inputs, "attention_mask": torch.maximum(mask_BL, mask_BL[partner])},
        targets=torch.where(torch.from_numpy(drawn), UNLABELLED, batch.targets),
        partner=partner,
        kept=kept,
    )


def _hashed(*values: NDArray[Any] | int) -> NDArray[np.uint64]:
    """64 bits that look random, a function of the values alone, elementwise: SplitMix64 over one after the other.

    Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195.
    """
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        state = (state ^ np.atleast_1d(np.asarray(value)).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _uniform(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of 53 of the bits."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def view_batch(pool: Pool, indices: Sequence[int], views: Views | None, pool_number: int, view: int) -> Batch:
    """One view of the rows at `indices` of a pool, in that order, as `MixedBatches` shows them but without mixup.

    Args:
        views: None or one without changes gives the rows as they are.
        pool_number: 0 labelled, 1 unlabelled.
        view: number of the view.
    """
    rows = np.array(indices, dtype=np.int64)
    tokens = pool.encoded.take(rows)
    if views is not None:
        tokens = views.changed(tokens, np.full(len(rows), pool_number), rows, view)
    batch = batch_of(tokens, pool.targets[rows], rows, pool.pad_id, unlabelled=pool_number == UNLABELLED_POOL)
    return replace(batch, view=view)
