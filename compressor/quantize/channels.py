"""Channels of an activation made evenly large before it is rounded, at the cost of one multiplication.

In an encoder a few channels are some twenty times larger than the rest, and one scale for all of them leaves the rest a
few of the 255 levels. Dividing each channel by its own constant, and multiplying the weights that read it by the same,
leaves the fp32 function as it was (Xiao et al. 2022, https://arxiv.org/abs/2211.10438, equations 3 and 4).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compressor.quantize.calibration import Channels

Weights = npt.NDArray[np.float32]
"""Shape (inputs, outputs)."""
MOST_UNEVEN = 1e3
"""No channel is divided by more than this many times the mean, or less than one part of it."""
EVEN = "_even"
"""What the evened tensor's name ends in."""


def weights_of(node: NodeProto, weights: Mapping[str, Weights]) -> Weights:
    """The weights of a MatMul, Gemm or Attention, shape (inputs, outputs)."""
    given = weights[node.input[1]]
    return given.T if is_transposed(node) else given


def is_transposed(node: NodeProto) -> bool:
    """Whether the node's weights are stored as (outputs, inputs)."""
    return any(each.name == "transB" and each.i for each in node.attribute)


def divisors(activations: Channels, weights: Channels, alpha: float) -> Channels:
    """What each channel is divided by, shape (channels,), with geometric mean 1.

    Args:
        activations: largest magnitude of each channel.
        weights: largest magnitude of the weights that read each channel, same shape.
        alpha: 0 to 1; 1 makes all channels of the activation equally large, 0 all rows of the weights. A channel
            that is zero throughout, in either, is not touched.

    >>> divisors(np.array([8.0, 2.0], np.float32), np.ones(2, np.float32), 1.0).tolist()
    [2.0, 0.5]
    """
    found = np.ones_like(activations, dtype=np.float64)
    live = (activations > 0) & (weights > 0)
    if not live.any():
        return found.astype(np.float32)
    logs = alpha * np.log(activations[live].astype(np.float64)) - (1 - alpha) * np.log(weights[live].astype(np.float64))
    found[live] = np.clip(np.exp(logs - logs.mean()), 1 / MOST_UNEVEN, MOST_UNEVEN)
    return found.astype(np.float32)


def even(model: ModelProto, nodes: Sequence[str], maxima: Mapping[str, Channels], *, alpha: float) -> ModelProto:
    """The same function as `model`, with the inputs of these nodes divided and their weights multiplied.

    Nodes that read one tensor share one division; nodes that share weights (ALBERT's layers) keep sharing them.

    Args:
        nodes: names of MatMul, Gemm or Attention nodes; one whose weights another node reads too stays as it is.
        maxima: largest magnitude of each channel of what they read.
        alpha: as in `divisors`.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {each.name: each for each in graph.initializer}
    chosen = _alone(graph, set(nodes), stored)
    weights = {node.input[1]: numpy_helper.to_array(stored[node.input[1]]) for node in chosen}
    shares = {node.input[1]: node for node in chosen}
    for group in groups(chosen):
        tensors = list(dict.fromkeys(node.input[0] for node in group))
        names = list(dict.fromkeys(node.input[1] for node in group))
        largest = np.max([maxima[tensor] for tensor in tensors], axis=0)
        reading = np.max([np.abs(weights_of(shares[name], weights)).max(axis=1) for name in names], axis=0)
        by = divisors(largest, reading, alpha)
        graph.initializer.extend(numpy_helper.from_array(1 / by, tensor + EVEN + "/by") for tensor in tensors)
        for name in names:
            factor = by if is_transposed(shares[name]) else by[:, None]
            stored[name].CopyFrom(numpy_helper.from_array(weights[name] * factor, name))
    _insert(graph, {node.output[0] for node in chosen})
    return result


def _alone(graph: GraphProto, nodes: Collection[str], stored: Collection[str]) -> list[NodeProto]:
    """The nodes of these names whose weights are stored, and read by none but them."""
    chosen = [node for node in graph.node if node.name in nodes and node.input[1] in stored]
    outputs = {node.output[0] for node in chosen}
    others = {name for node in graph.node if node.output[0] not in outputs for name in node.input}
    return [node for node in chosen if node.input[1] not in others]


def groups(nodes: Sequence[NodeProto]) -> list[list[NodeProto]]:
    """The nodes parted so that those which share an input or weights, directly or through others, are together."""
    parts: list[tuple[set[str], list[NodeProto]]] = []
    for node in nodes:
        names, members = set(node.input[:2]), [node]
        apart = []
        for part in parts:
            if part[0] & names:
                names, members = part[0] | names, [*part[1], *members]
            else:
                apart.append(part)
        parts = [*apart, (names, members)]
    return [members for _, members in parts]


def _insert(graph: GraphProto, outputs: Collection[str]) -> None:
    """Put a multiplication before the first reader of each tensor that the nodes with these outputs read, in place."""
    rebuilt: list[NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if node.output[0] in outputs:
            tensor = node.input[0]
            if tensor not in done:
                made = tensor + EVEN
                rebuilt.append(helper.make_node("Mul", [tensor, made + "/by"], [made], made))
                done.add(tensor)
            node.input[0] = tensor + EVEN
        rebuilt.append(node)
    del graph.node[:]
    graph.node.extend(rebuilt)
