"""What a recipe may say about pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from compressor.data.settings import Mix
from compressor.distill.settings import Terms
from compressor.settings import ByteSize, Flag, KeptShare, Settings, parse_bytes, parse_kept_share
from compressor.train.settings import Train

Criterion = Literal["taylor", "fisher", "activation", "magnitude", "random"]
"""taylor: mean over rows of the absolute loss gradient at the part's gate; fisher: of its square; activation: mean over
rows and tokens of the squared norm of what the part writes, without a loss; magnitude: squared norm of its weights;
random: the control."""

GRADIENTS: frozenset[Criterion] = frozenset({"taylor", "fisher"})
"""Criteria that follow the slope of a loss."""


Kind = Literal["heads", "ffn", "layers"]
"""What may be cut."""


class Remove(Settings):
    """What may go, and by which score."""

    heads: Criterion | None = None
    """Attention heads."""
    ffn: Criterion | None = None
    """Feed-forward neurons."""
    layers: Criterion | None = None
    """Whole layers, tried in the order of this score; one goes where the loss, measured without it, is below that
    without the same amount in heads and neurons, or where these alone do not reach the target."""
    against: Literal["labels", "teacher"] | None = None
    """What the loss compares with: the rows' labels, or a teacher's answers, which need no labels. null takes labels
    where train has any."""
    normalise: Flag = False
    """Divide the scores of each layer's heads by their norm (L2), likewise its neurons', as Michel et al. 2019 do."""

    def model_post_init(self, _context: object) -> None:
        if not self.criteria:
            return
        if self.against is not None and not self.needs_loss:
            raise ValueError(
                f"has against, which says what a loss compares with (got {self.against}), but nothing here reads a "
                f"loss ({', '.join(sorted(self.criteria))}); leave it out, or score by {' or '.join(sorted(GRADIENTS))}"
            )
        if self.normalise and self.heads is None and self.ffn is None:
            raise ValueError(
                "has normalise, which is for the heads and neurons of a layer, and none of these may go; leave it out"
            )

    @property
    def criteria(self) -> frozenset[Criterion]:
        """All that are named."""
        return frozenset(name for name in (self.heads, self.ffn, self.layers) if name is not None)

    @property
    def needs_loss(self) -> bool:
        """Whether a loss is measured: for its slope, or to hold a whole layer against heads and neurons."""
        compared = self.layers is not None and (self.heads is not None or self.ffn is not None)
        return compared or bool(self.criteria & GRADIENTS)


Quantity = Literal["macs", "parameters", "bytes", "latency", "heads", "ffn"]
"""What a target may be given in."""
QUANTITIES: tuple[Quantity, ...] = ("macs", "parameters", "bytes", "latency", "heads", "ffn")

TimedEngine = Literal["onnxruntime", "torch", "openvino"]
"""What latency can be measured in."""


def is_share(text: object) -> bool:
    """Whether a target says what share remains, not what size."""
    return not isinstance(text, str) or text.strip().endswith("x")


def _checked_size(text: object) -> object:
    """The text as written, of a kept share or of a size."""
    if isinstance(text, str) and not is_share(text):
        try:
            parse_bytes(text)
        except ValueError:
            raise ValueError(f"must be a share such as 0.5x or a size such as 40MB (got {text!r})") from None
    else:
        parse_kept_share(text)  # type: ignore[arg-type]
    return text


KeptSize = Annotated[str, BeforeValidator(_checked_size)]
"""A kept share such as 0.5x, or a size such as 40MB."""


class Until(Settings):
    """What remains of the stage's input; exactly one."""

    macs: KeptShare | None = None
    """Multiply-accumulates of the encoder at 32 tokens."""
    parameters: KeptShare | None = None
    """Parameters of the whole model."""
    bytes: KeptSize | None = None
    """Size of the whole model's fp32 file, as a share or such as 40MB."""
    latency: KeptShare | None = None
    """Median time of a row at batch 1 and the data's own lengths, by a table of layers' times that is measured on this
    machine, in fp32, with the engine and threads of the benchmark's first target with device cpu; the shapes that keep
    most importance in that time are searched for."""
    heads: KeptShare | None = None
    """Attention heads over all layers."""
    ffn: KeptShare | None = None
    """Feed-forward neurons over all layers."""

    def model_post_init(self, _context: object) -> None:
        if sum(getattr(self, name) is not None for name in QUANTITIES) != 1:
            raise ValueError(f"takes exactly one of {', '.join(QUANTITIES)}")

    @property
    def target(self) -> tuple[Quantity, str]:
        """The quantity and what remains of it, as written."""
        return next((name, str(value)) for name in QUANTITIES if (value := getattr(self, name)) is not None)


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
    if is_share(text) and parse_kept_share(text) == 1.0:
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
