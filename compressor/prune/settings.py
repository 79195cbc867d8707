"""What a recipe may say about pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from compressor.data.settings import Mix
from compressor.distill.settings import Terms
from compressor.settings import ByteSize, Flag, KeptShare, Real, Settings, parse_bytes, parse_kept_share
from compressor.train.settings import Train

Criterion = Literal["taylor", "fisher", "surgeon", "activation", "magnitude", "random"]
"""taylor: mean over rows of the absolute loss gradient at the part's gate; fisher: of its square; surgeon: what the
loss rises by as parts go one by one, while those left make good for them by least squares, as reconstruct does;
activation: mean over rows and tokens of the squared norm of what the part writes, without a loss; magnitude: squared
norm of its weights; random: the control."""
HiddenCriterion = Literal["taylor", "fisher", "activation", "magnitude", "random"]
"""Those of a hidden channel: it stands in every projection, so that none is left that could make good for it."""

GRADIENTS: frozenset[Criterion] = frozenset({"taylor", "fisher", "surgeon"})
"""Criteria that follow the slope of a loss."""


Kind = Literal["heads", "ffn", "layers", "halves", "hidden"]
"""What may be cut."""
KINDS: tuple[Kind, ...] = ("heads", "ffn", "layers", "halves", "hidden")


UNSTRUCTURED = ("weights", "unstructured", "sparsity")
"""Names by which other tools ask for single weights at 0."""


def whole_parts(given: object) -> object:
    """What was given, unchanged; ValueError, with the reason, where it asks for single weights at 0."""
    named = [name for name in UNSTRUCTURED if isinstance(given, dict) and name in given]
    if named:
        raise ValueError(
            f"has {named[0]}, and single weights at 0 make a model no faster and its file no smaller on a stock "
            f"runtime, which stores and multiplies them like others; let whole parts go: remove {', '.join(KINDS)}"
        )
    return given


class Remove(Settings):
    """What may go, and by which score."""

    _whole_parts = model_validator(mode="before")(whole_parts)

    heads: Criterion | None = None
    """Attention heads."""
    ffn: Criterion | None = None
    """Feed-forward neurons."""
    layers: Criterion | None = None
    """Whole layers, tried in the order of this score; one goes where the loss, measured without it, is below that
    without the same amount in heads and neurons, or where these alone do not reach the target."""
    halves: Criterion | None = None
    """The attention or the feed-forward half of a layer as one, chosen as whole layers are; its output bias and its
    norm stay. For until.latency the search may leave a half out wherever that keeps more score in the time."""
    hidden: HiddenCriterion | None = None
    """Channels of the hidden states, everywhere at once, alone in a stage. The width becomes a multiple of 8, rounded
    down so that the target holds, unless the model has fewer than 64 channels; at least 8 stay."""
    vocabulary: Literal["unseen"] | None = None
    """Tokens that stand in no row of train or of the pool, after all other cuts; `model.vocabulary.staying` says which
    are kept besides. The tokenizer is rebuilt."""
    against: Literal["labels", "teacher", "itself"] | None = None
    """What the loss compares with: the rows' labels, a teacher's answers, or the stage's input itself, whose logits
    shall move little; the last two need no labels, the last no other model. null takes labels where train has any,
    else the teacher's answers."""
    normalise: Flag = False
    """Divide the scores of each layer's heads by their norm (L2), likewise its neurons', as Michel et al. 2019 do."""

    def model_post_init(self, _context: object) -> None:
        if not self.criteria:
            if self.vocabulary is not None and (self.against is not None or self.normalise):
                raise ValueError("has against or normalise, which are for scores, and tokens have none; leave them out")
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
        return frozenset(name for kind in KINDS if (name := getattr(self, kind)) is not None)

    @property
    def needs_loss(self) -> bool:
        """Whether a loss is measured: for its slope, or to hold a layer or a half against heads and neurons."""
        blocks = self.layers is not None or self.halves is not None
        compared = blocks and (self.heads is not None or self.ffn is not None)
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

    _whole_parts = model_validator(mode="before")(whole_parts)

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


