"""INT8 with activations scaled by ranges that were taken beforehand, on calibration rows.

For onnxruntime on a CPU the operators that multiply in INT8 are written into the fused graph themselves: nothing is
left to fusion at load, attention stays one operator, and outputs of products stay in fp32 (rounding these as well, as
QDQ pairs on both sides do, cost 2.6 points of agreement on the movie snippets). For TensorRT, which wants QDQ pairs,
qdq.py writes them into the graph as traced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.quantize.calibration import calibrate
from compressor.quantize.channels import weights_of
from compressor.quantize.embeddings import integer_embeddings
from compressor.quantize.material import Material
from compressor.quantize.products import MICROSOFT, clean, quantizable
from compressor.quantize.qdq import qdq_graph
from compressor.quantize.ranges import LEVELS, Range
from compressor.quantize.rounding import round_weights
from compressor.quantize.settings import Calibrate
from compressor.quantize.smoothing import smooth, smoothed


def static(
    material: Material, settings: Calibrate | None = None, *, float_nodes: Collection[str] = frozenset()
) -> ModelProto:
    """INT8 weights per output channel, u8 activations in fixed ranges, and INT8 embeddings.

    Activations are smoothed first (smoothing.py), as `material.smooth` says and whatever stays in float, so that forms
    with other products in float fit each other. For TensorRT activations are s8 around zero, and embeddings stay in
    fp32.

    Args:
        settings: method for the ranges; None takes the defaults.
        float_nodes: names of products, of the graph that is quantized, to leave in fp32.
    Raises: InputError for calibration rows of no use; StageError where no product of the graph became INT8 although
        none was to stay in float.
    """
    settings = Calibrate() if settings is None else settings
    tensorrt = material.target == "tensorrt"
    graph = traced(material) if tensorrt else smoothed(material, material.smooth)
    chosen = [node.name for node in quantizable(graph) if node.name not in float_nodes]
    if not chosen and not float_nodes:
        raise StageError(f"the graph of {material.folder} holds no product with weights, so static has nothing to do")
    tensors = {node.input[0] for node in graph.graph.node if node.name in set(chosen)}
    ranges = calibrate(graph, tensors, material.batches(), settings, progress=material.progress)
    if tensorrt:
        return qdq_graph(graph, chosen, ranges)
    result = integer_graph(graph, chosen, ranges, reduce_range=material.reduce_range)
    integer_embeddings(result)
    return result


def traced(material: Material) -> ModelProto:
    """The material's graph as traced, smoothed."""
    alpha = None if material.smooth is None else material.smooth.alpha
    return smooth(material.raw(), material.batches(), alpha=alpha, progress=material.progress).graph


def integer_graph(
    model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range], *, reduce_range: bool
) -> ModelProto:
    """`model` with these products as MatMulIntegerToFloat or QAttention.

    Args:
        nodes: names of products of `quantizable`.
        ranges: of each tensor that they read.
        reduce_range: weights such that no sum of 16 bits saturates (rounding.py).
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    made: dict[str, npt.NDArray[np.generic]] = {}
    rebuilt: list[NodeProto] = []
    for node in graph.node:
        if node.name not in nodes:
            rebuilt.append(node)
            continue
        tensor = node.input[0]
        if tensor + "/scale" not in made:
            made[tensor + "/scale"], made[tensor + "/zero"] = scale_and_zero(ranges[tensor])
            named = [tensor, tensor + "/scale", tensor + "/zero"]
            rebuilt.append(helper.make_node("QuantizeLinear", named, [tensor + "/u8"], tensor + "/u8"))
        weight = node.input[1]
        made[weight + "/s8"], made[weight + "/scale"] = round_weights(
            weights_of(node, weights), reduce_range=reduce_range
        )
        rebuilt.append(_integer(node))
    del graph.node[:]
    graph.node.extend(rebuilt)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in made.items())
    clean(graph)
    return result


def scale_and_zero(given: Range) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """The step between levels of u8, shape (), and the level that stands for zero, shape ().

    >>> [each.item() for each in scale_and_zero(Range(-1.0, 4.1))]
    [0.019999999552965164, 50]
    """
    step = (given.high - given.low) / LEVELS or 1.0
    return np.array(step, dtype=np.float32), np.array(round(-given.low / step), dtype=np.uint8)


def _integer(node: NodeProto) -> NodeProto:
    """The operator of a product in INT8, reading tensors named as `integer_graph` names them."""
    tensor, weight = node.input[0], node.input[1]
    name = node.name + "/int8"
    if node.op_type == "Attention":
        mask = node.input[3] if len(node.input) > 3 else ""
        inputs = [tensor + "/u8", weight + "/s8", node.input[2], tensor + "/scale", weight + "/scale", mask]
        made = helper.make_node("QAttention", [*inputs, tensor + "/zero"], node.output, name, domain=MICROSOFT)
        made.attribute.extend(node.attribute)
        return made
    bias = node.input[2:3] if node.op_type == "Gemm" else []
    inputs = [tensor + "/u8", weight + "/s8", tensor + "/scale", weight + "/scale", tensor + "/zero", "", *bias]
    return helper.make_node("MatMulIntegerToFloat", inputs, node.output, name, domain=MICROSOFT)
