"""What of the teacher's answers fits on disk. Numbers only, nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.distill.settings import Cache
from compressor.settings import parse_bytes

States = Literal["fp16", "int8"]
LOGIT_BYTES, OFFSET_BYTES, SCALE_BYTES, CHANNEL_BYTES = 4, 8, 4, 8
"""Of one logit, one row's place, one token's scale, and one channel's offset and scale."""


@dataclass(frozen=True)
class CachePlan:
    """How the teacher's answers are kept."""

    states: States
    """How hidden states are written."""
    cached: tuple[int, ...]
    """Teacher layers on disk, ascending."""
    live: tuple[int, ...]
    """Teacher layers computed at every step, ascending, from the nearest cached one below."""
    bytes: int
    """Of all files together."""
    budget: int
    """Bytes that were allowed."""

    def sentence(self) -> str:
        """The plan in words.

        >>> CachePlan("int8", (2, 4), (6,), 1_500_000, 2_000_000).sentence()
        'logits and layers 2, 4 in int8 (1.5 MB of 2 MB); computed at every step: layer 6'
        """
        kept = f"logits and {_named(self.cached)} in {self.states}" if self.cached else "logits"
        over = f"; computed at every step: {_named(self.live)}" if self.live else ""
        return f"{kept} ({_size(self.bytes)} of {_size(self.budget)}){over}"


def cache_plan(
    *, rows: int, tokens: int, classes: int, layers: Sequence[int], hidden: int, cache: Cache, views: int = 1
) -> CachePlan:
    """What is kept of so many rows: logits always, layers within the budget, the last ones given up first.

    Args:
        rows: of both pools together.
        tokens: of the rows that training draws, padding left out.
        classes: of the task.
        layers: teacher layers that the terms need, 0 the embeddings.
        hidden: the teacher's width.
        cache: the budget, and how states are to be written; auto takes fp16 where all layers fit, else int8.
        views: stored views of each row.

    >>> cache_plan(rows=100_000, tokens=4_000_000, classes=3, layers=(4, 8, 12), hidden=768, cache=Cache()).sentence()
    'logits (2 MB of 2 GB); computed at every step: layers 4, 8, 12'
    """
    budget = parse_bytes(cache.budget)
    wanted = tuple(sorted(set(layers)))
    base = rows * views * (classes * LOGIT_BYTES + OFFSET_BYTES)
    one = {form: layer_bytes(form, tokens=tokens * views, hidden=hidden) for form in ("fp16", "int8")}
    states: States = "int8" if cache.states == "int8" else "fp16"
    if cache.states == "auto" and base + len(wanted) * one["fp16"] > budget:
        states = "int8"
    fitting = max(0, budget - base) // max(1, one[states])
    cached = wanted[: min(len(wanted), fitting)]
    return CachePlan(states, cached, wanted[len(cached) :], base + len(cached) * one[states], budget)


def layer_bytes(states: str, *, tokens: int, hidden: int) -> int:
    """Bytes of one layer's states.

    >>> layer_bytes("fp16", tokens=4_000_000, hidden=768), layer_bytes("int8", tokens=4_000_000, hidden=768)
    (6144000000, 3088006144)
    """
    if states == "fp16":
        return tokens * hidden * 2
    return tokens * (hidden + SCALE_BYTES) + hidden * CHANNEL_BYTES


def _named(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _size(count: int) -> str:
    """Bytes in the unit that a recipe would say them in."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
