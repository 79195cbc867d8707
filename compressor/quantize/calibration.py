"""What a graph's activations look like on real rows: rows pass one batch at a time, and only summaries are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from compressor.errors import InputError
from compressor.quantize.ranges import Range, Seen, Values, range_of
from compressor.quantize.settings import Calibrate
from compressor.runtime.onnx import Inputs, session
from compressor.stage import Progress, silent

Channels = npt.NDArray[np.float32]
"""One value for each channel (last axis) of an activation."""


def calibrate(
    model: ModelProto,
    tensors: Collection[str],
    batches: Iterable[Inputs],
    settings: Calibrate,
    *,
    progress: Progress = silent,
) -> dict[str, Range]:
    """The range of each tensor by the method of the settings; arguments and errors as for `summaries`."""
    seen = summaries(model, tensors, batches, rate=settings.moving_average, progress=progress)
    return {name: range_of(each, settings) for name, each in seen.items()}


def summaries(
    model: ModelProto,
    tensors: Collection[str],
    batches: Iterable[Inputs],
    *,
    rate: float = 0.01,
    progress: Progress = silent,
) -> dict[str, Seen]:
    """What every method needs to know of each tensor, from one pass over the rows.

    Args:
        model: an fp32 graph with its weights inside.
        tensors: names of fp32 activations in it; for none no row is read.
        batches: rows as the model will be served them, best one row each: padding would count as values.
        rate: share of a new batch in the moving average.
    Raises: InputError as `observe` does.
    """
    seen = {name: Seen(rate=rate) for name in tensors}
    observe(model, seen, batches, lambda name, values: seen[name].add(values), progress=progress)
    return seen


def observe(
    model: ModelProto,
    tensors: Collection[str],
    batches: Iterable[Inputs],
    see: Callable[[str, Values], None],
    *,
    progress: Progress = silent,
) -> None:
    """Call `see(tensor, values)` for each tensor of each batch; values have the tensor's own shape, rows first.

    Raises: InputError where a value is not finite (with the tensor and the row), or where there are not two different
        rows, as what one text shows fits no other.
    """
    names = sorted(tensors)
    if not names:
        return
    engine = session(with_outputs(model, names), spinning=False)
    fed = [each.name for each in engine.get_inputs()]
    texts: set[bytes] = set()
    rows = 0
    for inputs in batches:
        if len(texts) < 2:
            texts |= spellings(inputs)
        for name, values in zip(names, engine.run(names, {each: inputs[each] for each in fed}), strict=True):
            require_finite(values, name, first_row=rows)
            see(name, values)
        rows += len(inputs["input_ids"])
        progress("calibrate", rows, None)
    require_several(rows, different=len(texts))


def with_outputs(model: ModelProto, names: Collection[str]) -> bytes:
    """The graph with these fp32 tensors as outputs besides its own."""
    wider = ModelProto()
    wider.CopyFrom(model)
    there = {each.name for each in wider.graph.output}
    wider.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in there
    )
    content: bytes = wider.SerializeToString()
    return content


def require_finite(values: Values, tensor: str, *, first_row: int) -> None:
    """Nothing, unless a value of a tensor of shape (rows, ...) is not finite: then InputError names both."""
    if np.isfinite(values.min(initial=0.0)) and np.isfinite(values.max(initial=0.0)):
        return
    row = first_row + int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
    raise InputError(
        f"calibration row {row} (from 0) makes tensor {tensor} NaN or infinite in fp32, so it has no range; look for "
        "such values in the model's weights, or take that row out of the data"
    )


def require_several(rows: int, *, different: int) -> None:
    """Nothing, unless there are fewer than two different rows: then InputError."""
    if different < 2:
        alike = ", all alike or empty" if rows > 1 else ""
        raise InputError(
            f"calibration needs at least two different texts (got {rows} row{'s' * (rows != 1)}{alike}); give more "
            "rows in `data`, or write quantize: {calibrate: {from: both}} to take unlabelled ones too"
        )


def spellings(inputs: Inputs) -> set[bytes]:
    """The token ids of each row, without padding, as bytes."""
    mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
    return {ids[there > 0].tobytes() for ids, there in zip(inputs["input_ids"], mask, strict=True)}
