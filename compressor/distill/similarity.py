"""How alike the layers of two models are, from what both make of the same rows."""

# N tokens of all rows, D hidden, S student layers, T teacher layers

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.data.batches import Batch
from compressor.model.parts import bare, shapes
from compressor.model.states import forward, record_hidden

PROBE_ROWS = 512
"""Rows of the probe: some 10,000 tokens, many more than channels."""


class _Products:
    """Sums over tokens from which products of centred states follow."""

    def __init__(self) -> None:
        self.shifts: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.products: dict[tuple[str, str], Tensor] = {}
        self.tokens = 0

    def add(self, states: Mapping[str, Tensor], pairs: Iterable[tuple[str, str]]) -> None:
        """Take in more tokens: name to (tokens, D), fp32."""
        if (
            not self.tokens
        ):  # nearly centred at once, so that fp32 products lose nothing where a channel's mean is large
            self.shifts = {name: value.mean(0) for name, value in states.items()}
        near = {name: value - self.shifts[name] for name, value in states.items()}
        for name, value in near.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.sum(0).double()
        for one, other in pairs:
            self.products[one, other] = self.products.get((one, other), 0.0) + (near[one].T @ near[other]).double()
        self.tokens += len(next(iter(states.values())))

    def norm(self, one: str, other: str) -> float:
        """Frobenius norm of the product of the centred states."""
        centred = self.products[one, other] - torch.outer(self.sums[one], self.sums[other]) / self.tokens
        return float(torch.linalg.matrix_norm(centred))


def layer_similarity(
    student: nn.Module,
    teacher_states: Callable[[Batch], Mapping[int, Tensor]],
    batches: Iterable[Batch],
    *,
    layers: int,
) -> NDArray[np.float64]:
    """Linear CKA between the layers of teacher and student, shape (T, S), 0 to 1; row 0 is the teacher's layer 1.

    The squared norm of the product of both layers' centred token states over the product of their own (Kornblith et
    al. 2019, https://arxiv.org/abs/1905.00414, equation 7): 1 where one is a rotation and scaling of the other. Padding
    has no part; widths may differ; the states are summed up batch by batch and never held together.

    Args:
        student: any encoder whose parts are known; its mode is put back.
        teacher_states: called with a batch; layer to (rows, tokens, width), for layers 1 to `layers` at least.
        batches: of PROBE_ROWS rows or so, on the student's device.
        layers: transformer layers of the teacher.
    """
    teacher = [f"t{layer}" for layer in range(1, layers + 1)]
    own = [f"s{layer}" for layer in range(1, len(shapes(bare(student)).layers) + 1)]
    pairs = [*((name, name) for name in (*teacher, *own)), *((one, other) for one in teacher for other in own)]
    sums, training = _Products(), student.training
    student.eval()
    try:
        for batch in batches:
            with torch.no_grad(), record_hidden(student, layers=range(1, len(own) + 1)) as states:
                forward(student, batch)
            taught, mask = teacher_states(batch), batch.inputs["attention_mask"].bool()
            found = {f"t{layer}": taught[layer] for layer in range(1, layers + 1)}
            found |= {f"s{layer}": states[layer] for layer in range(1, len(own) + 1)}
            sums.add({name: value[mask].detach().float() for name, value in found.items()}, pairs)
    finally:
        student.train(training)
    scale = {name: sums.norm(name, name) for name in (*teacher, *own)}
    return np.array([[sums.norm(one, other) ** 2 / (scale[one] * scale[other]) for other in own] for one in teacher])
