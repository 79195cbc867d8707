"""Two files of texts: alike where they are drawn alike, apart where they are not, with an honest p."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from tiny import make_reviews

from compressor.data.encoded import Encoded
from compressor.errors import InputError
from compressor.evaluate.drift import difference, permutation_p, ranking
from compressor.evaluate.script import unspaced


def encoded(texts: list[str]) -> Encoded:
    """A token a word, two more for the ends."""
    return Encoded.of([[2, *range(10, 10 + len(text.split())), 3] for text in texts])


def compare(first: list[str], second: list[str], seed: int = 0):
    return difference(first, second, encoded=(encoded(first), encoded(second)), seed=seed)


def drawn(count: int, seed: int) -> list[str]:
    return [text for text, _ in make_reviews(count, seed=seed)]


def test_files_of_other_words_are_told_apart_and_the_words_are_shown():
    before = drawn(150, 1)
    after = [f"{text} awful subtitles" for text in drawn(150, 2)]
    found = compare(before, after)
    assert found.auc > 0.95
    assert found.auc_p == 0.001
    assert found.differs
    assert {"awful", "subtitles"} <= set(found.words[1])
    assert found.tokens[1] > found.tokens[0] + 1
    assert found.tokens_p < 0.025


def test_files_drawn_alike_differ_about_as_often_as_promised():
    texts, rng, found = drawn(3000, 3), np.random.default_rng(0), []
    for seed in range(60):
        taken = [texts[row] for row in rng.permutation(len(texts))[:120]]
        found.append(compare(taken[:60], taken[60:], seed))
    assert sum(one.differs for one in found) <= 8
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.04)


def test_a_file_does_not_differ_from_itself():
    texts = drawn(100, 4)
    found = compare(texts, list(reversed(texts)))
    assert (found.auc, found.auc_p, found.tokens_p) == (0.5, 1.0, 1.0)
    assert (found.rows, found.shared, found.told) == ((0, 0), (1.0, 1.0), False)
    assert not found.differs


def test_texts_that_both_files_hold_change_nothing_but_their_share():
    before, after = drawn(90, 21), [f"{text} awful subtitles" for text in drawn(90, 22)]
    both = [f"a text of both {place}" for place in range(45)]
    apart, mixed = compare(before, after), compare(before + both, both + after)
    own = len(set(before))
    assert mixed.shared[0] == pytest.approx(45 / (45 + own))
    assert apart.shared == (0.0, 0.0)
    assert (mixed.rows, mixed.auc, mixed.auc_p, mixed.words) == (apart.rows, apart.auc, apart.auc_p, apart.words)
    assert mixed.tokens_p == apart.tokens_p < 0.001


def test_files_that_share_most_texts_differ_about_as_often_as_promised():
    texts, rng, found = list(dict.fromkeys(drawn(3000, 23))), np.random.default_rng(1), []
    for seed in range(40):
        taken = [texts[row] for row in rng.permutation(len(texts))[:160]]
        found.append(compare(taken[:110], taken[50:], seed))
    assert {one.rows for one in found} == {(50, 50)}
    assert sum(one.differs for one in found) <= 6
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.05)


def test_repeated_rows_make_no_lengths_differ():
    texts, rng, found = list(dict.fromkeys(drawn(3000, 24))), np.random.default_rng(2), []
    for seed in range(40):
        taken = [texts[row] for row in rng.permutation(len(texts))[:100]]
        found.append(compare(taken[:50] * 20, taken[50:] * 20, seed))
    assert sum(one.tokens_p < 0.05 for one in found) <= 6


def test_the_longest_files_are_compared_by_the_texts_that_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compressor.evaluate.drift.MOST_ROWS", 40)
    before, after = [f"one film {place}" for place in range(90)], [f"one film {place} again" for place in range(90)]
    found = compare(before, after)
    assert found.rows == (40, 40)
    assert found.tokens_p == pytest.approx(stats.ks_2samp([5] * 40, [6] * 40, method="asymp").pvalue)


def test_the_script_is_known_from_a_thousand_texts_of_each_kind(monkeypatch: pytest.MonkeyPatch):
    assert unspaced(["很好看的电影"] * 3000)
    assert not unspaced(["很好看", "a plain sentence of many words"] * 3000)
    assert not unspaced(["很好看"] * 3000 + ["a plain sentence of many words"] * 3000)
    looked: list[str] = []

    class Watched(str):
        def __iter__(self):
            looked.append(self)
            return super().__iter__()

    assert not unspaced([Watched("one two")] * 50_000)
    assert len(looked) <= 1001


def test_longer_rows_are_drift_even_where_the_words_are_the_same():
    before = ["a film " * (3 + place % 5) + str(place) for place in range(80)]
    after = ["a film " * (9 + place % 5) + str(place) for place in range(80, 160)]
    assert compare(before, after).tokens_p < 0.001


def test_pairs_and_chinese_are_compared():
    draw = np.random.default_rng(5)
    one, two = list("好看电影故事演员"), list("手机屏幕电池价格")
    first, second = (["".join(draw.choice(letters, 9)) for _ in range(60)] for letters in (one, two))
    found = difference(first, second, encoded=(encoded(first), encoded(second)))
    assert unspaced(first)
    assert found.auc > 0.9
    pairs = [(text, "same") for text in first]
    assert difference(pairs, pairs[::-1], encoded=(encoded(first), encoded(first))).shared == (1.0, 1.0)


def test_the_ranking_is_scikit_learns_area_with_ties_counting_half():
    rng = np.random.default_rng(6)
    scores, positive = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
    assert ranking(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores))


def test_the_permutation_p_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(7)
    positive = rng.random(150) < 0.5
    scores = rng.normal(0, 1, 150) + 0.25 * positive
    wanted = stats.mannwhitneyu(scores[positive], scores[~positive], alternative="greater").pvalue
    assert permutation_p(scores, positive, rng) == pytest.approx(wanted, abs=0.03)


def test_few_or_wordless_texts_are_refused():
    with pytest.raises(InputError, match="the second file holds 1 different texts; drift needs 20 or more"):
        compare(drawn(50, 8), ["the same"] * 50)
    dots = ["a " + ". " * place for place in range(1, 40)]
    with pytest.raises(InputError, match="no words to compare"):
        compare([text[1:] for text in dots], [text[1:] + "!" for text in dots])
