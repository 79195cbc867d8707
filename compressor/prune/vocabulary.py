"""Removing the tokens that no row holds: which these are, the cut after all others, and what it does to other texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from compressor.data.encode import CHUNK_ROWS, Encoded, Encoder, counts_from_padding, open_encoder
from compressor.data.rows import DataSets, Text
from compressor.errors import InputError, StageError
from compressor.model.encoders import RELOAD_TOLERANCE, model_logits
from compressor.model.footprint import parameters
from compressor.model.manifest import read_config
from compressor.model.vocabulary import cut_tokenizer, cut_words, special_ids, staying
from compressor.prune.saving import PROBE_ROWS, save_pruned
from compressor.prune.schedule import WEIGHT_BYTES
from compressor.prune.scoring import row_inputs
from compressor.stage import Decision, Outcome, Progress

CHECK_ROWS = 512
"""Rows whose tokens before and after are compared."""
CHANGED_SHARE = 0.05
"""Above this share of held-out rows in other tokens, the rows that were counted are called too few."""


@dataclass(frozen=True)
class HeldOut:
    """What a smaller vocabulary does to rows that had no say in it, in tokens without the special ones."""

    rows: int
    coverage: float
    """Share of their tokens that stay."""
    retokenised: float
    """Share of the rows that are read in other tokens than before."""
    unknown: tuple[float, float]
    """Share of unknown tokens, before and after."""
    tokens: tuple[float, float]
    """Mean tokens of a row, special ones included, before and after."""

    def __str__(self) -> str:
        words = (
            f"on {self.rows} held-out rows {self.coverage:.2%} of the tokens stay, {self.retokenised:.1%} of the rows "
            f"are read in other tokens, {self.unknown[1]:.2%} of the tokens are unknown ({self.unknown[0]:.2%} before) "
            f"and a row has {self.tokens[1]:.1f} ({self.tokens[0]:.1f} before)"
        )
        if self.retokenised > CHANGED_SHARE:
            words += "; the rows counted are too few to show the words of new ones, add some to data.unlabelled"
        return words


@dataclass(frozen=True)
class Words:
    """The tokens of a model that stay; made by `count_words`."""

    folder: Path
    data: DataSets
    kept: NDArray[np.int64]
    """Their ids, ascending."""
    seen: int
    """How many tokens stand in train or the pool."""
    of: int
    """Rows of the model's word table."""
    width: int
    """Numbers in such a row of the input."""

    @property
    def parameters(self) -> int:
        """Numbers that go with the other tokens."""
        return (self.of - len(self.kept)) * self.width

    def cut(
        self,
        model: PreTrainedModel,
        place: Path,
        *,
        accept: Callable[[Path], Outcome] | None,
        decide: Callable[[Decision], None],
    ) -> tuple[PreTrainedModel, Path, Outcome | None]:
        """The model without the other tokens, the folder of its tokenizer, and what `accept` made of it.

        Args:
            model: the one in `folder`, in whatever shape; it is untouched.
            place: where the tokenizer is written, and the model that `accept` judges; emptied before.
        Raises: StageError where the smaller model does not answer as `model` on rows of train.
        """
        shutil.rmtree(place, ignore_errors=True)
        made, home = cut_words(model, self.kept), cut_tokenizer(self.folder, place / "tokenizer", self.kept)
        made.config.save_pretrained(home)
        before, after = (open_encoder(each, self.data.max_tokens) for each in (self.folder, home))
        self._check(model, made, before, after)
        decide(self._decision(before, after, parameters(model) - parameters(made)))
        if accept is None:
            return made, home, None
        folder = save_pruned(made, place / "model", source=self.folder, data=self.data, tokenizer=home)
        return made, home, accept(folder)

    def backtrack(self, outcome: Outcome) -> Decision:
        """Says that all tokens were kept, and why."""
        return Decision(
            kind="backtrack",
            chosen={"vocabulary": self.of},
            because=f"the model without the unseen tokens broke the gate: {outcome.because}",
            candidates={"vocabulary": len(self.kept)},
            cost={name: list(value) for name, value in outcome.values.items()},
        )

    def _check(self, model: PreTrainedModel, made: PreTrainedModel, before: Encoder, after: Encoder) -> None:
        """Nothing, where counted rows have the same tokens and answers as before."""
        texts = (self.data.train if len(self.data.train) else self.data.unlabelled).head(CHECK_ROWS).texts
        old, new = before.encode(texts), after.encode(texts)
        changed = changed_rows(old, new, self.kept, self.of)
        known = np.flatnonzero(changed & (old.unknown_tokens == 0))
        if len(known):
            raise StageError(
                f"the tokenizer without unseen tokens reads {len(known)} of {len(texts)} rows otherwise, such as "
                f"{texts[known[0]]!r:.60}; leave vocabulary out of remove"
            )
        rows = np.flatnonzero(~changed)[:PROBE_ROWS].tolist()
        logits = (model_logits(one, row_inputs(encoded, rows, encoder.pad_id))
                  for one, encoded, encoder in ((model, old, before), (made, new, after)))  # fmt: skip
        difference = float((next(logits) - next(logits)).abs().max()) if rows else 0.0
        if not difference <= RELOAD_TOLERANCE:
            raise StageError(
                f"the model without unseen tokens answers otherwise: logits differ by {difference:.3g}, at most "
                f"{RELOAD_TOLERANCE:g} is right; leave vocabulary out of remove"
            )

    def _decision(self, before: Encoder, after: Encoder, freed: int) -> Decision:
        counted, kept = len(self.data.train) + len(self.data.unlabelled), len(self.kept)
        found = held_out(before, after, self.kept, self.of, self.data.select.texts) if len(self.data.select) else None
        because = (
            f"{self.seen} of {self.of} tokens stand in the {counted} rows of train and the pool, and "
            f"{kept - self.seen} more are kept as special ones or to spell words with"
        )
        if found is not None:
            because += f"; {found}"
        return Decision(
            kind="vocabulary",
            chosen={"kept": kept, "removed": self.of - kept, "of": self.of},
            because=because,
            cost={
                "parameters": freed,
                "bytes": WEIGHT_BYTES * freed,
                "held_out": None if found is None else asdict(found),
            },
        )


