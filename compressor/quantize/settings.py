"""What a recipe may say about quantization."""

from __future__ import annotations

from typing import Literal

Scheme = Literal["dynamic"]
"""dynamic: weights INT8 per channel ahead of time, activations at run time."""
Choice = Literal["smallest", "most_accurate"]
