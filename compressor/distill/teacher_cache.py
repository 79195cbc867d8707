"""The teacher's answers: computed once for all rows and read from disk, or at every step.

The one pass over the rows is sorted by length, without gradients, in larger batches than training takes.
"""

# B rows of a batch, L tokens, D hidden, C classes, N rows of all pools together

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch, Pool, bucketed
from compressor.model.encoders import record_hidden, shapes
from compressor.stage import Progress

PASS_TOKENS = 4096
"""Tokens a batch, padding included, in the teacher's pass."""
CACHE_FOLDER = "cache"
NOTE, LOGITS, HIDDEN, OFFSETS = "cache.json", "logits.npy", "hidden.f16", "offsets.npy"
LOGIT_BYTES, HIDDEN_BYTES, OFFSET_BYTES = 4, 2, 8


@dataclass(frozen=True)
class Answers:
    """What the teacher says about a batch."""

    logits: Tensor
    """(B, C) fp32."""
    hidden: dict[int, Tensor]
    """Layer (0 the embeddings) to (B, L, D); whatever stands at padding has no meaning."""


class Teacher(Protocol):
    """Answers to batches of the rows of a training."""

    def answers(self, batch: Batch, *, hidden: bool) -> Answers:
        """The answers to a batch; hidden states only where they are asked for."""


@dataclass(frozen=True)
class LiveTeacher:
    """The teacher itself, in eval mode and without gradients at every call."""

    model: PreTrainedModel
    layers: tuple[int, ...]

    def answers(self, batch: Batch, *, hidden: bool) -> Answers:
        """Computed now, from the batch's own tokens."""
        self.model.eval()
        layers = self.layers if hidden else ()
        # fp32, as in the cache, also where the student's loss is computed under autocast
        plain = torch.autocast(batch.rows.device.type, enabled=False)
        with plain, torch.inference_mode(), recorded(self.model, layers) as states:
            logits = self.model(**batch.inputs).logits.float()
        # copies made outside inference mode may take part in a loss that is differentiated
        return Answers(logits.clone(), {layer: states[layer].clone() for layer in layers})


@dataclass(frozen=True)
class CachedTeacher:
    """Answers read from memory (logits) and from a memory-mapped file (hidden states)."""

    live: LiveTeacher
    """Answers for hidden states where those did not fit."""
    logits: Tensor
    """(N, C) fp32, NaN for rows that were not computed."""
    offsets: NDArray[np.int64]
    """(N,) first token of each row in `states`."""
    states: NDArray[np.float16] | None
    """(tokens, layers, D); None where they did not fit or none are wanted."""
    labelled_rows: int
    """Rows of the unlabelled pool come after so many."""

    def answers(self, batch: Batch, *, hidden: bool) -> Answers:
        """Looked up by `batch.rows`."""
        if hidden and self.states is None and self.live.layers:
            return self.live.answers(batch, hidden=True)
        device = batch.rows.device
        places = (batch.rows + batch.unlabelled * self.labelled_rows).cpu()
        return Answers(self.logits[places].to(device), self._states(batch, places, device) if hidden else {})

    def _states(self, batch: Batch, places: Tensor, device: torch.device) -> dict[int, Tensor]:
        if self.states is None:
            return {}
        mask = batch.inputs["attention_mask"]
        found = np.zeros((*mask.shape, *self.states.shape[1:]), dtype=np.float16)
        for row, (place, length) in enumerate(zip(places.tolist(), mask.sum(1).tolist(), strict=True)):
            first = int(self.offsets[place])
            found[row, :length] = self.states[first : first + length]
        both = torch.from_numpy(found).to(device, non_blocking=True)
        return {layer: both[:, :, index] for index, layer in enumerate(self.live.layers)}


@dataclass(frozen=True)
class CacheSize:
    """Bytes that a cache needs on disk."""

    logits: int
    hidden: int

    def fits(self, budget: int) -> bool:
        """Whether all of it fits in `budget` bytes."""
        return self.logits + self.hidden <= budget


def recorded(model: nn.Module, layers: Sequence[int]) -> contextlib.AbstractContextManager[dict[int, Tensor]]:
    """What `record_hidden` gives; without layers an empty dict, so that an encoder of unknown parts can be used."""
    if not layers:
        return contextlib.nullcontext({})
    return record_hidden(cast(PreTrainedModel, model), layers=layers)


