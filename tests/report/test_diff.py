"""`diff`: what two runs have in common and what not."""

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.evaluate.paired import drop
from compressor.report.diff import changed, diff
from compressor.report.kept import keep_answers, read_answers
from compressor.report.model import Report
from compressor.report.subjects import Subject

MACHINE = {"id": "a1", "cpu": "one", "memory_bytes": 8 * 10**9}
REFERENCES = np.random.default_rng(0).integers(0, 2, 300)


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def logits(wrong: float, seed: int) -> np.ndarray:
    """Answers of which that share is wrong."""
    flipped = np.random.default_rng(seed).random(len(REFERENCES)) < wrong
    return np.eye(2, dtype=np.float32)[np.where(flipped, 1 - REFERENCES, REFERENCES)]


def make_run(folder: Path, *, steps: int, wrong: float, machine: dict[str, object] = MACHINE, rows: str = "r1") -> Path:
    (folder / "report").mkdir(parents=True)
    answers = logits(wrong, steps)
    right = float(np.mean(answers.argmax(-1) == REFERENCES))
    row = {
        "target": "cpu", "threads": 1, "status": "measured", "p50_ms": 2.0 + steps, "samples": 100,
    }  # fmt: skip
    subject = {
        "name": "teacher", "engine": "onnxruntime", "precision": "fp32", "path": "p", "parameters": 1, "bytes": 1,
        "metric": {**figure(right), "name": "accuracy", "rows": 300}, "versus_teacher": None, "latency": [row],
    }  # fmt: skip
    about = {"task": {"metric": "accuracy"}, "machine": machine, "data": {}}
    report = Report(verdict="pass", **about, budgets=(), subjects=(subject,), ladder=())
    (folder / "report" / "report.json").write_text(report.to_json())
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "versions": {"torch": f"2.{steps}"}}))
    stages = f"- id: student\n  distill: {{train: {{steps: {steps}}}}}\n"
    (folder / "recipe.resolved.yaml").write_text(f"version: 1\nname: n\nbase: {folder}\nstages:\n{stages}")
    scored = Subject("teacher", folder, logits=answers)
    keep_answers(folder / "report", [scored], REFERENCES.tolist(), ("no", "yes"), rows=rows, part="test")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return make_run(tmp_path / "a", steps=4, wrong=0.1), make_run(tmp_path / "b", steps=6, wrong=0.3)


def test_a_run_does_not_differ_from_itself(runs: tuple[Path, Path]):
    found = diff(runs[0], runs[0])
    assert (found.recipe, found.environment, found.machines) == ((), (), ())
    (score,) = found.scores
    assert score.drop.value == 0
    assert "recipe: no difference" in found.text()


def test_changed_keys_are_named_and_the_place_of_a_recipe_is_none(runs: tuple[Path, Path]):
    found = diff(*runs)
    assert [(one.key, one.one, one.other) for one in found.recipe] == [("stages.student.distill.train.steps", 4, 6)]
    assert [one.key for one in found.environment] == ["versions.torch"]
    assert "  stages.student.distill.train.steps: 4 -> 6" in found.text()


def test_scores_are_paired_row_by_row_where_the_answers_were_kept(runs: tuple[Path, Path]):
    (score,) = diff(*runs).scores
    before, after = (logits(wrong, steps).argmax(-1) for wrong, steps in ((0.1, 4), (0.3, 6)))
    wanted = drop("accuracy", before, after, REFERENCES, ("no", "yes"))
    assert (score.drop, score.reason) == (wanted, None)
    assert score.drop.value == pytest.approx(np.mean(before == REFERENCES) - np.mean(after == REFERENCES))


def test_other_rows_and_lost_answers_are_not_paired(runs: tuple[Path, Path], tmp_path: Path):
    other = make_run(tmp_path / "c", steps=6, wrong=0.3, rows="r2")
    assert diff(runs[0], other).scores[0].reason == "the two were scored on different rows"
    (runs[1] / "report" / "answers.npz").unlink()
    found = diff(*runs)
    assert found.scores[0].drop is None
    assert "not paired: a run kept no answers" in found.text()
    assert "run its recipe again with the same --out" in found.scores[0].reason
    assert str(runs[1]) in found.scores[0].reason
    assert found.scores[0].answers_changed is None


def test_answers_that_changed_are_counted_for_each_stage(runs: tuple[Path, Path]):
    (row,) = diff(*runs).scores
    before, after = logits(0.1, 4).argmax(-1), logits(0.3, 6).argmax(-1)
    assert (row.answers_changed, row.rows) == (int(np.sum(before != after)), len(REFERENCES))
    assert f"{row.answers_changed} of {row.rows}" in diff(*runs).text()


