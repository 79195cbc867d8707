"""The rows that importance is measured on, and scores of several criteria on one scale."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.data.encode import Encoded, collate, open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import head_macs, layer_macs, neuron_macs
from compressor.model.importance import CRITERIA, LossPerRow, Scores, normalised
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, masked
from compressor.model.width import HIDDEN_CRITERIA
from compressor.prune.settings import GRADIENTS, KINDS, HiddenCriterion, Remove
from compressor.stage import Progress

SAMPLE_ROWS = 512
"""Rows that importance is measured on; beyond some hundreds the ranking hardly moves."""
SMOKE_ROWS = 64
"""Rows of a smoke run."""
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
    rows: str
    """Says which they are, such as `512 train rows`."""
    loss: str
    """Says what it compares."""

    @property
    def source(self) -> str:
        """Which rows they are and what the loss is."""
        return f"{self.loss} on {self.rows}"

    still: Tensor | None = None
    """What a loss that is measured, not followed, compares with, shape (B, C), where that is not `targets`."""

    def batches(self, progress: Progress, *, what: str, measured: bool = False) -> Iterator[Sampled]:
        """The rows in batches of 32, with `still` as targets where a loss is `measured`."""
        targets = self.still if measured and self.still is not None else self.targets
        for start in range(0, len(self.order), BATCH_ROWS):
            progress(what, start, len(self.order))
            rows = self.order[start : start + BATCH_ROWS]
            yield Sampled(row_inputs(self.encoded, rows, self.pad_id), targets[list(rows)])


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


def distance(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of each row's logits from the targets, shape (B,); what all classes share is left out.

    >>> distance(torch.tensor([[1.0, 4.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([1.])
    """
    apart = logits - targets
    return (apart - apart.mean(-1, keepdim=True)).square().sum(-1) / 2


def around(logits: Tensor, *, seed: int) -> Tensor:
    """Each row's logits, (B, C), moved by 1 in a random direction, the same for a seed.

    So the slope of `distance` is not 0 where it is measured from: its square is, on the mean over directions, how far
    the answers move as a part goes (the Gauss-Newton curvature of the logits), for which no labels are needed.
    """
    moves = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moves -= moves.mean(-1, keepdim=True)
    unit: Tensor = moves / moves.norm(dim=-1, keepdim=True)
    return logits + unit.to(logits)


def draw_sample(
    data: DataSets, folder: Path, *, teacher: Path | None, remove: Remove, seed: int, smoke: bool
) -> Sample:
    """A seeded sample of rows with what the loss compares with, as `remove.against` says.

    Labelled train rows with their labels; or rows of train, filled up with unlabelled ones, and the answers of the
    teacher, of the model in `folder` itself where there is no other, or for `itself` those moved by `around`.
    Raises: InputError where there are no such rows, and for a slope of the model's divergence from itself.
    """
    labelled = [index for index, label in enumerate(data.train.labels) if label is not None]
    most = SMOKE_ROWS if smoke else SAMPLE_ROWS
    if remove.against == "labels" and not labelled:
        raise InputError(
            "remove.against: labels needs labelled train rows, and the data has none; write teacher, or itself"
        )
    if labelled and remove.against in (None, "labels"):
        rows, words = drawn([("train", data.train.take(labelled))], most, seed)
        labels = torch.tensor([label if label is not None else -100 for label in rows.labels])
        return _sample(rows, words, data, folder, labels, cross_entropy, "cross-entropy")
    rows, words = drawn([("train", data.train), ("unlabelled", data.unlabelled)], most, seed)
    if not len(rows):
        raise InputError("importance is measured on train rows or unlabelled ones; the data has neither")
    if remove.against == "itself":
        own = _teacher_logits(rows, folder, data)
        said = "squared distance from its own logits"
        made = _sample(rows, words, data, folder, around(own, seed=seed), distance, said)
        return replace(made, still=own)
    _check_slopes(folder, teacher, remove)
    targets = _teacher_logits(rows, teacher or folder, data)
    return _sample(rows, words, data, folder, targets, divergence, f"KL to {'the teacher' if teacher else 'itself'}")


def _check_slopes(folder: Path, teacher: Path | None, remove: Remove) -> None:
    """Nothing, or InputError where the loss would be the divergence of a model from itself, whose slope is 0."""
    named = sorted(remove.criteria & GRADIENTS)
    if named and (teacher is None or model_digest(teacher) == model_digest(folder)):
        raise InputError(
            f"{' and '.join(named)} would follow the model's divergence from itself, whose slope is 0 for every part "
            f"({'no teacher is given' if teacher is None else f'{teacher} is the model that is pruned'}); write "
            "remove.against: teacher with another teacher, such as teacher: the one it was distilled from, compare "
            "with labels (remove.against: labels) where train has some, hold its logits still "
            "(remove.against: itself), or score by activation or magnitude"
        )


