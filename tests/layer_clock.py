"""A made-up machine, on which layers take times that are known."""

from collections.abc import Sequence

from compressor.model.manifest import LayerShape


def milliseconds(layers: Sequence[LayerShape]) -> float:
    """A made-up machine: a rest, a layer's own cost, heads and neurons that cost less the more there are."""
    each = [0.05 + 0.1 * min(one.heads, 1) + 0.02 * one.heads + 0.01 * one.ffn**0.7 for one in layers]
    return 0.4 + sum(each)
