"""Small changes of every text that leave its meaning, and what they do to a model's answers.

A change depends on the text and a seed alone, never on its neighbours. Both texts of a pair are changed.
"""
# N rows, C classes

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.bench.statistics import Interval
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.paired import Score, agreement, drop, score_interval

ROWS = 500
"""Rows that are changed, drawn with a fixed seed; more would take minutes and tell little more."""
WORDS_A_TYPO = 7
"""One word in so many gets a typo, at least one a text."""
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\W\d_{_UNSPACED}]+")
"""A run of letters; two characters of a script without spaces, which is what a Chinese word has on the average."""


@dataclass(frozen=True)
class Change:
    """What one change of the texts does; scores in fractions, intervals two-sided 95 %."""

    what: str
    score: Score
    """On the changed texts."""
    drop: Interval
    """The score on the texts as they are minus that."""
    agreement: float
    """Share of rows with the same answer before and after."""


def upper_case(text: str, *, seed: int = 0) -> str:
    """The text in capitals."""
    return text.upper()


def lower_case(text: str, *, seed: int = 0) -> str:
    """The text without capitals."""
    return text.lower()


def typos(text: str, *, seed: int = 0) -> str:
    """The text with two neighbouring letters swapped in one word of seven, at least one; which ones is drawn.

    A word of one letter, or of equal ones, cannot change.
    """
    words = [(word.start(), places) for word in _WORD.finditer(text) if (places := _swappable(word.group()))]
    if not words:
        return text
    draw = np.random.default_rng([seed, zlib.crc32(text.encode())])
    letters = list(text)
    for chosen in draw.choice(len(words), size=max(1, round(len(words) / WORDS_A_TYPO)), replace=False):
        start, places = words[int(chosen)]
        at = start + places[int(draw.integers(len(places)))]
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def first_half(text: str, *, seed: int = 0) -> str:
    """The first half of the characters, to the end of the word that the middle falls in.

    >>> first_half("a long and winding road")
    'a long and winding'
    """
    middle = math.ceil(len(text) / 2)
    return text[: next((word.end() for word in _WORD.finditer(text) if word.start() < middle < word.end()), middle)]


def changed(what: str, text: Text, *, seed: int = 0) -> Text:
    """One text, or both of a pair, after the change of that name; InputError shows the names."""
    if what not in CHANGES:
        raise InputError(f"no change of texts is called {what!r}; there are {', '.join(CHANGES)}")
    change = CHANGES[what]
    return (
        change(text, seed=seed) if isinstance(text, str) else (change(text[0], seed=seed), change(text[1], seed=seed))
    )


def draw_rows(count: int, *, seed: int = 17, rows: int = ROWS) -> np.ndarray:
    """Numbers of at most `rows` of `count` rows, ascending, the same for one seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])


def perturbed(
    answer: Callable[[list[Text]], np.ndarray],
    texts: Sequence[Text],
    predictions: np.ndarray,
    references: np.ndarray,
    labels: Sequence[str],
    *,
    metric: str,
    seed: int = 17,
) -> tuple[Change, ...]:
    """What each change of these texts does; one that leaves all of them as they are is left out (Chinese in capitals).

    Args:
        answer: texts to logits, shape (texts, C); asked for the changed texts alone.
        texts: N of them, or pairs.
        predictions: class ids answered to the texts as they are, shape (N,).
        references: the rows' own class ids, shape (N,).
        labels: class names in the order of their ids.
        metric: a metric or METRIC@CLASS.
        seed: of the typos.
    Raises: InputError when the rows differ in number or are none.
    """
    if not len(texts) == len(predictions) == len(references):
        raise InputError(
            f"texts, answers and labels are of the same rows (got {len(texts)}, {len(predictions)}, {len(references)})"
        )
    found = []
    for what in CHANGES:
        after = [changed(what, text, seed=seed) for text in texts]
        differ = [row for row, (one, other) in enumerate(zip(texts, after, strict=True)) if one != other]
        if not differ:
            continue
        answers = np.array(predictions)
        answers[differ] = np.asarray(answer([after[row] for row in differ])).argmax(-1)
        found.append(
            Change(
                what=what,
                score=score_interval(metric, answers, references, labels),
                drop=drop(metric, predictions, answers, references, labels),
                agreement=agreement(predictions, answers),
            )
        )
    return tuple(found)


def _swappable(word: str) -> list[int]:
    """Places of a word's letters that differ from the next, small and capital being alike."""
    return [at for at in range(len(word) - 1) if word[at].casefold() != word[at + 1].casefold()]


CHANGES: dict[str, Callable[..., str]] = {
    "upper case": upper_case,
    "lower case": lower_case,
    "typos": typos,
    "first half": first_half,
}
