"""Weights in 8 or 4 bits by blocks: a small file that answers nearly as fp32 does, but no faster."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.model.graph_file import open_graph
from compressor.quantize.channels import weights_of
from compressor.quantize.embeddings import integer_embeddings
from compressor.quantize.material import Material
from compressor.quantize.products import MICROSOFT, attributes, clean, quantizable
from compressor.quantize.settings import WeightOnly
from compressor.runtime.predictor import MODEL_FILE

Weight = NDArray[np.float32]
"""Shape (in, out), as MatMul multiplies it from the right."""

ACCURACY_LEVEL = 4
"""How MatMulNBits multiplies: activations go through bytes with a scale for each block of each token. In fp32 (1) the
CPU unpacks all weights at every call: four times slower with 8 bits, for answers no closer to fp32 in what they decide.
"""


def weight_only(material: Material, settings: WeightOnly, *, float_nodes: Collection[str] = frozenset()) -> ModelProto:
    """The fused graph with every product's weights in few bits, and embeddings in INT8.

    Args:
        float_nodes: names of MatMul, Gemm and Attention nodes that keep fp32 weights.
    Raises: StageError where the graph has no product to shrink.
    """
    model = shrink(open_graph(material.folder / MODEL_FILE), settings, float_nodes=float_nodes)
    integer_embeddings(model)
    return model


def shrink(model: ModelProto, settings: WeightOnly, *, float_nodes: Collection[str] = frozenset()) -> ModelProto:
    """A copy of the fused fp32 `model` with MatMulNBits in place of its products; tables stay as they are.

    A fused Attention becomes three such products and a MultiHeadAttention, which computes the same.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {each.name: each for each in graph.initializer}
    chosen = quantizable(model)
    if not chosen:
        raise StageError("no product of the graph has weights of its own; the graph holds no fused encoder")
    outputs = {node.output[0] for node in chosen if node.name not in float_nodes}
    made: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in outputs:
            made.append(node)
            continue
        weights = weights_of(node, {node.input[1]: numpy_helper.to_array(stored[node.input[1]])})
        if node.op_type == "Attention":
            made += _attention(graph, node, weights, settings)
        else:
            bias = "".join(node.input[2:3])
            made.append(_product(graph, node.input[0], weights, node.output[0], settings, bias=bias))
    del graph.node[:]
    graph.node.extend(made)
    clean(graph)
    return result


def _product(
    graph: GraphProto, given: str, weight: Weight, out: str, settings: WeightOnly, *, bias: str = ""
) -> NodeProto:
    """A MatMulNBits of tensor `given` with `weight` that makes `out`; its weights are added to the graph.

    Eight bits are symmetric; of four, each block has a zero point of its own, as sixteen steps are few.
    """
    bits, block = settings.bits, settings.block
    packed, scales, zeros = _packed(weight, bits=bits, block=block)
    parts = {f"{out}_packed": packed, f"{out}_scales": scales} | ({f"{out}_zeros": zeros} if bits == 4 else {})
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in parts.items())
    inputs = [given, f"{out}_packed", f"{out}_scales", f"{out}_zeros" if bits == 4 else "", "", bias]
    rows, columns = weight.shape
    return helper.make_node(
        "MatMulNBits", _trimmed(inputs), [out], name=f"{out}_product", domain=MICROSOFT, K=rows, N=columns, bits=bits,
        block_size=block, accuracy_level=ACCURACY_LEVEL,
    )  # fmt: skip


def _packed(
    weight: Weight, *, bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Weights of shape (rows, columns) as MatMulNBits reads them, by onnxruntime's own kernels.

    Returns packed (columns, blocks, bytes a block), scales (columns, blocks) and packed zero points (columns, bytes);
    its Python tool around the kernels needs a library that does not come with it.
    """
    from onnxruntime.capi import _pybind_state as kernels

    rows, columns = weight.shape
    blocks = -(-rows // block)
    whole = np.ascontiguousarray(np.pad(weight, ((0, blocks * block - rows), (0, 0))))
    packed = np.zeros((columns, blocks, block * bits // 8), dtype=np.uint8)
    scales = np.zeros((columns, blocks), dtype=np.float32)
    zeros = np.zeros((columns, -(-blocks * bits // 8)), dtype=np.uint8)
    pack = kernels.quantize_matmul_8bits if bits == 8 else kernels.quantize_matmul_4bits
    pack(packed, whole, scales, zeros, block, columns, rows, bits == 8)
    return packed, scales, zeros


def _attention(graph: GraphProto, node: NodeProto, weight: Weight, settings: WeightOnly) -> list[NodeProto]:
    """Queries, keys and values as products, and what is left of Attention: its bias, mask and softmax."""
    outs = [f"{node.name}_{side}" for side in ("query", "key", "value")]
    products = [
        _product(graph, node.input[0], part, out, settings)
        for part, out in zip(np.split(weight, 3, axis=1), outs, strict=True)
    ]
    attention = helper.make_node(
        "MultiHeadAttention", _trimmed([*outs, *node.input[2:4]]), [node.output[0]], name=f"{node.name}_rest",
        domain=MICROSOFT, **attributes(node),
    )  # fmt: skip
    return [*products, attention]


def _trimmed(inputs: list[str]) -> list[str]:
    """Names of inputs without the empty ones, which stand for optional inputs, at the end."""
    last = max(place for place, name in enumerate(inputs) if name)
    return inputs[: last + 1]
