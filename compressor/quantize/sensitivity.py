"""Which products of a model suffer from INT8: each quantized alone, beside the model in float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from compressor.quantize.calibration import with_outputs
from compressor.quantize.products import Product, combined, in_int8, products
from compressor.runtime.onnx import Inputs, Logits, session
from compressor.stage import Progress, silent

MOST_ROWS = 32
"""Rows on which products are ranked; the order of the worst ones settles within a few."""

FEW_ROWS = 4
"""Rows on which two graphs are told to be the same or not."""
SAME = 1e-2
"""Largest difference of a logit, relative to the largest where that is above 1, of two graphs that differ by rounding;
embeddings in INT8 on one side count as such."""


@dataclass(frozen=True)
class Sensitivity:
    """What happens where one product alone is in INT8."""

    product: Product
    signal_to_noise: float
    """Output of the product beside its error, decibels: 10 log10 of the ratio of squares; infinite without error."""
    divergence: float
    """KL of the answers in float from those with this product in INT8, mean over rows, nats."""


Form = Callable[[Collection[Product]], ModelProto]
"""The graph with these products in float and all others in INT8."""


def rank(
    floats: ModelProto,
    integers: ModelProto,
    batches: Iterable[Inputs],
    *,
    form: Form | None = None,
    precise: bool = False,
    progress: Progress = silent,
) -> tuple[Sensitivity, ...]:
    """Every product that `integers` computes in INT8, the one that moves the answers most first.

    Args:
        floats: the graph with every product in float.
        integers: the graph by the same scheme with its products in INT8.
        batches: rows to compare on; the first 32 batches are used.
        form: makes the graphs between the two; None takes products of one into the other.
        precise: sums without saturating, whatever this processor does.
    """
    rows = [inputs for _, inputs in zip(range(MOST_ROWS), batches, strict=False)]
    form = form or (lambda kept: combined(floats, integers, kept))
    chosen = [each for each in products(floats) if in_int8(integers, each)]
    names = list(dict.fromkeys(each.output for each in chosen))
    plain = session(with_outputs(floats, names), spinning=False)
    found = []
    for number, product in enumerate(chosen):
        progress("sensitivity", number, len(chosen))
        alone = form([each for each in chosen if each is not product])
        found.append(_measured(product, plain, with_outputs(alone, [product.output]), rows, precise))
    progress("sensitivity", len(chosen), len(chosen))
    return tuple(sorted(found, key=lambda each: -each.divergence))


def exchangeable(floats: ModelProto, integers: ModelProto, batches: Iterable[Inputs], *, precise: bool) -> bool:
    """Whether the float form of every product fits into the INT8 graph: with all of them it answers as the float graph.

    It does not where a scheme changes the tensors between products by which of them stay in float.
    """
    chosen = [each for each in products(floats) if in_int8(integers, each)]
    swapped, plain = (
        session(graph.SerializeToString(), spinning=False, precise=precise)
        for graph in (combined(floats, integers, chosen), floats)
    )
    for _, inputs in zip(range(FEW_ROWS), batches, strict=False):
        (found,), (wanted,) = (_run(engine, ["logits"], inputs) for engine in (swapped, plain))
        if np.abs(found - wanted).max() > SAME * max(1.0, np.abs(wanted).max()):
            return False
    return True


def _measured(product: Product, plain: Any, alone: bytes, rows: list[Inputs], precise: bool) -> Sensitivity:
    engine = session(alone, spinning=False, precise=precise)
    signal = noise = divergence = 0.0
    for inputs in rows:
        asked = [product.output, "logits"]
        wanted, expected = _run(plain, asked, inputs)
        got, answered = _run(engine, asked, inputs)
        signal += float(np.square(wanted, dtype=np.float64).sum())
        noise += float(np.square(np.subtract(wanted, got, dtype=np.float64)).sum())
        divergence += kl(expected, answered) * len(expected)
    count = sum(len(inputs["input_ids"]) for inputs in rows)
    decibels = 10 * np.log10(signal / noise) if signal > 0 and noise > 0 else np.inf
    return Sensitivity(product, float(decibels), divergence / max(1, count))


def kl(reference: Logits, logits: Logits) -> float:
    """KL of softmax(reference) from softmax(logits), mean over rows, nats; both of shape (rows, classes).

    >>> kl(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    0.0
    """
    first, second = _log_softmax(reference), _log_softmax(logits)
    return max(0.0, float((np.exp(first) * (first - second)).sum(axis=1).mean()))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _run(engine: Any, outputs: list[str], inputs: Inputs) -> list[npt.NDArray[np.float32]]:
    names = [each.name for each in engine.get_inputs()]
    answered: list[npt.NDArray[np.float32]] = engine.run(outputs, {name: inputs[name] for name in names})
    return answered
