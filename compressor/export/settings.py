"""What a recipe may say about the folder that people deploy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Layout = Literal["flat", "hub"]
"""flat: all files beside each other; hub: the graph below onnx/, as optimum, sentence-transformers and transformers.js
look for it."""
ExportPrecision = Literal["fp32", "fp16", "bf16"]
"""fp16: for GPUs, slower than fp32 on a CPU; bf16: half of the bytes, computed in fp32."""
Server = Literal["triton", "fastapi"]
"""What `serve` can write: a model repository for NVIDIA's Triton, or a small web service."""


def served_twice(serve: Sequence[Server]) -> str | None:
    """What is wrong with a list of servers that names one twice; None where none is."""
    return f"serve must name each server once (got {', '.join(serve)})" if len(set(serve)) < len(serve) else None
