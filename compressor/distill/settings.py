"""The terms of `match`, who teaches, and the teacher's cache: what a recipe may say about distillation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from compressor.data.settings import Mix
from compressor.settings import AutoWeight, ByteSize, Integer, Ramp, Real, Settings, Temperature, TermWeight, Word
from compressor.sources.settings import ModelFrom, ModelSource, RowFile, RowSource
from compressor.train.settings import Train

LAYER_MAPS = ("uniform", "first", "last", "random", "attention", "nearest")
RELATION_MAPS = ("uniform", "first", "last", "random", "nearest")


def _map_of(names: tuple[str, ...]) -> Any:
    """A validator of a named map or of pairs."""

    def check(text: Any) -> Any:
        if not isinstance(text, str) or not (text in names or re.fullmatch(r"\s*\d+:\d+(\s+\d+:\d+)*\s*", text)):
            raise ValueError(
                f"must be one of {', '.join(names)} or pairs teacher:student such as '2:1 4:2 6:3' (got {text!r})"
            )
        return text

    return check


LayerMap = Annotated[str, BeforeValidator(_map_of(LAYER_MAPS))]
"""A named map or pairs `teacher:student`, layers counted from 1, 0 the embeddings."""
RelationMap = Annotated[str, BeforeValidator(_map_of(RELATION_MAPS))]
"""The same for what happens inside a layer, so without 0 and without a learned mixture of layers."""


def _refuse_unused(term: Settings, name: str, default: float, losses: tuple[str, ...]) -> None:
    """Nothing, or ValueError where a term says a number that its loss does not read."""
    loss, value = getattr(term, "loss", None), getattr(term, name)
    if loss not in losses and value != default:
        raise ValueError(f"loss {loss} has no {name} (got {value}); leave it out, or take {' or '.join(losses)}")


class LogitsMatch(Settings):
    """The teacher's answers, on all rows that it answered."""

    of: Literal["logits"] = "logits"
    """Says which term this is."""
    loss: Literal["kl", "mse", "ce", "decoupled", "gce"] = "kl"
    """kl, ce and decoupled on softened answers times temperature squared; mse on the logits; gce resists wrong ones."""
    temperature: Temperature = 1.0
    """Divides both logits before softmax; no unit; unused by mse and gce."""
    beta: Annotated[Real, Field(ge=0)] = 8.0
    """Factor of the divergence among the classes that are not the teacher's first; of decoupled alone."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""

    def model_post_init(self, _context: object) -> None:
        _refuse_unused(self, "temperature", 1.0, ("kl", "ce", "decoupled"))
        _refuse_unused(self, "beta", 8.0, ("decoupled",))


class LabelsMatch(Settings):
    """The rows' own labels, on labelled rows only."""

    of: Literal["labels"] = "labels"
    """Says which term this is."""
    loss: Literal["ce", "focal", "gce"] = "ce"
    """Cross-entropy; focal looks less at rows that are right already; gce resists wrong labels."""
    gamma: Annotated[Real, Field(ge=0)] = 2.0
    """How much less focal looks at easy rows; 0 is ce."""
    smoothing: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes; of ce and focal."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""

    def model_post_init(self, _context: object) -> None:
        _refuse_unused(self, "gamma", 2.0, ("focal",))
        _refuse_unused(self, "smoothing", 0.0, ("ce", "focal"))


class HiddenMatch(Settings):
    """The teacher's hidden states, at every token that is not padding."""

    of: Literal["hidden"] = "hidden"
    """Says which term this is."""
    loss: Literal["mse", "cosine", "pkd", "mmd", "gram"] = "mse"
    """Of layer-normalised states (mse), one minus cosine, of unit-length first tokens (pkd), of kernels (mmd), of
    products of tokens (gram)."""
    map: LayerMap = "uniform"
    """Which teacher layer teaches which student layer."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""


class AttentionMatch(Settings):
    """Where each token looks: the attention of each head, averaged over heads where their counts differ."""

    of: Literal["attention"] = "attention"
    """Says which term this is."""
    loss: Literal["mse", "kl"] = "kl"
    """Of scores before softmax (mse), or of the distributions over tokens (kl)."""
    map: RelationMap = "uniform"
    """Which teacher layer teaches which student layer."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""


class RelationsMatch(Settings):
    """Relations among queries, among keys and among values of one layer (MiniLMv2), whatever the head counts."""

    of: Literal["relations"] = "relations"
    """Says which term this is."""
    loss: Literal["kl"] = "kl"
    """Divergence of the distributions over tokens."""
    pairs: Annotated[list[Literal["qq", "kk", "vv"]], Field(min_length=1)] = ["qq", "kk", "vv"]
    """Which projections are related to themselves."""
    heads: Annotated[Integer, Field(ge=1)] | None = None
    """Relation heads that both models' projections are cut into; unless given, the largest count up to the teacher's
    heads that divides both widths."""
    map: RelationMap = "last"
    """Which teacher layer teaches which student layer; last pairs the last of both alone."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""


class EmbeddingsMatch(Settings):
    """The output of the embeddings, layer 0."""

    of: Literal["embeddings"] = "embeddings"
    """Says which term this is."""
    loss: Literal["mse", "cosine"] = "mse"
    """Of layer-normalised states (mse), or one minus their cosine."""
    weight: TermWeight = 1.0
    """Factor of this term in the sum, or auto: its share of the gradient."""


Term = LogitsMatch | LabelsMatch | HiddenMatch | AttentionMatch | RelationsMatch | EmbeddingsMatch
Match = Annotated[Term, Field(discriminator="of")]

CONTROL_RATES = (0.5, 1.0, 2.0)
"""Of the student's learning rates: those that the control without a teacher chooses from."""


