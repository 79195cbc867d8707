"""What a recipe may say about pruning."""

from __future__ import annotations

from typing import Literal

from compressor.data.settings import Mix
from compressor.distill.settings import Terms
from compressor.settings import ByteSize, KeptShare, Settings, parse_kept_share
from compressor.train.settings import Train

Criterion = Literal["taylor", "magnitude", "random"]


Kind = Literal["heads", "ffn", "layers"]
"""What may be cut."""


class Remove(Settings):
    """What may go, and by which score."""

    heads: Criterion | None = None
    """Attention heads; taylor is the mean over rows of the absolute loss gradient at the head's gate."""
    ffn: Criterion | None = None
    """Feed-forward neurons."""
    layers: Criterion | None = None
    """Whole layers, tried in the order of this score; one goes where the loss, measured without it, is below that
    without the same amount in heads and neurons."""


class Until(Settings):
    """What remains of the stage's input; exactly one."""

    macs: KeptShare | None = None
    """Multiply-accumulates of the encoder at 32 tokens."""
    parameters: KeptShare | None = None
    """Parameters of the whole model."""
    heads: KeptShare | None = None
    """Attention heads over all layers."""
    ffn: KeptShare | None = None
    """Feed-forward neurons over all layers."""

    def model_post_init(self, _context: object) -> None:
        if sum(value is not None for value in (self.macs, self.parameters, self.heads, self.ffn)) != 1:
            raise ValueError("takes exactly one of macs, parameters, heads, ffn")

    @property
    def target(self) -> tuple[Literal["macs", "parameters", "heads", "ffn"], str]:
        """The quantity and its kept share as written."""
        for name in ("macs", "parameters", "heads", "ffn"):
            if (value := getattr(self, name)) is not None:
                return name, value
        raise AssertionError("Until holds one value")


def kinds_of(remove: Remove, until: Until) -> frozenset[Kind]:
    """The kinds that may go; ValueError where there is none, or where one of them would change nothing that counts."""
    every: tuple[Kind, ...] = ("heads", "ffn", "layers")
    kinds = frozenset(kind for kind in every if getattr(remove, kind))
    quantity, text = until.target
    if not kinds:
        raise ValueError("remove names nothing; give a criterion for heads, ffn or layers, such as heads: taylor")
    for counted, other in (("heads", "ffn"), ("ffn", "heads")):
        if quantity == counted and other in kinds:
            raise ValueError(
                f"until.{counted} counts {counted} alone, so remove.{other} would do nothing; "
                f"write remove: {{{counted}: taylor}}, or until.macs"
            )
        if quantity == counted and not kinds & {counted, "layers"}:
            raise ValueError(f"until.{counted} can be reached only with remove.{counted} or remove.layers")
    if parse_kept_share(text) == 1.0:
        raise ValueError(f"until.{quantity} must be below 1x (got {text}); 1x would remove nothing")
    return kinds


class Recover(Settings):
    """Distillation after each cut."""

    train: Train = Train()
    """Length and speed; the epochs are shared among the steps."""
    match: Terms | None = None
    """Terms; those of the distill stage upstream unless given."""
    mix: Mix | None = None
    """Batches; those of the distill stage upstream unless given."""
    cache: ByteSize = "2GB"
    """Disk for the teacher's answers and hidden states, made anew for each cut and removed after it."""
