"""What a teacher says about a batch, and the one model that says it at every step."""

# B rows of a batch, L tokens, D hidden, C classes

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.model.states import forward, record_hidden


@dataclass(frozen=True)
class Answers:
    """What the teacher says about a batch."""

    logits: Tensor
    """(B, C) fp32; a row of NaN where no teacher said anything."""
    hidden: dict[int, Tensor]
    """Layer (0 the embeddings) to (B, L, D) fp32; whatever stands at padding is finite and has no meaning."""


class Teacher(Protocol):
    """Answers to batches of the rows of a training."""

    def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
        """The answers to a batch of the student's tokens, on the batch's device, without gradients.

        Args:
            hidden: True adds the states of all layers that this teacher was opened with; numbers those layers alone.
        """


@dataclass(frozen=True)
class LiveTeacher:
    """One model, in eval mode and without gradients at every call."""

    model: PreTrainedModel
    layers: tuple[int, ...]
    ids: Tensor | None = None
    """(student's vocabulary,) the model's id of each of the student's tokens; None where they are the same."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the pass, whatever autocast the caller is in."""

    def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
        """Computed now, from the batch's own tokens."""
        self.model.eval()
        layers = wanted_layers(self.layers, hidden)
        # the same as in the cache also where the student's loss is computed under autocast
        own = torch.autocast(batch.rows.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with own, torch.inference_mode(), recorded(self.model, layers) as states:
            logits = forward(self.model, self.read(batch)).float()
        # copies made outside inference mode may take part in a loss that is differentiated
        return Answers(logits.clone(), {layer: states[layer].float().clone() for layer in layers})

    def read(self, batch: Batch) -> Batch:
        """The batch in the model's own token ids."""
        if self.ids is None:
            return batch
        return replace(batch, inputs={**batch.inputs, "input_ids": self.ids[batch.inputs["input_ids"]]})


def wanted_layers(layers: Sequence[int], hidden: bool | Collection[int]) -> tuple[int, ...]:
    """Those of `layers` that are asked for; KeyError for one that is not among them.

    >>> wanted_layers((2, 4), True), wanted_layers((2, 4), False), wanted_layers((2, 4), [4])
    ((2, 4), (), (4,))
    """
    if isinstance(hidden, bool):
        return tuple(layers) if hidden else ()
    absent = sorted(set(hidden) - set(layers))
    if absent:
        raise KeyError(f"layer {absent[0]} is not among those that this teacher was opened with, {tuple(layers)}")
    return tuple(sorted(set(hidden)))


def recorded(model: nn.Module, layers: Sequence[int]) -> contextlib.AbstractContextManager[dict[int, Tensor]]:
    """What `record_hidden` gives; without layers an empty dict, so that an encoder of unknown parts can be used."""
    if not layers:
        return contextlib.nullcontext({})
    return record_hidden(cast(PreTrainedModel, model), layers=layers)
