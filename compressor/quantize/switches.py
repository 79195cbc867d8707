"""Neurons that are far on at one kind of token and off at all others, turned down before the GELU and up after it.

Far above zero a GELU is the straight line x, below about -3 it is zero. So a neuron that is only ever far on or off
computes nearly the same as one whose input is moved and shrunk to be on at a moderate height, with the weights that
read it enlarged. The largest value of the row falls to that of the other neurons, and with it the step in which all of
them are rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, numpy_helper

from compressor.quantize.calibration import Channels

Values = npt.NDArray[np.float32]
ORDINARY = 0.995
"""Share of neurons whose largest values are taken for ordinary."""
OUTLIER = 1.5
"""A neuron is turned down where it is so many times larger than ordinary ones."""
MOST_ERROR = 0.5
"""What turning the neurons of a half down may add to its error, as a share of the error of rounding that remains."""
LOWS = tuple(np.linspace(-4.0, 0.0, 17))
"""Where the middle of its off values may be moved to."""
OFFS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles tried as that middle."""


@dataclass(frozen=True)
class Hidden:
    """A feed-forward half of a fused graph."""

    reads: str
    """Tensor that the half reads."""
    makes: str
    """Tensor after the GELU."""
    up: str
    """Weights before the GELU, shape (channels, neurons)."""
    bias: str
    """Bias before the GELU, shape (neurons,)."""
    down: str
    """Weights after it, shape (neurons, channels)."""


@dataclass(frozen=True)
class Switch:
    """One neuron that was turned down."""

    product: str
    """Weights that read it."""
    neuron: int
    largest: float
    """Its largest value before."""
    turned_to: float
    """Its largest value after."""
    error: float
    """Root mean square by which what it gives changed, over the tokens tried on."""


def hidden_layers(model: ModelProto) -> tuple[Hidden, ...]:
    """The feed-forward halves whose weights nothing else reads: MatMul, BiasGelu, MatMul."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    stored = {each.name for each in graph.initializer}
    found = []
    for node in graph.node:
        gelu = makers.get(node.input[0]) if node.op_type == "MatMul" else None
        up = makers.get(gelu.input[0]) if gelu is not None and gelu.op_type == "BiasGelu" else None
        if gelu is None or up is None or up.op_type != "MatMul":
            continue
        half = Hidden(up.input[0], gelu.output[0], up.input[1], gelu.input[1], node.input[1])
        owned = all(name in stored and readers[name] == 1 for name in (half.up, half.bias, half.down))
        if owned and readers[gelu.input[0]] == readers[half.makes] == 1:
            found.append(half)
    return tuple(found)


def turn_down(
    model: ModelProto, halves: Sequence[Hidden], maxima: Mapping[str, Channels], rows: Mapping[str, Sequence[Values]]
) -> tuple[ModelProto, tuple[Switch, ...]]:
    """The graph with its switches turned down, and which they are.

    Args:
        halves: of `hidden_layers`.
        maxima: largest magnitude of each neuron, for each `makes`.
        rows: some rows of each `reads`, each of shape (tokens, channels).
    """
    result = ModelProto()
    result.CopyFrom(model)
    stored = {each.name: each for each in result.graph.initializer}
    switches: list[Switch] = []
    for half in halves:
        if half.makes not in maxima or not len(maxima[half.makes]):
            continue
        names = (half.up, half.bias, half.down)
        up, bias, down = (numpy_helper.to_array(stored[name]).copy() for name in names)
        found = _turn(half, up, bias, down, maxima[half.makes], np.concatenate(rows[half.reads]))
        for name, values in zip(names, (up, bias, down), strict=True):
            if found:
                stored[name].CopyFrom(numpy_helper.from_array(values, name))
        switches += found
    return result, tuple(switches)


def _turn(half: Hidden, up: Values, bias: Values, down: Values, maxima: Channels, given: Values) -> list[Switch]:
    """The switches of one half, changed in place; the first that cannot be turned down is the last that is tried."""
    ordinary = float(np.quantile(maxima, ORDINARY, method="lower"))
    order = [int(place) for place in np.argsort(-maxima) if maxima[place] > OUTLIER * ordinary]
    powers = np.square(down).sum(axis=1)
    allowed = MOST_ERROR * (ordinary / 255) ** 2 / 12 * float(powers.sum())
    found: list[Switch] = []
    if ordinary <= 0:
        return found
    for neuron in order:
        before = given @ up[:, neuron] + bias[neuron]
        slope, shift, gain, error = fit(before, top=float(maxima[neuron]), ordinary=ordinary)
        allowed -= error * float(powers[neuron])
        if allowed < 0:
            break
        up[:, neuron] *= slope
        bias[neuron] = bias[neuron] * slope + shift
        down[neuron] *= gain
        found.append(Switch(half.down, neuron, float(maxima[neuron]), ordinary, error**0.5))
    return found


def fit(before: Values, *, top: float, ordinary: float) -> tuple[float, float, float, float]:
    """slope, shift and gain with `gain * gelu(slope * x + shift)` close to `gelu(x)`, and the mean square error.

    Args:
        before: what the GELU reads, shape (tokens,).
        top: the largest that it reads, which becomes `ordinary`.

    >>> slope, shift, gain, error = fit(np.array([24.0, -9.0, -8.0, 24.2]), top=24.2, ordinary=6.0)
    >>> error**0.5 < 0.05
    True
    """
    wanted = gelu(before)
    best = (1.0, 0.0, 1.0, float("inf"))
    for low in LOWS:
        for off in np.unique(np.quantile(before, OFFS)):
            if off >= top:
                continue
            slope = (ordinary - low) / (top - off)
            shift = ordinary - slope * top
            given = gelu(slope * before + shift)
            power = float(given @ given)
            if power == 0.0:
                continue
            gain = float(given @ wanted) / power
            error = float(np.square(gain * given - wanted).mean())
            if error < best[3]:
                best = (float(slope), float(shift), gain, error)
    return best


def gelu(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Values times the share of a normal distribution below each (Hendrycks and Gimpel 2016).

    https://arxiv.org/abs/1606.08415, equation 1; exact, as BiasGelu computes it.
    """
    from scipy.special import ndtr

    wide = np.asarray(values, dtype=np.float64)
    return np.asarray(wide * ndtr(wide))
