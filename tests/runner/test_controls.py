"""Students without a teacher or without unlabelled rows: kept beside the stage, scored, never timed or deployed."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import write_reviews

from compressor.recipe.recipe import Recipe
from compressor.report.model import Report
from compressor.runner.directory import RunDirectory
from compressor.runner.run import run

DATA = {"train": "reviews.csv", "unlabelled": ["pool.txt"], "text": "review", "label": "stars"}


KILLED = """
import os, signal, sys
from compressor.recipe.recipe import Recipe
from compressor.runner.run import run
def progress(what, done, total):
    if what.startswith(sys.argv[1]) and done >= 1:
        os.kill(os.getpid(), signal.SIGKILL)
run(Recipe.load("recipe.yaml").smoke(), "out", progress=progress)
"""


def recipe_of(home: Path, *, control: bool = True, more: tuple[dict, ...] = (), **settings) -> Recipe:
    train = {"epochs": 1.0, "checkpoint": 1}
    stage = {"student": {"layers": 1}, "train": train, "control": control, **settings}
    whole = {
        "data": DATA,
        "teacher": {"model": "./teacher"},
        "stages": [{"id": "s", "distill": stage}, *more, {"id": "e", "export": {}}],
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return Recipe.load(home / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_classifier) -> Path:
    """A smoke run of a recipe with controls."""
    home = tmp_path_factory.mktemp("controls")
    shutil.copytree(tiny_classifier, home / "teacher")
    write_reviews(home)
    run(recipe_of(home).smoke(), home / "out")
    return home


def test_controls_lie_in_the_stage_with_what_they_were_trained_with(finished):
    stage = finished / "out" / "stages" / "s"
    found = json.loads((stage / "controls" / "controls.json").read_text())
    assert set(found) == {"no_kd", "no_mix"}
    assert len(found["no_kd"]["learning_rates"]) == 3
    for name in found:
        assert (stage / "controls" / name / "model" / "compressor.json").is_file()
    left = {path.name for path in (stage / "controls").iterdir()}
    assert left == {"controls.json", "no_kd", "no_mix"}
    assert not list(stage.rglob("checkpoint")), "checkpoints are for resuming alone"


def test_controls_are_subjects_that_are_scored_and_not_timed(finished):
    report = Report.read(finished / "out" / "report" / "report.json")
    assert [row.name for row in report.subjects] == ["teacher", "s", "e", "s/no_kd", "s/no_mix"]
    for name in ("s/no_kd", "s/no_mix"):
        row = report.subject(name)
        assert row.metric.rows > 0
        assert row.path == f"stages/s/controls/{name.removeprefix('s/')}/onnx"
        (latency,) = row.latency
        assert (latency.status, latency.reason) == ("not measured", "same shape as s")
        assert (row.versus_teacher.latency_ratio, row.versus_teacher.reason) == (None, "same shape as s")
    assert [step.step for step in report.ladder] == ["s", "e"]
    assert json.loads((finished / "out" / "final" / "compressor.json").read_text())["stage"] == "e"
    assert not (finished / "out" / "stages" / "s" / "answers").exists(), "answers of controls lie with all others"


def test_the_report_says_what_distillation_and_unlabelled_rows_brought(finished):
    report = Report.read(finished / "out" / "report" / "report.json")
    assert [(one.stage, one.what) for one in report.attribution] == [
        ("s", "distillation"),
        ("s", "unlabelled rows"),
    ]
    for one in report.attribution:
        gain = (
            report.subject("s").metric.value
            - report.subject(f"s/{'no_kd' if one.what[0] == 'd' else 'no_mix'}").metric.value
        )
        assert one.value == pytest.approx(gain)
        assert one.low <= one.value <= one.high
        words = one.sentence.split()[0]
        assert words in report.to_markdown()
        assert words in report.to_html()
        assert words in report.table()
    assert any("one training each" in doubt for doubt in report.doubts)


def test_the_report_shows_the_score_before_training(finished):
    report = Report.read(finished / "out" / "report" / "report.json")
    start = [one for one in report.decisions if one["kind"] == "start"]
    assert start
    assert {one["stage"] for one in start} == {"s"}
    assert 0 <= start[0]["chosen"] <= 1
    assert "Decided while distilling" in report.to_markdown()
    assert "Decided while distilling" in report.to_html()


def test_a_second_run_keeps_the_controls_and_one_without_them_is_made_again(finished, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    said = []
    run(recipe_of(home).smoke(), home / "out", say=said.append)
    assert "s: done already" in said
    assert "report and final: done already" in said
    (home / "out" / "stages" / "s" / "controls" / "controls.json").unlink()
    said.clear()
    run(recipe_of(home).smoke(), home / "out", say=said.append)
    assert "s: distill" in said


def weights(root: Path) -> dict[str, str]:
    files = sorted((root / "stages" / "s").rglob("model/*.safetensors"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("phase", ["s: without a teacher", "s: without unlabelled rows"])
def test_killed_in_a_control_and_run_again_ends_bit_identical(finished, tmp_path, phase):
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    expected = weights(home / "out")
    assert len(expected) == 3
    shutil.rmtree(home / "out" / "stages" / "s")
    killed = subprocess.run([sys.executable, "-c", KILLED, phase], cwd=home, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (home / "out" / "stages" / "s.partial").is_dir()
    run(Recipe.load(home / "recipe.yaml").smoke(), home / "out")
    assert weights(home / "out") == expected


def test_without_control_there_is_nothing_to_attribute(finished, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    result = run(recipe_of(home, control=False).smoke(), home / "out")
    assert result.report["attribution"] == []
    assert RunDirectory(home / "out").controls("s") == {}


def test_every_kind_of_teacher_and_phase_runs_through_the_stage(finished, tmp_path, tiny_classifier):
    home = tmp_path / "home"
    shutil.copytree(finished, home, ignore=shutil.ignore_patterns("out"))
    shutil.copytree(tiny_classifier, home / "second")
    rows = [{"review": line, "p": [0.25, 0.75]} for line in (home / "pool.txt").read_text().splitlines()]
    (home / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = ["teacher", "./second", {"probabilities": {"path": "answers.jsonl", "column": "p"}, "weight": 2.0}]
    phases = [{"train": {"epochs": 1.0}, "match": [{"of": "hidden"}, {"of": "relations"}]}, {"train": {"epochs": 1.0}}]
    start = {"init": {"from": "./second"}}
    prune = {"id": "p", "prune": {"recover": {}, "teacher": "./second"}}
    recipe = recipe_of(home, control=False, more=(prune,), teacher=teachers, phases=phases, train={}, student=start)
    run(recipe.smoke(), home / "out")
    stage = home / "out" / "stages" / "s"
    assert len((stage / "steps.jsonl").read_text().splitlines()) == 4
    assert set(json.loads((stage / "stage.json").read_text())["key_parts"]["inputs"]) == {
        "teacher",
        "teacher2",
        "teacher3",
        "student",
    }
    assert not (stage / "random").exists()
