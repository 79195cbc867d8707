"""The operators of an ONNX encoder put to its parts, with their weights and their measured time."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import InputError
from compressor.model.graph_file import open_graph
from compressor.runtime.onnx import Inputs
from compressor.stage import Progress

NAMES = ("embeddings", "classifier")
"""The first and the last part of every encoder."""
WHOLE = "whole model"
NORMS = {
    *("EmbedLayerNormalization", "QEmbedLayerNormalization", "LayerNormalization", "SkipLayerNormalization"),
    "SkipSimplifiedLayerNormalization",
}
"""Operators that end a part: one after the embeddings, one after each half of a layer."""
INTEGERS = {6, 7}
"""TensorProto.INT32 and INT64: shapes and places, not weights."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one row in one part, over several passes through the rows."""

    median: float = 0.0
    """Mean over the rows of the median over passes."""
    low: float = 0.0
    """Mean over the rows in the fastest pass, never above the median."""
    high: float = 0.0
    """The same in the slowest pass, never below it."""


def times_of(milliseconds: np.ndarray) -> Times:
    """The times of a part from what each pass and row took, shape (passes, rows).

    >>> times_of(np.array([[1.0, 3.0], [1.0, 5.0], [2.0, 4.0]]))
    Times(median=2.5, low=2.0, high=3.0)
    """
    median, means = float(np.median(milliseconds, axis=0).mean()), milliseconds.mean(axis=1)
    return Times(median, min(median, float(means.min())), max(median, float(means.max())))


@dataclass(frozen=True)
class GraphPart:
    """What one part of a graph holds and takes."""

    parameters: int
    """Elements of its weights; scales and zero points are not counted."""
    bytes: int
    """Of all its constants."""
    times: Times
    """Of one row."""


def graph_parts(
    file: Path, names: Sequence[str], inputs: Sequence[Inputs], *, threads: int, passes: int, progress: Progress
) -> dict[str, GraphPart]:
    """Part to what it holds and takes, in the order of `names`.

    onnxruntime's own optimised graph is read and profiled, so that what it fuses counts as it runs. Where the graph
    does not have one layer norm for each part but the last, all of it is one part, `whole model`.

    Args:
        file: model.onnx.
        names: of the parts in order, the classifier last.
        inputs: one row each.
        threads: inside one operator.
        passes: over all rows; an untimed one comes first.
    Raises: InputError when onnxruntime cannot read the model.
    """
    with tempfile.TemporaryDirectory(prefix="compressor-profile-") as folder:
        profile, optimised = _profiled(file, Path(folder), inputs, threads, passes, progress)
        part_of, weights = _assigned(optimised, names)
        times = _times(profile, part_of, len(inputs), passes)
    held = {name: weights.get(name, (0, 0)) for name in dict.fromkeys(part_of.values())}
    order = [name for name in names if name in held] or [WHOLE]
    return {name: GraphPart(*held[name], times.get(name, Times())) for name in order}


def _profiled(
    file: Path, folder: Path, inputs: Sequence[Inputs], threads: int, passes: int, progress: Progress
) -> tuple[list[Mapping[str, Any]], Path]:
    """The profiler's events of all runs, and the graph that was run."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (failures.Fail, failures.InvalidProtobuf, failures.InvalidGraph, failures.NoSuchFile) as error:
        raise InputError(f"onnxruntime cannot read {file}: {error}; export the model again") from error
    wanted = [each.name for each in session.get_inputs()]
    for number in range(passes + 1):
        for row in inputs:
            session.run(None, {name: row[name] for name in wanted})
        progress("time parts", number + 1, passes + 1)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events, folder / "optimised.onnx"


def _assigned(file: Path, names: Sequence[str]) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Operator's name to its part, and the parameters and bytes of the constants that each part is first to use."""
    from onnx import numpy_helper

    graph = open_graph(file).graph
    norms = sum(node.op_type in NORMS for node in graph.node)
    known = norms == len(names) - 1
    constants = {one.name: one for one in graph.initializer}
    part_of, weights, place = {}, dict[str, tuple[int, int]](), 0
    for node in graph.node:
        name = names[place] if known else WHOLE
        part_of[node.name] = name
        for used in node.input:
            constant = constants.pop(used, None)
            if constant is not None:
                parameters, size = weights.get(name, (0, 0))
                array = numpy_helper.to_array(constant)
                scale = constant.name.endswith(("_scale", "_zero_point")) or constant.data_type in INTEGERS
                weights[name] = parameters + (0 if scale else math.prod(array.shape)), size + array.nbytes
        place += known and node.op_type in NORMS
    return part_of, weights


def _times(events: Sequence[Mapping[str, Any]], part_of: Mapping[str, str], rows: int, passes: int) -> dict[str, Times]:
    """Part to the times of one row; the first pass is left out."""
    runs = sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: int(event["ts"]))
    kernels = sorted(
        (event for event in events if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")),
        key=lambda event: int(event["ts"]),
    )
    taken = {name: np.zeros((passes + 1, rows)) for name in part_of.values()}
    starts = np.array([int(run["ts"]) for run in runs])
    for kernel in kernels:
        name = part_of.get(str(kernel["name"]).removesuffix("_kernel_time"))
        place = int(np.searchsorted(starts, int(kernel["ts"]), side="right")) - 1
        if name is not None and 0 <= place < (passes + 1) * rows:
            taken[name][divmod(place, rows)] += int(kernel["dur"]) / 1e3
    return {name: times_of(each[1:]) for name, each in taken.items()}
