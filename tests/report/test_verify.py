"""`verify` passes on what was deployed and fails on what changed since."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_folders import write_classifier
from tiny import make_reviews

from compressor.bench.machine import fingerprint
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.evaluate.paired import score_interval
from compressor.export.exporter import Exporter
from compressor.model.digest import model_digest
from compressor.report.kept import file_hashes, keep_answers, read_golden, write_golden
from compressor.report.model import Report
from compressor.report.subjects import Subject
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
    logits = load(deployed).logits(list(rows.test.texts))
    found = score_interval("accuracy", logits.argmax(-1), np.array(rows.test.labels), LABELS)
    metric = {"name": "accuracy", "value": found.value, "low": found.low, "high": found.high, "rows": 60}
    subject = {
        "name": "ship", "engine": "onnxruntime", "precision": "fp32", "path": "p", "parameters": 1, "bytes": 1,
        "metric": metric, "versus_teacher": None, "latency": [],
    }  # fmt: skip
    report = Report(
        verdict="none",
        task={"metric": "accuracy"},
        machine=fingerprint(),
        data={},
        budgets=(),
        subjects=(subject,),
        ladder=(),
    )
    (root / "report").mkdir()
    keep(root, logits, rows)
    (root / "report" / "report.json").write_text(report.to_json())
    (root / "report" / "key.json").write_text(json.dumps({"key": "k", "final": model_digest(root / "final")}))
    return root


def keep(root: Path, logits: np.ndarray, rows: DataSets) -> None:
    scored = Subject("ship", root, logits=logits)
    keep_answers(root / "report", [scored], rows.test.labels, LABELS, rows=rows.test.digest(), part="test")


def edit(path: Path, **said: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def words(path: Path, subject: str, **said: object) -> str:
    return next(check.words for check in verify(path, **said).checks if check.subject == subject)


def states(path: Path, **said: object) -> dict[str, str]:
    return {check.subject: check.state for check in verify(path, **said).checks}


def test_an_untouched_run_passes_every_check(run: Path, rows: DataSets):
    found = verify(run, rows=rows)
    assert found.passed
    golden = ["golden answers", "golden labels"]
    wanted = ["stages/ship", "final", "files of final", "manifest", "reload", *golden, "score"]
    assert {check.subject: check.state for check in found.checks} == dict.fromkeys(wanted, "ok")


def test_a_deployed_model_is_verified_alone(deployed: Path):
    found = states(deployed)
    assert found == {
        "files of final": "ok", "manifest": "ok", "reload": "ok", "golden answers": "ok", "golden labels": "ok",
        "score": "not checked",
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
    (run / "report" / "answers.npz").unlink()
    assert states(run, rows=rows)["score"] == "fail"


def test_answers_are_held_against_the_kept_ones_row_by_row(run: Path, rows: DataSets, deployed: Path):
    logits = load(deployed).logits(list(rows.test.texts))
    keep(run, logits + np.float32(5e-5), rows)
    assert states(run, rows=rows)["score"] == "ok"
    keep(run, logits + np.float32(5e-4), rows)
    assert states(run, rows=rows)["score"] == "fail"
    assert "0 of 60 answers changed" in words(run, "score", rows=rows)


def test_another_machine_may_round_otherwise_but_not_decide_otherwise(run: Path, rows: DataSets, deployed: Path):
    report = run / "report" / "report.json"
    edit(report, machine={**json.loads(report.read_text())["machine"], "id": "b2"})
    logits = load(deployed).logits(list(rows.test.texts))
    keep(run, logits + np.float32(0.1), rows)
    assert states(run, rows=rows)["score"] == "ok"
    assert "on another machine" in words(run, "score", rows=rows)
    logits[0] = logits[0][::-1]
    keep(run, logits, rows)
    content = json.loads(report.read_text())
    value = float(np.mean(logits.argmax(-1) == rows.test.labels))
    content["subjects"][0]["metric"] |= {"value": value, "low": 0.0, "high": 1.0}
    report.write_text(json.dumps(content))
    assert states(run, rows=rows)["score"] == "fail"


def test_other_rows_of_the_same_count_fail_the_score(run: Path, rows: DataSets):
    turned = Rows(rows.test.texts[::-1], rows.test.labels[::-1])
    other = DataSets(Task(), LABELS, ("text",), 64, rows.train, rows.select, turned, Rows((), ()))
    assert states(run, rows=other)["score"] == "fail"
    assert "rows are others now" in words(run, "score", rows=other)


def test_without_kept_answers_the_score_is_said_to_be_a_weak_check(run: Path, rows: DataSets):
    (run / "report" / "answers.npz").unlink()
    assert states(run, rows=rows)["score"] == "ok"
    assert "a weak check" in words(run, "score", rows=rows)


def test_a_torn_record_fails_its_check(run: Path, rows: DataSets):
    for path in (run / "report" / "answers.npz", run / "final" / "golden.json"):
        path.write_bytes(b"torn")
    found = states(run, rows=rows)
    assert [found[name] for name in ("score", "golden answers", "manifest")] == ["fail"] * 3


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ({"labels": ["good", "bad"]}, {"manifest", "golden labels"}),
        ({"max_tokens": 9}, {"manifest", "golden answers"}),
        ({"metric": "macro_f1"}, {"manifest"}),
        ({"text": ["one", "two"]}, {"manifest", "golden answers"}),
        ({"verdict": "pass", "stage": "other", "temperature": 2.0}, set()),
    ],
)
def test_the_manifest_of_a_deployed_folder_is_protected(
    deployed: Path, tmp_path: Path, said: dict[str, object], failed: set[str]
):
    folder = Path(shutil.copytree(deployed, tmp_path / "final"))
    edit(folder / "compressor.json", **said)
    found = {name for name, state in states(folder).items() if state == "fail"}
    assert found == failed


def test_golden_keeps_the_label_that_predict_gives(deployed: Path):
    golden = read_golden(deployed)
    assert golden.answers == tuple(load(deployed).predict(list(golden.texts)))


def test_a_golden_file_of_an_older_version_is_not_held_against_the_folder(deployed: Path, tmp_path: Path):
    folder = Path(shutil.copytree(deployed, tmp_path / "final"))
    content = json.loads((folder / "golden.json").read_text())
    del content["manifest"]
    for row in content["rows"]:
        del row["label"]
    (folder / "golden.json").write_text(json.dumps(content))
    edit(folder / "compressor.json", files=file_hashes(folder))
    found = verify(folder)
    assert found.passed
    states = {check.subject: check.state for check in found.checks}
    assert (states["manifest"], states["golden labels"]) == ("not checked", "not checked")


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
    again = again.model_copy(update={"machine": {"id": machine}})
    monkeypatch.setattr("compressor.report.verify.measure", lambda _folders, **_: again)
    assert states(run, rows=rows, time=True)["time"] == state


def test_time_is_taken_again_with_the_reports_threads_and_seed(
    run: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch
):
    report = run / "report" / "report.json"
    content = json.loads(report.read_text())
    ratio = {"value": 0.2, "low": 0.19, "high": 0.21}
    content["subjects"][0]["versus_teacher"] = {"drop": None, "agreement": None, "latency_ratio": ratio}
    timing = {"server": {"threads": 2}, "cpu": {"threads": 1}}
    content |= {"machine": {"id": "a1", "timing": timing}, "reproduce": {"seed": 3}}
    report.write_text(json.dumps(content))
    (run / "stages" / "teacher" / "onnx").mkdir(parents=True)
    seen: list[dict[str, object]] = []

    def again(_folders: object, **said: object) -> Report:
        seen.append(said)
        row = {**content["subjects"][0], "name": "final"}
        machine = {"id": "a1", "timing": {"cpu": {"threads": said["threads"]}}}
        return Report.model_validate({**content, "subjects": (row,), "machine": machine})

    monkeypatch.setattr("compressor.report.verify.measure", again)
    assert states(run, rows=rows, time=True)["time"] == "ok"
    assert (seen[0]["threads"], seen[0]["seed"]) == (2, 3)
    assert states(run, rows=rows, time=True, threads=1)["time"] == "not checked"
    assert "threads: 2 at server here, 1 at cpu there" in words(run, "time", rows=rows, time=True, threads=1)


def test_a_ratio_of_another_engine_is_not_checked(run: Path, rows: DataSets):
    report = run / "report" / "report.json"
    content = json.loads(report.read_text())
    ratio = {"value": 0.2, "low": 0.19, "high": 0.21}
    content["subjects"][0]["versus_teacher"] = {"drop": None, "agreement": None, "latency_ratio": ratio}
    content["machine"] |= {"timing": {"cpu": {"threads": 1}}}
    content["subjects"][0]["latency"] = [{"target": "cpu", "threads": 1, "status": "measured", "engine": "openvino"}]
    report.write_text(json.dumps(content))
    (run / "stages" / "teacher" / "onnx").mkdir(parents=True)
    assert "is of engine openvino; only onnxruntime is timed" in words(run, "time", rows=rows, time=True)


def test_time_without_the_teachers_folder_is_not_checked(run: Path, rows: DataSets):
    report = run / "report" / "report.json"
    content = json.loads(report.read_text())
    ratio = {"value": 0.2, "low": 0.19, "high": 0.21}
    content["subjects"][0]["versus_teacher"] = {"drop": None, "agreement": None, "latency_ratio": ratio}
    report.write_text(json.dumps(content))
    assert "is gone, and time is held against the teacher's" in words(run, "time", rows=rows, time=True)


def test_what_is_neither_run_nor_model_is_refused(tmp_path: Path, run: Path):
    with pytest.raises(InputError, match=r"is neither a run .* nor a model"):
        verify(tmp_path)
    shutil.rmtree(run / "final")
    assert states(run)["final"] == "fail"


def without(path: Path, *keys: str) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}))


def test_a_digest_of_another_version_is_neither_right_nor_wrong(run: Path, rows: DataSets):
    for folder in (run / "stages" / "ship" / "model", run / "final"):
        without(folder / "compressor.json", "digest_scheme")
    edit(run / "report" / "key.json", final="made otherwise")
    edit(run / "stages" / "ship" / "stage.json", model="made otherwise")
    found = verify(run, rows=rows)
    assert {check.subject for check in found.checks if check.state == "another version"} == {"stages/ship", "final"}
    assert "another version wrote it (compressor.json names no digest scheme" in words(run, "final")
    assert found.outcome == "pass"  # its files, golden answers and score were compared
    (run / "final" / "golden.json").unlink()
    without(run / "final" / "compressor.json", "files")
    found = verify(run)
    assert (found.outcome, found.passed) == ("another version", False)
    assert "verify it with the version that made it" in found.sentence()


def test_a_final_model_that_nothing_was_compared_with_does_not_pass(run: Path, deployed: Path, tmp_path: Path):
    for path in (run / "report" / "key.json", run / "final" / "golden.json"):
        path.unlink()
    without(run / "final" / "compressor.json", "files")
    found = verify(run)
    assert found.to_dict()["outcome"] == "nothing compared"
    assert not found.passed
    assert {check.subject for check in found.checks if check.state == "ok"} == {"stages/ship", "reload"}
    folder = Path(shutil.copytree(deployed, tmp_path / "alone"))
    (folder / "golden.json").unlink()
    without(folder / "compressor.json", "files")
    assert "keeps nothing that the deployed model could be compared with" in verify(folder).sentence()


def test_a_key_that_a_later_version_knows_changes_no_digest(deployed: Path, tmp_path: Path):
    folder = Path(shutil.copytree(deployed, tmp_path / "final"))
    before = model_digest(folder)
    without(folder / "compressor.json", "digest_scheme", "verdict")
    assert model_digest(folder) == before
    without(folder / "compressor.json", "max_tokens")
    assert model_digest(folder) != before
