"""A run whose targets are of engine `fastest`: the weights of the engine chosen are timed, and none ends the run."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import write_reviews

from compressor.bench.isolation import Slot, Timing
from compressor.errors import InputError
from compressor.recipe.recipe import Recipe
from compressor.report.model import Report
from compressor.runner.run import run
from compressor.runtime.choose import EngineChoice


def test_a_run_times_what_was_chosen_and_ends_well_where_nothing_could_be(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    def choose(target, *_given, **_more):
        if target.threads == 2:
            raise InputError("e opens in no engine on device cpu")
        return target.model_copy(update={"engine": "torch"}), EngineChoice("torch", {})

    def time(commands, **_more):
        slots = tuple(Slot(one.name, number, 0, (0,), (1_000_000,)) for one in commands for number in range(3))
        return Timing(slots, 1, None, {}, 0.0, None, None, None)

    monkeypatch.setattr("compressor.report.engines.at_target", choose)
    monkeypatch.setattr("compressor.report.workloads.time_in_turn", time)
    shutil.copytree(tiny_classifier, tmp_path / "teacher")
    write_reviews(tmp_path)
    whole = {
        "data": {"train": "reviews.csv", "text": "review", "label": "stars"},
        "teacher": {"model": "./teacher"},
        "stages": [{"id": "e", "export": {}}],
        "targets": {"one": {"engine": "fastest", "threads": 1}, "two": {"engine": "fastest", "threads": 2}},
        "benchmark": {"targets": ["two", "one"], "rounds": 3, "baselines": []},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
    result = run(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "out")
    assert result.exit_code == 0
    report = Report.read(tmp_path / "out" / "report" / "report.json")
    rows = report.subject("teacher", "torch").latency
    assert {(row.target, row.engine, row.status) for row in rows} == {("one", "torch", "measured")}
    samples = json.loads((tmp_path / "out" / "report" / "samples.json").read_text())["targets"]
    assert {slot["subject"] for slot in samples["one"]["slots"]} == {"teacher@torch", "teacher@torch/aa"}
    assert "Target two was not timed: e opens in no engine on device cpu." in report.doubts
    (row,) = report.subject("e").latency
    assert (row.target, row.reason) == ("two", "e opens in no engine on device cpu")
    assert json.loads((tmp_path / "out" / "final" / "compressor.json").read_text())["engine"] == "torch"
