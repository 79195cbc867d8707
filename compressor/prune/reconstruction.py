"""Fitting the layers of a cut model to those of the uncut one: on which rows, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.reconstruct import reconstruct
from compressor.prune.scoring import BATCH_ROWS, SMOKE_ROWS, drawn, row_inputs
from compressor.stage import Decision, Progress

FIT_ROWS = 1024
"""Rows that outputs are fitted on, each with as many equations as it has tokens; twice as many brought no accuracy."""
FIT_TOKENS = 65_536
"""Tokens of them all, true ones, at most; this bounds the memory that hidden states take."""


@dataclass(frozen=True)
class Fitting:
    """Tokenised rows, in batches of like length; no labels are needed."""

    batches: tuple[dict[str, Tensor], ...]
    rows: str
    """Says which they are, such as `1024 train rows`."""

    def apply(
        self,
        model: PreTrainedModel,
        uncut: PreTrainedModel,
        layers: Sequence[int],
        *,
        step: int,
        names: Sequence[int],
        words: str,
        progress: Progress,
    ) -> Decision:
        """Fits `model`, in place, and says how far each layer was from the uncut one's and is.

        Args:
            layers: the layer of `uncut` that each of `model`'s is made from.
            names: their numbers in the stage's input.
            words: what `uncut` is, for the decision.
        """
        what = f"reconstruct {step}"
        found = reconstruct(
            model, uncut, layers, self.batches, progress=lambda done, total: progress(what, done, total)
        )
        worst = max(found, key=lambda each: each.after)
        return Decision(
            kind="reconstruct",
            chosen={"step": step, "rows": self.rows, "largest_error": float(f"{worst.after:.4g}")},
            because="what each half of a layer hands to its norm was fitted, by least squares and from the first layer "
            f"up, to {words}; most is missing in the {worst.half} half of layer {names[worst.layer]}",
            candidates=[
                {
                    "layer": names[each.layer],
                    "half": each.half,
                    "error_before": float(f"{each.before:.4g}"),
                    "error_after": float(f"{each.after:.4g}"),
                }
                for each in found
            ],
        )


def draw_fitting(data: DataSets, folder: Path, *, seed: int, smoke: bool) -> Fitting:
    """A seeded sample of train rows, filled up with unlabelled ones, as the model in `folder` reads them.

    Raises: InputError where there are none.
    """
    most = SMOKE_ROWS if smoke else FIT_ROWS
    rows, words = drawn([("train", data.train), ("unlabelled", data.unlabelled)], most, seed)
    if not len(rows):
        raise InputError("reconstruct fits outputs on train rows or unlabelled ones; the data has neither")
    encoder = open_encoder(folder, data.max_tokens)
    encoded = encoder.encode(rows.texts)
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    count = max(1, int((np.cumsum(encoded.lengths[order]) <= FIT_TOKENS).sum()))
    if count < len(rows):
        words = f"{count} of {words}"
    kept = sorted(order[:count], key=lambda row: (int(encoded.lengths[row]), row))
    starts = range(0, count, BATCH_ROWS)
    batches = tuple(row_inputs(encoded, kept[start : start + BATCH_ROWS], encoder.pad_id) for start in starts)
    return Fitting(batches, words)
