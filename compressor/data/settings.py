"""What a recipe may say about the task and its rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.settings import Flag, Integer, MetricName, Ratio, Settings, Share, Weight, Word
from compressor.sources.settings import PoolSource, RowSource

TaskKind = Literal["text-classification"]


class Task(Settings):
    """What the model decides."""

    kind: TaskKind = "text-classification"
    """What a label is; text-classification is one class a row, of one text or of a pair."""
    metric: MetricName = "accuracy"
    """The score that `expect`, early stopping and the report look at first."""


class Label(Settings):
    """A label column, or labels derived from a number."""

    column: Word | Annotated[int, Field(strict=True, ge=0)]
    """Name of the column, or its place from 0 where the file has no header."""
    bins: dict[Word, Word] | None = None
    """Class name to a comparison such as '> 0.5'; ids in the order written; a row in no bin is unlabelled."""


class Split(Settings):
    """How one file becomes test, select and train: in ascending SHA-256 of the text, test first."""

    by: Literal["sha256"] = "sha256"
    """The hash of the text as read, in UTF-8."""
    test: Annotated[Integer, Field(ge=0)] = 0
    """Labelled rows for the test set."""
    select: Annotated[Integer, Field(ge=0)] = 0
    """Labelled rows on which decisions are made."""
    train: Annotated[Integer, Field(ge=1)] | None = None
    """Labelled rows to train on; all the rest unless given. Rows left over join the unlabelled pool."""


class SelectShare(Settings):
    """A share of the train rows, stratified, by hash."""

    share: Annotated[Share, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled train rows that becomes `select`."""


Column = Word | Annotated[int, Field(strict=True, ge=0)]


class Data(Settings):
    """Where the rows are and how to read them."""

    train: RowSource
    """Labelled rows; rows without a label join the unlabelled pool."""
    unlabelled: list[PoolSource] = Field(default_factory=list)
    """Rows without labels, for distillation; each source may say its share of the unlabelled rows."""
    select: SelectShare | RowSource = SelectShare()
    """Rows on which every decision is made."""
    test: RowSource | None = None
    """Rows whose labels are read once, at the end."""
    split: Split | None = None
    """Makes test, select and train of the one file in `train`; excludes `test` and a `select` of its own."""
    text: Column | Annotated[list[Column], Field(min_length=2, max_length=2)] = "text"
    """Column of the text, or two for a pair task; its place from 0 where the file has no header."""
    label: Column | Label = "label"
    """Column of the label."""
    labels: list[Word] | None = None
    """Class names in the order of their ids; the teacher's if it was fine-tuned, else sorted."""
    max_tokens: Annotated[Integer, Field(ge=4)] = 128
    """Tokens a row at most, special ones included; longer rows are truncated and counted."""


class Keep(Settings):
    """Which unlabelled rows are used, and how much each counts; by the teacher's answers."""

    confidence: Share = 0.0
    """Least probability of the teacher's first class for a row to be kept."""
    weigh: Flag = False
    """Lets a row count by the probability of the teacher's first class, their mean being 1."""
    balance: Flag = False
    """Draws the teacher's classes equally often."""


class Unlabelled(Settings):
    """How unlabelled rows are mixed in."""

    ratio: Ratio = 0.5
    """Unlabelled share of the rows in a batch; a number or a schedule."""
    weight: Weight = 1.0
    """Factor of the unlabelled rows' terms against those of labelled rows."""
    keep: Keep = Keep()
    """Which rows are used."""


class Augment(Settings):
    """Views of the rows that teacher and student see alike."""

    mask: Share = 0.0
    """Share of the tokens replaced by the mask token, in every row."""
    delete: Annotated[Share, Field(lt=1)] = 0.0
    """Share of the tokens left out, in every row; at least one stays."""
    ngram: Share = 0.0
    """Share of the rows of which a run of one to five neighbouring words' tokens alone is kept."""
    mixup: Share = 0.0
    """Share of the rows whose embeddings are mixed with another row's of the batch; these take no part in labels."""
    views: Annotated[Integer, Field(ge=1, le=8)] | None = None
    """Different views of a row, so that the teacher's answers can be kept; null makes a new one every epoch."""

    @property
    def changes(self) -> bool:
        """Whether any row is changed."""
        return any((self.mask, self.delete, self.ngram, self.mixup))

    def model_post_init(self, _context: object) -> None:
        if self.views is not None and self.mixup:
            raise ValueError("views keeps answers to single rows, which mixup has none of; leave one of them out")
        if self.views is not None and not self.changes:
            raise ValueError("views needs a change such as mask: 0.1; without one every view is the same")


class Mix(Settings):
    """What a batch is made of."""

    unlabelled: Unlabelled | None = Unlabelled()
    """Unlabelled rows beside the labelled ones, half of a batch unless told, where there are any; null uses none."""
    augment: Augment = Augment()
    """Changes to the rows."""
