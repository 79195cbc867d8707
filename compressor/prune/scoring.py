"""The rows that importance is measured on, and scores of several criteria on one scale."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import head_macs, layer_macs, neuron_macs
from compressor.model.importance import CRITERIA, LossPerRow, Scores
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, masked
from compressor.prune.settings import Remove
from compressor.stage import Progress

SAMPLE_ROWS = 512
"""Rows that importance is measured on; beyond some hundreds the ranking hardly moves."""
BATCH_ROWS = 32


@dataclass(frozen=True)
class Sampled:
    """Tokenised rows with what the loss compares with."""

    inputs: Mapping[str, Tensor]
    targets: Tensor


@dataclass(frozen=True)
class Sample:
    """Rows, in ascending length, with labels (B,) or teacher logits (B, C) as targets, and the loss between them."""

    encoded: Encoded
    order: tuple[int, ...]
    pad_id: int
    targets: Tensor
    loss_per_row: LossPerRow
    source: str
    """Says which rows they are and what the loss is."""

    def batches(self, progress: Progress, *, what: str) -> Iterator[Sampled]:
        """The rows in batches of 32."""
        for start in range(0, len(self.order), BATCH_ROWS):
            progress(what, start, len(self.order))
            rows = self.order[start : start + BATCH_ROWS]
            yield Sampled(row_inputs(self.encoded, rows, self.pad_id), self.targets[list(rows)])


def row_inputs(encoded: Encoded, rows: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    """Model inputs (rows, longest) of tokenised rows."""
    return {name: torch.from_numpy(values) for name, values in collate(encoded, rows, pad_id).items()}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row, shape (B,), in nats."""
    return functional.cross_entropy(logits, labels, reduction="none")


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || model) of each row, shape (B,), in nats."""
    target = functional.log_softmax(teacher_logits, dim=-1)
    return (target.exp() * (target - functional.log_softmax(logits, dim=-1))).sum(-1)


def draw_sample(data: DataSets, folder: Path, *, teacher: Path | None, seed: int, smoke: bool) -> Sample:
    """A seeded sample of labelled train rows, or of unlabelled ones against a teacher where none has a label.

    Raises: InputError where there is neither.
    """
    labelled = [index for index, label in enumerate(data.train.labels) if label is not None]
    if not labelled and (teacher is None or not len(data.unlabelled)):
        raise InputError("importance needs labelled train rows, or unlabelled ones and a teacher; the data has neither")
    rows = data.train.take(labelled) if labelled else data.unlabelled
    count = min(64 if smoke else SAMPLE_ROWS, len(rows))
    rows = rows.take(sorted(random.Random(seed).sample(range(len(rows)), count)))
    encoder = open_encoder(folder, data.max_tokens)
    encoded = encoder.encode(rows.texts)
    order = tuple(sorted(range(len(rows)), key=lambda index: (int(encoded.lengths[index]), index)))
    if labelled:
        labels = torch.tensor([label if label is not None else -100 for label in rows.labels])
        return Sample(encoded, order, encoder.pad_id, labels, cross_entropy, f"cross-entropy on {count} train rows")
    assert teacher is not None
    targets = _teacher_logits(rows, teacher, data)
    return Sample(encoded, order, encoder.pad_id, targets, divergence, f"KL to the teacher on {count} unlabelled rows")


def _teacher_logits(rows: Rows, teacher: Path, data: DataSets) -> Tensor:
    model = load_model(teacher, labels=data.labels, make_head=False)
    encoder = open_encoder(teacher, data.max_tokens)
    encoded = encoder.encode(rows.texts)
    starts = range(0, len(rows), BATCH_ROWS)
    parts = [range(start, min(start + BATCH_ROWS, len(rows))) for start in starts]
    return torch.cat([model_logits(model, row_inputs(encoded, part, encoder.pad_id)).clone() for part in parts])


def score_parts(model: PreTrainedModel, remove: Remove, sample: Sample, *, seed: int, progress: Progress) -> Scores:
    """Each kind's scores by its criterion; where criteria differ, each kind's mean per multiply-accumulate is 1."""
    names = {kind: name for kind in ("heads", "ffn", "layers") if (name := getattr(remove, kind)) is not None}
    by_name = {
        name: CRITERIA[name](model, sample.batches(progress, what=f"score {name}"), sample.loss_per_row, seed)
        for name in sorted(set(names.values()))
    }
    whole = next(iter(by_name.values()))
    picked = {kind: by_name.get(names.get(kind, ""), whole) for kind in ("heads", "ffn", "layers")}
    scores = Scores(picked["heads"].heads, picked["ffn"].neurons, picked["layers"].layers)
    return scores if len(by_name) == 1 else on_one_scale(scores, model)


def masked_loss(model: PreTrainedModel, kept: Kept, sample: Sample, *, progress: Progress) -> float:
    """Mean loss of the sample, in nats, when only the parts in `kept` are used."""
    device = next(model.parameters()).device
    total = 0.0
    with masked(model, kept), torch.inference_mode():
        for batch in sample.batches(progress, what="try a layer"):
            losses = sample.loss_per_row(model_logits(model, batch.inputs), batch.targets.to(device))
            total += float(losses.double().sum())
    return total / len(sample.order)


def on_one_scale(scores: Scores, model: PreTrainedModel) -> Scores:
    """The scores divided, kind by kind, so that their sum is the multiply-accumulates of that kind."""
    sizes = shapes(model)
    of_heads = sum(each.heads * head_macs(each.head_size, sizes.hidden) for each in sizes.layers)
    of_neurons = sum(each.ffn * neuron_macs(sizes.hidden) for each in sizes.layers)
    of_layers = sum(layer_macs(each, sizes.hidden) for each in sizes.layers)

    def scaled(parts: Sequence[Tensor], total: int) -> tuple[Tensor, ...]:
        found = float(sum(part.sum() for part in parts))
        return tuple(part * (total / found if found else 1.0) for part in parts)

    layers = scaled([scores.layers], of_layers)[0]
    return Scores(scaled(scores.heads, of_heads), scaled(scores.neurons, of_neurons), layers)
