"""Embedding tables in signed bytes with a scale for each row, read row by row.

A table has rows of rare tokens that are many times larger than the rest, and one scale for all of it (as in
onnxruntime's QEmbedLayerNormalization) leaves the others few levels: measured on a fine-tuned MiniLM, that was a third
of the error of its dynamic INT8. A scale for each row costs one byte a row and a few small operators a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnx import TensorProto as Tensor

from compressor.quantize.products import MICROSOFT
from compressor.quantize.rounding import LARGEST, Bytes

FEWEST_ROWS = 8
"""A smaller table, such as that of token types, stays in fp32."""
FIRST_OPSET = 15
"""Older graphs have other forms of Shape and ReduceSum; their embeddings stay as they are."""
FUSED = "EmbedLayerNormalization"


def integer_embeddings(model: ModelProto) -> None:
    """Turn every table of fp32 rows that the graph looks up into bytes, in place; the rest of it stays as it is."""
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        return
    split_embeddings(model.graph)
    graph = model.graph
    stored = {each.name: each for each in graph.initializer}
    tables = [node.input[0] for node in graph.node if _is_lookup(node) and _is_table(stored.get(node.input[0]))]
    others = {name for node in graph.node for name in node.input[_is_lookup(node) :]}
    chosen = [name for name in dict.fromkeys(tables) if name not in others]
    for name in chosen:
        rounded = round_rows(numpy_helper.to_array(stored[name]))
        graph.initializer.remove(stored[name])
        for what, values in zip(("/steps", "/codes", "/sizes"), rounded, strict=True):
            graph.initializer.append(numpy_helper.from_array(values, name + what))
    nodes = [each for node in graph.node for each in (_rows(node) if _reads(node, chosen) else [node])]
    _replace_nodes(graph, nodes)


def round_rows(
    table: npt.NDArray[np.float32],
) -> tuple[Bytes, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """A table in steps, shape (rows, channels), which size of a step each row has, shape (rows, 1), and the sizes.

    There are at most 256 sizes, in equal ratios from the least to the largest; a row takes the next one that holds it.

    >>> steps, codes, sizes = round_rows(np.array([[127.0, -63.6], [0.0, 0.0]], np.float32))
    >>> steps.tolist(), sizes[codes[:, 0]].tolist()
    ([[127, -64], [0, 0]], [1.0, 0.0])
    """
    wanted = np.abs(table).max(axis=1, keepdims=True, initial=0.0) / np.float32(LARGEST)
    live = wanted[wanted >= np.finfo(np.float32).tiny]
    sizes = np.zeros(256, dtype=np.float32)
    if len(live):
        sizes[1:] = np.geomspace(live.min(), live.max(), 255)
        sizes[-1] = live.max()
    codes = np.minimum(np.searchsorted(sizes, wanted), 255).astype(np.uint8)
    exact = sizes[codes]
    steps = np.divide(table, exact, out=np.zeros_like(table), where=exact > 0)
    return np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8), codes, sizes


def split_embeddings(graph: GraphProto) -> None:
    """Write each fused embedding layer as its lookups, its normalization and its count of real tokens, in place."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        fused = node.op_type == FUSED and not (_input(node, 7) == "" and _output(node, 1)) and not _output(node, 2)
        nodes += _parts(node, graph) if fused else [node]
    _replace_nodes(graph, nodes)


