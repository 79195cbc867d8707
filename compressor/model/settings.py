"""What a recipe may say about a student's shape and start."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Integer, Settings


class Init(Settings):
    """How the student starts."""

    layers: Literal["uniform", "first", "last"] = "uniform"
    """Which teacher layers are copied; uniform spreads them over the depth and keeps the last."""


class Student(Settings):
    """The shape of the student; what is not given is the teacher's."""

    layers: Annotated[Integer, Field(ge=1)] | None = None
    """Transformer layers, at most the teacher's; half of them unless given."""
    hidden: Annotated[Integer, Field(ge=4)] | None = None
    """Width of the hidden states; a narrower one keeps the teacher's channels of largest norm."""
    heads: Annotated[Integer, Field(ge=1)] | None = None
    """Attention heads a layer; hidden must be divisible by it."""
    ffn: Annotated[Integer, Field(ge=1)] | None = None
    """Feed-forward neurons a layer."""
    init: Init = Init()
    """Where the first weights come from."""
