"""A run: skips what is done, redoes what changed, resumes to the bit after SIGKILL, ends in report and final."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.recipe.recipe import Recipe
from compressor.runner.directory import read_lines
from compressor.runner.plan import plan
from compressor.runner.run import run

TRAIN = {"epochs": 5, "learning_rate": 3e-3, "batch_rows": 8, "checkpoint": 8}
RECIPE = {
    "version": 1,
    "name": "tiny",
    "data": {
        "train": "reviews.csv",
        "unlabelled": ["pool.txt"],
        "text": "review",
        "label": "stars",
        "test": "test.csv",
    },
    "teacher": {"model": "./my-bert", "finetune": {"train": TRAIN}},
    "stages": [
        {"id": "student", "distill": {"student": {"layers": 1}, "train": TRAIN}},
        {"id": "slim", "prune": {"until": {"macs": "0.7x"}, "recover": {"train": {**TRAIN, "epochs": 1}}}},
        {"id": "int8", "quantize": {"try": ["dynamic"]}},
        {"id": "ship", "export": {"to": "onnx"}},
    ],
    "budget": {"accuracy": {"drop": "<= 90pp", "vs": "teacher"}, "size": "<= 40MB"},
    "benchmark": {"rounds": 3},
}
STAGES = ["teacher", "student", "slim", "int8", "ship"]

KILLED = """
import os, signal, sys
from compressor.runner.run import run
def progress(what, done, total):
    if what.startswith(sys.argv[2]) and done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
