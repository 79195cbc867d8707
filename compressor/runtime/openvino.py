"""Answers of a model.onnx through OpenVINO, on the CPU; needs the extra `compressor[openvino]`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.device import usable_threads
from compressor.errors import InputError
from compressor.model.graph_file import open_graph, require_classifier
from compressor.runtime.engine import Inputs, Logits

INSTALL = "pip install 'bert-compressor[openvino]'"


class OpenVinoEngine:
    """One open model.onnx. fp32 is computed in fp32: left to itself, OpenVINO takes bf16 where the CPU has it."""

    name = "openvino"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """`threads` inside one operator; None takes all that this process may use.

        Raises: InputError where OpenVINO is not installed, or cannot read the graph.
        """
        try:
            import openvino
        except ImportError as error:
            raise InputError(f"engine openvino is not installed; run {INSTALL}") from error
        open_graph(path, weights=False)  # OpenVINO follows whatever the file names
        core = openvino.Core()
        try:
            self.model = core.compile_model(core.read_model(str(path)), "CPU", settings(threads or usable_threads()))
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot read {path}: {_reason(str(error))}") from error
        self.input_names: tuple[str, ...] = tuple(each.any_name for each in self.model.inputs)
        require_classifier(self.input_names, [each.any_name for each in self.model.outputs], where=str(path))
        self._request = self.model.create_infer_request()

    def feed(self, inputs: Inputs) -> dict[str, npt.NDArray[np.int64]]:
        """Those of `inputs` that the graph takes."""
        return {name: inputs[name] for name in self.input_names}

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes)."""
        answer = self._request.infer(self.feed(inputs), share_inputs=True)
        return np.array(answer["logits"], dtype=np.float32)

    def call(self, inputs: Inputs) -> Callable[[], object]:
        """One answer to `inputs`, which OpenVINO reads where they lie."""
        infer, feed = self._request.infer, self.feed(inputs)
        return lambda: infer(feed, share_inputs=True, share_outputs=True)


def settings(threads: int) -> dict[str, Any]:
    """How OpenVINO runs: one request at a time, so many threads, where the process may run, fp32 as fp32.

    >>> settings(2)["INFERENCE_PRECISION_HINT"]
    'f32'
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }


def _reason(text: str) -> str:
    """What OpenVINO says, and what to do about it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Exception from")]
    told = " ".join(lines)[:400]
    if "com.microsoft" in text:
        return f"{told}; those operators are onnxruntime's alone: give OpenVINO the fp32 model"
    return f"{told}; export the model again"