def count_words(folder: Path, data: DataSets, model: PreTrainedModel, *, progress: Progress) -> Words:
    """The tokens that stay: those of all rows of train and the pool, whole texts, and those that are needed besides.

    Rows of select and test are not looked at, so that they tell what becomes of new texts.
    Raises: InputError without such rows, and as `staying` does.
    """
    if not (len(data.train) or len(data.unlabelled)):
        raise InputError("remove.vocabulary keeps the tokens of train and of unlabelled rows; the data has neither")
    encoder = open_encoder(folder, data.max_tokens)
    encoder.tokenizer.no_truncation()
    counted = [*data.train.texts, *data.unlabelled.texts]
    table = model.get_input_embeddings()
    seen = {int(number) for ids in _distinct(encoder, counted, progress) for number in ids}
    rows = int(table.num_embeddings)
    first = range(encoder.pad_id + 1) if counts_from_padding(read_config(folder)) else ()  # padding may not move there
    kept = staying(folder, {*seen, *first, *(each for each in special_ids(model.config.to_dict()) if 0 <= each < rows)})
    return Words(folder, data, kept, len(seen), rows, int(table.embedding_dim))


def _distinct(encoder: Encoder, texts: Sequence[Text], progress: Progress) -> Iterator[NDArray[np.int32]]:
    """The ids of each few rows, once each, so that a large pool is never in memory as tokens."""
    for start in range(0, len(texts), CHUNK_ROWS):
        progress("count tokens", start, len(texts))
        yield np.unique(encoder.encode(texts[start : start + CHUNK_ROWS]).ids)


def held_out(before: Encoder, after: Encoder, kept: NDArray[np.int64], of: int, texts: Sequence[Text]) -> HeldOut:
    """What the tokenizer with the tokens `kept` of `of` makes of texts that were not counted, beside the whole one."""
    old, new = before.encode(texts), after.encode(texts)
    gone = len(old.ids) - int(np.isin(old.ids, kept).sum())
    return HeldOut(
        rows=len(texts),
        coverage=1 - gone / max(1, old.total),
        retokenised=float(changed_rows(old, new, kept, of).mean()),
        unknown=(old.unknown_share(), new.unknown_share()),
        tokens=(float(old.lengths.mean()), float(new.lengths.mean())),
    )


def changed_rows(old: Encoded, new: Encoded, kept: NDArray[np.int64], of: int) -> NDArray[np.bool_]:
    """Which rows are other tokens than before, shape (rows,)."""
    numbers = np.full(of, -1, dtype=np.int64)
    numbers[kept] = np.arange(len(kept))
    return np.array(
        [not np.array_equal(numbers[old.row(row)], new.row(row)) for row in range(len(old))], dtype=np.bool_
    )
