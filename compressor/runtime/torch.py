"""Answers of a model folder with safetensors through PyTorch, on the CPU or an NVIDIA device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compressor.device import Cpu, Device
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.states import record_hidden
from compressor.runtime.engine import Cast, Inputs, Logits

if TYPE_CHECKING:
    from torch import Tensor


class TorchEngine:
    """One open model, in evaluation mode."""

    name = "torch"

    def __init__(
        self, folder: Path, *, threads: int | None = None, device: Device | None = None, precision: Cast = "fp32"
    ) -> None:
        """The model of `folder` on `device` (None: the processor), its weights in `precision`.

        `threads` is set for the whole process, as PyTorch has one pool; None leaves it as it is.
        """
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        self.device = device or Cpu()
        self.model = load_model(folder, attention="sdpa").eval().to(self.device.place(), kinds[precision])

    def feed(self, inputs: Inputs) -> dict[str, Tensor]:
        """`inputs` as tensors, on the processor."""
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}

    def placed(self, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors where the model is."""
        if self.device.name == "cpu":
            return feed
        place = self.device.place()
        return {name: tensor.to(place) for name, tensor in feed.items()}

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes)."""
        import torch

        with torch.inference_mode():
            answer: Logits = self.model(**self.placed(self.feed(inputs))).logits.float().cpu().numpy()
        return answer

    def call(self, inputs: Inputs) -> Callable[[], object]:
        """One answer to `inputs`; on a GPU they are brought there in the call, which does not wait for the answer."""
        import torch

        feed, model = self.feed(inputs), self.model

        def answer() -> object:
            with torch.inference_mode():
                return model(**self.placed(feed)).logits

        return answer

    def features(self, inputs: Inputs, layer: int) -> npt.NDArray[np.float32]:
        """Hidden states of the first token after `layer` layers, shape (rows, hidden); 0 is the embeddings' output.

        Raises: InputError when the model has fewer layers.
        """
        import torch

        layers = int(self.model.config.num_hidden_layers)
        if not 0 <= layer <= layers:
            raise InputError(f"layer must be 0 (embeddings) to {layers} (got {layer})")
        with torch.inference_mode(), record_hidden(self.model, layers=[layer]) as states:
            self.model(**self.placed(self.feed(inputs)))
            answer: npt.NDArray[np.float32] = states[layer][:, 0].float().cpu().numpy()
        return answer