def _parts(node: NodeProto, graph: GraphProto) -> list[NodeProto]:
    """What a fused embedding layer consists of (inputs as onnxruntime's contrib operators name them).

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.EmbedLayerNormalization
    """
    ids, types, words, positions, kinds, gamma, beta, mask, places = (_input(node, number) for number in range(9))
    ids, types = (_before_cast(name, graph) for name in (ids, types))
    at = node.name or FUSED
    made = [helper.make_node("Gather", [words, ids], [at + "/words"], at + "/words")]
    if not places:
        count = next(each.dims[0] for each in graph.initializer if each.name == positions)
        places = at + "/places"
        graph.initializer.append(numpy_helper.from_array(np.arange(count, dtype=np.int32), at + "/all_places"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.int64), at + "/first"))
        made.append(helper.make_node("Shape", [ids], [at + "/length"], at + "/length", start=1, end=2))
        slice_ = [at + "/all_places", at + "/first", at + "/length"]
        made.append(helper.make_node("Slice", slice_, [places], places))
    made.append(helper.make_node("Gather", [positions, places], [at + "/positions"], at + "/positions"))
    added = at + "/positions"
    if types:
        made.append(helper.make_node("Gather", [kinds, types], [at + "/types"], at + "/types"))
        made.append(helper.make_node("Add", [at + "/types", added], [at + "/added"], at + "/added"))
        added = at + "/added"
    else:  # the skip connection wants the words' own shape
        made.append(helper.make_node("Add", [at + "/words", added], [at + "/sum"], at + "/sum"))
    epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-12)
    made.append(_norm(at, added if types else "", gamma, beta, node.output[0], epsilon))
    if _output(node, 1):
        graph.initializer.append(numpy_helper.from_array(np.ones(1, dtype=np.int64), at + "/tokens_axis"))
        count_ = helper.make_node("ReduceSum", [mask, at + "/tokens_axis"], [node.output[1]], at + "/count", keepdims=0)
        made.append(count_)
    return made


def _before_cast(name: str, graph: GraphProto) -> str:
    """What the tensor was made from where it is a graph's input in another type: a lookup takes either."""
    given = {each.name for each in graph.input}
    casts = (node for node in graph.node if node.op_type == "Cast" and name == node.output[0])
    return next((node.input[0] for node in casts if node.input[0] in given), name)


def _norm(at: str, skip: str, gamma: str, beta: str, output: str, epsilon: float) -> NodeProto:
    if not skip:
        return helper.make_node("LayerNormalization", [at + "/sum", gamma, beta], [output], at, epsilon=epsilon)
    inputs = [at + "/words", skip, gamma, beta]
    return helper.make_node("SkipLayerNormalization", inputs, [output], at, domain=MICROSOFT, epsilon=epsilon)


def _rows(node: NodeProto) -> list[NodeProto]:
    """The lookup of a table in bytes: steps and their size, multiplied."""
    table, places = node.input
    at = node.name or node.output[0]
    return [
        helper.make_node("Gather", [table + "/steps", places], [at + "/steps"], at + "/steps"),
        helper.make_node("Gather", [table + "/codes", places], [at + "/bytes"], at + "/bytes"),
        helper.make_node("Cast", [at + "/steps"], [at + "/wide"], at + "/wide", to=Tensor.FLOAT),
        helper.make_node("Cast", [at + "/bytes"], [at + "/codes"], at + "/codes", to=Tensor.INT32),
        helper.make_node("Gather", [table + "/sizes", at + "/codes"], [at + "/size"], at + "/size"),
        helper.make_node("Mul", [at + "/wide", at + "/size"], list(node.output), at),
    ]


def _is_lookup(node: NodeProto) -> bool:
    return node.op_type == "Gather" and not any(each.name == "axis" and each.i != 0 for each in node.attribute)


def _is_table(stored: Tensor | None) -> bool:
    if stored is None or stored.data_type != Tensor.FLOAT or len(stored.dims) != 2:
        return False
    return int(stored.dims[0]) >= FEWEST_ROWS


def _reads(node: NodeProto, tables: Sequence[str]) -> bool:
    return _is_lookup(node) and node.input[0] in tables


def _input(node: NodeProto, number: int) -> str:
    return node.input[number] if number < len(node.input) else ""


def _output(node: NodeProto, number: int) -> str:
    return node.output[number] if number < len(node.output) else ""


def _replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    kept = [NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del graph.node[:]
    graph.node.extend(kept)