def _check_terms(terms: list[Term]) -> list[Term]:
    """The terms; ValueError where one of them would change nothing."""
    first = terms[0].weight if len(terms) == 1 else None
    if isinstance(first, AutoWeight):
        raise ValueError("has one term, whose weight auto would be a share of itself; write 1 or add another term")
    if all(not isinstance(term.weight, Ramp | AutoWeight) and term.weight == 0 for term in terms):
        raise ValueError("has no term of a weight above 0 (got 0), so nothing would be learned; give one")
    twice = next((term for place, term in enumerate(terms) if term in terms[:place]), None)
    if twice is not None:
        raise ValueError(f"has a term of {twice.of} twice, both the same; write it once, with a higher weight")
    return terms


Terms = Annotated[list[Match], Field(min_length=1), AfterValidator(_check_terms)]
"""What a student copies, one term each."""

DEFAULT_MATCH: tuple[LogitsMatch | LabelsMatch | HiddenMatch, ...] = (
    LogitsMatch(),
    LabelsMatch(weight=0.3),
    HiddenMatch(weight=0.5),
)
"""What `distill` matches unless told: answers, labels and hidden layers."""


class AnswersFile(Settings):
    """Answers of a model that cannot be opened here, by the text of the row."""

    path: RowSource
    """jsonl with the columns of data.text and the one below."""
    column: Word
    """Name of the column that holds the answers."""


class LabelNames(Settings):
    """A teacher made of the names of the classes: a row is as near to each as their embeddings are."""

    model: ModelFrom
    """A sentence encoder: a folder, a hub id or `pypi://PACKAGE==VERSION/folder`."""
    names: dict[Word, Word] = {}
    """Class to the words that are embedded for it; the class's own name unless given."""
    temperature: Annotated[Real, Field(gt=0)] = 0.05
    """Divides the cosines before softmax; no unit."""


class TeacherPart(Settings):
    """One of several teachers; exactly one of stage, model, probabilities, votes and label_names."""

    stage: Word | None = None
    """Id of an earlier stage, or teacher."""
    model: ModelFrom | None = None
    """A fine-tuned classifier elsewhere, of torch weights or ONNX."""
    probabilities: AnswersFile | None = None
    """Its column holds a list in the order of data.labels, or a map by class; null where there is none."""
    votes: AnswersFile | None = None
    """Its column holds a class, or a list of classes, one a voter, with null where a voter said nothing."""
    label_names: LabelNames | None = None
    """Classes by what they are called."""
    weight: Annotated[Real, Field(gt=0)] = 1.0
    """Factor of its probabilities in the mean."""

    @property
    def source(self) -> ModelSource | RowFile | None:
        """Where its model or answers come from; None for a stage."""
        answers = self.probabilities or self.votes
        if answers is not None:
            return answers.path
        return self.label_names.model if self.label_names is not None else self.model

    def model_post_init(self, _context: object) -> None:
        kinds = ("stage", "model", "probabilities", "votes", "label_names")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(kinds)} (got {', '.join(given) or 'none'})")


TeacherChoice = Word | TeacherPart
"""An id or source in one word, or a part in full."""
Combine = Literal["mean", "most_confident"]


def check_teachers(teachers: Sequence[TeacherPart], combine: str) -> None:
    """ValueError for a teacher named twice, and for settings that would change nothing."""
    weighted = any(part.weight != 1.0 for part in teachers)
    if len(teachers) == 1 and combine != "mean":
        raise ValueError(f"combine needs several teachers, and there is one (got {combine}); add one or leave it out")
    if len(teachers) == 1 and weighted:
        raise ValueError("teacher has a weight, which counts beside other teachers alone; leave it out")
    if weighted and combine == "most_confident":
        raise ValueError(
            f"combine takes one teacher a row, so that a weight changes nothing (got {combine}); leave one of them out"
        )
    plain = [part.model_copy(update={"weight": 1.0}) for part in teachers]
    twice = next((part for place, part in enumerate(plain) if part in plain[:place]), None)
    if twice is not None:
        named = twice.source.path if twice.source else twice.stage
        raise ValueError(f"teacher names {named} twice; give it once, with a weight")


def check_control(terms: Iterable[Term]) -> None:
    """ValueError where the student learns from labels alone, so that a control would be the student again."""
    if all(isinstance(term, LabelsMatch) for term in terms):
        raise ValueError("control compares with labels alone, which is all that match holds; add {of: logits}")


class Cache(Settings):
    """The teacher's answers on disk."""

    budget: ByteSize = "2GB"
    """Bytes of disk; layers that do not fit are computed at every step, the last ones first."""
    states: Literal["auto", "fp16", "int8"] = "auto"
    """How hidden states are kept; auto takes fp16 where all layers fit, else int8."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the teacher's pass; auto takes bf16 where the device has it and its answers agree with fp32."""


def _cache_of(value: Any) -> Any:
    return {"budget": value} if isinstance(value, str) else value


CacheChoice = Annotated[Cache, BeforeValidator(_cache_of)]


class Phase(Settings):
    """A part of the training with terms, batches or lengths of its own; what is not given is the stage's."""

    match: Terms | None = None
    """What the student copies in this phase."""
    mix: Mix | None = None
    """What a batch is made of in this phase."""
    train: Train
    """Length and speed of this phase."""