def test_a_key_that_one_version_alone_knows_is_no_change_of_the_recipe_unless_it_was_written(runs: tuple[Path, Path]):
    resolved = runs[1] / "recipe.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("name: n\n", "name: n\nfresh: 3\nwritten: 4\n"))
    (runs[1] / "recipe.yaml").write_text("name: n\nwritten: 4\n")
    found = diff(*runs)
    assert [one.key for one in found.recipe] == ["stages.student.distill.train.steps", "written"]
    assert found.unknown == ("fresh",)
    assert "known to the version of one run alone, and set by neither recipe: fresh" in found.text()


def test_times_of_different_machines_are_shown_only_when_asked_for(runs: tuple[Path, Path], tmp_path: Path):
    (row,) = diff(*runs).times
    assert (row.one_ms, row.other_ms) == (6.0, 8.0)
    other = make_run(tmp_path / "d", steps=6, wrong=0.3, machine={**MACHINE, "id": "b2", "cpu": "two"})
    refused = diff(runs[0], other)
    assert refused.times is None
    assert "times are not compared, the machines differ (--across-machines" in refused.text()
    shown = diff(runs[0], other, across_machines=True)
    assert shown.times is not None
    assert "processor: one here, two there" in shown.text()


def retime(folder: Path, *rows: dict[str, object]) -> None:
    """Other latency rows, and a ratio, for the one subject of a report."""
    path = folder / "report" / "report.json"
    content = json.loads(path.read_text())
    usual = {"target": "cpu", "threads": 1, "status": "measured", "samples": 100}
    content["subjects"][0]["latency"] = [usual | row for row in rows]
    ratio = {"drop": None, "agreement": None, "latency_ratio": figure(1.0)}
    content["subjects"][0]["versus_teacher"] = ratio
    path.write_text(json.dumps(content))


def test_times_are_paired_under_the_same_conditions_alone(runs: tuple[Path, Path]):
    retime(runs[0], {"p50_ms": 1.0}, {"p50_ms": 5.0, "batch": 8}, {"p50_ms": 7.0, "length": "padded"})
    retime(runs[1], {"p50_ms": 9.0, "batch": 8}, {"p50_ms": 2.0}, {"p50_ms": 3.0, "scenario": "offline"})
    found = diff(*runs)
    assert [(row.conditions, row.one_ms, row.other_ms) for row in found.times] == [
        ("target cpu, 1 thread", 1.0, 2.0),
        ("target cpu, 1 thread, batch 8", 5.0, 9.0),
    ]
    assert all(row.one_ratio is None for row in found.times)
    assert "target cpu, 1 thread, batch 8:" in found.text()
    assert diff(runs[0], runs[0]).times[0].one_ratio is not None


@pytest.mark.parametrize("other", [{"target": "server"}, {"threads": 2}, {"end_to_end": True}])
def test_a_subject_timed_under_other_conditions_is_not_paired(runs: tuple[Path, Path], other: dict[str, object]):
    retime(runs[1], {"p50_ms": 2.0} | other)
    found = diff(*runs)
    assert [(row.conditions, row.one_ms, row.other_ms) for row in found.times] == [(None, None, None)]
    assert "not timed in both under the same conditions: teacher" in found.text()


def test_lines_fit_100_columns_and_json_is_json(runs: tuple[Path, Path]):
    found = diff(*runs)
    assert max(map(len, found.text().splitlines()[2:])) <= 100
    assert json.loads(json.dumps(found.to_dict()))["scores"][0]["one"]["value"] > 0


def test_what_is_no_run_is_refused(tmp_path: Path, runs: tuple[Path, Path]):
    with pytest.raises(InputError, match=r"holds no report/report.json; give a finished run"):
        diff(tmp_path / "nowhere", runs[0])
    (runs[0] / "report" / "answers.npz").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"cannot be read: .* run the recipe again"):
        diff(*runs)


def test_answers_come_back_as_they_were_kept(tmp_path: Path):
    answers = logits(0.2, 1)
    subjects = [Subject("teacher", tmp_path, logits=answers), Subject("student/no_kd", tmp_path, logits=-answers)]
    keep_answers(tmp_path, subjects, [None, *REFERENCES.tolist()[1:]], ("no", "yes"), rows="r", part="select")
    kept = read_answers(tmp_path)
    assert (kept.rows, kept.part, kept.labels) == ("r", "select", ("no", "yes"))
    assert kept.references[0] == -1
    np.testing.assert_array_equal(kept.logits["student/no_kd"], -answers)
    assert read_answers(tmp_path / "nowhere") is None


def test_changes_are_found_at_any_depth_and_on_either_side():
    found = changed({"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "d": None})
    assert [(one.key, one.one, one.other) for one in found] == [("a.b", [1, 2], [1, 3]), ("c", 1, None)]
