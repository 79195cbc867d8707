"""Ways to write a fused fp32 graph as INT8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from compressor.errors import StageError
from compressor.quantize.settings import Scheme


def dynamic(model: ModelProto, *, reduce_range: bool) -> ModelProto:
    """INT8 weights per output channel and INT8 embeddings; activations are scaled by their own range at run time.

    Args:
        model: fused fp32 graph (export.fusion).
        reduce_range: keeps weights to 7 bits, so that two u8 x s8 products fit into 16 bits. Needed on CPUs without
            VNNI, where the sum otherwise saturates without a word; costs a little accuracy elsewhere.
    Raises: StageError when no product of the graph became INT8.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        result: ModelProto = onnx.load(str(target))
    if not integer_products(result):
        raise StageError("quantization left every product of the graph in fp32; the graph holds no fused encoder")
    return result


def integer_products(model: ModelProto) -> int:
    """How many operators of the graph multiply in INT8."""
    return sum(node.op_type in ("MatMulInteger", "QAttention") for node in model.graph.node)


SCHEMES: dict[Scheme, Callable[..., ModelProto]] = {"dynamic": dynamic}
"""Name in the recipe to the function that does it; each takes (model, *, reduce_range)."""
