"""The rows on which a model and its teacher differ, worst first."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from compressor.errors import InputError
from compressor.report.disagreements import disagreements, write_disagreements

LABELS = ("差", "good")
TEACHER = np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]], dtype=np.float32)
SUBJECT = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 0.0]], dtype=np.float32)
TEXTS = ["alike", "<b>apart</b>", "电影\u2028很好", "far apart"]


def test_rows_with_other_answers_stand_by_falling_divergence():
    found = disagreements(TEXTS, [0, 1, None, 1], LABELS, teacher=TEACHER, subject=SUBJECT)
    assert [row["row"] for row in found] == [3, 1, 2]
    assert [row["label"] for row in found] == ["good", "good", None]
    assert found[0]["teacher"]["label"] == "good"
    assert found[0]["subject"]["label"] == "差"
    wanted = special.softmax(TEACHER[3])
    assert found[0]["teacher"]["scores"] == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-6)
    assert found[0]["kl"] > found[1]["kl"] > found[2]["kl"] > 0
    assert len(disagreements(TEXTS, [0, 1, None, 1], LABELS, teacher=TEACHER, subject=SUBJECT, most=2)) == 2


def test_the_file_holds_one_object_a_line_whatever_the_texts_hold(tmp_path: Path):
    pairs = [(text, "and\na line") for text in TEXTS]
    rows = disagreements(pairs, [0, 1, None, 1], LABELS, teacher=TEACHER, subject=SUBJECT)
    path = write_disagreements(tmp_path / "new" / "worst.jsonl", rows)
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert read == rows
    assert read[0]["text"] == ["far apart", "and\na line"]


def test_models_that_agree_leave_an_empty_file(tmp_path: Path):
    rows = disagreements(TEXTS, [0, 1, 1, 1], LABELS, teacher=TEACHER, subject=TEACHER)
    assert write_disagreements(tmp_path / "worst.jsonl", rows).read_text() == ""


def test_answers_to_other_rows_are_refused():
    with pytest.raises(InputError, match="got 3 texts, 4 labels"):
        disagreements(TEXTS[:3], [0, 1, 1, 1], LABELS, teacher=TEACHER, subject=SUBJECT)
