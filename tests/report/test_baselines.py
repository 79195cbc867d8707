"""Baselines: learned from rows whose rule is known, held against a deployed model, and never the end of a report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import make_reviews

from compressor.bench.settings import BASELINES
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.evaluate.paired import drop
from compressor.evaluate.settings import Budget
from compressor.model.manifest import read_manifest
from compressor.model.settings import Student
from compressor.report import linear
from compressor.report.baselines import Held, make_baselines, row_milliseconds
from compressor.report.simpler import TITLES, verdict_note
from compressor.report.small_model import Small
from compressor.runtime.predictor import load

NOWHERE = Path("nowhere")


def rows_of(reviews: list[tuple[str, str]]) -> Rows:
    return Rows(tuple(text for text, _ in reviews), tuple(("bad", "good").index(label) for _, label in reviews))


def split(rows: Rows, *, train: int, select: int) -> DataSets:
    places = range(len(rows))
    return DataSets(
        task=Task(),
        labels=("bad", "good"),
        text_columns=("text",) if isinstance(rows.texts[0], str) else ("text_a", "text_b"),
        max_tokens=32,
        train=rows.take(places[:train]),
        select=rows.take(places[train : train + select]),
        test=rows.take(places[train + select :]),
        unlabelled=Rows((), ()),
    )


def answering(labels: np.ndarray) -> np.ndarray:
    """Logits of a model that gives these class ids."""
    return np.eye(2, dtype=np.float32)[labels]


def held_by(data: DataSets, *, right: float, **more: object) -> Held:
    """A teacher that is always right, and a deployed model that is so on a share of the rows."""
    assert data.test is not None
    true = np.array(data.test.labels)
    wrong = np.arange(len(true)) >= round(right * len(true))
    logits = {"teacher": answering(true), "ship": answering(np.where(wrong, 1 - true, true))}
    return Held(data.test.texts, data.test.labels, logits, "ship", **more)


@pytest.fixture(scope="module")
def data() -> DataSets:
    return split(rows_of(make_reviews(400, seed=3)), train=150, select=50)


def test_every_name_of_the_settings_has_a_title_and_the_simplest_comes_first():
    assert tuple(TITLES) == BASELINES


def test_words_that_decide_are_found_and_would_suffice(data: DataSets, tmp_path: Path):
    made = make_baselines(["tfidf"], data, NOWHERE, held_by(data, right=0.9), work=tmp_path)
    (row,) = made.made
    assert made.doubts == ()
    assert (row.name, row.metric.name, row.metric.rows) == ("tfidf", "accuracy", 200)
    assert row.metric.value > 0.9
    assert row.suffices
    assert 0 < (row.bytes or 0) < 1e6
    assert (row.milliseconds or 0) > 0
    assert (row.seconds or 0) > 0
    assert "ahead of the deployed model ship" in row.sentence
    assert row.sentence.endswith("on 200 rows: it is at most 1 pp worse: it suffices.")
    note = verdict_note(made.made)
    assert note is not None
    assert note.startswith(
        f"Something simpler may do: TF-IDF with logistic regression reaches {row.metric.value:.1%}"[:-1]
    )
    assert note.endswith("and is not shown to be worse.")


def test_labels_that_no_word_explains_leave_the_deployed_model_ahead(data: DataSets, tmp_path: Path):
    drawn = np.random.default_rng(0).integers(0, 2, 400)
    rows = Rows(data.train.texts + data.select.texts + data.test.texts, tuple(int(one) for one in drawn))
    noise = split(rows, train=150, select=50)
    held = held_by(noise, right=0.95)
    (row,) = make_baselines(["tfidf"], noise, NOWHERE, held, work=tmp_path, timing=False).made
    assert not row.suffices
    assert row.milliseconds is None
    assert row.behind_best.low > 0.2
    assert row.drop.value == pytest.approx(row.behind_best.value + 0.05)
    behind = row.behind_best
    assert row.sentence == (
        f"TF-IDF with logistic regression reaches {100 * row.metric.value:.1f} % accuracy, {100 * behind.value:.1f} pp "
        f"behind the deployed model ship ({100 * behind.low:.1f} to {100 * behind.high:.1f}) on 200 rows: "
        "it does not suffice."
    )
    assert verdict_note([row]) is None


def test_the_gap_is_the_paired_drop_from_the_deployed_model(data: DataSets, tmp_path: Path):
    held = held_by(data, right=0.9)
    (row,) = make_baselines(["tfidf"], data, NOWHERE, held, work=tmp_path, timing=False).made
    answers = linear.fit_tfidf(data).answer(data.test.texts)
    wanted = drop("accuracy", held.logits["ship"].argmax(-1), answers, np.array(data.test.labels), data.labels)
    assert (row.behind_best.value, row.behind_best.low, row.behind_best.high) == (wanted.value, wanted.low, wanted.high)


def test_rows_without_a_label_count_for_nothing(data: DataSets, tmp_path: Path):
    held = held_by(data, right=0.9)
    hidden = replace(held, references=[None] * 100 + list(held.references[100:]))
    (row,) = make_baselines(["tfidf"], data, NOWHERE, hidden, work=tmp_path, timing=False).made
    assert row.metric.rows == 100


def test_a_broken_score_limit_means_that_it_does_not_suffice(data: DataSets, tmp_path: Path):
    flipped = Rows(data.test.texts, tuple(1 - label for label in data.test.labels))
    against = replace(data, test=flipped)  # words say the opposite there, and the deployed model is no better
    for limits, suffices in (
        ({"accuracy": ">= 60pp"}, False),
        ({"accuracy": {"drop": "<= 1pp"}}, False),
        ({"accuracy": {"drop": "<= 1pp", "vs": "absent"}}, False),
        ({"latency": {"p50": "<= 1ms"}, "size": "<= 1MB"}, True),
    ):
        held = held_by(against, right=0.0, budget=Budget.model_validate(limits))
        (row,) = make_baselines(["tfidf"], against, NOWHERE, held, work=tmp_path, timing=False).made
        assert row.suffices is suffices, limits
    held = held_by(against, right=0.0, budget=Budget.model_validate({"accuracy": ">= 60pp"}))
    (row,) = make_baselines(["tfidf"], against, NOWHERE, held, work=tmp_path, timing=False).made
    assert row.sentence.endswith("not shown to be worse, but it breaks accuracy >= 60pp, so it does not suffice.")


def test_what_fails_becomes_a_doubt_and_the_rest_is_made(data: DataSets, tmp_path: Path):
    made = make_baselines(["small", "static", "tfidf"], data, tmp_path, held_by(data, right=0.9), work=tmp_path / "w")
    assert [one.name for one in made.made] == ["tfidf"]
    static, small = made.doubts
    assert static.startswith("Baseline static could not be made: ")
    assert small.startswith("Baseline small could not be made: ")
    assert str(tmp_path) in static
    one_class = replace(data, train=Rows(data.train.texts, (1,) * len(data.train)))
    made = make_baselines(["tfidf"], one_class, NOWHERE, held_by(data, right=0.9), work=tmp_path)
    assert made.doubts == ("Baseline tfidf could not be made: the train rows are all of one class.",)


def test_no_names_make_no_baselines(data: DataSets, tmp_path: Path):
    made = make_baselines([], data, NOWHERE, held_by(data, right=0.9), work=tmp_path)
    assert (made.made, made.doubts) == ((), ())


def test_few_rows_and_a_select_of_one_class_will_do(data: DataSets, tmp_path: Path):
    few = replace(data, train=data.train.head(4), select=Rows(data.select.texts[:1], data.select.labels[:1]))
    made = make_baselines(["tfidf"], few, NOWHERE, held_by(few, right=0.9), work=tmp_path, timing=False)
    assert made.doubts == ()
    none = replace(few, select=Rows((), ()))
    assert make_baselines(["tfidf"], none, NOWHERE, held_by(few, right=0.9), work=tmp_path, timing=False).doubts == ()


def test_answers_that_are_missing_or_too_few_are_named(data: DataSets, tmp_path: Path):
    held = held_by(data, right=0.9)
    with pytest.raises(InputError, match=r"^baselines need the answers of 'slim'; there are teacher, ship$"):
        make_baselines(["tfidf"], data, NOWHERE, replace(held, deployed="slim"), work=tmp_path)
    with pytest.raises(InputError, match=r"one answer each \(3 rows, teacher has 200 answers\)"):
        make_baselines(["tfidf"], data, NOWHERE, replace(held, references=[0, 1, 0]), work=tmp_path)


def test_a_small_model_that_is_there_is_scored_as_it_answers(data: DataSets, tiny_classifier: Path, tmp_path: Path):
    small = Small(folder=tiny_classifier)
    held = held_by(data, right=0.9)
    made = make_baselines(["small"], data, tiny_classifier, held, small=small, work=tmp_path, threads=1, timing=False)
    (row,) = made.made
    answers = load(tiny_classifier, engine="torch").logits(list(data.test.texts)).argmax(-1)
    assert row.metric.value == pytest.approx(np.mean(answers == np.array(data.test.labels)))
    assert row.seconds is None
    assert row.bytes == (tmp_path / "small" / "onnx" / "model.onnx").stat().st_size


def test_a_small_model_is_trained_in_the_given_shape_and_only_once(
    data: DataSets, tiny_classifier: Path, tmp_path: Path
):
    held = held_by(data, right=0.9)
    told: list[tuple[str, int]] = []

    def make() -> None:
        made = make_baselines(
            ["small"],
            data,
            tiny_classifier,
            held,
            small=Small(student=Student(layers=1, ffn=32), steps=3),
            work=tmp_path,
            threads=1,
            timing=False,
            progress=lambda what, done, _total: told.append((what, done)),
        )
        assert made.doubts == ()
        assert made.made[0].what == "1 of the teacher's layers, fine-tuned on the labels alone for 3 steps"

    make()
    (layer,) = read_manifest(tmp_path / "small" / "model").shapes.layers
    assert layer.ffn == 32
    assert ("baseline small", 3) in told
    weights = (tmp_path / "small" / "model" / "model.safetensors").read_bytes()
    steps = (tmp_path / "small" / "steps.jsonl").read_text()
    make()
    assert (tmp_path / "small" / "model" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "small" / "steps.jsonl").read_text() == steps


def test_the_time_of_a_row_is_a_median_and_ends_after_two_seconds():
    now, asked = [0], []

    def answer(texts: list[str]) -> None:
        asked.append(texts)
        now[0] += 3_000_000 if texts == ["slow"] else 1_000_000

    assert row_milliseconds(answer, ["a", "slow", "b"], clock=lambda: now[0]) == 1.0
    assert len(asked) == 210
    assert {len(texts) for texts in asked} == {1}
    asked.clear()

    def crawl(texts: list[str]) -> None:
        asked.append(texts)
        now[0] += 1_500_000_000

    assert row_milliseconds(crawl, ["a"], clock=lambda: now[0]) == 1500.0
    assert len(asked) == 12