def kinds_of(remove: Remove, until: Until | None) -> frozenset[Kind]:
    """The kinds that may go; ValueError where there is none, or where one of them would change nothing that counts.

    None may go, and `until` has to be None, where tokens alone are removed.
    """
    kinds = frozenset(kind for kind in KINDS if getattr(remove, kind))
    if remove.vocabulary is not None and not kinds:
        if until is not None:
            raise ValueError(
                f"until.{until.target[0]} cannot be aimed at by remove.vocabulary alone, which takes every unseen "
                "token; leave until out, or let heads, ffn, layers or halves go, too"
            )
        return kinds
    if not kinds:
        raise ValueError(
            f"remove names nothing; give a criterion for {', '.join(KINDS)}, such as heads: taylor, or write "
            "vocabulary: unseen"
        )
    if until is None:
        raise ValueError(f"until says how much of {', '.join(sorted(kinds))} shall go; give one, such as macs: 0.7x")
    quantity, text = until.target
    if "hidden" in kinds:
        _check_width(remove, kinds, quantity)
    if quantity == "latency" and "halves" in kinds:
        _check_timed_halves(remove)
    for counted, other in (("heads", "ffn"), ("ffn", "heads")):
        if quantity == counted and other in kinds:
            raise ValueError(
                f"until.{counted} counts {counted} alone, so remove.{other} would do nothing; "
                f"write remove: {{{counted}: taylor}}, or until.macs"
            )
        if quantity == counted and not kinds & {counted, "layers", "halves"}:
            raise ValueError(f"until.{counted} can be reached only with remove.{counted}, layers or halves")
    if is_share(text) and parse_kept_share(text) == 1.0:
        raise ValueError(f"until.{quantity} must be below 1x (got {text}); 1x would remove nothing")
    return kinds


def _check_timed_halves(remove: Remove) -> None:
    """Nothing, or ValueError where a search by score would hold halves against parts whose scores are another's.

    Neither does it measure a loss without a half, so that `against` needs a score or layers that read one.
    """
    if remove.against is not None and remove.layers is None and not remove.criteria & GRADIENTS:
        raise ValueError(
            f"remove.against says what a loss compares with (got {remove.against}), and until.latency chooses halves "
            f"by {remove.halves} without one; leave against out, or score by {' or '.join(sorted(GRADIENTS))}"
        )
    beside = {remove.heads, remove.ffn} - {None}
    if beside and {remove.heads, remove.ffn, remove.halves} != {remove.halves}:
        raise ValueError(
            "until.latency chooses halves by the sum of their parts' scores, so that heads, ffn and halves take one "
            f"score (got heads: {remove.heads}, ffn: {remove.ffn}, halves: {remove.halves}); write "
            f"{remove.halves} for all three, leave heads and ffn out, or aim at macs"
        )


def _check_width(remove: Remove, kinds: frozenset[Kind], quantity: Quantity) -> None:
    """Nothing, or ValueError for what cannot go beside the hidden width, or is not changed by it."""
    others = sorted(kinds - {"hidden"}) + ([] if remove.vocabulary is None else ["vocabulary"])
    if others:
        raise ValueError(
            f"remove.hidden goes alone in a stage (got {' and '.join(others)} beside it), as it changes what every "
            "other part weighs; write two prune stages, the second with remove: "
            f"{{hidden: {remove.hidden}}}"
        )
    if quantity == "latency":
        raise ValueError(
            "until.latency is searched for in a table of times of one hidden width, and remove.hidden changes it; "
            "write macs, parameters or bytes"
        )
    if quantity in ("heads", "ffn"):
        raise ValueError(f"until.{quantity} counts what remove.hidden leaves as it is; write macs, parameters or bytes")


