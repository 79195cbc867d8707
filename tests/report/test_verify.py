"""`verify` passes on what was deployed and fails on what changed since."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_folders import write_classifier
from tiny import make_reviews

from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.evaluate.paired import score_interval
from compressor.export.exporter import Exporter
from compressor.model.digest import model_digest
from compressor.report.kept import file_hashes, write_golden
from compressor.report.model import Report
from compressor.report.verify import verify
from compressor.runtime.predictor import load

LABELS = ("bad", "good")
REVIEWS = make_reviews(60, seed=9)


@pytest.fixture(scope="module")
def deployed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all that is recorded of it."""
    place = tmp_path_factory.mktemp("deployed")
    folder = Exporter(write_classifier(place / "model", tiny_bert)).export(place / "final")
    write_golden(folder)
    manifest = json.loads((folder / "compressor.json").read_text())
    manifest |= {"stage": "ship", "files": file_hashes(folder)}
    (folder / "compressor.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def rows() -> DataSets:
    test = Rows(tuple(text for text, _ in REVIEWS), tuple(LABELS.index(label) for _, label in REVIEWS))
    few = test.head(8)
    return DataSets(Task(), LABELS, ("text",), 64, few, few, test, Rows((), ()))


@pytest.fixture
def run(deployed: Path, rows: DataSets, tmp_path: Path) -> Path:
    """A run with one stage, its report and its final model."""
    root = tmp_path / "run"
    shutil.copytree(deployed, root / "final")
    shutil.copytree(deployed, root / "stages" / "ship" / "model")
    stage = {"id": "ship", "model": model_digest(root / "stages" / "ship" / "model")}
    (root / "stages" / "ship" / "stage.json").write_text(json.dumps(stage))
    answers = load(deployed).logits(list(rows.test.texts)).argmax(-1)
    found = score_interval("accuracy", answers, np.array(rows.test.labels), LABELS)
    metric = {"name": "accuracy", "value": found.value, "low": found.low, "high": found.high, "rows": 60}
    subject = {
        "name": "ship", "engine": "onnxruntime", "precision": "fp32", "path": "p", "parameters": 1, "bytes": 1,
        "metric": metric, "versus_teacher": None, "latency": [],
    }  # fmt: skip
    report = Report(
        verdict="none", task={"metric": "accuracy"}, machine={}, data={}, budgets=(), subjects=(subject,), ladder=()
    )
    (root / "report").mkdir()
    (root / "report" / "report.json").write_text(report.to_json())
    (root / "report" / "key.json").write_text(json.dumps({"key": "k", "final": model_digest(root / "final")}))
    return root


def states(path: Path, **said: object) -> dict[str, str]:
    return {check.subject: check.state for check in verify(path, **said).checks}


def test_an_untouched_run_passes_every_check(run: Path, rows: DataSets):
    found = verify(run, rows=rows)
    assert found.passed
    wanted = ["stages/ship", "final", "files of final", "reload", "golden answers", "score"]
    assert {check.subject: check.state for check in found.checks} == dict.fromkeys(wanted, "ok")


def test_a_deployed_model_is_verified_alone(deployed: Path):
    found = states(deployed)
    assert found == {
        "files of final": "ok", "reload": "ok", "golden answers": "ok", "score": "not checked",
    }  # fmt: skip


def test_other_weights_fail_the_digest_the_files_and_the_answers(run: Path, tiny_bert: Path, tmp_path: Path):
    other = Exporter(write_classifier(tmp_path / "other", tiny_bert, seed=5)).export(tmp_path / "export")
    shutil.copyfile(other / "model.onnx", run / "final" / "model.onnx")
    found = verify(run)
    assert not found.passed
    wrong = {check.subject: check.words for check in found.checks if check.state == "fail"}
    assert set(wrong) == {"final", "files of final", "golden answers"}
    assert wrong["files of final"] == "model.onnx changed"


def test_a_stage_that_changed_is_named(run: Path):
    (run / "stages" / "ship" / "model" / "config.json").write_text("{}")
    assert states(run)["stages/ship"] == "fail"


def test_a_broken_model_fails_its_reload_and_nothing_is_asked_of_it(run: Path, rows: DataSets):
    (run / "final" / "model.onnx").write_bytes(b"torn")
    found = states(run, rows=rows)
    assert found["reload"] == "fail"
    assert "score" not in found


def test_a_score_that_is_not_the_reports_fails(run: Path, rows: DataSets):
    content = json.loads((run / "report" / "report.json").read_text())
    content["subjects"][0]["metric"] |= {"value": 0.01, "low": 0.0, "high": 0.02}
    (run / "report" / "report.json").write_text(json.dumps(content))
    assert states(run, rows=rows)["score"] == "fail"


def test_what_was_never_recorded_is_said_to_be_unchecked(run: Path):
    for path in (run / "report" / "key.json", run / "final" / "golden.json"):
        path.unlink()
    manifest = json.loads((run / "final" / "compressor.json").read_text())
    del manifest["files"]
    (run / "final" / "compressor.json").write_text(json.dumps(manifest))
    found = states(run)
    assert [found[name] for name in ("final", "files of final", "golden answers", "score")] == ["not checked"] * 4


def test_time_without_a_run_is_not_checked(deployed: Path):
    assert states(deployed, time=True)["time"] == "not checked"


@pytest.mark.parametrize(
    ("now", "machine", "state"),
    [
        ((0.21, 0.20, 0.22), "a1", "ok"),
        ((0.30, 0.28, 0.32), "a1", "fail"),
        ((0.21, 0.05, 0.60), "a1", "not checked"),
        ((0.30, 0.28, 0.32), "b2", "not checked"),
    ],
)
def test_time_is_held_against_the_teachers_on_the_same_machine(
    run: Path,
    rows: DataSets,
    monkeypatch: pytest.MonkeyPatch,
    now: tuple[float, float, float],
    machine: str,
    state: str,
):
    def timed(name: str, ratio: tuple[float, float, float]) -> Report:
        content = json.loads((run / "report" / "report.json").read_text())
        figure = dict(zip(("value", "low", "high"), ratio, strict=True))
        content["subjects"][0] |= {
            "name": name, "versus_teacher": {"drop": None, "agreement": None, "latency_ratio": figure},
        }  # fmt: skip
        return Report.model_validate({**content, "machine": {"id": "a1"}})

    (run / "stages" / "teacher" / "onnx").mkdir(parents=True)
    report, again = timed("ship", (0.2, 0.19, 0.21)), timed("final", now)
    (run / "report" / "report.json").write_text(report.to_json())
    monkeypatch.setattr("compressor.report.verify.measure", lambda _folders, **_: again)
    monkeypatch.setattr("compressor.report.verify.fingerprint", lambda: {"id": machine})
    assert states(run, rows=rows, time=True)["time"] == state


def test_what_is_neither_run_nor_model_is_refused(tmp_path: Path, run: Path):
    with pytest.raises(InputError, match=r"is neither a run .* nor a model"):
        verify(tmp_path)
    shutil.rmtree(run / "final")
    assert states(run)["final"] == "fail"
