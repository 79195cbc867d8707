"""QDQ pairs for TensorRT: s8 around zero for weights and activations, a pair of its own at every input."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from compressor.export.fusion import without_warnings
from compressor.quantize.ranges import Range


def qdq_graph(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range]) -> ModelProto:
    """`model` with QDQ pairs at both inputs of these products, by onnxruntime's quantizer with our ranges.

    TensorRT takes symmetric s8 alone, wants the pair at the weights too, biases in float, and no pair at the outputs
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#quantization-on-gpu).

    Args:
        model: fp32 graph without fused operators.
        nodes: names of MatMul and Gemm nodes with stored weights; for none the graph stays as it is.
        ranges: of each tensor that they read.
    """
    if not nodes:  # which the quantizer would take for all
        return model
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    kinds = sorted({node.op_type for node in model.graph.node if node.name in nodes})
    reach = {name: np.float32(each.magnitude or 1.0) for name, each in ranges.items()}
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": kinds,
        "DefaultTensorType": TensorProto.FLOAT,
    }
    with without_warnings():
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(model),
            True,  # weights per channel
            False,  # all 8 bits
            QuantType.QInt8,
            QuantType.QInt8,
            {name: TensorData(lowest=-value, highest=value) for name, value in reach.items()},
            sorted(nodes),
            [],
            kinds,
            options,
        )
        quantizer.quantize_model()
    result: ModelProto = quantizer.model.model
    return result
