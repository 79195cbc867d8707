import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_folders import TEXTS, write_classifier

import compressor
from compressor.bench.isolation import Command, time_in_turn
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.runtime.timed import answer, read_rows, timed_command, write_rows

ENV = {"PYTHONPATH": str(Path(compressor.__file__).parents[1])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier):
    root = tmp_path_factory.mktemp("timed")
    torch = write_classifier(root / "torch", tiny_classifier)
    return {"torch": torch, "onnxruntime": Exporter(torch).export(root / "onnx")}


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = ["plain", "", "wärm \u2028 美\nline", ("a", "b\t")]
    assert read_rows(write_rows(tmp_path / "rows", rows)) == rows
    (tmp_path / "rows").write_text('"a"\n["b"]\n')
    with pytest.raises(InputError, match=r"rows:2 must be a text or a list of two texts \(got \[\"b\"\]\)"):
        read_rows(tmp_path / "rows")


def test_warm_up_runs_are_not_in_the_answer():
    ran = []
    calls = [lambda number=number: ran.append(number) for number in range(3)]
    taken = answer({"round": 0, "rows": [2, 1, 2], "warmup": 4}, calls)
    assert ran == [2, 1, 2, 2, 2, 1, 2]
    assert len(taken["ns"]) == 3
    assert all(isinstance(each, int) and each >= 0 for each in taken["ns"])
    assert answer({"round": 1, "rows": [], "warmup": 2}, calls) == {"ns": []}


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_the_process_speaks_the_protocol_of_bench(folders, tmp_path, engine):
    rows = write_rows(tmp_path / "rows", [*TEXTS[:5], ("a film", "dull")])
    command = timed_command(folders[engine], engine=engine, threads=1, rows=rows)
    assert command[0] == sys.executable
    asked = ['{"round": 0, "rows": [0, 5, 0], "warmup": 1}', '{"round": 1, "rows": [], "warmup": 0}', '{"quit": true}']
    env = {**os.environ, **ENV}
    done = subprocess.run(command, input="\n".join(asked) + "\n", capture_output=True, text=True, env=env, check=True)
    ready, first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["ready"] is True
    assert 0 < ready["start_seconds"] < 120
    assert len(first["ns"]) == 3
    assert min(first["ns"]) > 0
    assert second == {"ns": []}


def test_the_end_of_its_input_ends_it(folders, tmp_path):
    rows = write_rows(tmp_path / "rows", TEXTS[:1])
    command = timed_command(folders["onnxruntime"], engine="onnxruntime", threads=1, rows=rows)
    done = subprocess.run(command, input="", capture_output=True, text=True, env={**os.environ, **ENV}, check=True)
    assert len(done.stdout.splitlines()) == 1


def test_bench_times_two_models_in_turn(folders, tmp_path):
    rows = write_rows(tmp_path / "rows", TEXTS[:4])
    command = timed_command(folders["onnxruntime"], engine="onnxruntime", threads=1, rows=rows)
    commands = [Command(name, tuple(command), ENV) for name in ("a", "b")]
    timing = time_in_turn(commands, rows=4, rounds=2, threads=1, slot_seconds=0.01)
    assert {(slot.subject, slot.round) for slot in timing.slots} == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}
    assert all(nanoseconds > 0 for slot in timing.slots for nanoseconds in slot.nanoseconds)


def test_modules_in_the_working_directory_are_not_imported(folders, tmp_path):
    for name in ("compressor", "evaluate", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    rows = write_rows(tmp_path / "rows", TEXTS[:1])
    command = timed_command(folders["onnxruntime"], engine="onnxruntime", threads=1, rows=rows)
    env = {**os.environ, **ENV}
    done = subprocess.run(command, input="", capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