def drawn(sources: Sequence[tuple[str, Rows]], most: int, seed: int) -> tuple[Rows, str]:
    """At most so many rows, each source only as far as those before it are too few; and how many of which."""
    draw, parts = random.Random(seed), list[Rows]()
    for _, rows in sources:
        count = min(most - sum(map(len, parts)), len(rows))
        parts.append(rows.take(sorted(draw.sample(range(len(rows)), count))))
    words = [f"{len(part)} {name}" for (name, _), part in zip(sources, parts, strict=True) if len(part)]
    whole = Rows(tuple(t for part in parts for t in part.texts), tuple(each for part in parts for each in part.labels))
    return whole, f"{' and '.join(words)} rows"


def _sample(
    rows: Rows, words: str, data: DataSets, folder: Path, targets: Tensor, loss_per_row: LossPerRow, loss: str
) -> Sample:
    encoder = open_encoder(folder, data.max_tokens)
    encoded = encoder.encode(rows.texts)
    order = tuple(sorted(range(len(rows)), key=lambda index: (int(encoded.lengths[index]), index)))
    return Sample(encoded, order, encoder.pad_id, targets, loss_per_row, words, loss)


def _teacher_logits(rows: Rows, teacher: Path, data: DataSets) -> Tensor:
    model = load_model(teacher, labels=data.labels, make_head=False)
    encoder = open_encoder(teacher, data.max_tokens)
    encoded = encoder.encode(rows.texts)
    starts = range(0, len(rows), BATCH_ROWS)
    parts = [range(start, min(start + BATCH_ROWS, len(rows))) for start in starts]
    return torch.cat([model_logits(model, row_inputs(encoded, part, encoder.pad_id)).clone() for part in parts])


def score_parts(model: PreTrainedModel, remove: Remove, sample: Sample, *, seed: int, progress: Progress) -> Scores:
    """Each kind's scores by its criterion, normalised within each layer where `remove` says so.

    Where criteria differ, or heads and neurons are normalised, each kind's mean per multiply-accumulate is 1.
    """
    if remove.hidden is not None:
        return _hidden_scores(model, remove.hidden, sample, seed=seed, progress=progress)
    names = {kind: name for kind in KINDS if (name := getattr(remove, kind)) is not None}
    by_name = {
        name: CRITERIA[name](model, sample.batches(progress, what=f"score {name}"), sample.loss_per_row, seed)
        for name in sorted(set(names.values()))
    }
    whole = next(iter(by_name.values()))
    picked = {kind: by_name.get(names.get(kind, ""), whole) for kind in KINDS}
    scores = Scores(picked["heads"].heads, picked["ffn"].neurons, picked["layers"].layers, picked["halves"].halves)
    if remove.normalise:
        scores = normalised(scores)
    apart = len(by_name) > 1 or (remove.normalise and {"heads", "ffn"} <= set(names))
    return on_one_scale(scores, model) if apart else scores


def _hidden_scores(
    model: PreTrainedModel, name: HiddenCriterion, sample: Sample, *, seed: int, progress: Progress
) -> Scores:
    """Scores of the hidden channels alone."""
    batches = sample.batches(progress, what=f"score {name}")
    nothing = (torch.zeros(0, dtype=torch.float64),) * len(shapes(model).layers)
    found = HIDDEN_CRITERIA[name](model, batches, sample.loss_per_row, seed)
    return Scores(nothing, nothing, torch.zeros(len(nothing), dtype=torch.float64), hidden=found)


def scored_by(remove: Remove, sample: Sample) -> str:
    """How the parts were scored, in words."""
    words = {"ffn": "neurons", "hidden": "hidden channels"}
    kinds = ((words.get(kind, kind), getattr(remove, kind)) for kind in KINDS)
    said = ", ".join(f"{kind} by {name}" for kind, name in kinds if name is not None)
    said += ", normalised in each layer" if remove.normalise else ""
    if remove.needs_loss:
        return f"{said}; {sample.source}"
    return f"{said}; on {sample.rows}" if "activation" in remove.criteria else said


def masked_loss(model: PreTrainedModel, kept: Kept, sample: Sample, *, progress: Progress) -> float:
    """Mean loss of the sample, in nats, when only the parts in `kept` are used."""
    device = next(model.parameters()).device
    total = 0.0
    with masked(model, kept), torch.inference_mode():
        for batch in sample.batches(progress, what="try a layer", measured=True):
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

    layers, halves = (scaled([parts], of_layers)[0] for parts in (scores.layers, scores.halves))
    return Scores(scaled(scores.heads, of_heads), scaled(scores.neurons, of_neurons), layers, halves)
