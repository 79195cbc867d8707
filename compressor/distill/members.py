"""The kinds of teacher: a classifier of torch weights, an ONNX model, class names with an encoder, a file."""

# B rows of a batch, L tokens, D hidden, C classes

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.encode import Encoded, Encoder
from compressor.data.rows import Rows
from compressor.distill.answer_files import WrittenAnswers
from compressor.distill.answers import Answers, LiveTeacher
from compressor.distill.settings import LabelNames
from compressor.distill.tokens import Alignment
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.states import model_inputs
from compressor.runtime.onnx import OnnxEngine

Precision = Literal["fp32", "bf16"]
LEAST_PROBABILITY = 1e-6
"""Written probabilities below this are raised to it: the logarithm of 0 is no logit."""


class Member(Protocol):
    """One teacher among several, reading batches of the student's tokens."""

    @property
    def name(self) -> str:
        """What the recipe calls it, for errors."""

    @property
    def weight(self) -> float:
        """Factor of its probabilities in the mean."""

    @property
    def computes(self) -> bool:
        """Whether a model has to run for its answers."""

    def bound(self, pools: Sequence[Rows]) -> Member:
        """The same teacher asked about other rows: `pools[0]` the labelled, `pools[1]` the unlabelled ones."""

    def answers(self, batch: Batch, *, layers: Sequence[int], precision: Precision) -> Answers:
        """Its answers; hidden states of `layers` only from a classifier whose tokens align."""


@dataclass(frozen=True)
class Classifier:
    """A classifier of torch weights that reads the student's tokens, as they are or under its own ids."""

    name: str
    weight: float
    model: PreTrainedModel
    ids: Tensor | None
    """(student's vocabulary,) as of LiveTeacher."""
    computes: bool = True

    def bound(self, _pools: Sequence[Rows]) -> Classifier:
        """Itself: it knows a row by its tokens."""
        return self

    def answers(self, batch: Batch, *, layers: Sequence[int], precision: Precision) -> Answers:
        """Computed now."""
        return LiveTeacher(self.model, tuple(layers), self.ids, precision).answers(batch, hidden=True)


@dataclass(frozen=True)
class Reader:
    """Any model that gives logits for token ids: logits alone, whatever its tokenizer."""

    name: str
    weight: float
    ask: Callable[[Batch, Precision], Tensor]
    """Logits (B, C) of a batch in the model's own tokens."""
    encoder: Encoder
    alignment: Alignment
    pools: tuple[Rows, ...]
    computes: bool = True

    def bound(self, pools: Sequence[Rows]) -> Reader:
        """It tokenises the texts itself where its tokens are others."""
        return replace(self, pools=tuple(pools))

    def answers(self, batch: Batch, *, layers: Sequence[int], precision: Precision) -> Answers:
        """Computed now."""
        assert not layers, f"{self.name} gives no hidden states"
        return Answers(self.ask(self._read(batch), precision).float(), {})

    def _read(self, batch: Batch) -> Batch:
        if self.alignment.kind == "same":
            return batch
        if self.alignment.ids is not None:
            ids = batch.inputs["input_ids"]
            mapped = torch.from_numpy(self.alignment.ids).to(ids.device)[ids]
            return replace(batch, inputs={**batch.inputs, "input_ids": mapped})
        rows, unlabelled = batch.rows.cpu().numpy(), batch.unlabelled.cpu().numpy()
        order = np.argsort(unlabelled, kind="stable")
        parts = [self._encoded[pool].take(rows[unlabelled == bool(pool)]) for pool in sorted(set(unlabelled.tolist()))]
        tokens = parts[0] if len(parts) == 1 else parts[0].and_then(parts[1])
        back = np.argsort(order)
        inputs = {name: value[back] for name, value in tokens.padded(self.encoder.pad_id).items()}
        device = batch.rows.device
        return replace(batch, inputs={name: torch.from_numpy(value).to(device) for name, value in inputs.items()})

    @cached_property
    def _encoded(self) -> tuple[Encoded, ...]:
        """The rows in the model's own tokens."""
        return tuple(self.encoder.encode(rows.texts) for rows in self.pools)


