"""What a benchmark asks of processes, and all of it on a tiny model."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from model_folders import TEXTS, write_classifier

from compressor.bench import scenarios
from compressor.bench.isolation import Slot, Timing
from compressor.bench.process import PLAIN, Work
from compressor.bench.settings import TARGETS, Benchmark, Target, Workload
from compressor.errors import StageError
from compressor.export.exporter import Exporter
from compressor.report.latency import latency_rows
from compressor.report.resources import resources
from compressor.report.subjects import Subject, time_subjects
from compressor.report.workloads import Desk, skipped, too_large, works_asked
from compressor.stage import silent

WHOLE = Work(end_to_end=True)


def test_the_default_benchmark_adds_tokenizing_alone():
    assert works_asked(Benchmark(), Target()) == (WHOLE,)
    assert works_asked(Benchmark(end_to_end=False), Target()) == ()
    assert works_asked(Benchmark(), TARGETS["gpu"]) == (Work(clock="event"),)
    mine = Target(workload=Workload(batch=8, length=64))
    assert works_asked(Benchmark(), mine) == (WHOLE, Work(8, 64))


def test_a_grid_is_every_batch_with_every_length_but_the_plain_one():
    asked = Benchmark.model_validate({"grid": {"batch": [1, 8], "length": ["data", "padded", 16]}, "end_to_end": False})
    found = works_asked(asked, Target())
    assert [(work.batch, work.length) for work in found] == [
        (1, "padded"),
        (1, 16),
        (8, "data"),
        (8, "padded"),
        (8, 16),
    ]


def test_a_model_does_only_what_it_reads(tiny_classifier: Path):
    assert too_large(tiny_classifier, Work(length=128), Target()) is None
    assert too_large(tiny_classifier, Work(length=129), Target()) == "the model reads 128 tokens a row at most"
    assert too_large(Path("nowhere"), Work(batch=999, length="padded"), Target()) is None


def test_tensorrt_is_given_no_batch_beyond_its_kernels_and_the_report_says_so():
    target = Target(device="gpu", engine="tensorrt", workload=Workload(batch=64))
    assert too_large(Path("nowhere"), Work(batch=32), target) is None
    (more,) = [work for work in works_asked(Benchmark(), target) if work == Work(batch=64)]
    subject = Subject("model", Path("nowhere"))
    desk = Desk({"model": subject}, None, Path("rows"), 1, target, Benchmark(), 17, silent)
    assert desk.further_work()[more] == []
    timing = Timing((Slot("model", 0, 0, (0,), (1,)),), 1, None, {}, 0.0, None, None, None)
    benchmark = Benchmark(targets=["rt"])
    rows = latency_rows("model", {"rt": timing}, folder=subject.folder, targets={"rt": target}, benchmark=benchmark)
    assert {row.reason for row in rows if row.batch == 64} == {"TensorRT makes kernels for 32 rows in one call at most"}


def test_a_desk_goes_on_while_a_subject_is_neither_faster_slower_nor_the_same(tmp_path: Path):
    def slots(ratio: float, noise: float) -> list[Slot]:
        wobble = np.random.default_rng(0).normal(0, noise, (3, 15))
        times = {"teacher": 1.0, "slim": ratio, "teacher/aa": 1.0}
        return [
            Slot(name, number, 0, (0,), (int(1e7 * times[name] * np.exp(wobble[place, number])),))
            for place, name in enumerate(times)
            for number in range(15)
        ]

    teacher, slim = (Subject(name, tmp_path) for name in ("teacher", "slim"))
    named = {"teacher": teacher, "slim": slim, "teacher/aa": teacher}
    desk = Desk(named, "teacher/aa", tmp_path, 1, Target(), Benchmark(), 17, silent, 3)
    assert not desk.undecided(slots(0.5, 0.02))
    assert not desk.undecided(slots(1.0, 0.001))
    assert desk.undecided(slots(0.97, 0.05))
    assert not Desk(named, None, tmp_path, 1, Target(), Benchmark(), 17, silent, 3).undecided(slots(0.97, 0.05))


def test_the_reference_in_pytorch_does_the_plain_work_alone_and_is_not_judged(tmp_path: Path):
    onnx = Subject("teacher", tmp_path / "onnx", torch_folder=tmp_path / "torch")
    torch = replace(onnx, engine="torch", folder=tmp_path / "torch")
    named = {"teacher": onnx, "teacher/aa": onnx, "teacher/pytorch": torch}
    desk = Desk(named, "teacher/aa", tmp_path, 1, Target(), Benchmark(), 17, silent, 3, "teacher/pytorch")
    assert desk.names == ["teacher"]
    assert "--engine torch" in " ".join(desk.command("teacher/pytorch", 1).command)
    wobble = np.random.default_rng(0).normal(0, 0.3, 15)
    slots = [
        Slot(name, number, 0, (0,), (int(1e6 * (1 if "torch" not in name else np.exp(one))),))
        for number, one in enumerate(wobble)
        for name in named
    ]
    assert not desk.undecided(slots)


def test_a_gpu_is_skipped_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compressor.runtime.choose.training_device", lambda: "cpu")
    assert skipped(Target()) is None
    assert "no NVIDIA device" in skipped(TARGETS["gpu"])
    monkeypatch.setattr("compressor.runtime.choose.training_device", lambda: "gpu")
    assert skipped(TARGETS["gpu"]) is None


def test_everything_that_is_asked_for_is_timed(tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenarios, "REQUESTS", 60)
    monkeypatch.setattr(scenarios, "TRIALS", 1)
    monkeypatch.setattr(scenarios, "OFFLINE_SECONDS", 0.02)
    monkeypatch.setattr("compressor.runtime.choose.training_device", lambda: "cpu")
    folder = Path(Exporter(write_classifier(tmp_path / "torch", tiny_classifier)).export(tmp_path / "onnx"))
    benchmark = Benchmark.model_validate(
        {
            "targets": ["gpu", "mine"],
            "rounds": 3,
            "scenarios": ["single stream", "one core", "offline", "arrivals"],
            "p99_ms": 2000.0,
            "price": 1.0,
            "grid": {"batch": [1, 4], "length": ["padded", 4096]},
        }
    )
    said = set()
    subject = Subject("teacher", folder)
    targets = TARGETS | {"mine": Target(threads=1)}
    timings = time_subjects(
        [subject], TEXTS, benchmark=benchmark, targets=targets, progress=lambda what, _done, _total: said.add(what)
    )
    assert list(timings) == ["mine"]
    timing = timings["mine"]
    assert timing.works_of("teacher") == (PLAIN, WHOLE, Work(1, "padded"), Work(4, "padded"))
    assert timing.works_of("teacher/aa") == (PLAIN,)
    assert len(timing.one_core.rounds_of("teacher/aa")) == 3
    assert {"timing", "timing on one core", "offline", "arrivals"} <= said
    rows = latency_rows("teacher", timings, folder=folder, targets=targets, benchmark=benchmark)
    assert [(row.scenario, row.status) for row in rows if row.length != 4096] == [
        *[("single stream", "measured")] * 4,
        ("one core", "measured"),
        ("offline", "measured"),
        ("arrivals", "measured"),
    ]
    assert [row.status for row in rows if row.length == 4096] == ["not measured"] * 2
    assert {row.rows_per_second is not None for row in rows if row.scenario in ("offline", "arrivals")} == {True}
    taken = resources(subject, "teacher", timings, texts=TEXTS, price=benchmark.price)
    assert taken.cost_per_million > 0
    assert taken.reasons["cost_per_million"].endswith("of offline")
    assert json.loads(json.dumps(asdict(timing)))["answered"][1]["scenario"] == "arrivals"


def test_a_scenario_that_fails_is_not_measured_and_ends_no_report(monkeypatch: pytest.MonkeyPatch):
    def single_stream(_commands, *, threads: int, **_more) -> Timing:
        if threads == 1:
            raise StageError("timing slim: round 3 took more than 300 s; it wrote: nothing")
        slots = tuple(Slot(name, 0, 0, (0,), (1_000_000,), WHOLE) for name in ("teacher", "slim"))
        return Timing(slots, threads, None, {}, 0.0, None, None, None)

    def failing(what: str):
        def scenario(*_given, **_more):
            raise StageError(f"timing model: {what} took more than 300 s; it wrote:\n" + "pages " * 200)

        return scenario

    monkeypatch.setattr("compressor.report.workloads.time_in_turn", single_stream)
    monkeypatch.setattr("compressor.report.workloads.offline", failing("offline"))
    monkeypatch.setattr("compressor.report.workloads.arrivals", failing("arrivals"))
    benchmark = Benchmark.model_validate(
        {"scenarios": ["single stream", "one core", "offline", "arrivals"], "p99_ms": 20.0}
    )
    subjects = {name: Subject(name, Path("unused")) for name in ("teacher", "slim")}
    desk = Desk(subjects, None, Path("rows"), 64, Target(threads=2), benchmark, 17, silent)
    timing = desk.time(scenarios=True)
    assert timing.one_core is None
    found = [(one.subject, one.scenario) for one in timing.answered]
    assert found == [(name, what) for what in ("one core", "offline", "arrivals") for name in ("teacher", "slim")]
    assert {one.rows_per_second for one in timing.answered} == {None}
    slots = tuple(Slot(slot.subject, 0, 0, (0,), slot.nanoseconds) for slot in timing.slots)
    timings = {"cpu": Timing(slots, 2, None, {}, 0.0, None, None, None, answered=timing.answered)}
    rows = latency_rows("slim", timings, folder=Path("unused"), targets=TARGETS)[1:]
    assert [(row.scenario, row.status) for row in rows] == [
        ("one core", "not measured"),
        ("offline", "not measured"),
        ("arrivals", "not measured"),
    ]
    assert rows[0].reason == "timing slim: round 3 took more than 300 s; it wrote: nothing"
    assert rows[1].reason.startswith("timing model: offline took more than 300 s; it wrote: pages")
    assert all(len(row.reason) <= 300 for row in rows)
