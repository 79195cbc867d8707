"""Answers of a model.onnx through onnxruntime, on the CPU, with every thread setting explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.device import usable_threads
from compressor.errors import InputError
from compressor.model.graph_file import require_classifier
from compressor.runtime.engine import Inputs as Inputs
from compressor.runtime.engine import Logits as Logits

Providers = Sequence[tuple[str, Mapping[str, str]]]
"""Names of onnxruntime's execution providers with their options, the preferred one first."""
ON_CPU: Providers = (("CPUExecutionProvider", {}),)


def session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    spinning: bool = True,
    precise: bool = False,
    providers: Providers = ON_CPU,
) -> Any:
    """An onnxruntime InferenceSession with `threads` threads inside an operator and one operator at a time.

    Args:
        model: the file, or its bytes.
        threads: None takes all that this process may use.
        spinning: whether idle threads wait busily, which answers sooner but slows everything else in the process.
        precise: sums u8 x s8 products without saturating where the CPU has no VNNI; slower, for comparisons.
        providers: what runs the operators; those that the first cannot run fall to the next.
    Raises: InputError when onnxruntime cannot read the model.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[(name, dict(more)) for name, more in providers])
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as error:
        name = "the exported graph" if isinstance(model, bytes) else str(model)
        raise InputError(f"onnxruntime cannot read {name}: {error}; export the model again") from error


class OnnxEngine:
    """One open model.onnx."""

    name = "onnxruntime"

    def __init__(
        self, model: Path | bytes, *, threads: int | None = None, spinning: bool = True, precise: bool = False
    ) -> None:
        self.session = session(model, threads=threads, spinning=spinning, precise=precise)
        taken = self.session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(each.name for each in taken)
        where = "the exported graph" if isinstance(model, bytes) else str(model)
        require_classifier(self.input_names, [each.name for each in self.session.get_outputs()], where=where)
        odd = [f"{each.name} as {each.type}" for each in taken if each.type != "tensor(int64)"]
        if odd:
            raise InputError(f"{where}: the graph takes {', '.join(odd)}, not int64; export it with int64 inputs")

    def feed(self, inputs: Inputs) -> dict[str, npt.NDArray[np.int64]]:
        """Those of `inputs` that the graph takes."""
        return {name: inputs[name] for name in self.input_names}

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes)."""
        answer: Logits = self.session.run(["logits"], self.feed(inputs))[0]
        return answer.astype(np.float32, copy=False)

    def call(self, inputs: Inputs) -> Callable[[], object]:
        """One answer to `inputs`."""
        run, feed = self.session.run, self.feed(inputs)
        return lambda: run(None, feed)
