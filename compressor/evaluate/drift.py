"""Whether two files of texts are of the same kind, by a classifier that tries to tell them apart.

Lopez-Paz and Oquab 2017, "Revisiting Classifier Two-Sample Tests", https://arxiv.org/abs/1610.06545: half of the texts
train it, the other half test it, so that permuting the labels of the tested half gives an exact p. Texts that both
files hold tell nothing and would be learned as one file's and tested as the other's, so they are left out.
"""
# N rows of both files together

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from compressor.data.encoded import Encoded
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.script import unspaced

LEAST_ROWS = 20
"""Distinct texts that each file needs, and texts of its own, without which nothing is told."""
MOST_ROWS = 4000
"""Texts of its own that are taken of each file, drawn with a fixed seed; more would take minutes."""
PERMUTATIONS = 999
TELLING = 5
"""Words shown for each file."""

Words = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Difference:
    """How far two files of texts are from each other; p small means they differ by more than chance."""

    rows: tuple[int, int]
    """Distinct texts compared, of each file; those that both hold are not."""
    shared: tuple[float, float]
    """Share of each file's distinct texts that the other holds too."""
    auc: float
    """Chance that the classifier ranks a text of the second file above one of the first; 0.5 where they are alike,
    and where a file has too few texts of its own to tell."""
    auc_p: float
    """Share of permutations that rank as well."""
    words: Words
    """What the classifier takes as signs of the first and of the second file."""
    tokens: tuple[float, float]
    """Mean tokens a row, special ones included, of all rows."""
    tokens_p: float
    """Of the lengths of the texts compared being drawn alike: two-sample Kolmogorov-Smirnov."""
    unknown: tuple[float, float]
    """Share of tokens that the vocabulary lacks."""

    @property
    def told(self) -> bool:
        """Whether both files had texts enough of their own to compare."""
        return min(self.rows) >= LEAST_ROWS

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
        first: texts, or pairs, in any order; a repeated text counts once.
        second: of the other file.
        encoded: both files as the model reads them, row by row.
        names: what the files are called in an error.
        seed: draws the texts, the halves and the permutations.
    Raises: InputError where a file has fewer than LEAST_ROWS distinct texts.
    """
    draw = np.random.default_rng(seed)
    held = [_distinct(texts, name) for name, texts in zip(names, (first, second), strict=True)]
    common = held[0].keys() & held[1].keys()
    sides = [_own(texts, common, draw) for texts in held]
    lengths = [one.lengths for one in encoded]
    auc, p, tokens_p = 0.5, 1.0, 1.0
    words: Words = ((), ())
    if min(map(len, sides)) >= LEAST_ROWS:
        of_second = np.repeat([0, 1], [len(side) for side in sides])
        auc, p, words = _tell_apart([text for side in sides for text in side], of_second, draw)
        compared = [mine[list(side.values())] for mine, side in zip(lengths, sides, strict=True)]
        tokens_p = float(stats.ks_2samp(*compared, method="asymp").pvalue)
    return Difference(
        rows=(len(sides[0]), len(sides[1])),
        shared=(len(common) / len(held[0]), len(common) / len(held[1])),
        auc=auc,
        auc_p=p,
        words=words,
        tokens=(float(lengths[0].mean()), float(lengths[1].mean())),
        tokens_p=tokens_p,
        unknown=(encoded[0].unknown_share(), encoded[1].unknown_share()),
    )


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


def _distinct(texts: Sequence[Text], name: str) -> dict[str, int]:
    """Different texts, the two of a pair joined, each with the row that holds it first."""
    found: dict[str, int] = {}
    for row, text in enumerate(texts):
        found.setdefault(text if isinstance(text, str) else "\n".join(text), row)
    if len(found) < LEAST_ROWS:
        raise InputError(
            f"{name} holds {len(found)} different texts; drift needs {LEAST_ROWS} or more of each file, give more"
        )
    return found


def _own(texts: Mapping[str, int], common: Set[str], draw: np.random.Generator) -> dict[str, int]:
    """At most MOST_ROWS of the texts that the other file lacks, with their rows."""
    own = [text for text in texts if text not in common]
    return {own[place]: texts[own[place]] for place in map(int, draw.permutation(len(own))[:MOST_ROWS])}


def _tell_apart(texts: Sequence[str], of_second: np.ndarray, draw: np.random.Generator) -> tuple[float, float, Words]:
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