run(sys.argv[1], progress=progress, say=lambda line: progress(line, 0, None))
"""


def write_recipe(desk: Path, **changes) -> Path:
    from tiny import make_reviews

    lines = ["review,stars", *(f"{text},{label}" for text, label in make_reviews(60, seed=9))]
    (desk / "test.csv").write_text("\n".join(lines) + "\n")
    path = desk / "tiny.yaml"
    path.write_text(json.dumps({**RECIPE, **changes}, indent=1))
    return path


def weights(root: Path) -> dict[str, str]:
    """Digest of every weight file of a run, and of what is deployed."""
    files = [*root.glob("stages/*/model/*.safetensors"), *root.glob("stages/*/model/*.onnx"), root / "final/model.onnx"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def started(root: Path) -> dict[str, str]:
    return {name: json.loads((root / "stages" / name / "stage.json").read_text())["started"] for name in STAGES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert):
    """A run that was never interrupted, in a process of its own."""
    from tiny import write_reviews

    desk = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_bert, desk / "my-bert")
    write_reviews(desk)
    recipe = write_recipe(desk)
    done = subprocess.run([sys.executable, "-m", "compressor", str(recipe)], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final" in done.stdout
    return desk


def copy_of(finished: Path, tmp_path: Path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def test_the_run_directory_holds_what_the_design_promises(finished):
    root = finished / "runs" / "tiny"
    for name in ("recipe.yaml", "recipe.resolved.yaml", "environment.json", "decisions.jsonl"):
        assert (root / name).is_file(), name
    for name in ("index.html", "report.json", "report.md"):
        assert (root / "report" / name).is_file(), name
    for name in ("model.onnx", "config.json", "tokenizer.json", "compressor.json", "predict.py", "README.md"):
        assert (root / "final" / name).is_file(), name
    for stage in STAGES:
        record = json.loads((root / "stages" / stage / "stage.json").read_text())
        wanted = {"schema", "id", "verb", "key", "key_parts", "settings", "versions", "machine", "seed", "threads",
                  "checkpoint_steps", "seconds", "attempts", "started", "model"}  # fmt: skip
        assert wanted <= set(record)
        assert record["attempts"] == 1
        metrics = json.loads((root / "stages" / stage / "metrics.json").read_text())
        assert set(metrics["select"]["accuracy"]) == {"value", "low", "high", "rows"}
    steps = [json.loads(line) for line in (root / "stages/student/steps.jsonl").read_text().splitlines()]
    assert {"attempt", "step", "epoch", "loss", "terms", "learning_rate", "seconds"} <= set(steps[0])
    assert {"logits", "labels", "hidden"} <= set(steps[0]["terms"])
    assert not list(root.rglob("*.bin"))
    assert not list(root.rglob("*.pkl"))
    assert json.loads((root / "final/config.json").read_text())["model_type"] == "bert"


def test_a_second_run_makes_nothing_and_loads_no_torch(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    before = weights(desk / "runs/tiny"), started(desk / "runs/tiny")
    report = (desk / "runs/tiny/report/report.json").stat().st_mtime_ns
    code = "import sys, compressor\nr = compressor.run('tiny.yaml')\nprint(r.exit_code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr
    assert (weights(desk / "runs/tiny"), started(desk / "runs/tiny")) == before
    assert (desk / "runs/tiny/report/report.json").stat().st_mtime_ns == report


def test_a_changed_setting_of_prune_redoes_prune_and_what_follows(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    changed = Recipe.load(desk / "tiny.yaml", ["stages.slim.prune.until.macs=0.6x"])
    lines = plan(changed, desk / "runs/tiny")
    assert [(line.stage, line.status) for line in lines] == [
        ("teacher", "HIT"),
        ("student", "HIT"),
        ("slim", "MISS"),
        ("int8", "MISS"),
        ("ship", "MISS"),
    ]
    assert lines[2].reason == 'settings.until.macs "0.7x" -> "0.6x"'
    assert lines[3].reason == "follows slim"
    before = started(desk / "runs/tiny")
    made = []
    run(changed, desk / "runs/tiny", say=made.append)
    assert [line for line in made if line.endswith(": done already")] == [
        "teacher: done already",
        "student: done already",
    ]
    after = started(desk / "runs/tiny")
    assert {name for name in STAGES if before[name] == after[name]} >= {"teacher", "student"}


def test_a_renamed_stage_is_found_by_its_key(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    stages = [{**stage, "id": "small" if stage["id"] == "student" else stage["id"]} for stage in RECIPE["stages"]]
    recipe = Recipe.load(write_recipe(desk, stages=stages))
    made = []
    run(recipe, desk / "runs/tiny", say=made.append)
    assert "small: done already" in made
    assert "ship: done already" in made
    assert not (desk / "runs/tiny/stages/student").exists()


def test_redo_makes_a_stage_again_and_finds_the_rest_unchanged(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    before = weights(desk / "runs/tiny")
    made = []
    run(desk / "tiny.yaml", desk / "runs/tiny", redo=["int8"], say=made.append)
    assert "int8: quantize" in made
    assert "ship: done already" in made
    assert weights(desk / "runs/tiny") == before
    with pytest.raises(InputError, match=r"--redo zzz: no such stage; choose from teacher, student, slim, int8, ship"):
        run(desk / "tiny.yaml", desk / "runs/tiny", redo=["zzz"])


@pytest.mark.parametrize(
    ("phase", "count"),
    [
        ("teacher: fine-tune", 20),
        ("student: distill", 29),
        ("student: score on select", 0),
        ("slim: recover", 13),
        ("int8: quantize", 0),
        ("ship: export", 0),
    ],
    ids=["fine-tuning", "distilling", "scoring a trained student", "recovering", "quantizing", "exporting"],
)
def test_killed_in_a_stage_and_run_again_ends_bit_identical(finished, tmp_path, monkeypatch, phase, count):
    desk = copy_of(finished, tmp_path, monkeypatch)
    expected = weights(desk / "runs/tiny")
    stage = phase.split(":")[0]
    for name in STAGES[STAGES.index(stage) :]:
        subprocess.run(["rm", "-r", f"runs/tiny/stages/{name}"], check=True)
    subprocess.run(["rm", "-r", "runs/tiny/final", "runs/tiny/report", "runs/tiny/answers"], check=True)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "tiny.yaml", phase, str(count)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (desk / f"runs/tiny/stages/{stage}.partial").is_dir()
    again = subprocess.run([sys.executable, "-m", "compressor", "tiny.yaml"], capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert weights(desk / "runs/tiny") == expected
    record = json.loads((desk / f"runs/tiny/stages/{stage}/stage.json").read_text())
    assert record["attempts"] == 2
    log = desk / f"runs/tiny/stages/{stage}/steps.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if "score" in phase:
        assert {line["attempt"] for line in lines} == {1}
    if count:
        assert [line["attempt"] for line in lines] == sorted(line["attempt"] for line in lines)
        again_from = next(line["step"] for line in lines if line["attempt"] == 2)
        assert count - TRAIN["checkpoint"] < again_from <= count


@pytest.mark.parametrize("stage", ["teacher", "slim"])
def test_killed_between_training_and_scoring_and_run_again_trains_no_step_and_tells_the_same(
    finished, tmp_path, monkeypatch, stage
):
    root = copy_of(finished, tmp_path, monkeypatch) / "runs/tiny"
    folder = root / "stages" / stage
    expected = weights(root)
    told = [(line["kind"], line["chosen"]) for line in read_lines(folder / "decisions.jsonl")]
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(root / "stages" / name)
    code = [sys.executable, "-c", KILLED, "tiny.yaml", f"{stage}: export", "0"]
    assert subprocess.run(code, capture_output=True).returncode == -signal.SIGKILL
    again = subprocess.run([sys.executable, "-m", "compressor", "tiny.yaml"], capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {line["attempt"] for line in read_lines(folder / "steps.jsonl")} == {1}
    assert [(line["kind"], line["chosen"]) for line in read_lines(folder / "decisions.jsonl")] == told
    assert weights(root) == expected


def test_two_runs_in_one_directory_are_refused(finished, tmp_path, monkeypatch):
    from compressor.runner.directory import RunDirectory

    desk = copy_of(finished, tmp_path, monkeypatch)
    with RunDirectory(desk / "runs/tiny").locked(), pytest.raises(InputError, match="in use by another run"):
        run(desk / "tiny.yaml", desk / "runs/tiny")


def test_a_broken_gate_ends_with_exit_code_3_and_the_model_before_it_in_final(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    gate = {"accuracy": ">= 101pp"}
    stages = [dict(stage, gate=gate) if stage["id"] == "slim" else stage for stage in RECIPE["stages"]]
    result = run(Recipe.load(write_recipe(desk, stages=stages)), desk / "runs/tiny")
    assert result.exit_code == 3
    assert "slim" in (result.message or "")
    assert (desk / "runs/tiny/final/model.onnx").is_file()
    names = [subject["name"] for subject in result.report["subjects"]]
    assert "int8" not in names


def test_a_skipped_stage_hands_on_its_input(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    gate = {"accuracy": ">= 101pp", "else": "skip"}
    stages = [dict(stage, gate=gate) if stage["id"] == "slim" else stage for stage in RECIPE["stages"]]
    result = run(Recipe.load(write_recipe(desk, stages=stages)), desk / "runs/tiny")
    assert result.exit_code == 0
    student = json.loads((desk / "runs/tiny/stages/student/model/compressor.json").read_text())
    final = json.loads((desk / "runs/tiny/final/compressor.json").read_text())
    assert final["shapes"] == student["shapes"]


def test_a_budget_that_fails_gives_exit_code_3_and_keeps_final(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    recipe = Recipe.load(write_recipe(desk, budget={"size": "<= 0.001MB"}))
    result = run(recipe, desk / "runs/tiny")
    assert result.exit_code == 3
    assert result.report["verdict"] == "fail"
    assert (desk / "runs/tiny/final/model.onnx").is_file()


def test_recipe_mistakes_leave_no_run_directory(desk):
    path = write_recipe(desk, stages=[{"id": "x", "prun": {}}])
    done = subprocess.run([sys.executable, "-m", "compressor", str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (desk / "runs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("review,stars\nthe film is warm,good\nthis one was bright,good\nthe actors,good\n", "two classes"),
        (
            "review,stars\nнеплохой фильм,good\nскучная история,bad\nочень плохо сделано,bad\nотлично снято,good\n",
            "token",
        ),
    ],
    ids=["empty", "one class", "script"],
)
def test_unusable_rows_end_with_exit_code_2_before_anything_is_made(desk, content, words):
    path = write_recipe(desk)
    (desk / "reviews.csv").write_text(content, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "compressor", str(path)], capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (desk / "runs/tiny/stages").exists()


def test_smoke_runs_every_stage_apart_and_claims_no_time(finished, tmp_path, monkeypatch):
    desk = copy_of(finished, tmp_path, monkeypatch)
    before = weights(desk / "runs/tiny")
    done = subprocess.run([sys.executable, "-m", "compressor", "tiny.yaml", "--smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(desk / "runs/tiny") == before
    report = json.loads((desk / "runs/tiny-smoke/report/report.json").read_text())
    assert {entry["status"] for subject in report["subjects"] for entry in subject["latency"]} == {"not measured"}
    config = json.loads((desk / "runs/tiny-smoke/stages/teacher/model/config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]) == (32, 4, 2)
