"""Weights in signed bytes with a scale for each output, such that no processor's sums saturate where that is asked.

Without VNNI an x86 processor multiplies bytes by `vpmaddubsw`: an activation of 0 to 255 times a weight, two
neighbouring products summed in 16 bits, which saturate without a word. The usual way out, weights of 7 bits, halves
their precision. But only the sum of a pair has to fit: 255 (w + w') stays within 32767 where two neighbours of one sign
add up to at most 128, whatever each of them is. Few pairs have two large weights of one sign, so nearly all of the 8
bits remain. onnxruntime pairs the inputs 0 and 1, 2 and 3 and so on in all its kernels that multiply so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
"""Shape (inputs, outputs)."""
Bytes = npt.NDArray[np.int8]
LARGEST = 127
"""Largest magnitude of a weight in steps."""


def round_weights(weights: Weights, *, reduce_range: bool) -> tuple[Bytes, npt.NDArray[np.float32]]:
    """Weights in steps, shape (inputs, outputs), and the size of a step of each output, shape (outputs,).

    Args:
        reduce_range: keeps neighbours of one sign to 128 steps together, so that sums of 16 bits hold them.

    >>> steps, size = round_weights(np.array([[1.0], [-0.5]], np.float32), reduce_range=True)
    >>> steps.tolist(), round(float(size[0]) * 127, 3)
    ([[127], [-64]], 1.0)
    """
    largest = np.abs(weights).max(axis=0, initial=0.0)
    if reduce_range:
        largest = np.maximum(largest, pair_sums(weights))
    size = (largest / LARGEST).astype(np.float32)
    size[size < np.finfo(np.float32).tiny] = 1.0
    steps = np.clip(np.rint(weights / size), -LARGEST, LARGEST)
    return steps.astype(np.int8), size


def pair_sums(weights: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Largest magnitude, shape (outputs,), of the sum of an input's weight and its neighbour's of the same sign.

    >>> pair_sums(np.array([[1.0], [2.0], [-3.0], [4.0]])).tolist()
    [4.0]
    """
    odd = len(weights) % 2
    padded = np.concatenate([weights, np.zeros_like(weights[:1])]) if odd else weights
    up, down = np.maximum(padded, 0), np.maximum(-padded, 0)
    sums = [each[0::2] + each[1::2] for each in (up, down)]
    return np.asarray(np.max([each.max(axis=0, initial=0.0) for each in sums], axis=0))
