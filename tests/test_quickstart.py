"""The quickstart on a small share of its rows: the real MiniLM, real snippets, every stage, and what is deployed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_text import check_figures, in_markdown, numbers, on_the_page, wrong

ROOT = Path(__file__).parent.parent
SMALL = [
    "data.split.test=60",
    "data.split.select=60",
    "data.split.train=96",
    "teacher.expect.accuracy='>= 20pp'",
    "budget.accuracy.drop='<= 90pp'",
    "budget.latency.p50='<= 9x'",
    "benchmark.rounds=3",
]
STAGES = ["teacher", "student", "slim", "int8", "ship"]
BLOCKED = """
import sys, runpy
for name in ("torch", "transformers", "compressor"):
    sys.modules[name] = None
sys.argv = ["predict.py"]
runpy.run_path("predict.py", run_name="__main__")
"""
OPEN = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["compressor"] = None
else:
    import compressor.auto
import numpy, torch
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
trust = {"trust_remote_code": True} if sys.argv[1] == "without" else {}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[2], **trust).eval()
inputs = {name: torch.from_numpy(value) for name, value in numpy.load(sys.argv[3]).items()}
with torch.no_grad():
    numpy.save(sys.argv[4], model(**inputs).logits.numpy())
"""

pytestmark = pytest.mark.registry


def compress(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [word for line in SMALL for word in ("--set", line)]
    command = [sys.executable, "-m", "compressor", str(ROOT / "recipes/quickstart.yaml"), "--out", "run", *sets, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    done = compress(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run/final" in done.stdout
    table = [
        line for line in done.stdout.splitlines() if not line.startswith(("report: ", "model: "))
    ]  # paths are long
    assert max(map(len, table)) <= 100
    return folder / "run"


@pytest.fixture(scope="module")
def report(quickstart) -> dict:
    return json.loads((quickstart / "report/report.json").read_text())


@pytest.fixture(scope="module")
def rows(quickstart):
    from compressor.data.rows import read_data
    from compressor.recipe.recipe import Recipe

    recipe = Recipe.load(quickstart / "recipe.resolved.yaml")
    return read_data(recipe.data, recipe.task, base=recipe.base)


def test_the_report_holds_the_teacher_and_every_stage(report):
    names = [subject["name"] for subject in report["subjects"]]
    assert names[:5] == STAGES
    assert report["verdict"] == "pass"
    assert [row["verdict"] for row in report["budgets"]] == ["pass"] * 3
    for subject in report["subjects"]:
        assert subject["metric"]["rows"] == 60
        assert subject["latency"][0]["status"] == "measured"
        assert subject["engine"] == "onnxruntime"
    assert [step["step"] for step in report["ladder"]] == STAGES[1:]
    assert report["data"]["train"] == 96
    assert report["data"]["test"] == report["data"]["select"] == 60
    assert report["data"]["unlabelled"] > 10_000


def test_the_report_names_each_layer_of_the_pruning_and_why_it_went_or_stayed(report):
    (pruning,) = report["pruning"]
    assert len(pruning["layers"]) == 3
    assert all(layer["because"] for layer in pruning["layers"])
    assert any(layer["heads"] < 12 or layer["ffn"] < 1536 for layer in pruning["layers"])


def test_the_report_keeps_its_schema_and_page_markdown_and_json_say_the_same_numbers(quickstart, report):
    assert wrong(report, json.loads((ROOT / "docs/report.schema.json").read_text())) == []
    shown = on_the_page((quickstart / "report/index.html").read_text())
    written = in_markdown((quickstart / "report/report.md").read_text())
    check_figures(report, written)
    written["At a glance"] = written["At a glance"][1:]  # the page's tiles have no head
    assert {title: numbers(rows) for title, rows in shown.items()} == {
        title: numbers(rows) for title, rows in written.items()
    }


def test_the_report_says_what_simple_models_reach_and_what_deciding_flattered(report):
    assert [one["name"] for one in report["baselines"]] == ["tfidf", "static", "small"]
    assert {one["stage"] for one in report["optimism"]} >= {"student", "slim", "int8"}
    row = next(one for one in report["subjects"] if one["name"] == "int8")
    assert sum(one["rows"] for one in row["classes"]) == 60
    assert row["calibration"]["temperature"] > 0
    assert row["resources"]["peak_memory_bytes"] > 0
    assert [one["end_to_end"] for one in row["latency"]] == [False, True]
    assert all(one["status"] == "measured" and one["samples"] >= 12 for one in row["latency"])


def test_a_second_run_makes_nothing(quickstart):
    before = {
        path: path.stat().st_mtime_ns for path in quickstart.rglob("*") if path.is_file() and path.name != ".lock"
    }
    done = compress(quickstart.parent)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith("done already")] == [
        *(f"{stage}: done already" for stage in STAGES),
        "report and final: done already",
    ]
    after = {path: path.stat().st_mtime_ns for path in quickstart.rglob("*") if path.is_file() and path.name != ".lock"}
    changed = {str(path.relative_to(quickstart)) for path in after if before.get(path) != after[path]}
    assert changed <= {"decisions.jsonl"}


def test_predict_py_answers_the_test_rows_without_torch_transformers_and_compressor(quickstart, report, rows):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in rows.test.texts)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=quickstart / "final", input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    right = sum(answer == rows.labels[label] for answer, label in zip(answers, rows.test.labels, strict=True))
    ship = next(subject for subject in report["subjects"] if subject["name"] == "ship")
    assert right / len(answers) == pytest.approx(ship["metric"]["value"])


@pytest.mark.parametrize("way", ["without", "with"])
def test_the_pruned_folder_opens_in_a_fresh_process_with_the_stages_own_logits(quickstart, rows, tmp_path, way):
    from compressor.data.encode import collate, open_encoder
    from compressor.runtime.predictor import load

    folder = quickstart / "stages/slim/model"
    texts = list(rows.select.texts[:16])
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(texts)
    np.savez(tmp_path / "inputs.npz", **collate(encoded, range(len(texts)), encoder.pad_id))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, way, str(folder), str(tmp_path / "inputs.npz"), str(tmp_path / "logits.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    own = load(folder, engine="torch").logits(texts)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), own, atol=1e-5, rtol=0)


def test_cut_equals_masked_on_the_fine_tuned_minilm_and_heads_in_the_wrong_order_do_not(quickstart, rows):
    import torch

    from compressor.data.encode import collate, open_encoder
    from compressor.model.encoders import load_model, model_logits
    from compressor.model.parts import anatomy
    from compressor.model.surgery import Kept, cut, masked

    folder = quickstart / "stages/teacher/model"
    model = load_model(folder)
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(rows.select.texts[:16])
    inputs = {name: torch.from_numpy(value) for name, value in collate(encoded, range(16), encoder.pad_id).items()}
    heads = tuple(tuple(range(0, 12, step)) for step in (1, 2, 3, 4, 5, 6))
    neurons = tuple(tuple(range(layer, 1536, layer + 1)) for layer in range(6))
    kept = Kept(heads=heads, neurons=neurons, layers=tuple(range(6)))
    with masked(model, kept):
        reference = model_logits(model, inputs)
    made = cut(model, kept)
    assert float((model_logits(made, inputs) - reference).abs().max()) < 1e-5
    value = anatomy(made).layers[1].value
    with torch.no_grad():
        value.weight.copy_(value.weight.view(6, 32, 384).flip(0).reshape(192, 384))
    assert float((model_logits(made, inputs) - reference).abs().max()) > 1e-4
