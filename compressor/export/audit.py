"""What fusion achieved, counted against what the model's shapes allow: a missing fusion is slow, not wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from compressor.model.manifest import Shapes

COUNTED = ("EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu")
"""Fused operators that an encoder of this family should show."""


@dataclass(frozen=True)
class Audit:
    """Fused operators by name: how many there are, and how many the shapes allow."""

    found: Mapping[str, int]
    expected: Mapping[str, int]

    @property
    def missing(self) -> dict[str, int]:
        """Operators that fusion left in pieces, with how many."""
        gaps = {name: self.expected[name] - self.found.get(name, 0) for name in self.expected}
        return {name: gap for name, gap in gaps.items() if gap > 0}

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.found.get(name, 0)} of {self.expected[name]}" for name in self.expected)


def expected_fusions(shapes: Shapes) -> dict[str, int]:
    """How many of each fused operator a model of these shapes can have.

    A layer without heads or without neurons has no such operator, and the skip connection of that half may stay in
    pieces, so it is not expected.
    """
    attending = sum(layer.heads > 0 for layer in shapes.layers)
    feeding = sum(layer.ffn > 0 for layer in shapes.layers)
    first = int(shapes.layers[0].heads > 0)  # embeddings fuse into the attention that reads them
    counts = (first, attending, attending + feeding, feeding)
    return dict(zip(COUNTED, counts, strict=True))


def audit(model: ModelProto, shapes: Shapes) -> Audit:
    """The fusions of a graph beside those expected."""
    counts = Counter(node.op_type for node in model.graph.node)
    return Audit(found={name: counts[name] for name in COUNTED}, expected=expected_fusions(shapes))