def cache_size(*, rows: int, tokens: int, classes: int, layers: int, hidden: int) -> CacheSize:
    """Bytes for so many rows, tokens (padding left out), classes, layers and channels.

    >>> cache_size(rows=100_000, tokens=4_000_000, classes=3, layers=4, hidden=768).hidden
    24576000000
    """
    return CacheSize(rows * (classes * LOGIT_BYTES + OFFSET_BYTES), tokens * layers * hidden * HIDDEN_BYTES)


def open_cache(
    live: LiveTeacher,
    pools: Sequence[Pool],
    used: Sequence[NDArray[np.int64]],
    *,
    folder: Path,
    budget: int,
    key: str,
    progress: Progress,
) -> CachedTeacher:
    """A teacher whose answers to the used rows are on disk; computed unless `folder` holds them complete under `key`.

    Hidden states are kept whole or not at all: where one layer must be computed the teacher runs anyway.

    Args:
        live: the teacher, with the layers wanted.
        pools: labelled rows, then the unlabelled ones where there are any.
        used: positions in each pool that training will draw, ascending.
        folder: made if missing, emptied where it holds something else.
        budget: bytes; where the hidden states do not fit they are computed at every step.
        key: digest of teacher, rows and tokenizer.
        progress: called as `teacher's answers`.
    """
    sizes = shapes(live.model)
    classes = int(live.model.config.num_labels)
    lengths = np.concatenate([pool.lengths for pool in pools])
    chosen = np.concatenate([rows + sum(map(len, pools[:index])) for index, rows in enumerate(used)])
    tokens = int(lengths[chosen].sum())
    size = cache_size(rows=len(lengths), tokens=tokens, classes=classes, layers=len(live.layers), hidden=sizes.hidden)
    shape = (tokens, len(live.layers), sizes.hidden) if live.layers and size.fits(budget) else None
    note = {
        "key": key,
        "layers": list(live.layers),
        "shape": shape and list(shape),
        "rows": [_digest(rows) for rows in used],
    }
    if _note(folder) != note:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fill(live, pools, used, folder, shape=shape, classes=classes, lengths=lengths, progress=progress)
        (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")
    return CachedTeacher(
        live,
        torch.from_numpy(np.load(folder / LOGITS)),
        np.load(folder / OFFSETS),
        None if shape is None else np.memmap(folder / HIDDEN, np.float16, "r", shape=shape),
        labelled_rows=len(pools[0]),
    )


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _fill(
    live: LiveTeacher,
    pools: Sequence[Pool],
    used: Sequence[NDArray[np.int64]],
    folder: Path,
    *,
    shape: tuple[int, int, int] | None,
    classes: int,
    lengths: NDArray[np.int64],
    progress: Progress,
) -> None:
    """One pass of the teacher over the used rows; the files of the cache without its note."""
    logits = np.full((len(lengths), classes), np.nan, dtype=np.float32)
    offsets = np.full(len(lengths), -1, dtype=np.int64)
    states = None if shape is None else np.memmap(folder / HIDDEN, np.float16, "w+", shape=shape)
    total, done, token = sum(map(len, used)), 0, 0
    for start, batch in _sorted(pools, used, next(live.model.parameters()).device):
        answers = live.answers(batch, hidden=states is not None)
        places = batch.rows.cpu().numpy() + start
        logits[places] = answers.logits.cpu().numpy()
        if states is not None:
            mask_BL = batch.inputs["attention_mask"].bool()
            kept = torch.stack([answers.hidden[layer][mask_BL] for layer in live.layers], dim=1)
            states[token : token + len(kept)] = kept.to(torch.float16).cpu().numpy()
            ends = token + np.cumsum(lengths[places])
            offsets[places] = ends - lengths[places]
            token += len(kept)
        done += len(places)
        progress("teacher's answers", done, total)
    if states is not None:
        states.flush()
    np.save(folder / LOGITS, logits)
    np.save(folder / OFFSETS, offsets)


def _sorted(
    pools: Sequence[Pool], used: Sequence[NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[int, Batch]]:
    """(rows before this pool, batch on the device), each pool from short to long."""
    start = 0
    for pool, rows in zip(pools, used, strict=True):
        for indices in bucketed(pool.lengths[rows], batch_tokens=PASS_TOKENS, shuffle=False):
            yield start, pool.batch(rows[indices].tolist()).to(device)
        start += len(pool)


def _note(folder: Path) -> object:
    """What a complete cache says about itself; None without one."""
    try:
        return json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
