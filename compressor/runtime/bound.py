"""onnxruntime with inputs and answers kept on the device (I/O binding), and one CUDA graph for each shape.

A CUDA graph replays the kernels of an earlier run in one launch; it holds for one shape and for the very addresses that
were bound. So batches are padded to few shapes, and each shape has buffers of its own
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compressor.runtime.engine import Inputs, Logits

TOKEN_STEP = 16
"""Tokens are padded to a multiple of this, so that rows of like length share a graph."""
MOST_SHAPES = 64
"""Shapes that keep their buffers and graph; further ones are run without, as a graph is never given back."""
NO_GRAPH = -1
"""What onnxruntime reads as `capture nothing in this run`; 0 is its own."""
Array = npt.NDArray[np.int64]


def padded_shape(rows: int, tokens: int, *, most_tokens: int) -> tuple[int, int]:
    """The shape that a batch is padded to: rows to a power of two, tokens to a multiple of 16, or the model's most.

    >>> padded_shape(5, 17, most_tokens=128), padded_shape(1, 120, most_tokens=120)
    ((8, 32), (1, 120))
    """
    wide = -(-tokens // TOKEN_STEP) * TOKEN_STEP
    return 1 << (rows - 1).bit_length(), max(tokens, min(wide, most_tokens))


def padded(inputs: Mapping[str, Array], shape: tuple[int, int]) -> dict[str, Array]:
    """The inputs in a larger shape; what was added is masked, but for the first token of added rows.

    A row with nothing to attend to would be not-a-number, which some kernels report for the whole batch.
    """
    made = {}
    for name, array in inputs.items():
        rows, tokens = array.shape
        wide = np.zeros(shape, dtype=np.int64)
        wide[:rows, :tokens] = array
        if name == "attention_mask":
            wide[rows:, 0] = 1
        made[name] = wide
    return made


class Buffers:
    """Inputs and answer of one shape, at addresses that stay."""

    def __init__(self, session: Any, names: tuple[str, ...], shape: tuple[int, int], *, engine: BoundEngine) -> None:
        from onnxruntime import OrtValue, RunOptions

        rows, place = shape[0], engine.place
        # an array each: on the CPU an OrtValue lies where its array does
        self.inputs = {name: OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.int64), place, 0) for name in names}
        self.answer = OrtValue.ortvalue_from_numpy(np.zeros((rows, engine.classes), dtype=engine.dtype), place, 0)
        self.binding = session.io_binding()
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output("logits", self.answer)
        self.options = RunOptions()
        self.graph = engine.next_graph()
        self.options.add_run_config_entry("gpu_graph_id", str(self.graph))
        self._session = session

    def run(self, inputs: Mapping[str, Array]) -> None:
        """Bring the inputs to their place, and answer them there."""
        for name, value in self.inputs.items():
            value.update_inplace(inputs[name])
        self._session.run_with_iobinding(self.binding, self.options)


class BoundEngine:
    """An open session of onnxruntime whose work stays on its device."""

    def __init__(
        self,
        session: Any,
        *,
        name: str,
        classes: int,
        most_tokens: int,
        place: Literal["cuda", "cpu"] = "cuda",
        graphs: bool = True,
    ) -> None:
        """`graphs` says whether the session was opened with CUDA graphs; `place` is where its inputs lie."""
        self.session = session
        self.name = name
        self.classes = classes
        self.most_tokens = most_tokens
        self.place = place
        self.graphs = graphs
        self.input_names: tuple[str, ...] = tuple(each.name for each in session.get_inputs())
        kinds = {each.name: each.type for each in session.get_outputs()}
        self.dtype = np.float16 if kinds["logits"] == "tensor(float16)" else np.float32
        self._kept: dict[tuple[int, int], Buffers] = {}

    def next_graph(self) -> int:
        """The number of the graph that the next shape will be captured in."""
        return len(self._kept) + 1 if self.graphs and len(self._kept) < MOST_SHAPES else NO_GRAPH

    def _ready(self, inputs: Inputs) -> tuple[Buffers, dict[str, Array]]:
        """Buffers that the inputs fit into, and the inputs in their shape."""
        taken = {name: inputs[name] for name in self.input_names}
        shape = padded_shape(*taken[self.input_names[0]].shape, most_tokens=self.most_tokens)
        found = self._kept.get(shape)
        if found is None:
            found = Buffers(self.session, self.input_names, shape, engine=self)
            if len(self._kept) < MOST_SHAPES:
                self._kept[shape] = found
        return found, padded(taken, shape)

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes)."""
        buffers, wide = self._ready(inputs)
        buffers.run(wide)
        buffers.binding.synchronize_outputs()
        answer: Logits = buffers.answer.numpy()[: len(inputs[self.input_names[0]])].astype(np.float32)
        return answer

    def call(self, inputs: Inputs) -> Callable[[], object]:
        """One answer to `inputs`, which are brought to the device in the call, as the addresses there are shared."""
        buffers, wide = self._ready(inputs)
        return lambda: buffers.run(wide)
