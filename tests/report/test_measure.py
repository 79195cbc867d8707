"""`measure` and `compare` on real model files, timed in processes of their own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import make_reviews, write_tiny_bert

from compressor.bench.isolation import Slot, Timing
from compressor.bench.process import Command
from compressor.bench.settings import TARGETS, Benchmark
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.report.compare import compare
from compressor.report.measure import measure
from compressor.report.subjects import Subject, time_subjects
from compressor.runtime.choose import EngineChoice
from compressor.runtime.predictor import load

FASTEST = {"engine": "fastest", "threads": 1}


def rows_of(reviews: list[tuple[str, str]]) -> Rows:
    return Rows(tuple(text for text, _ in reviews), tuple(("bad", "good").index(label) for _, label in reviews))


@pytest.fixture(scope="module")
def data() -> DataSets:
    reviews = make_reviews(80, seed=5)
    return DataSets(
        task=Task(),
        labels=("bad", "good"),
        text_columns=("text",),
        max_tokens=32,
        train=rows_of(reviews[:20]),
        select=rows_of(reviews[20:40]),
        test=rows_of(reviews[40:]),
        unlabelled=Rows((), ()),
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "student"
    return write_tiny_bert(folder, layers=1, labels=("bad", "good"), seed=1)


def test_measure_scores_and_times_folders(tiny_classifier: Path, other: Path, data: DataSets, tmp_path: Path):
    report = measure(
        {"teacher": tiny_classifier, "student": other},
        data=data,
        budget={"size": "<= 40MB"},
        rounds=3,
        threads=1,
        out=tmp_path / "report",
    )
    assert [row.name for row in report.subjects] == ["teacher", "student", "teacher/aa"]
    assert report.pytorch is not None
    assert report.pytorch.subject == "teacher"
    student = report.subject("student")
    answers = load(other, engine="torch").logits(list(data.test.texts)).argmax(-1)
    assert student.metric.value == pytest.approx(np.mean(answers == np.array(data.test.labels)))
    assert student.latency[0].status == "measured"
    assert student.latency[0].threads == 1
    assert student.versus_teacher.latency_ratio.value > 0
    assert student.parameters > 1000
    assert report.verdict == "pass"
    samples = json.loads((tmp_path / "report" / "samples.json").read_text())
    timed = {slot["subject"] for slot in samples["targets"]["cpu"]["slots"]}
    assert timed == {"teacher", "student", "teacher/aa", "teacher/pytorch"}


def test_measure_times_every_target_that_is_here_and_names_the_others(
    tiny_classifier: Path, data: DataSets, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("compressor.runtime.choose.training_device", lambda: "cpu")
    targets = {"cpu": {"threads": 1}, "torch": {"engine": "torch"}, "gpu": {"device": "gpu"}}
    report = measure([tiny_classifier], data=data, rounds=3, threads=2, targets=targets, changed=False)
    ours, again = report.subjects[0], report.subject(tiny_classifier.name, "torch")
    assert [(row.target, row.threads) for row in ours.latency if row.samples] == [("cpu", 1), ("cpu", 1)]
    assert {(row.target, row.threads) for row in again.latency if row.samples} == {("torch", 2)}
    assert again.metric == ours.metric
    assert any(doubt.startswith("Target gpu was not timed") for doubt in report.doubts)
    with pytest.raises(InputError, match=r"targets\.gpu: .*openvino"):
        measure([tiny_classifier], data=data, targets={"gpu": {"device": "gpu", "engine": "openvino"}})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_classifier: Path) -> Path:
    """A folder that onnxruntime and torch can open."""
    folder = Path(Exporter(tiny_classifier).export(tmp_path_factory.mktemp("both") / "model"))
    shutil.copy(tiny_classifier / "model.safetensors", folder)
    return folder


@pytest.fixture
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes a millisecond, and none is made."""

    def fake(commands: Sequence[Command], **_more: object) -> Timing:
        slots = tuple(Slot(one.name, number, 0, (0,), (1_000_000,)) for one in commands for number in range(3))
        return Timing(slots, 1, None, {}, 0.0, None, None, None)

    monkeypatch.setattr("compressor.report.workloads.time_in_turn", fake)


