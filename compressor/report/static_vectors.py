"""One vector a token, distilled from the teacher: texts become means of vectors, without any layer at answering time.

After model2vec (Tulkens and van Dongen 2024, https://github.com/MinishLab/model2vec): each token alone goes through the
teacher, the mean of its last hidden states is reduced by principal components and weighted by how rare the token is.
"""
# N rows, V tokens that occur in the rows, D hidden, K kept components

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.encode import Encoder, open_encoder
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.parts import stack
from compressor.model.states import model_inputs, record_hidden
from compressor.stage import Progress, silent

COMPONENTS = 256
"""Principal components kept, model2vec's default."""
RARITY = 1e-3
"""Share of all tokens at which a token's weight is halved, a of a / (a + p); the paper takes 1e-4 to 1e-3. On the movie
reviews 1e-3 scores 2 pp above 1e-4, and 1e-2 no higher."""
TOKENS_AT_ONCE = 256
"""Tokens, each a row of its own, in one pass of the teacher."""


@dataclass(frozen=True)
class StaticVectors:
    """A tokenizer and one vector for each token that it was asked about; any other token counts as zeros."""

    encoder: Encoder
    place: NDArray[np.int64]
    """Row of `vectors` of each token id, shape (vocabulary,); -1 where the token has none."""
    vectors: NDArray[np.float32]
    """Weighted vectors, shape (V, K)."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The mean vector of each text's tokens, shape (N, K); zeros for a text without any."""
        from scipy.sparse import csr_matrix

        tokens, rows = own_tokens(self.encoder, texts)
        places = self.place[tokens]
        known = places >= 0
        counts = np.maximum(np.bincount(rows, minlength=len(texts)), 1)
        shape = (len(texts), len(self.vectors))
        values = (1.0 / counts[rows])[known].astype(np.float32)  # in another type the whole table would be copied
        shares = csr_matrix((values, (rows[known], places[known])), shape=shape)
        return np.asarray(shares @ self.vectors, dtype=np.float32)

    @property
    def bytes(self) -> int:
        """Of the table with a vector for every token of the vocabulary, as it would be deployed."""
        return int(len(self.place) * self.vectors.shape[1] * self.vectors.itemsize)


def own_tokens(encoder: Encoder, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All tokens of the texts less special ones, and the row of each: two arrays of shape (tokens,), int64."""
    encoded = encoder.encode(list(texts))
    rows = np.repeat(np.arange(len(texts)), encoded.lengths)
    kept = ~np.isin(encoded.ids, encoder.special_ids)
    return encoded.ids[kept].astype(np.int64), rows[kept].astype(np.int64)


def distil_vectors(
    teacher: Path,
    texts: Sequence[str],
    *,
    further: Sequence[str] = (),
    max_tokens: int,
    components: int = COMPONENTS,
    seed: int = 17,
    progress: Progress = silent,
) -> StaticVectors:
    """A vector for every token that occurs in `texts` or `further`, from the teacher's last hidden states.

    Components and weights are those of `texts` alone; tokens that only `further` holds are projected alike and have the
    weight of the rarest. A token's weight is a / (a + p), p its share of the tokens of `texts` with one more counted
    for each token (smooth inverse frequency, Arora et al. 2017, https://openreview.net/forum?id=SyK00v5xx).

    Args:
        teacher: folder with safetensors of an encoder whose hidden states can be read.
        texts: those that are trained on.
        further: those that are answered.
        max_tokens: of each text, special ones included.
        components: at most so many values a vector.
        seed: of the principal components' solver.
    Raises: InputError where the teacher cannot be opened, its states cannot be read, or `texts` hold no known token.
    """
    encoder = open_encoder(teacher, max_tokens)
    mine, _ = own_tokens(encoder, texts)
    others, _ = own_tokens(encoder, further)
    if not len(mine):
        raise InputError("the texts hold no token that the teacher's vocabulary knows")
    vocabulary = max(encoder.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    counts = np.bincount(mine, minlength=vocabulary)
    chosen = np.union1d(mine, others)
    states_VD = token_states(load_model(teacher, labels=None), encoder, chosen, progress=progress)
    vectors_VK = principal(states_VD, counts[chosen] > 0, components, seed=seed)
    shares = (counts[chosen] + 1) / (counts.sum() + len(chosen))
    place = np.full(vocabulary, -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    return StaticVectors(encoder, place, (vectors_VK * (RARITY / (RARITY + shares))[:, None]).astype(np.float32))


def token_states(
    model: Any, encoder: Encoder, tokens: NDArray[np.int64], *, progress: Progress = silent
) -> NDArray[np.float32]:
    """Mean of the last layer's hidden states of each token alone between its special ones, shape (V, D)."""
    before, after = _frame(encoder)
    last, found = len(stack(model).layers), []
    ids_VL = np.concatenate([np.tile(before, (len(tokens), 1)), tokens[:, None], np.tile(after, (len(tokens), 1))], 1)
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        progress("static vectors", start, len(tokens))
        part = torch.from_numpy(ids_VL[start : start + TOKENS_AT_ONCE])
        inputs = {"input_ids": part, "attention_mask": torch.ones_like(part), "token_type_ids": torch.zeros_like(part)}
        with torch.inference_mode(), record_hidden(model, layers=[last]) as states:
            model(**model_inputs(model, inputs))
            found.append(states[last].mean(1).float().numpy())
    progress("static vectors", len(tokens), len(tokens))
    return np.concatenate(found)


def principal(
    states_VD: NDArray[np.float32], fitted: NDArray[np.bool_], components: int, *, seed: int
) -> NDArray[np.float32]:
    """The states in their leading principal components, shape (V, K); `fitted` (V,) says which states these are of."""
    from sklearn.decomposition import PCA

    kept = min(components, states_VD.shape[1], int(fitted.sum()))
    model = PCA(kept, random_state=seed).fit(states_VD[fitted])
    return np.asarray(model.transform(states_VD), dtype=np.float32)


def _frame(encoder: Encoder) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The special tokens that the tokenizer puts before and after a text."""
    row = encoder.tokenizer.encode("a")
    own = [number for number, special in enumerate(row.special_tokens_mask) if not special]
    start, end = (own[0], own[-1] + 1) if own else (1, 1)
    return np.array(row.ids[:start], dtype=np.int64), np.array(row.ids[end:], dtype=np.int64)
