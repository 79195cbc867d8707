"""From the traced graph to one that onnxruntime runs fast: each layer's head count made a constant, then fused.

The traced graph says `-1` where the heads stand, and onnxruntime's optimizer told one head count for all layers would
fuse unevenly pruned layers into graphs that answer wrong. With the true count in each layer its detection is right.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper


def pin_heads(model: ModelProto) -> int:
    """The number of reshapes into heads that got their head count written in, changed in `model`.

    A projection of width W reshaped to (rows, tokens, -1, S) has W / S heads; W is the length of its bias.
    """
    constants = {each.name: each for each in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    pinned = 0
    for node in model.graph.node:
        shape = makers.get(node.input[1]) if node.op_type == "Reshape" else None
        added = makers.get(node.input[0]) if shape is not None and shape.op_type == "Concat" else None
        if shape is None or added is None or added.op_type != "Add" or len(shape.input) != 4:
            continue
        heads, size = (_constant(makers.get(name)) for name in shape.input[2:])
        widths = [constants[name].dims[0] for name in added.input if name in constants]
        if heads is None or size is None or heads.tolist() != [-1] or len(widths) != 1:
            continue
        count = np.array([widths[0] // int(size[0])], dtype=np.int64)
        makers[shape.input[2]].attribute[0].t.CopyFrom(numpy_helper.from_array(count))
        pinned += 1
    return pinned


def _constant(node: NodeProto | None) -> Any:
    if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
        return None
    return numpy_helper.to_array(node.attribute[0].t)


def fuse(model: ModelProto) -> ModelProto:
    """The same function as `model` with attention, embeddings, skip connections and GELU as single operators.

    Only changes that onnxruntime finds safe are made; audit.py counts them and parity.py compares answers. The
    result is marked as ready for quantization.
    """
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    from onnxruntime.transformers import optimizer

    source = ModelProto()
    source.CopyFrom(model)
    with without_warnings():
        fused = optimizer.optimize_model(source, model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
        fused.topological_sort()
    result: ModelProto = fused.model
    if not any(each.domain == "com.microsoft" for each in result.opset_import):
        result.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    result.doc_string = ""
    add_pre_process_metadata(result)
    return result


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """While open, no logger says anything below an error: the optimizer's many loggers advise users of its command."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