@pytest.mark.usefixtures("_no_process")
def test_a_target_whose_fastest_engine_is_torch_is_timed_on_the_torch_weights(
    both: Path, data: DataSets, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "compressor.report.engines.at_target",
        lambda target, *_given, **_more: (target.model_copy(update={"engine": "torch"}), EngineChoice("torch", {})),
    )
    report = measure({"both": both}, data=data, rounds=3, targets={"here": FASTEST}, changed=False)
    rows = report.subject("both", "torch").latency
    assert {(row.target, row.engine, row.status) for row in rows} == {("here", "torch", "measured")}


@pytest.mark.usefixtures("_no_process")
def test_a_target_that_no_engine_could_be_chosen_for_is_named_and_the_others_are_timed(
    tiny_classifier: Path, data: DataSets, monkeypatch: pytest.MonkeyPatch
):
    plain = tiny_classifier

    def refuse(_target: object, folder: Path, *_given: object, **_more: object) -> None:
        assert folder != plain, "exported into a passing folder, which the reader does not know"
        raise InputError(f"{folder} opens in no engine on device gpu: torch: no")

    monkeypatch.setattr("compressor.report.engines.at_target", refuse)
    targets = {"here": FASTEST, "cpu": {"threads": 1}}
    report = measure({"plain": plain}, data=data, rounds=3, targets=targets, changed=False)
    reason = f"{plain} opens in no engine on device gpu: torch: no"
    assert f"Target here was not timed: {reason}." in report.doubts
    assert "Ratios, the noise and budgets are those of target cpu instead of here." in report.doubts
    (here, *rest) = report.subject("plain").latency
    assert (here.target, here.status, here.reason) == ("here", "not measured", reason)
    assert {(row.target, row.status) for row in rest} == {("cpu", "measured")}


def test_measure_without_timing_starts_no_process(
    tiny_classifier: Path, data: DataSets, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("subprocess.Popen", None)
    report = measure([tiny_classifier], data=data, timing=False)
    assert report.subjects[0].latency[0].status == "not measured"


def test_the_same_file_is_timed_once(tiny_classifier: Path, data: DataSets, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        "compressor.report.workloads.time_in_turn", lambda commands, **_: asked.extend(one.name for one in commands)
    )
    twins = [Subject(name, tiny_classifier, engine="torch") for name in ("teacher", "copy")]
    targets = TARGETS | {"cpu": TARGETS["cpu"].model_copy(update={"engine": "torch"})}
    time_subjects(twins, ["a text"], targets=targets)
    assert asked == ["teacher@torch", "teacher@torch/aa"]
    with pytest.raises(InputError, match="no target 'tpu'; there are cpu, gpu"):
        time_subjects(twins, ["a text"], benchmark=Benchmark(targets=["tpu"]), targets=targets)


def test_a_model_compared_with_itself_differs_nowhere(tiny_classifier: Path, data: DataSets):
    found = compare(tiny_classifier, tiny_classifier, data=data)
    assert found.drop.value == 0
    assert found.agreement == 1
    assert found.changed == ()
    assert found.rows == 40


def test_compare_names_the_rows_that_changed(tiny_classifier: Path, other: Path, data: DataSets):
    found = compare(tiny_classifier, other, data=data)
    before, after = (load(folder).predict(list(data.test.texts)) for folder in (tiny_classifier, other))
    wanted = [text for text, one, two in zip(data.test.texts, before, after, strict=True) if one != two]
    assert list(found.changed) == wanted
    assert found.agreement == pytest.approx(1 - len(wanted) / 40)
    assert found.to_dict()["metric"] == "accuracy"


def test_models_of_other_labels_are_refused(tmp_path: Path, tiny_classifier: Path, data: DataSets):
    stranger = write_tiny_bert(tmp_path / "stranger", layers=1, labels=("neg", "pos"))
    with pytest.raises(InputError, match="answers neg, pos, the rows have bad, good"):
        compare(tiny_classifier, stranger, data=data)
    with pytest.raises(InputError, match="answers neg, pos"):
        measure([stranger], data=data, timing=False)
    with pytest.raises(InputError, match="two folders are called"):
        measure([tiny_classifier, tiny_classifier], data=data)


def test_a_budget_that_cannot_be_used_is_named(tiny_classifier: Path, data: DataSets):
    with pytest.raises(InputError, match=r"^budget: .*size must look like '<= 40MB' \(got '<= 40ms'\)"):
        measure([tiny_classifier], data=data, budget={"size": "<= 40ms"}, timing=False)
