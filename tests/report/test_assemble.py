"""report.json from answers and raw timings that the tests make up."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.bench.isolation import Slot, Timing
from compressor.bench.settings import Benchmark, Target
from compressor.bench.statistics import ratio_interval
from compressor.errors import InputError
from compressor.evaluate.settings import Budget
from compressor.report.assemble import Scored, Told, assemble
from compressor.report.measure import read_curve, write_report
from compressor.report.model import Report
from compressor.report.subjects import (
    Subject,
    _in_pytorch,
    count_parameters,
    draw_texts,
    model_bytes,
    same_models,
    score_subjects,
)

ROWS, LABELS = 800, ("bad", "good")
REFERENCES = np.random.default_rng(0).integers(0, 2, ROWS)
SPEEDS = {"teacher": 8.0, "teacher/aa": 8.0, "student": 4.0, "int8": 1.0}


def told(**changes) -> Told:
    known = Told(
        name="movies <b>&",
        task={"kind": "text-classification", "metric": "accuracy"},
        data={
            "train": 5,
            "select": 6,
            "test": ROWS,
            "unlabelled": 0,
            "removed": {"leaked": 0, "duplicate": 1, "empty": 0},
        },
        machine={"cpu": "Test <CPU>", "flags": ["avx2"], "virtual": False},
        notes=("The teacher is not pinned by a digest.",),
        pruning=(
            {
                "stage": "slim",
                "because": "reached 0.5x",
                "layers": [{"layer": 1, "heads": 3, "heads_before": 4, "because": "dear"}],
            },
        ),
        curves={"student": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]},
    )
    return replace(known, **changes)


def subject(folder: Path, name: str, wrong: int, *, weights: bytes | None = None, precision: str = "fp32") -> Subject:
    place = folder / name
    place.mkdir()
    (place / "model.onnx").write_bytes(weights if weights is not None else name.encode() * 1000)
    answers = REFERENCES.copy()
    answers[:wrong] = 1 - answers[:wrong]
    logits = np.eye(2, dtype=np.float32)[answers]
    return Subject(name, place, precision=precision, parameters=10, logits=logits, path=f"stages/{name}/model")


def subjects(folder: Path) -> list[Subject]:
    return [
        subject(folder, "teacher", 80),
        subject(folder, "student", 90),
        subject(folder, "int8", 92, weights=b"small", precision="int8"),
    ]


def timing(rounds: int = 15, samples: int = 20) -> Timing:
    rng = np.random.default_rng(1)
    slots = []
    for number in range(rounds):
        machine = rng.lognormal(0, 0.1)
        for place, (name, speed) in enumerate(SPEEDS.items()):
            taken = tuple(int(1e6 * speed * machine * rng.lognormal(0, 0.02)) for _ in range(samples))
            slots.append(Slot(name, number, place, tuple(range(samples)), taken))
    return Timing(tuple(slots), 2, (0, 1), dict.fromkeys(SPEEDS, 0.5), 0.02, 1.0, 0.0, None)


SCORED = Scored(list(REFERENCES), LABELS, on_test=True)
BUDGET = Budget.model_validate({"accuracy": {"drop": "<= 4pp"}, "latency": {"p50": "<= 0.2x"}, "size": "<= 1MB"})


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return assemble(told(), subjects(tmp_path), SCORED, timings={"cpu": timing()}, budget=BUDGET)


def test_the_report_has_every_key_of_schema_1(report: Report):
    found = report.to_dict()
    assert found["schema"] == 1
    assert {"verdict", "task", "machine", "data", "budgets", "subjects", "ladder"} <= found.keys()
    assert found["budgets"][0].keys() >= {"what", "limit", "vs", "value", "low", "high", "verdict"}
    one = found["subjects"][1]
    assert one.keys() >= {
        "name",
        "engine",
        "precision",
        "path",
        "parameters",
        "bytes",
        "metric",
        "versus_teacher",
        "latency",
    }
    assert one["metric"].keys() == {"name", "value", "low", "high", "rows"}
    assert one["versus_teacher"].keys() >= {"drop", "agreement", "latency_ratio"}
    assert (
        one["versus_teacher"]["drop"].keys()
        == one["versus_teacher"]["latency_ratio"].keys()
        == {"value", "low", "high"}
    )
    latency = {"target", "batch", "length", "threads", "status", "reason", "p50_ms", "p90_ms", "samples"}
    assert one["latency"][0].keys() >= latency
    assert found["ladder"][0].keys() >= {"step", "speedup", "drop"}
    assert found["subjects"][0]["versus_teacher"] is None
    assert json.loads(report.to_json()) == found


def test_times_beside_pytorch_are_a_second_figure_of_the_same_rounds(report: Report, tmp_path: Path):
    assert report.pytorch is None
    plain = timing()
    torch = tuple(
        replace(slot, subject="teacher/pytorch", nanoseconds=tuple(2 * one for one in slot.nanoseconds))
        for slot in plain.slots
        if slot.subject == "teacher"
    )
    (tmp_path / "again").mkdir()
    both = {"cpu": replace(plain, slots=plain.slots + torch)}
    again = assemble(told(), subjects(tmp_path / "again"), SCORED, timings=both, budget=BUDGET)
    assert (again.pytorch.subject, again.pytorch.engine.value) == ("teacher", pytest.approx(0.5))
    versus = again.subject("int8").versus_teacher
    assert again.pytorch.deployed.value == pytest.approx(versus.latency_ratio.value / 2)
    assert versus == report.subject("int8").versus_teacher
    assert [row.name for row in again.subjects] == [row.name for row in report.subjects]
    for page in (again.table(), again.to_markdown(), again.to_html()):
        assert "in PyTorch fp32, another engine" in " ".join(page.split())
    assert Report.model_validate_json(again.to_json()) == again


def test_weights_that_pytorch_does_not_open_cost_one_figure_and_are_named(tmp_path: Path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    first, *others = subjects(tmp_path)
    found = [replace(first, torch_folder=tmp_path / "torn"), *others]
    assert _in_pytorch(found[:1], Target()) == {}
    again = assemble(told(), found, SCORED, timings={"cpu": timing()})
    assert again.pytorch is None
    assert any(doubt.startswith("teacher was not timed in PyTorch: ") for doubt in again.doubts)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_ratios_are_taken_at_the_first_target_where_none_is_of_onnxruntime(report: Report, tmp_path: Path, engine: str):
    (tmp_path / "again").mkdir()
    found, ending = subjects(tmp_path / "again"), "@torch" if engine == "torch" else ""
    if engine == "torch":
        for one in found:
            (one.folder / "model.safetensors").write_bytes(one.name.encode())
        found += [replace(one, engine="torch") for one in found]
    renamed = {name: name.replace("/aa", "") + ending + ("/aa" if "/aa" in name else "") for name in SPEEDS}
    plain = timing()
    timings = {"here": replace(plain, slots=tuple(replace(one, subject=renamed[one.subject]) for one in plain.slots))}
    targets = {"here": Target(engine=engine)}
    again = assemble(told(), found, SCORED, timings=timings, targets=targets)
    row = again.subject("int8", "torch" if engine == "torch" else "onnxruntime").versus_teacher
    assert row.latency_ratio == report.subject("int8").versus_teacher.latency_ratio
    assert row.speed_verdict == "faster"
    assert again.noise == report.noise
    assert [step.speedup for step in again.ladder] == [step.speedup for step in report.ladder]
    budget = assemble(told(), found, SCORED, timings=timings, targets=targets, budget=BUDGET).budgets
    assert [line.value for line in budget] == [line.value for line in report.budgets]
    if engine == "torch":
        assert again.subject("int8").versus_teacher.reason == "ratios are taken at target here"


def test_a_report_reads_back_as_it_was_written(report: Report, tmp_path: Path):
    write_report(report, tmp_path / "report", {"cpu": timing()})
    assert Report.read(tmp_path / "report" / "report.json") == report
    samples = json.loads((tmp_path / "report" / "samples.json").read_text())
    assert len(samples["targets"]["cpu"]["slots"]) == 60
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json",
        "report.md",
        "index.html",
        "samples.json",
    }


def test_figures_are_those_of_the_samples_and_answers(report: Report):
    student = report.subject("student")
    assert student.metric.value == 1 - 90 / ROWS
    assert student.versus_teacher.drop.value == pytest.approx(10 / ROWS)
    assert student.versus_teacher.agreement == 1 - 10 / ROWS
    assert student.versus_teacher.flips == {"both": 710, "lost": 10, "won": 0, "neither": 80}
    assert student.bytes == len("student") * 1000
    by_round = [timing().rounds_of(name) for name in ("student", "teacher")]
    medians = [[np.median(rounds[number]) for number in range(15)] for rounds in by_round]
    wanted = ratio_interval(*medians)
    assert student.versus_teacher.latency_ratio.model_dump() == pytest.approx(vars(wanted))
    pooled = np.concatenate(list(by_round[0].values()))
    assert student.latency[0].p50_ms == pytest.approx(np.median(pooled) / 1e6)
    assert student.latency[0].p90_ms == pytest.approx(np.quantile(pooled, 0.9) / 1e6)
    assert student.latency[0].samples == 300


def test_speedups_multiply_to_the_inverse_of_the_last_ratio(report: Report):
    assert [step.step for step in report.ladder] == ["student", "int8"]
    product = math.prod(step.speedup.value for step in report.ladder)
    assert product == pytest.approx(1 / report.subject("int8").versus_teacher.latency_ratio.value)


def test_the_teacher_timed_against_itself_is_the_noise(report: Report):
    again = report.subject("teacher/aa")
    assert again.versus_teacher.latency_ratio == report.noise
    assert 0.95 < report.noise.value < 1.05
    assert again.same_as == "teacher"


def test_budgets_are_held_against_the_last_subject_or_the_one_named(report: Report, tmp_path: Path):
    assert {line.what: line.verdict for line in report.budgets} == {
        "accuracy.drop": "pass",
        "latency.p50": "pass",
        "size": "pass",
    }
    assert report.verdict == "pass"
    other = tmp_path / "other"
    other.mkdir()
    slow = assemble(told(), subjects(other), SCORED, timings={"cpu": timing()}, budget=BUDGET, best="student")
    assert slow.verdict == "fail"
    with pytest.raises(InputError, match="no subject 'slim'"):
        assemble(told(), subjects_in(tmp_path, "more"), SCORED, timings="", budget=BUDGET, best="slim")


def subjects_in(folder: Path, name: str) -> list[Subject]:
    (folder / name).mkdir()
    return subjects(folder / name)


def test_without_timing_latency_is_null_with_the_reason_and_the_budget_undecided(tmp_path: Path):
    found = assemble(told(), subjects(tmp_path), SCORED, timings="a smoke run claims no times", budget=BUDGET)
    for row in found.subjects:
        assert row.latency[0].status == "not measured"
        assert row.latency[0].reason == "a smoke run claims no times"
        assert row.latency[0].p50_ms is None
    assert found.subject("student").versus_teacher.latency_ratio is None
    assert found.ladder[0].speedup is None
    assert found.verdict == "undecided"
    assert "Latency was not measured: a smoke run claims no times." in found.doubts


def test_without_a_budget_there_is_no_verdict(tmp_path: Path):
    assert assemble(told(), subjects(tmp_path), SCORED, timings="off").verdict == "none"


def test_a_subject_with_the_same_file_has_the_same_figures_and_says_so(tmp_path: Path):
    chain = subjects(tmp_path)
    ship = subject(tmp_path, "ship", 92, weights=b"small", precision="int8")
    found = assemble(told(), [*chain, ship], SCORED, timings={"cpu": timing()})
    int8, shipped = found.subject("int8"), found.subject("ship")
    assert shipped.same_as == "int8"
    assert int8.same_as is None
    assert shipped.latency == int8.latency
    assert shipped.versus_teacher == int8.versus_teacher
    assert found.ladder[-1].model_dump(include={"speedup", "drop"}) == {
        "speedup": {"value": 1.0, "low": 1.0, "high": 1.0},
        "drop": {"value": 0.0, "low": 0.0, "high": 0.0},
    }


def test_doubts_stand_beside_the_figures(tmp_path: Path):
    few = Scored(list(REFERENCES), LABELS, on_test=False)
    noisy = replace(timing(rounds=4), busy_before=0.5, cpus=None, stolen_seconds=2.0)
    found = assemble(told(machine={"virtual": True}), subjects(tmp_path), few, timings={"cpu": noisy})
    for words in (
        "no test set",
        "rests on 4 rounds",
        "50 % of the processors busy",
        "cannot pin",
        "the host took 2 s",
        "heat slowed the processors is not known",
        "virtual machine",
        "no INT8 dot products",
        "not pinned by a digest",
    ):
        assert any(words in doubt for doubt in found.doubts), words


def test_a_subject_without_answers_is_refused(tmp_path: Path):
    chain = subjects(tmp_path)
    with pytest.raises(InputError, match="needs the answers of student"):
        assemble(told(), [chain[0], replace(chain[1], logits=None)], SCORED, timings="off")


def test_known_answers_are_kept_and_shared_by_the_same_file(tmp_path: Path):
    chain = subjects(tmp_path)
    twin = replace(subject(tmp_path, "ship", 0, weights=b"small"), logits=None)
    assert same_models([*chain, twin]) == {"ship": "int8"}
    scored = score_subjects([*chain, twin], ["a text"] * ROWS)
    assert scored[3].logits is scored[2].logits
    with pytest.raises(InputError, match=f"teacher has {ROWS} answers for 3 rows"):
        score_subjects(chain, ["a", "b", "c"])


def test_external_data_counts_in_the_size(tmp_path: Path):
    one = subject(tmp_path, "student", 0)
    (one.folder / "model.onnx.data").write_bytes(b"x" * 50)
    assert model_bytes(one) == 7000 + 50


def test_the_rows_timed_are_the_same_for_one_seed():
    texts = [str(number) for number in range(500)]
    assert draw_texts(texts) == draw_texts(texts)
    assert len(set(draw_texts(texts))) == 64
    assert draw_texts(texts, seed=1) != draw_texts(texts)
    assert len(draw_texts(texts[:10])) == 10


def test_parameters_are_counted_in_the_file(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, str(tmp_path / "model.safetensors"))
    assert count_parameters(Subject("teacher", tmp_path, engine="torch")) == 17


def test_a_curve_keeps_the_last_of_a_repeated_step(tmp_path: Path):
    lines = [{"step": step, "loss": float(step)} for step in range(1, 500)] + [{"step": 1, "loss": 9.0}]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_curve(path)
    assert len(found) <= 200
    assert found[0] == {"step": 1, "loss": 9.0}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', "not json"])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"is not a report.json of schema 1"):
        Report.read(path)
    with pytest.raises(InputError, match="is not a report"):
        Report.read(tmp_path / "none.json")


def test_the_curves_of_several_cuts_follow_one_another(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    lines = [{"step": 1, "loss": 3.0, "cut": 1}, {"step": 2, "loss": 2.0, "cut": 1}, {"step": 1, "loss": 2.5, "cut": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(point["step"], point["loss"]) for point in read_curve(path)] == [(1, 3.0), (2, 2.0), (3, 2.5)]


def test_ratios_are_taken_at_the_first_target_of_onnxruntime(tmp_path: Path):
    targets = {"slow": Target(engine="torch"), "cpu": Target()}
    other = replace(timing(), slots=tuple(replace(slot, subject=f"{slot.subject}@torch") for slot in timing().slots))
    models = subjects(tmp_path)
    found = assemble(
        told(), models, SCORED, timings={"slow": other, "cpu": timing()}, targets=targets,
        benchmark=Benchmark(targets=["slow", "cpu"]),
    )  # fmt: skip
    alone = assemble(told(), models, SCORED, timings={"cpu": timing()}, targets={"cpu": Target()})
    ratios = [one.versus_teacher.latency_ratio for one in found.subjects if one.versus_teacher]
    assert ratios == [one.versus_teacher.latency_ratio for one in alone.subjects if one.versus_teacher]
    assert None not in ratios
    assert found.noise == alone.noise
    assert any("those of target cpu instead of slow" in doubt for doubt in found.doubts)


def test_the_same_weights_with_another_tokenizer_are_another_model(tmp_path: Path):
    first = subject(tmp_path, "first", 0, weights=b"same")
    second = subject(tmp_path, "second", 0, weights=b"same")
    assert same_models([first, second]) == {"second": "first"}
    (second.folder / "tokenizer.json").write_text("{}")
    assert same_models([first, second]) == {}
