"""Logistic regression on simple features of a text: counts of words or characters, or the mean of static vectors."""
# N rows, F features

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.rows import DataSets, Rows, Text
from compressor.errors import InputError
from compressor.evaluate.metrics import confusion, metric_function
from compressor.evaluate.script import unspaced
from compressor.report.static_vectors import distil_vectors
from compressor.stage import Progress, silent

STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularization tried on features whose rows have about length 1."""
MOST_FEATURES = 300_000
"""Words and pairs, or runs of characters, that are counted; the most frequent ones."""
MOST_ROWS = 100_000
"""Rows that are learned from, drawn with the seed where there are more, which would take minutes."""

Features = Callable[[Sequence[Text]], Any]
"""From texts to a matrix of shape (N, F), dense or sparse."""


@dataclass(frozen=True)
class Simple:
    """Something that answers texts and is no encoder."""

    what: str
    """In words."""
    answer: Callable[[Sequence[Text]], NDArray[np.int64]]
    """Class ids of texts, shape (N,)."""
    bytes: int
    """What its numbers and its vocabulary take."""


def fit_tfidf(data: DataSets, *, seed: int = 17, progress: Progress = silent) -> Simple:
    """TF-IDF of words and pairs of words, or of 1 to 3 characters where the text has few spaces, on the train rows.

    Raises: InputError where fewer than two classes have rows, ValueError where no text holds a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    progress("baseline tfidf", 0, 1)
    train = labelled(data.train, seed=seed)
    characters = unspaced(texts_of(train.texts))
    ranges: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
    if not characters:
        ranges = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}
    counted = TfidfVectorizer(**ranges, sublinear_tf=True, max_features=MOST_FEATURES, dtype=np.float32)
    counted.fit(texts_of(train.texts))

    def features(texts: Sequence[Text]) -> Any:
        return by_side(texts, counted.transform)

    model, strength = choose(features, train, labelled(data.select, seed=seed), data)
    progress("baseline tfidf", 1, 1)
    units = "1 to 3 characters" if characters else "1 and 2 words"
    vocabulary = sum(len(term.encode()) for term in counted.vocabulary_)
    return Simple(
        f"logistic regression on TF-IDF of {units}, C {strength:g}, learned from {len(train):,} rows",
        lambda texts: np.asarray(model.predict(features(texts)), dtype=np.int64),
        vocabulary + 4 * (len(counted.vocabulary_) + model.coef_.size + model.intercept_.size),
    )


def fit_static(
    data: DataSets, teacher: Path, answered: Sequence[Text], *, seed: int = 17, progress: Progress = silent
) -> Simple:
    """Means of static vectors distilled from the teacher, on the train rows.

    `answered` are the texts of a later score: their tokens get vectors too, and decide nothing else.
    Raises: InputError as `distil_vectors` does and where fewer than two classes have rows.
    """
    train, select = labelled(data.train, seed=seed), labelled(data.select, seed=seed)
    vectors = distil_vectors(
        teacher,
        texts_of(train.texts),
        further=texts_of([*select.texts, *answered]),
        max_tokens=data.max_tokens,
        seed=seed,
        progress=progress,
    )
    learned = by_side(train.texts, vectors.embed)
    length = float(np.sqrt(np.mean(np.sum(np.square(learned), axis=1)))) or 1.0

    def features(texts: Sequence[Text]) -> Any:
        return by_side(texts, vectors.embed) / length

    model, strength = choose(features, train, select, data)
    return Simple(
        f"logistic regression on means of static vectors of the teacher's tokens ({vectors.vectors.shape[1]} values "
        f"each), C {strength:g}, learned from {len(train):,} rows",
        lambda texts: np.asarray(model.predict(features(texts)), dtype=np.int64),
        vectors.bytes + 4 * (model.coef_.size + model.intercept_.size),
    )


def choose(features: Features, train: Rows, select: Rows, data: DataSets) -> tuple[Any, float]:
    """The regression whose inverse regularization scores best on `select`, the first of equals, and that number.

    The middle one is taken where no row of `select` has a label. Raises InputError where train has fewer than two
    classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(train.labels)) < 2:
        raise InputError("the train rows are all of one class")
    inputs, targets = features(train.texts), np.array(train.labels)
    tried = STRENGTHS if len(select) else STRENGTHS[1:2]
    held = features(select.texts) if len(tried) > 1 else None
    score, found = metric_function(data.task.metric, data.labels), []
    for strength in tried:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what counts is its score on select
            model = LogisticRegression(C=strength, max_iter=500).fit(inputs, targets)
        counts = confusion(np.array(select.labels), model.predict(held), len(data.labels)) if len(tried) > 1 else None
        found.append((0.0 if counts is None else float(score(counts)), model, strength))
    _, model, strength = max(found, key=lambda one: one[0])
    return model, strength


def by_side(texts: Sequence[Text], features: Callable[[list[str]], Any]) -> Any:
    """Features of texts, shape (N, F); of pairs both sides, their distance and their product, shape (N, 4 F).

    The four parts are those of InferSent (Conneau et al. 2017, https://arxiv.org/abs/1705.02364).
    """
    if not texts or isinstance(texts[0], str):
        return features([str(text) for text in texts])
    from scipy import sparse

    one, other = (features([pair[side] for pair in texts]) for side in (0, 1))
    if sparse.issparse(one):
        return sparse.hstack([one, other, abs(one - other), one.multiply(other)], format="csr")
    return np.hstack([one, other, np.abs(one - other), one * other])


def texts_of(texts: Sequence[Text]) -> list[str]:
    """All single texts; of a pair both.

    >>> texts_of(["a", ("b", "c")])
    ['a', 'b', 'c']
    """
    return [part for text in texts for part in ([text] if isinstance(text, str) else text)]


def labelled(rows: Rows, *, seed: int = 17) -> Rows:
    """The rows that have a label, at most MOST_ROWS of them."""
    places = [place for place, label in enumerate(rows.labels) if label is not None]
    if len(places) > MOST_ROWS:
        places = sorted(int(one) for one in np.random.default_rng(seed).choice(places, MOST_ROWS, replace=False))
    return rows.take(places)
