"""What every engine answers, whatever runs the model, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from compressor.errors import InputError

Inputs = Mapping[str, npt.NDArray[np.int64]]
"""`input_ids`, `attention_mask` and `token_type_ids`, each of shape (rows, tokens)."""
Logits = npt.NDArray[np.float32]
"""Shape (rows, classes), before softmax."""
EngineName = Literal["auto", "onnxruntime", "torch", "openvino", "tensorrt", "fastest"]
"""What a user may ask for: `auto` and `fastest` choose among the others."""
Opened = Literal["onnxruntime", "torch", "openvino", "tensorrt"]
"""What runs a model in the end; predictor.ENGINES holds one function for each."""
DeviceName = Literal["cpu", "gpu"]
Cast = Literal["fp32", "fp16", "bf16"]
"""In what an fp32 model is computed."""
TENSORRT_FILE = "model.tensorrt.onnx"
"""What TensorRT takes where it is there: it reads no fused operators of onnxruntime, and INT8 only as symmetric s8."""
TENSORRT_ROWS = 32
"""Rows in one call that TensorRT makes its kernels for."""


class Engine(Protocol):
    """One open model."""

    name: str
    """As in `Opened`."""

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes), float32."""

    def call(self, inputs: Inputs) -> Callable[[], object]:
        """What is timed: one answer to `inputs`, made ready beforehand.

        On a GPU the call brings them there, and may return before the answer is; wait with `Device.synchronise`.
        """


@dataclass(frozen=True)
class Opening:
    """How an engine is opened; InputError for what none can be opened with."""

    threads: int | None = None
    """Inside one operator, 1 or more; None takes all that this process may use (torch: leaves its setting)."""
    spinning: bool = True
    """Whether onnxruntime's idle threads wait busily."""
    device: DeviceName = "cpu"
    precision: Cast = "fp32"
    """Of torch and TensorRT on a GPU; the others compute as their file says."""
    stream: int | None = None
    """Address of the CUDA stream to work in; None leaves the choice to the engine."""
    precise: bool | None = None
    """Whether onnxruntime sums u8 x s8 products on the CPU without saturating; None does as the file was made for."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("device", self.device, get_args(DeviceName)),
            ("precision", self.precision, get_args(Cast)),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)} (got {value!r})")
        if self.device == "cpu" and self.precision != "fp32":
            raise InputError(f"precision {self.precision} is for device gpu; on cpu the file says it, so export it so")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be 1 or more (got {self.threads}); leave it out for all there are")
