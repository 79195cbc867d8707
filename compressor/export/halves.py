"""A fused fp32 graph in 16 bits: fp16 for GPUs that compute in it, bf16 to halve the file."""

from __future__ import annotations

import warnings
from typing import Literal

from onnx import ModelProto, TensorProto, helper, numpy_helper

from compressor.export.fusion import without_warnings

Half = Literal["fp16", "bf16"]


def to_half(model: ModelProto, precision: Half) -> ModelProto:
    """The same function with weights of 16 bits; what goes in and out keeps its types.

    fp16 weights and products, by onnxruntime's own converter: fast on a GPU, while a CPU computes it in fp32 between
    two casts an operator, slower than fp32 itself. bf16 rounds the weight matrices alone, and what opens the file
    widens them again: half of the bytes at the speed of fp32, since onnxruntime has no bf16 kernels for the CPU.

    Args:
        model: fused fp32 graph (export.fusion); it is left as it is.
    """
    source = ModelProto()
    source.CopyFrom(model)
    return _to_fp16(source) if precision == "fp16" else _to_bf16(source)


def _to_fp16(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings(), without_warnings():
        warnings.simplefilter("ignore")  # the mask's most negative number is cut to that of fp16, which is as good
        made: ModelProto = convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=True, force_fp16_initializers=True
        )
    return made


def _to_bf16(model: ModelProto) -> ModelProto:
    import ml_dtypes

    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        rounded = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), f"{name}_bf16")
        tensor.CopyFrom(rounded)
        casts.append(helper.make_node("Cast", [rounded.name], [name], name=f"{name}_widened", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model
