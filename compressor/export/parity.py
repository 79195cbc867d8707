"""Whether two forms of one model answer alike on real rows: differences of logits, and changed decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressor.errors import StageError
from compressor.runtime.onnx import Logits

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit where that is above 1; rounding gives some 1e-6."""
TOLERANCES = {"fp32": TOLERANCE, "fp16": 1e-2, "bf16": 3e-2}
"""The same by the precision that an fp32 model was written in: fp16 rounds weights to 11 bits, bf16 to 8."""


@dataclass(frozen=True)
class Difference:
    """How far `candidate` is from `reference`, over the same rows."""

    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean difference of a logit, over rows and classes."""
    scale: float
    """Largest logit of the reference, at least 1."""
    flips: int
    """Rows whose first class changed although the reference's first two logits are not as close as the tolerance."""
    rows: int
    tolerance: float = TOLERANCE

    @property
    def alike(self) -> bool:
        """Within rounding, with no changed decision."""
        return self.largest <= self.tolerance * self.scale and self.flips == 0

    def __str__(self) -> str:
        count = (
            f"{self.flips} of {self.rows} decisions changed" if self.flips else f"no decision of {self.rows} changed"
        )
        return f"logits differ by {self.largest:.2g} at most and {self.mean:.2g} on average, {count}"


def compare(reference: Logits, candidate: Logits, *, tolerance: float = TOLERANCE) -> Difference:
    """The difference of two arrays of logits, each of shape (rows, classes).

    >>> compare(np.array([[1.0, 3.0]], np.float32), np.array([[1.0, 2.5]], np.float32)).largest
    0.5
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    gaps = np.abs(reference - candidate)
    finite = bool(np.isfinite(gaps).all())
    largest = float(gaps.max(initial=0.0)) if finite else float("inf")
    mean = float(gaps.mean(dtype=np.float64)) if finite and gaps.size else largest
    scale = float(max(1.0, np.abs(reference).max(initial=0.0)))
    changed = reference.argmax(axis=1) != candidate.argmax(axis=1)
    decided = margins(reference) > 2 * tolerance * scale
    flips = int((changed & decided).sum())
    return Difference(largest=largest, mean=mean, scale=scale, flips=flips, rows=len(reference), tolerance=tolerance)


def margins(logits: Logits) -> Logits:
    """First minus second largest value of each row, shape (rows,); infinite for a single class."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    top = np.sort(logits, axis=1)
    margin: Logits = top[:, -1] - top[:, -2]
    return margin


def require_alike(reference: Logits, candidate: Logits, *, what: str, tolerance: float = TOLERANCE) -> Difference:
    """The difference, when it is within rounding; StageError names `what` otherwise."""
    found = compare(reference, candidate, tolerance=tolerance)
    if not found.alike:
        raise StageError(
            f"{what} does not answer as the model it was made from: logits differ by up to {found.largest:.3g}, "
            f"{found.mean:.3g} on average (at most {found.tolerance * found.scale:.3g}) and {found.flips} of "
            f"{found.rows} decisions change; nothing was written. Please report the model's shapes and the versions of "
            "torch, transformers and onnxruntime"
        )
    return found
