"""INT8 with activations scaled by their own range at run time."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx import TensorProto as Tensor

from compressor.errors import StageError
from compressor.model.graph_file import open_graph
from compressor.quantize.channels import is_transposed
from compressor.quantize.embeddings import integer_embeddings
from compressor.quantize.material import Material
from compressor.quantize.products import MICROSOFT, clean, integer_products, quantizable
from compressor.quantize.rounding import round_weights
from compressor.quantize.settings import Smooth
from compressor.quantize.smoothing import smoothed
from compressor.runtime.predictor import MODEL_FILE


def dynamic(
    material: Material,
    settings: Smooth | None = None,
    *,
    float_nodes: Collection[str] = frozenset(),
    even: bool = True,
) -> ModelProto:
    """INT8 weights per output channel and INT8 embeddings; activations are scaled by their own range at run time.

    Args:
        settings: one alpha for every product that reads a normalization; None searches the best on calibration rows.
        float_nodes: names of products of the fused graph that stay in fp32.
        even: False leaves activations as they are, for weights that learned to live with them.
    Raises: StageError when no product of the graph became INT8 although none was to stay in float; InputError where
        calibration rows are too few or give values that are not finite.
    """
    graph = smoothed(material, settings) if even else open_graph(material.folder / MODEL_FILE)
    result = write_int8(graph, reduce_range=material.reduce_range, float_nodes=float_nodes)
    if not float_nodes and not integer_products(result):
        raise StageError("quantization left every product of the graph in fp32; the graph holds no fused encoder")
    return result


def write_int8(model: ModelProto, *, reduce_range: bool, float_nodes: Collection[str] = frozenset()) -> ModelProto:
    """The graph with its products and embeddings in INT8; every other operator stays as it is.

    Args:
        model: fused fp32 graph.
        reduce_range: as in rounding.round_weights.
        float_nodes: names of products that stay in fp32.
    """
    result = ModelProto()
    result.CopyFrom(model)
    integer_embeddings(result)
    writer = _Writer(result, reduce_range=reduce_range)
    chosen = {node.output[0] for node in quantizable(result) if node.name not in float_nodes}
    nodes = [made for node in result.graph.node for made in (writer.form(node) if node.output[0] in chosen else [node])]
    kept = [NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    result.graph.initializer.extend(writer.made.values())
    clean(result.graph)
    del result.graph.value_info[:]  # some of them name what is gone
    if not any(each.domain == MICROSOFT for each in result.opset_import):
        result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return result


class _Writer:
    """Writes the products of one graph in INT8: weights and inputs that several products share are written once."""

    def __init__(self, model: ModelProto, *, reduce_range: bool) -> None:
        self.stored = {each.name: each for each in model.graph.initializer}
        self.reduce_range = reduce_range
        self.made: dict[str, Tensor] = {}
        self.rounded: dict[str, tuple[str, str, str]] = {}
        self.products = 0

    def form(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for a product in INT8."""
        return self._attention(node) if node.op_type == "Attention" else self._product(node)

    def _attention(self, node: NodeProto) -> list[NodeProto]:
        before, (steps, size, zero) = self._input(node.input[0])
        weights, sizes = self._weights(node.input[1], transposed=False)
        mask = node.input[3] if len(node.input) > 3 else ""
        inputs = [steps, weights, node.input[2], size, sizes, mask, zero]
        made = helper.make_node("QAttention", inputs, list(node.output), node.name, domain=MICROSOFT)
        made.attribute.extend(node.attribute)
        return [*before, made]

    def _product(self, node: NodeProto) -> list[NodeProto]:
        """In the form that onnxruntime makes one operator of when it opens the file."""
        before, (steps, size, zero) = self._input(node.input[0])
        weights, sizes = self._weights(node.input[1], transposed=is_transposed(node))
        at = f"int8.product{self.products}"
        self.products += 1
        biased = len(node.input) > 2 and node.input[2] != ""
        output = at + "/product" if biased else node.output[0]
        made = [
            helper.make_node("MatMulInteger", [steps, weights, zero], [at + "/sums"], node.name or at),
            helper.make_node("Cast", [at + "/sums"], [at + "/wide"], at + "/wide", to=Tensor.FLOAT),
            helper.make_node("Mul", [size, sizes], [at + "/scale"], at + "/scale"),
            helper.make_node("Mul", [at + "/wide", at + "/scale"], [output], at + "/product"),
        ]
        if biased:
            made.append(helper.make_node("Add", [output, node.input[2]], [node.output[0]], at + "/bias"))
        return [*before, *made]

    def _input(self, tensor: str) -> tuple[list[NodeProto], tuple[str, str, str]]:
        """What rounds an activation, unless another product's form did already, and its steps, size and zero."""
        if tensor in self.rounded:
            return [], self.rounded[tensor]
        at = f"int8.input{len(self.rounded)}"
        names = (at + "/steps", at + "/size", at + "/zero")
        self.rounded[tensor] = names
        return [helper.make_node("DynamicQuantizeLinear", [tensor], list(names), names[0])], names

    def _weights(self, name: str, *, transposed: bool) -> tuple[str, str]:
        """Names of the weights in steps, shape (inputs, outputs), and of the sizes of a step, shape (outputs,)."""
        names = (name + "/steps" + "/t" * transposed, name + "/size" + "/t" * transposed)
        if names[0] not in self.made:
            weights = numpy_helper.to_array(self.stored[name])
            steps, sizes = round_weights(weights.T if transposed else weights, reduce_range=self.reduce_range)
            self.made[names[0]] = numpy_helper.from_array(np.ascontiguousarray(steps), names[0])
            self.made[names[1]] = numpy_helper.from_array(sizes, names[1])
        return names
