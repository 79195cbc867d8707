"""What a recipe may say about a student's shape and start."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Integer, Settings
from compressor.sources.settings import ModelFrom


class Init(Settings):
    """How the student starts."""

    from_: ModelFrom | None = Field(None, alias="from")
    """A small encoder to start from, whose layers, widths and tokenizer the student takes; the teacher unless given."""
    layers: Literal["uniform", "first", "last", "importance"] = "uniform"
    """Which layers are copied; uniform spreads them over the depth and keeps the last, importance takes those whose
    loss would cost most."""
    width: Literal["norm", "importance", "svd"] = "norm"
    """How a narrower student keeps of each matrix: the channels of largest norm, those that matter most to the loss, or
    the leading singular directions of the embeddings."""


class Student(Settings):
    """The shape of the student; what is not given is that of the model it starts from, the teacher or init.from."""

    layers: Annotated[Integer, Field(ge=1)] | None = None
    """Transformer layers, at most those of its start; half the teacher's, or all of init.from, unless given."""
    hidden: Annotated[Integer, Field(ge=4)] | None = None
    """Width of the hidden states; init.width says what a narrower one keeps."""
    heads: Annotated[Integer, Field(ge=1)] | None = None
    """Attention heads a layer; hidden must be divisible by it."""
    ffn: Annotated[Integer, Field(ge=1)] | None = None
    """Feed-forward neurons a layer."""
    init: Init = Init()
    """Where the first weights come from."""
