"""Whether two forms of one model answer alike on real rows: differences of logits, and changed decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressor.errors import StageError
from compressor.runtime.onnx import Logits

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit where that is above 1; rounding gives some 1e-6."""


@dataclass(frozen=True)
class Difference:
    """How far `candidate` is from `reference`, over the same rows."""

    largest: float
    """Largest difference of a logit."""
    scale: float
    """Largest logit of the reference, at least 1."""
    flips: int
    """Rows whose first class changed although the reference's first two logits are not as close as the tolerance."""
    rows: int

    @property
    def alike(self) -> bool:
        """Within rounding, with no changed decision."""
        return self.largest <= TOLERANCE * self.scale and self.flips == 0


def compare(reference: Logits, candidate: Logits) -> Difference:
    """The difference of two arrays of logits, each of shape (rows, classes).

    >>> compare(np.array([[1.0, 3.0]], np.float32), np.array([[1.0, 2.5]], np.float32)).largest
    0.5
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    gaps = np.abs(reference - candidate)
    largest = float(gaps.max(initial=0.0)) if np.isfinite(gaps).all() else float("inf")
    scale = float(max(1.0, np.abs(reference).max(initial=0.0)))
    changed = reference.argmax(axis=1) != candidate.argmax(axis=1)
    decided = margins(reference) > 2 * TOLERANCE * scale
    return Difference(largest=largest, scale=scale, flips=int((changed & decided).sum()), rows=len(reference))


def margins(logits: Logits) -> Logits:
    """First minus second largest value of each row, shape (rows,); infinite for a single class."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf, dtype=np.float32)
    top = np.sort(logits, axis=1)
    margin: Logits = top[:, -1] - top[:, -2]
    return margin


def require_alike(reference: Logits, candidate: Logits, *, what: str) -> Difference:
    """The difference, when it is within rounding; StageError names `what` otherwise."""
    found = compare(reference, candidate)
    if not found.alike:
        raise StageError(
            f"{what} does not answer as the model it was made from: logits differ by up to {found.largest:.3g} "
            f"(at most {TOLERANCE * found.scale:.3g}) and {found.flips} of {found.rows} decisions change; nothing was "
            "written. Please report the model's shapes and the versions of torch, transformers and onnxruntime"
        )
    return found
