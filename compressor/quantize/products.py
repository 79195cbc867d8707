"""The matrix products of a graph: which there are, what they are called in words, and graphs made of two forms of one.

A product has weights on one side: a MatMul or Gemm with a constant, or a fused Attention. Its form in INT8 is whatever
nodes lie between the same input tensors and the same output, so that one form can stand in the place of the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from compressor.export.audit import FLOAT, constants, product_kinds, product_name
from compressor.model.graph_file import SCALED_BY_BATCH

MICROSOFT = "com.microsoft"
"""Domain of the operators that onnxruntime adds to ONNX."""
SHARED = {"num_heads", "unidirectional", "mask_filter_value", "scale"}
"""Attributes of Attention that its forms in few bits (QAttention, MultiHeadAttention) have too."""
KEPT = "kept"
"""How names begin of nodes and weights that `combined` puts in."""


@dataclass(frozen=True)
class Product:
    """One product of an fp32 graph."""

    node: str
    """Name of the node."""
    words: str
    """Such as `layer 4 feed-forward out` (layers count from 0, as in the model's own names) or `classifier`."""
    inputs: tuple[str, ...]
    """Tensors it reads that are no weights."""
    output: str
    """Tensor it makes."""


def products(model: ModelProto) -> tuple[Product, ...]:
    """The products of an fp32 graph in its order; those of two activations (query by key) are none."""
    graph = model.graph
    weights = constants(graph)
    found = []
    for node in graph.node:
        if node.op_type in FLOAT and any(name in weights for name in node.input[1:2]):
            inputs = tuple(name for name in node.input if name and name not in weights)
            found.append(Product(node.name, _words(node), inputs, node.output[0]))
    return tuple(found)


def quantizable(model: ModelProto) -> list[NodeProto]:
    """The products of an fp32 graph that have a form in few bits, in its order.

    Their weights are a stored fp32 matrix; attention has a bias, one width of query, key and value, no past and no bias
    of its scores; a Gemm neither scales nor turns its input around.
    """
    matrices = {
        each.name for each in model.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) == 2
    }
    return [node for node in model.graph.node if node.op_type in FLOAT and node.input[1] in matrices and _plain(node)]


def _plain(node: NodeProto) -> bool:
    given = attributes(node)
    if node.op_type == "Attention":
        return given.keys() <= SHARED and any(node.input[2:3]) and not any(node.input[4:])
    return given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA")


def attributes(node: NodeProto) -> dict[str, Any]:
    """What a node's attributes say, by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def integer_products(model: ModelProto) -> int:
    """How many products of the graph have weights of few bits, by the rule of audit.product_kinds."""
    return sum(kind != "" for kind in product_kinds(model.graph).values())


def in_int8(model: ModelProto, product: Product) -> bool:
    """Whether that rule counts the product of a graph; False where it cannot be told apart there."""
    try:
        nodes = between(model.graph, product)
    except KeyError:
        return False
    kinds = product_kinds(model.graph)
    return any(kinds.get(name) for node in nodes for name in node.output)


def scaled_by_batch(model: ModelProto) -> bool:
    """Whether activations are scaled by what is in the batch, so that a row's answer depends on its neighbours."""
    return any(node.op_type in SCALED_BY_BATCH for node in model.graph.node)


def combined(floats: ModelProto, integers: ModelProto, kept: Collection[Product]) -> ModelProto:
    """`integers` with the products of `kept` in their form of `floats`.

    Args:
        floats: the graph with every product in float, made by the same scheme (so that both are smoothed alike).
        integers: the same with every product in INT8; inputs and outputs of products have the same names in both.
        kept: products to leave in float; all others are INT8.
    Raises: KeyError for a product whose inputs or output one of the graphs does not have.
    """
    result = ModelProto()
    result.CopyFrom(integers)
    for number, product in enumerate(kept):
        nodes = between(floats.graph, product)
        between(result.graph, product)
        _replace(result.graph, floats.graph, product, nodes, prefix=f"{KEPT}{number}/")
    clean(result.graph)
    return result


def between(graph: GraphProto, product: Product) -> list[NodeProto]:
    """The nodes that lie between a product's inputs and its output, in order; KeyError where it lacks one."""
    makers = {name: node for node in graph.node for name in node.output}
    there = makers.keys() | {each.name for each in (*graph.input, *graph.initializer)}
    for name in (*product.inputs, product.output):
        if name not in there:
            raise KeyError(f"no tensor {name} in the graph, between which {product.words} lies")
    wanted, found = [product.output], set[int]()
    while wanted:
        maker = makers.get(wanted.pop())
        if maker is None or id(maker) in found:
            continue
        found.add(id(maker))
        wanted += [name for name in maker.input if name not in product.inputs]
    return [node for node in graph.node if id(node) in found]


def _replace(graph: GraphProto, other: GraphProto, product: Product, nodes: list[NodeProto], *, prefix: str) -> None:
    """Put copies of `nodes` of `other` before the node that makes the product's output, which gives up that name."""
    place = next(number for number, node in enumerate(graph.node) if product.output in node.output)
    old = graph.node[place]
    for number, name in enumerate(old.output):
        if name == product.output:
            old.output[number] = prefix + "unused"
    outer = {*product.inputs, product.output, ""}
    weights = {each.name: each for each in other.initializer}
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = [name if name in outer else prefix + name for name in node.input]
        copy.output[:] = [name if name in outer else prefix + name for name in node.output]
        graph.node.insert(place, copy)
        place += 1
        for name in dict.fromkeys(node.input):
            if name in weights:
                graph.initializer.add().CopyFrom(weights[name])
                graph.initializer[-1].name = prefix + name


def clean(graph: GraphProto) -> None:
    """Remove nodes and weights that no output needs, in place; graphs within nodes are taken to need nothing."""
    needed = {each.name for each in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
            assert not any(each.type == AttributeProto.GRAPH for each in node.attribute), node.op_type
    nodes = list(reversed(kept))
    weights = {each.name: each for each in graph.initializer if each.name in needed}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights.values())


def _words(node: NodeProto) -> str:
    """The product's place in words; a fused attention tells it by its output, which the tracer named."""
    layer = re.search(r"layers?\.(\d+)/", node.output[0]) if node.op_type == "Attention" else None
    return product_name(node.name) if layer is None else f"layer {layer[1]} attention"
