"""`score`: a model beside its teacher on rows without labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import special
from tiny import make_reviews, write_tiny_bert

from compressor.errors import InputError
from compressor.report.score import read_temperature, score
from compressor.runtime.predictor import load

TEXTS = [text for text, _ in make_reviews(150, seed=9)]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return write_tiny_bert(tmp_path / "student", layers=1, labels=("bad", "good"), seed=4)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.txt"
    path.write_text("\n".join([*TEXTS, "", "  "]) + "\n", encoding="utf-8")
    return path


def test_agreement_divergence_and_expected_accuracy_are_those_of_the_answers(
    tiny_classifier: Path, student: Path, pool: Path
):
    found = score(student, tiny_classifier, pool)
    ours, theirs = (load(folder).logits(TEXTS).astype(float) for folder in (student, tiny_classifier))
    assert (found.rows, found.blank, found.truncated) == (150, 2, 0)
    assert found.agreement.value == pytest.approx(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    p, q = special.softmax(theirs, -1), special.softmax(ours, -1)
    assert found.kl.value == pytest.approx(np.mean((p * np.log(p / q)).sum(-1)), rel=1e-4)
    assert found.expected_accuracy.value == pytest.approx(q.max(-1).mean())
    assert found.expected_accuracy.low < found.expected_accuracy.value < found.expected_accuracy.high
    assert sum(counts["model"] for counts in found.answered.values()) == 150
    assert found.drift is None
    json.dumps(found.to_dict())


def test_a_model_agrees_with_itself_wholly(tiny_classifier: Path, pool: Path):
    found = score(tiny_classifier, tiny_classifier, pool)
    assert (found.agreement.value, found.agreement.high, found.kl.value) == (1.0, 1.0, 0.0)
    assert found.agreement.low < 1.0


def test_a_temperature_in_compressor_json_is_used_and_said(tiny_classifier: Path, student: Path, pool: Path):
    plain = score(student, tiny_classifier, pool)
    assert plain.temperature is None
    assert "holds no temperature" in plain.doubts[0]
    load(student).manifest.write(student, extra={"temperature": 0.25})
    sharper = score(student, tiny_classifier, pool)
    assert sharper.temperature == 0.25
    assert sharper.expected_accuracy.value > plain.expected_accuracy.value
    assert "the temperature was fitted on" in sharper.doubts[0]
    assert any("at temperature 0.25" in line for line in sharper.sentences())


def test_drift_between_two_files_is_found_and_doubted(tiny_classifier: Path, student: Path, pool: Path, tmp_path: Path):
    other = tmp_path / "later.txt"
    other.write_text("".join(f"{text} in the wrong aspect ratio\n" for text in TEXTS), encoding="utf-8")
    found = score(student, tiny_classifier, pool, drift=other)
    assert found.drift.differs
    assert found.drift.unknown[1] > found.drift.unknown[0]
    assert any("the two files differ" in doubt for doubt in found.doubts)
    assert any(line.startswith("drift: the files differ") for line in found.sentences())
    assert max(map(len, found.sentences())) < 250
    same = score(student, tiny_classifier, pool, drift=pool)
    assert not same.drift.differs
    assert any("0 and 0 texts that the other lacks are too few" in line for line in same.sentences())
    assert (
        "drift: 100.0 % and 100.0 % of their different texts are in both files, and were left out" in same.sentences()
    )
    assert not any("in both files" in line for line in found.sentences())


def test_labels_in_another_order_are_matched_by_name(tiny_classifier: Path, pool: Path, tmp_path: Path):
    turned = tmp_path / "turned"
    shutil.copytree(tiny_classifier, turned)
    config = json.loads((turned / "config.json").read_text())
    config |= {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (turned / "config.json").write_text(json.dumps(config))
    assert score(turned, tiny_classifier, pool).agreement.value == 0.0


def test_pairs_and_columns_are_read_as_asked(tiny_classifier: Path, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"a": text, "b": "很好 的 film"} for text in TEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = score(tiny_classifier, tiny_classifier, path, text=["a", "b"], drift=path)
    assert found.rows == 150
    assert found.unknown_share > 0.1
    assert any("unknown to the model's vocabulary" in doubt for doubt in found.doubts)
    with pytest.raises(InputError, match=r"no column 'text'; its columns are a, b"):
        score(tiny_classifier, tiny_classifier, path)


def test_what_cannot_be_scored_is_named(tiny_classifier: Path, pool: Path, tmp_path: Path):
    stranger = write_tiny_bert(tmp_path / "stranger", layers=1, labels=("neg", "pos"))
    with pytest.raises(InputError, match=r"answers neg, pos, .* answers bad, good"):
        score(stranger, tiny_classifier, pool)
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(InputError, match="all 2 rows are blank"):
        score(tiny_classifier, tiny_classifier, blank)
    short = tmp_path / "short.txt"
    short.write_text("a film\na story\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"short.txt holds 2 different texts; drift needs 20"):
        score(tiny_classifier, tiny_classifier, pool, drift=short)
    with pytest.raises(InputError, match="is not a folder"):
        score(tmp_path / "nothing", tiny_classifier, pool)


@pytest.mark.parametrize("value", [0, -1.5, "2", True])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, value: object):
    (tmp_path / "compressor.json").write_text(json.dumps({"temperature": value}))
    with pytest.raises(InputError, match="temperature must be a number above 0"):
        read_temperature(tmp_path)
