"""Small changes of texts: what they may touch, and what they do to answers that a rule gives."""

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.evaluate.perturb import CHANGES, changed, draw_rows, first_half, perturbed, typos

TEXTS = [
    "The film is a gripping story, with bright actors and a very tender plot.",
    "这部电影的故事很感人值得一看",
    "ok",
]


@pytest.mark.parametrize("text", TEXTS)
def test_typos_keep_every_letter_and_swap_neighbours_in_a_seventh_of_the_words(text: str):
    found = typos(text, seed=3)
    assert sorted(found) == sorted(text)
    assert found != text
    places = [place for place, (one, other) in enumerate(zip(text, found, strict=True)) if one != other]
    assert all(after - before == 1 for before, after in zip(places[::2], places[1::2], strict=True))
    words = len(text.split()) if " " in text else -(-len(text) // 2)
    assert len(places) == 2 * max(1, round(sum(1 for _ in range(words)) / 7))


def test_typos_leave_spaces_digits_and_texts_without_words_alone():
    assert typos("12 345 . ,") == "12 345 . ,"
    assert typos("aa bb A") == "aa bb A"
    assert typos("") == ""


def test_typos_depend_on_text_and_seed_alone():
    assert typos(TEXTS[0], seed=1) == typos(TEXTS[0], seed=1)
    assert len({typos(TEXTS[0], seed=seed) for seed in range(20)}) > 5


def test_the_first_half_ends_with_a_whole_word_and_is_never_empty():
    assert first_half("one two three four") == "one two three"
    assert first_half("这部电影的故事") == "这部电影"
    assert first_half("x") == "x"
    assert first_half("") == ""


def test_both_texts_of_a_pair_are_changed():
    assert changed("upper case", ("a b", "c")) == ("A B", "C")
    with pytest.raises(InputError, match="no change of texts is called 'shout'; there are upper case, lower case"):
        changed("shout", "a")


def test_a_rule_that_reads_capitals_falls_for_capitals_alone():
    texts = [f"row {place} ends with {word}" for place, word in enumerate(["Good", "bad"] * 40)]
    references = np.array([1, 0] * 40)

    def answer(asked: list[str]) -> np.ndarray:
        return np.array([[0.0, 1.0] if "Good" in text or "Bad" in text else [1.0, 0.0] for text in asked])

    found = {
        change.what: change
        for change in perturbed(answer, texts, references, references, ("bad", "good"), metric="accuracy")
    }
    assert list(found) == list(CHANGES)
    for what in ("upper case", "lower case", "first half"):
        assert found[what].score.value == 0.5
        assert found[what].drop.value == 0.5
        assert found[what].agreement == 0.5
        assert found[what].drop.low > 0.3


def test_changes_that_change_nothing_are_left_out_and_unchanged_rows_are_not_asked():
    asked: list[str] = []

    def answer(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.tile([1.0, 0.0], (len(texts), 1))

    texts = ["很好看的电影", "不值得看完它"]
    found = perturbed(answer, texts, np.zeros(2, int), np.array([0, 1]), ("差", "好"), metric="accuracy")
    assert [change.what for change in found] == ["typos", "first half"]
    assert all(change.agreement == 1.0 and change.drop.value == 0.0 for change in found)
    assert not set(asked) & set(texts)


def test_the_order_of_the_rows_changes_nothing():
    texts = [f"{word} story number {place} is told" for place, word in enumerate(["gripping", "dull"] * 30)]
    references = np.array([1, 0] * 30)

    def answer(asked: list[str]) -> np.ndarray:
        return np.array([[0.0, 1.0] if "gripping" in text else [1.0, 0.0] for text in asked])

    def figures(order: np.ndarray) -> list[tuple[str, float, float]]:
        taken = [texts[row] for row in order]
        own = references[order]
        found = perturbed(answer, taken, own, own, ("bad", "good"), metric="accuracy")
        return [(change.what, change.score.value, change.agreement) for change in found]

    assert figures(np.arange(60)) == figures(np.random.default_rng(0).permutation(60))


def test_rows_are_drawn_once_each_and_alike_for_one_seed():
    assert len(set(draw_rows(5000).tolist())) == 500
    assert draw_rows(3).tolist() == [0, 1, 2]
    assert np.array_equal(draw_rows(900, seed=1), draw_rows(900, seed=1))