@dataclass(frozen=True)
class Written:
    """Answers from a file."""

    name: str
    weight: float
    file: WrittenAnswers
    pools: tuple[Rows, ...]
    computes: bool = False

    def bound(self, pools: Sequence[Rows]) -> Written:
        """It finds answers by text."""
        return replace(self, pools=tuple(pools))

    def answers(self, batch: Batch, *, layers: Sequence[int], precision: Precision) -> Answers:
        """Looked up; logarithms of the probabilities, NaN where the file says nothing."""
        assert not layers, f"{self.name} gives no hidden states"
        labelled, unlabelled = self.logits[0], self.logits[-1]
        rows, other = batch.rows.cpu(), batch.unlabelled.cpu()
        found = labelled.new_empty(len(rows), labelled.shape[1])
        found[~other], found[other] = labelled[rows[~other]], unlabelled[rows[other]]
        return Answers(found.to(batch.rows.device), {})

    @cached_property
    def logits(self) -> tuple[Tensor, ...]:
        """Of each pool, (rows, C) fp32."""
        return tuple(torch.from_numpy(written_logits(self.file.of(rows))) for rows in self.pools)


def written_logits(probabilities_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of probabilities, those under 1e-6 raised to it and the rest scaled; NaN stays."""
    raised = np.maximum(probabilities_NC, np.float32(LEAST_PROBABILITY))
    logits: NDArray[np.float32] = np.log(raised / raised.sum(-1, keepdims=True))
    return logits


def ask_onnx(engine: OnnxEngine, columns: Sequence[int], *, alone: bool) -> Callable[[Batch, Precision], Tensor]:
    """Logits of an ONNX model with its classes put in the order of the rows' ones.

    Args:
        columns: of each of the rows' classes, its place in the model's answers.
        alone: rows are asked one by one, as INT8 models must be whose scales depend on the batch.
    """

    def ask(batch: Batch, _precision: Precision) -> Tensor:
        inputs = {name: value.cpu().numpy() for name, value in batch.inputs.items()}
        if alone:
            lengths = inputs["attention_mask"].sum(1)
            parts = [
                engine.logits({name: value[row : row + 1, : lengths[row]] for name, value in inputs.items()})
                for row in range(len(lengths))
            ]
            logits = np.concatenate(parts)
        else:
            logits = engine.logits(inputs)
        return torch.from_numpy(logits[:, columns]).to(batch.rows.device)

    return ask


def ask_classifier(model: PreTrainedModel) -> Callable[[Batch, Precision], Tensor]:
    """Logits of a torch classifier in its own tokens."""

    def ask(batch: Batch, precision: Precision) -> Tensor:
        return LiveTeacher(model, (), None, precision).answers(batch, hidden=False).logits

    return ask


class NamedClasses:
    """A sentence encoder that compares each row with what the classes are called: cosines over the temperature."""

    def __init__(
        self, folder: Path, settings: LabelNames, labels: Sequence[str], *, encoder: Encoder, device: torch.device
    ) -> None:
        unknown = sorted(set(settings.names) - set(labels))
        if unknown:
            raise InputError(
                f"teacher.label_names.names: {unknown[0]!r} is not one of the classes {', '.join(labels)}; correct it"
            )
        self.model = _headless(folder).to(device)
        self.pooling = _pooling(folder)
        self.temperature = float(settings.temperature)
        words = [settings.names.get(label, label) for label in labels]
        inputs = encoder.encode(words).take(range(len(words))).padded(encoder.pad_id)
        self.names_CD = self.embedded({name: torch.from_numpy(value).to(device) for name, value in inputs.items()})

    def __call__(self, batch: Batch, precision: Precision) -> Tensor:
        """Logits (B, C)."""
        kind = batch.rows.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16"):
            found_BD = self.embedded(batch.inputs)
        return (found_BD @ self.names_CD.T / self.temperature).clone()

    @torch.inference_mode()
    def embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit-length sentence embeddings, (B, D)."""
        states_BLD = self.model.eval()(**model_inputs(self.model, inputs)).last_hidden_state.float()
        if self.pooling == "cls":
            pooled_BD = states_BLD[:, 0]
        else:
            mask_BL1 = inputs["attention_mask"][..., None].float()
            pooled_BD = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        return torch.nn.functional.normalize(pooled_BD, dim=-1)


def _headless(folder: Path) -> PreTrainedModel:
    """The encoder alone; the classifier that opening draws is thrown away and leaves torch's random numbers alone."""
    with torch.random.fork_rng():
        model: Any = load_model(folder, labels=("a", "b"), other_names="new head")
    encoder: PreTrainedModel = model.base_model
    return encoder.requires_grad_(False).eval()


def _pooling(folder: Path) -> Literal["cls", "mean"]:
    """How sentence-transformers makes one vector of the tokens; their mean where the folder does not say."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    said = json.loads(file.read_text(encoding="utf-8"))
    if said.get("pooling_mode_cls_token"):
        return "cls"
    other = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on is True]
    if other not in ([], ["pooling_mode_mean_tokens"]):
        raise InputError(f"{file} pools by {', '.join(other)}; only mean and cls tokens are known, give another model")
    return "mean"
