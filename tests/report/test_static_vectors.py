"""Static vectors and linear features: held against stock transformers, scikit-learn and plain loops."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tiny import BAD, GOOD, make_reviews

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.report import linear, static_vectors
from compressor.report.linear import by_side, fit_static, fit_tfidf
from compressor.report.static_vectors import RARITY, distil_vectors, own_tokens, principal, token_states

TEXTS = [text for text, _ in make_reviews(60, seed=9)]


def sets(texts: list, labels: list[int], *, train: int, select: int) -> DataSets:
    ends = (0, train, train + select, len(texts))
    parts = [Rows(tuple(texts[a:b]), tuple(labels[a:b])) for a, b in pairwise(ends)]
    return DataSets(
        task=Task(),
        labels=("no", "yes"),
        text_columns=("text",),
        max_tokens=32,
        train=parts[0],
        select=parts[1],
        test=parts[2],
        unlabelled=Rows((), ()),
    )


def share_right(answers: np.ndarray, rows: Rows) -> float:
    return float(np.mean(answers == np.array(rows.labels)))


def test_a_tokens_state_is_the_mean_of_what_stock_transformers_gives(tiny_classifier: Path):
    from transformers import AutoModel, AutoTokenizer

    encoder = open_encoder(tiny_classifier, 32)
    tokens = np.array([5, 9, 20], dtype=np.int64)
    found = token_states(load_model(tiny_classifier), encoder, tokens)
    tokenizer, stock = AutoTokenizer.from_pretrained(tiny_classifier), AutoModel.from_pretrained(tiny_classifier).eval()
    for token, row in zip(tokens, found, strict=True):
        inputs = tokenizer(tokenizer.convert_ids_to_tokens(int(token)), return_tensors="pt")
        assert inputs["input_ids"].shape == (1, 3)
        with torch.no_grad():
            wanted = stock(**inputs).last_hidden_state[0].mean(0)
        assert torch.from_numpy(row) == pytest.approx(wanted, abs=1e-5)


def test_states_do_not_depend_on_how_many_tokens_are_asked_at_once(
    tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder, model = open_encoder(tiny_classifier, 32), load_model(tiny_classifier)
    tokens = np.arange(5, 25, dtype=np.int64)
    whole = token_states(model, encoder, tokens)
    monkeypatch.setattr(static_vectors, "TOKENS_AT_ONCE", 7)
    assert token_states(model, encoder, tokens) == pytest.approx(whole, abs=1e-5)


def test_a_text_is_the_mean_of_its_tokens_vectors(tiny_classifier: Path):
    vectors = distil_vectors(tiny_classifier, TEXTS, max_tokens=32)
    found = vectors.embed(["a film", "gripping film film", "", "unheard"])
    place = {word: vectors.place[vectors.encoder.tokenizer.token_to_id(word)] for word in ("a", "film", "gripping")}
    one = {word: vectors.vectors[number] for word, number in place.items()}
    assert found[0] == pytest.approx((one["a"] + one["film"]) / 2, abs=1e-6)
    assert found[1] == pytest.approx((one["gripping"] + 2 * one["film"]) / 3, abs=1e-6)
    assert not found[2:].any()
    assert vectors.bytes == len(vectors.place) * vectors.vectors.shape[1] * 4


def test_frequent_tokens_weigh_less_as_smooth_inverse_frequency_says(tiny_classifier: Path):
    vectors = distil_vectors(tiny_classifier, TEXTS, max_tokens=32)
    encoder = vectors.encoder
    tokens, rows = own_tokens(encoder, TEXTS)
    assert len(np.unique(rows)) == len(TEXTS)
    kinds, counts = np.unique(tokens, return_counts=True)
    plain = principal(
        token_states(load_model(tiny_classifier), encoder, kinds), np.ones(len(kinds), dtype=bool), 256, seed=17
    )
    for row, count, whole in zip(vectors.vectors, counts, plain, strict=True):
        share = (count + 1) / (len(tokens) + len(kinds))
        assert row == pytest.approx(whole * RARITY / (RARITY + share), abs=1e-6)


def test_texts_that_are_only_answered_change_no_other_vector(tiny_classifier: Path):
    few = [f"the film is {word}" for word in GOOD]
    alone = distil_vectors(tiny_classifier, few, max_tokens=32)
    with_others = distil_vectors(tiny_classifier, few, further=[f"plot {word}" for word in BAD], max_tokens=32)
    assert len(with_others.vectors) == len(alone.vectors) + len(BAD) + 1
    one, other = alone.embed(few), with_others.embed(few)
    directions = [part / np.linalg.norm(part) for part in (one, other)]
    assert directions[0] == pytest.approx(directions[1], abs=0.02)
    assert with_others.embed(["plot dull"]).any()
    assert not alone.embed(["plot dull"]).any()


def test_texts_without_a_known_token_are_refused(tiny_classifier: Path):
    with pytest.raises(InputError, match=r"^the texts hold no token that the teacher's vocabulary knows$"):
        distil_vectors(tiny_classifier, ["", "xyz"], max_tokens=32)


def test_static_vectors_learn_words_that_decide(tiny_classifier: Path):
    reviews = make_reviews(400, seed=4)
    data = sets([text for text, _ in reviews], [int(label == "good") for _, label in reviews], train=200, select=50)
    simple = fit_static(data, tiny_classifier, data.test.texts)
    assert share_right(simple.answer(data.test.texts), data.test) > 0.9
    assert "static vectors of the teacher's tokens" in simple.what
    one_by_one = np.concatenate([simple.answer([text]) for text in data.test.texts[:20]])
    assert (one_by_one == simple.answer(data.test.texts[:20])).all()


def test_tfidf_answers_as_scikit_learns_own_pipeline():
    reviews = make_reviews(200, seed=6)
    data = sets([text for text, _ in reviews], [int(label == "good") for _, label in reviews], train=30, select=40)
    counted = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    inputs = counted.fit_transform(data.train.texts)
    fitted = [LogisticRegression(C=c, max_iter=500).fit(inputs, data.train.labels) for c in linear.STRENGTHS]
    held = counted.transform(data.select.texts)
    best = max(fitted, key=lambda model: model.score(held, data.select.labels))
    found = fit_tfidf(data)
    assert f"C {best.C:g}" in found.what
    assert (found.answer(data.test.texts) == best.predict(counted.transform(data.test.texts))).all()


def test_chinese_is_counted_by_characters():
    draw = np.random.default_rng(2)
    filler = list("我们在那里看了这部电影觉得演员和故事")
    texts, labels = [], []
    for number in range(300):
        word = ("好看", "难看")[number % 2]
        texts.append("".join(draw.choice(filler, 8)) + word + "".join(draw.choice(filler, 3)))
        labels.append(1 - number % 2)
    data = sets(texts, labels, train=100, select=50)
    simple = fit_tfidf(data)
    assert "1 to 3 characters" in simple.what
    assert share_right(simple.answer(data.test.texts), data.test) > 0.95


def test_whether_two_texts_share_a_word_is_learned_from_their_product():
    draw = np.random.default_rng(3)
    words, pairs, labels = ["river", "engine", "violin", "garden"], [], []
    for number in range(400):
        one = draw.choice(words)
        other = one if number % 2 else draw.choice([word for word in words if word != one])
        pairs.append((f"about the {one}", f"we saw a {other} there"))
        labels.append(number % 2)
    data = sets(pairs, labels, train=200, select=50)
    assert share_right(fit_tfidf(data).answer(data.test.texts), data.test) == 1.0


def test_a_pairs_features_are_both_sides_their_distance_and_their_product():
    from scipy.sparse import csr_matrix

    table = {"a": [1.0, 2.0], "b": [3.0, -1.0]}
    dense = by_side([("a", "b")], lambda texts: np.array([table[text] for text in texts]))
    sparse = by_side([("a", "b")], lambda texts: csr_matrix([table[text] for text in texts]))
    wanted = [[1, 2, 3, -1, 2, 3, 3, -2]]
    assert dense.tolist() == wanted
    assert sparse.toarray().tolist() == wanted


def test_pairs_of_static_vectors_are_answered(tiny_classifier: Path):
    pairs = list(pairwise(TEXTS))
    data = sets(pairs, [place % 2 for place in range(len(pairs))], train=30, select=10)
    assert fit_static(data, tiny_classifier, data.test.texts).answer(data.test.texts).shape == (len(data.test),)


def test_more_rows_than_are_learned_from_are_drawn_with_the_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "MOST_ROWS", 10)
    rows = Rows(tuple(TEXTS), (None, *(place % 2 for place in range(len(TEXTS) - 1))))
    kept = linear.labelled(rows, seed=1)
    assert len(kept) == 10
    assert None not in kept.labels
    assert kept == linear.labelled(rows, seed=1)
    assert kept != linear.labelled(rows, seed=2)
    assert len(linear.labelled(replace(rows, texts=rows.texts[:3], labels=rows.labels[:3]))) == 2
