"""Small changes of the texts put to real models."""

from pathlib import Path

import numpy as np
import pytest
from tiny import make_reviews

from compressor.errors import InputError
from compressor.report.accuracy import Known
from compressor.report.assemble import Scored, Told, assemble
from compressor.report.perturbations import perturb, remembering, with_perturbations
from compressor.report.subjects import Subject
from compressor.runtime.predictor import load

LABELS = ("bad", "good")
REVIEWS = make_reviews(60, seed=8)
TEXTS = [text for text, _ in REVIEWS]
KNOWN = Known([LABELS.index(label) for _, label in REVIEWS], LABELS, "accuracy", True)


@pytest.fixture
def subject(tiny_classifier: Path) -> Subject:
    logits = load(tiny_classifier, engine="torch").logits(TEXTS)
    return Subject("teacher", tiny_classifier, engine="torch", logits=logits)


def test_an_uncased_model_keeps_its_answers_in_capitals_and_is_not_asked_for_them(subject: Subject):
    found = {one.what: one for one in perturb(subject, TEXTS, KNOWN)}
    assert found["upper case"].agreement == 1.0
    assert found["upper case"].drop.value == 0.0
    assert found["upper case"].rows == 60
    asked = load(subject.folder, engine="torch").predict([text[: -(-len(text) // 2)] for text in TEXTS])
    assert found["first half"].rows == len(asked)
    before = np.mean(subject.logits.argmax(-1) == np.array(KNOWN.references))
    assert found["typos"].score.value + found["typos"].drop.value == pytest.approx(before)


def test_texts_of_the_same_tokens_are_asked_once(tiny_classifier: Path):
    predictor, asked = load(tiny_classifier, engine="torch"), []

    def ask(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return predictor.logits(texts)

    answer = remembering(predictor.encoder.encode, ask, TEXTS, predictor.logits(TEXTS))
    found = answer([TEXTS[3].upper(), "a dull plot", "A Dull plot", TEXTS[5]])
    assert [text.lower() for text in asked] == ["a dull plot"]
    assert found == pytest.approx(predictor.logits([TEXTS[3], "a dull plot", "a dull plot", TEXTS[5]]), abs=1e-5)


def test_the_report_is_filled_for_the_names_asked_for(tmp_path: Path, tiny_classifier: Path):
    from compressor.export.exporter import Exporter

    folder = Path(Exporter(tiny_classifier).export(tmp_path / "onnx"))
    logits = load(folder).logits(TEXTS)
    subjects = [Subject(name, folder, parameters=1, logits=logits) for name in ("teacher", "student")]
    told = Told(name="movies", task={"kind": "text-classification", "metric": "accuracy"}, data={}, machine={})
    report = assemble(told, subjects, Scored(KNOWN.references, LABELS, True), timings="not timed")
    filled = with_perturbations(report, subjects, TEXTS, KNOWN, names=["student"], threads=1)
    assert filled.subject("teacher").perturbed == ()
    assert [one.what for one in filled.subject("student").perturbed] == ["upper case", "typos", "first half"]
    with pytest.raises(InputError, match="no answers of 'int8' to change the texts of; there are teacher, student"):
        with_perturbations(report, subjects, TEXTS, KNOWN, names=["int8"])


def test_rows_without_labels_give_nothing(subject: Subject):
    assert perturb(subject, TEXTS, Known([None] * 60, LABELS, "accuracy", True)) == ()
