"""The terms of `match`: what the student copies from the teacher."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compressor.settings import Settings, Temperature, Weight

LAYER_MAPS = ("uniform", "first", "last")


def _check_map(text: Any) -> Any:
    if not isinstance(text, str) or not (text in LAYER_MAPS or re.fullmatch(r"\s*\d+:\d+(\s+\d+:\d+)*\s*", text)):
        raise ValueError(
            f"must be one of {', '.join(LAYER_MAPS)} or pairs teacher:student such as '2:1 4:2 6:3' (got {text!r})"
        )
    return text


LayerMap = Annotated[str, BeforeValidator(_check_map)]
"""A named map or pairs `teacher:student`, layers counted from 1, 0 the embeddings."""


class LogitsMatch(Settings):
    """The teacher's answers, on all rows."""

    of: Literal["logits"] = "logits"
    """Says which term this is."""
    loss: Literal["kl", "mse", "ce"] = "kl"
    """kl and ce on softened answers times temperature squared; mse on the logits."""
    temperature: Temperature = 1.0
    """Divides both logits before softmax; no unit; unused by mse."""
    weight: Weight = 1.0
    """Factor of this term in the sum."""


class LabelsMatch(Settings):
    """The rows' own labels, on labelled rows only."""

    of: Literal["labels"] = "labels"
    """Says which term this is."""
    loss: Literal["ce"] = "ce"
    """Cross-entropy."""
    weight: Weight = 1.0
    """Factor of this term in the sum."""


class HiddenMatch(Settings):
    """The teacher's hidden states, at every token that is not padding."""

    of: Literal["hidden"] = "hidden"
    """Says which term this is."""
    loss: Literal["mse", "cosine"] = "mse"
    """Distance of the layer-normalised states (mse), or one minus their cosine."""
    map: LayerMap = "uniform"
    """Which teacher layer teaches which student layer."""
    weight: Weight = 1.0
    """Factor of this term in the sum."""


Match = Annotated[LogitsMatch | LabelsMatch | HiddenMatch, Field(discriminator="of")]

DEFAULT_MATCH: tuple[LogitsMatch | LabelsMatch | HiddenMatch, ...] = (
    LogitsMatch(),
    LabelsMatch(weight=0.3),
    HiddenMatch(weight=0.5),
)
"""What `distill` matches unless told: answers, labels and hidden layers."""