class Recover(Settings):
    """Distillation after each cut, or, with masks, the training in which these are learned."""

    train: Train = Train()
    """Length and speed; the epochs are shared among the steps."""
    match: Terms | None = None
    """Terms; those of the distill stage upstream unless given."""
    mix: Mix | None = None
    """Batches; those of the distill stage upstream unless given."""
    cache: ByteSize = "2GB"
    """Disk for the teacher's answers and hidden states, made anew for each cut and removed after it."""


def check_alone(remove: Remove, *, steps: int, reconstruct: bool, recover: Recover | None) -> None:
    """Nothing, or ValueError for what is said about cuts where there are none, as tokens alone go."""
    for name, said in (("steps", steps > 1), ("reconstruct", reconstruct), ("recover", recover is not None)):
        if said and not remove.criteria:
            raise ValueError(
                f"has {name}, which is for cuts of {', '.join(KINDS)}; remove.vocabulary is done at once and changes "
                "no answer to the rows that would be trained on: leave it out"
            )
    if reconstruct and remove.hidden is not None:
        raise ValueError(
            "has reconstruct, which fits what the layers write to an uncut model of the same width, and remove.hidden "
            "changes the width; leave it out, and write recover: {} to train instead"
        )


MASKED: tuple[Literal["heads", "ffn"], ...] = ("heads", "ffn")
"""Kinds whose masks can be learned."""
MaskKind = Literal["movement", "l0"]
MASK_RATES: dict[MaskKind, float] = {"movement": 1e-2, "l0": 1e-1}
"""Learning rates unless given: Sanh et al. 2020 and Lagunas et al. 2021 train scores at 1e-2; gates have to move from
open to shut within some hundred steps."""


class Masks(Settings):
    """Which heads and neurons go is learned by the training of `recover`; they are cut at its end.

    What remains falls from all to the target by the same cubic schedule as that of several cuts, over the share of the
    training that is not held. The criteria of `remove` give the order to begin with.
    """

    kind: MaskKind
    """movement: every part has a score that moves against the loss gradient at its gate, those of least score per price
    are masked at each moment; l0: every part has a gate that is open by chance, and what is expected to remain is held
    to the schedule."""
    rate: Annotated[Real, Field(gt=0)] | None = None
    """Learning rate of the scores or gates, the same at every step; 0.01 for movement, 0.1 for l0 unless given."""
    hold: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    """Share of the training, at its end, in which the masks stand still, so that the weights settle."""

    @property
    def learning_rate(self) -> float:
        """That of the scores or gates."""
        return MASK_RATES[self.kind] if self.rate is None else self.rate


def check_masks(masks: Masks | None, remove: Remove, *, steps: int, reconstruct: bool, recover: Recover | None) -> None:
    """Nothing, or ValueError for masks beside what they cannot go with."""
    if masks is None:
        return
    others = [kind for kind in KINDS if kind not in MASKED and getattr(remove, kind)]
    if others or not any(getattr(remove, kind) for kind in MASKED):
        raise ValueError(
            f"has masks, which are learned for {' and '.join(MASKED)} alone, and remove names "
            f"{', '.join(others) or 'neither'}; write remove: {{heads: taylor, ffn: taylor}}, or leave masks out"
        )
    if recover is None:
        raise ValueError("has masks, which are learned while the model trains, and no training; add recover: {}")
    if steps > 1:
        raise ValueError(
            f"has masks, whose share falls step by step of the training and is cut once, at its end (got steps {steps})"
            "; leave steps out"
        )
    if reconstruct:
        raise ValueError(
            "has reconstruct, which fits to the model before its training what the training with masks has changed; "
            "leave one of them out"
        )
    for name in ("early_stop", "average"):
        if getattr(recover.train, name) is not None:
            raise ValueError(
                f"has masks and recover.train.{name}, which may keep weights that were trained with other masks; leave "
                f"{name} out"
            )
