"""Answers of a model folder with safetensors through PyTorch, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.states import record_hidden
from compressor.runtime.onnx import Inputs, Logits

if TYPE_CHECKING:
    from torch import Tensor


class TorchEngine:
    """One open model, in evaluation mode."""

    name = "torch"

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """`threads` is set for the whole process, as PyTorch has one pool; None leaves it as it is."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.model = load_model(folder, attention="sdpa").eval()

    def feed(self, inputs: Inputs) -> dict[str, Tensor]:
        """`inputs` as tensors."""
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}

    def logits(self, inputs: Inputs) -> Logits:
        """Shape (rows, classes)."""
        import torch

        with torch.inference_mode():
            answer: Logits = self.model(**self.feed(inputs)).logits.float().numpy()
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
            self.model(**self.feed(inputs))
            answer: npt.NDArray[np.float32] = states[layer][:, 0].float().numpy()
        return answer
