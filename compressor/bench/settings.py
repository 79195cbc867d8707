"""What a recipe may say about timing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Integer, Settings, Word


class Target(Settings):
    """Where models are timed: batch 1, the data's own lengths."""

    device: Literal["cpu"] = "cpu"
    """The machine's processor."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the model; figures of two engines are never divided by one another."""
    threads: Annotated[Integer, Field(ge=1)] | None = None
    """Threads a model may use; all that this process may use unless given."""


TARGETS: dict[str, Target] = {"cpu": Target()}
"""The targets that need no definition."""


class Benchmark(Settings):
    """How latency is measured."""

    targets: list[Word] = Field(["cpu"], min_length=1)
    """Names of targets; budgets are held against the first."""
    rounds: Annotated[Integer, Field(ge=3, le=1000)] = 15
    """Rounds in which each model gets one slot of about 0.3 s; 15 give a few percent on a quiet machine."""
