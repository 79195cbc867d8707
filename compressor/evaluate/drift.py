"""Whether two files of texts are of the same kind, by a classifier that tries to tell them apart.

Lopez-Paz and Oquab 2017, "Revisiting Classifier Two-Sample Tests", https://arxiv.org/abs/1610.06545: half of the texts
train it, the other half test it, so that permuting the labels of the tested half gives an exact p.
"""
# N rows of both files together

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from compressor.data.encoded import Encoded
from compressor.data.rows import Text
from compressor.errors import InputError

LEAST_ROWS = 20
"""Distinct texts that each file needs."""
MOST_ROWS = 4000
"""Distinct texts that are taken of each file, drawn with a fixed seed; more would take minutes."""
PERMUTATIONS = 999
SPACED_SHARE = 0.05
"""Texts with a smaller share of white space are of a script without spaces, whose characters are counted instead."""
TELLING = 5
"""Words shown for each file."""


@dataclass(frozen=True)
class Difference:
    """How far two files of texts are from each other; p small means they differ by more than chance."""

    rows: tuple[int, int]
    """Distinct texts compared, of each file."""
    auc: float
    """Chance that the classifier ranks a text of the second file above one of the first; 0.5 where they are alike."""
    auc_p: float
    """Share of permutations that rank as well."""
    words: tuple[tuple[str, ...], tuple[str, ...]]
    """What the classifier takes as signs of the first and of the second file."""
    tokens: tuple[float, float]
    """Mean tokens a row, special ones included."""
    tokens_p: float
    """Of the lengths being drawn alike: two-sample Kolmogorov-Smirnov."""
    unknown: tuple[float, float]
    """Share of tokens that the vocabulary lacks."""

    @property
    def differs(self) -> bool:
        """Whether texts or lengths differ at 5 % in all, shared by the two tests."""
        return min(self.auc_p, self.tokens_p) < 0.025


def difference(
    first: Sequence[Text],
    second: Sequence[Text],
    *,
    encoded: tuple[Encoded, Encoded],
    names: tuple[str, str] = ("the first file", "the second file"),
    seed: int = 17,
) -> Difference:
    """How far the second file is from the first.

    Args:
        first: texts, or pairs, in any order; a repeated text counts once for the classifier.
        second: of the other file.
        encoded: both files as the model reads them.
        names: what the files are called in an error.
        seed: draws the texts, the halves and the permutations.
    Raises: InputError where a file has fewer than LEAST_ROWS distinct texts.
    """
    draw = np.random.default_rng(seed)
    sides = [_distinct(texts, draw, name) for name, texts in zip(names, (first, second), strict=True)]
    texts = [text for side in sides for text in side]
    of_second = np.repeat([0, 1], [len(side) for side in sides])
    auc, p, words = _tell_apart(texts, of_second, draw)
    lengths = [one.lengths for one in encoded]
    return Difference(
        rows=(len(sides[0]), len(sides[1])),
        auc=auc,
        auc_p=p,
        words=words,
        tokens=(float(lengths[0].mean()), float(lengths[1].mean())),
        tokens_p=float(stats.ks_2samp(*lengths, method="asymp").pvalue),
        unknown=(encoded[0].unknown_share(), encoded[1].unknown_share()),
    )


def unspaced(texts: Sequence[str]) -> bool:
    """Whether the texts are of a script without spaces, such as Chinese.

    >>> unspaced(["a plain sentence"]), unspaced(["很好看的电影"])
    (False, True)
    """
    characters = sum(map(len, texts))
    return sum(character.isspace() for text in texts for character in text) < SPACED_SHARE * characters


def ranking(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above another, ties counting half.

    Args:
        scores: shape (N,). positive: shape (N,), bool, of both kinds.

    >>> ranking(np.array([0.1, 0.4, 0.8]), np.array([False, False, True]))
    1.0
    """
    ranks, count = stats.rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def permutation_p(scores: np.ndarray, positive: np.ndarray, draw: np.random.Generator) -> float:
    """Share of PERMUTATIONS of the labels, the given one among them, that rank at least as well; one-sided, exact."""
    ranks = stats.rankdata(scores)
    found = ranks[positive].sum()
    many = np.array([ranks[draw.permutation(positive)].sum() for _ in range(PERMUTATIONS)])
    return float((1 + np.sum(many >= found)) / (1 + PERMUTATIONS))


def _distinct(texts: Sequence[Text], draw: np.random.Generator, name: str) -> list[str]:
    """At most MOST_ROWS different texts, the two of a pair joined."""
    whole = list(dict.fromkeys(text if isinstance(text, str) else "\n".join(text) for text in texts))
    if len(whole) < LEAST_ROWS:
        raise InputError(
            f"{name} holds {len(whole)} different texts; drift needs {LEAST_ROWS} or more of each file, give more"
        )
    return [whole[int(place)] for place in draw.permutation(len(whole))[:MOST_ROWS]]


def _tell_apart(
    texts: Sequence[str], of_second: np.ndarray, draw: np.random.Generator
) -> tuple[float, float, tuple[tuple[str, ...], tuple[str, ...]]]:
    """AUC on the half that was not trained on, its p, and the words that tell the files apart."""
    if unspaced(texts):
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    else:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise InputError(f"drift: the texts hold no words to compare ({error}); look at the files") from error
    trained = np.zeros(len(texts), dtype=np.bool_)
    for side in (0, 1):
        mine = draw.permutation(np.flatnonzero(of_second == side))
        trained[mine[: len(mine) // 2]] = True
    classifier = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    classifier.fit(features[trained], of_second[trained])
    scores = np.asarray(classifier.decision_function(features[~trained]))
    positive = of_second[~trained] == 1
    names = np.asarray(vectorizer.get_feature_names_out())
    order = np.argsort(classifier.coef_[0], kind="stable")
    words = (
        tuple(str(name) for name in names[order[:TELLING]]),
        tuple(str(name) for name in names[order[::-1][:TELLING]]),
    )
    return ranking(scores, positive), permutation_p(scores, positive, draw), words
