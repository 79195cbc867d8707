import contextlib
import gc
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import TEXTS, write_classifier

import compressor
from compressor.bench.isolation import time_in_turn
from compressor.bench.process import PLAIN, Command, Work
from compressor.data.encoded import Encoded
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.runtime import timed
from compressor.runtime.engine import Opening
from compressor.runtime.predictor import Predictor, load
from compressor.runtime.timed import (
    Calls,
    answer,
    batch_of,
    empty_command,
    read_rows,
    spread,
    timed_command,
    write_rows,
)
from compressor.runtime.torch import TorchEngine

ENV = {"PYTHONPATH": str(Path(compressor.__file__).parents[1])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier):
    root = tmp_path_factory.mktemp("timed")
    weights = write_classifier(root / "torch", tiny_classifier)
    onnx = Exporter(weights).export(root / "onnx")
    return {"torch": weights, "onnxruntime": onnx, "openvino": onnx}


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = ["plain", "", "wärm \u2028 美\nline", ("a", "b\t")]
    assert read_rows(write_rows(tmp_path / "rows", rows)) == rows
    (tmp_path / "rows").write_text('"a"\n["b"]\n')
    with pytest.raises(InputError, match=r"rows:2 must be a text or a list of two texts \(got \[\"b\"\]\)"):
        read_rows(tmp_path / "rows")


def test_warm_up_runs_are_not_in_the_answer():
    ran = []
    calls = [lambda number=number: ran.append(number) for number in range(3)]
    made = []

    def call_of(row, work):
        made.append((row, work))
        return calls[row]

    taken = answer({"round": 0, "rows": [2, 1, 2], "warmup": 4}, call_of)
    assert made == [(2, PLAIN), (1, PLAIN)]
    assert ran == [2, 1, 2, 2, 2, 1, 2]
    assert len(taken["ns"]) == 3
    assert all(isinstance(each, int) and each >= 0 for each in taken["ns"])
    assert answer({"round": 1, "rows": [], "warmup": 2}, call_of) == {"ns": []}
    assert len(answer({"rows": [0], "work": {"batch": 3, "length": 9, "end_to_end": False}}, call_of)["ns"]) == 1
    assert made[-1] == (0, Work(batch=3, length=9))


needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
ON_CPU = ["onnxruntime", "torch", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(autouse=True)
def _collecting_garbage():
    """`serve` switches the collector off for its process, which here is that of all tests."""
    yield
    gc.enable()


@pytest.mark.parametrize("engine", ON_CPU)
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


ROWS = Encoded.of([[2, 7, 8, 3], [2, 3], [2, 5, 6, 7, 8, 9, 3]])


def test_a_batch_is_padded_to_its_own_longest_row_or_to_that_of_all():
    own = batch_of(ROWS, [0, 1], "data", pad_id=1)
    assert own["input_ids"].tolist() == [[2, 7, 8, 3], [2, 3, 1, 1]]
    assert own["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    whole = batch_of(ROWS, [0, 1], "padded", pad_id=1)
    assert whole["input_ids"].tolist() == [[2, 7, 8, 3, 1, 1, 1], [2, 3, 1, 1, 1, 1, 1]]
    assert whole["attention_mask"].sum() == own["attention_mask"].sum()
    assert whole["token_type_ids"].shape == (2, 7)


def test_rows_of_a_given_length_are_whole_and_keep_their_ends():
    batch = batch_of(ROWS, [0, 1, 2], 5, pad_id=1)
    assert batch["input_ids"].tolist() == [[2, 7, 8, 7, 3], [2, 2, 2, 2, 3], [2, 5, 6, 7, 3]]
    assert batch["attention_mask"].all()
    for tokens in range(2, 9):
        for wanted in range(3, 12):
            places = spread(tokens, wanted)
            assert len(places) == wanted
            assert (places[0], places[-1]) == (0, tokens - 1)
            assert set(places) <= set(range(tokens))
    assert spread(6, 6).tolist() == list(range(6))


@pytest.mark.parametrize("engine", ON_CPU)
def test_padding_and_batches_change_no_answer(folders, engine):
    predictor = load(folders[engine], engine=engine, threads=1)
    calls = Calls(predictor, TEXTS[:4])
    wanted = predictor.logits(TEXTS[:4])

    def answered(work: Work) -> np.ndarray:
        found = calls.of(2, work)()
        return np.array(found if engine == "torch" else found[0])

    assert np.allclose(answered(PLAIN), wanted[[2]], atol=1e-4)
    assert np.allclose(answered(Work(length="padded")), wanted[[2]], atol=1e-4)
    assert np.allclose(answered(Work(batch=3)), wanted[[2, 3, 0]], atol=1e-4)
    assert answered(Work(batch=5, length=12)).shape == (5, 2)
    assert calls.of(1, Work(end_to_end=True, batch=2))() == predictor.predict(TEXTS[1:3])


class Recording:
    """A device that notes what it is asked, in order; its clock goes one nanosecond a mark."""

    name = "gpu"

    def __init__(self):
        self.asked = []

    def place(self):
        self.asked.append("place")
        return torch.device("cpu")

    def synchronise(self):
        self.asked.append("synchronise")

    def event(self):
        self.asked.append("event")
        return self.asked.count("event")

    def nanoseconds(self, start, end):
        self.asked.append("wait")
        return end - start

    def queue(self):
        self.asked.append("queue")
        return contextlib.nullcontext(7)


def noted(device, engine):
    """The engine's calls, with a note of each run."""

    def call_of(row, work):
        call = engine.call(batch_of(ROWS, [row], work.length, 0))

        def run():
            call()
            device.asked.append("run")

        return run

    return call_of


def test_on_a_gpu_inputs_are_placed_then_run_then_waited_for(folders):
    device = Recording()
    engine = TorchEngine(folders["torch"], device=device)
    assert device.asked == ["place"], "the weights, once"
    device.asked.clear()
    taken = answer({"rows": [0, 1, 0], "warmup": 1}, noted(device, engine), device)
    assert device.asked == ["place", "run", "synchronise"] * 4
    assert len(taken["ns"]) == 3
    assert min(taken["ns"]) > 0


def test_event_time_is_what_lies_between_two_marks_of_the_device(folders):
    device = Recording()
    engine = TorchEngine(folders["torch"], device=device)
    device.asked.clear()
    taken = answer({"rows": [0, 2], "warmup": 3, "work": {"clock": "event"}}, noted(device, engine), device)
    once = ["event", "place", "run", "event", "wait"]
    assert device.asked == ["place", "run"] * 3 + ["synchronise"] + once * 2
    assert taken == {"ns": [1, 1]}
    assert answer({"rows": [], "warmup": 3, "work": {"clock": "event"}}, noted(device, engine), device) == {"ns": []}


def test_a_torch_model_answers_the_same_through_a_device(folders):
    texts = TEXTS[:3]
    plain = load(folders["torch"], engine="torch", threads=1)
    there = Predictor(
        folders["torch"],
        manifest=plain.manifest,
        engine=TorchEngine(folders["torch"], device=Recording()),
        rows_per_batch=2,
    )
    assert np.allclose(there.logits(texts), plain.logits(texts), atol=1e-5)
    half = TorchEngine(folders["torch"], precision="bf16")
    assert half.model.dtype == torch.bfloat16
    inputs = batch_of(ROWS, [0], "data", 0)
    apart = np.abs(half.logits(inputs) - plain.runner.logits(inputs)).max()
    assert 0 < apart < 0.5
    assert half.logits(inputs).dtype == np.float32


def test_the_process_of_a_gpu_works_in_a_queue_of_its_own(folders, tmp_path, monkeypatch):
    device, opened, said = Recording(), [], io.StringIO()
    monkeypatch.setattr(timed, "open_device", lambda name: device)
    monkeypatch.setattr(timed, "find_engine", lambda folder, engine: engine)

    def fake(folder, engine, opening):
        opened.append((folder.name, engine, opening))
        return load(folders["onnxruntime"], threads=1)

    monkeypatch.setattr(timed, "open_predictor", fake)
    rows = write_rows(tmp_path / "rows", TEXTS[:2])
    line = timed_command(
        folders["onnxruntime"], engine="tensorrt", threads=2, rows=rows, device="gpu", precision="fp16"
    )
    timed.serve(line[4:], io.StringIO('{"rows": [0], "work": {"clock": "event"}}\n{"quit": true}\n'), said)
    assert opened == [("onnx", "tensorrt", Opening(threads=2, device="gpu", precision="fp16", stream=7))]
    assert device.asked == ["queue", "synchronise", "event", "event", "wait"]
    assert json.loads(said.getvalue().splitlines()[1]) == {"ns": [1]}


def test_an_empty_process_takes_less_memory_than_one_with_a_model(folders, tmp_path):
    rows = write_rows(tmp_path / "rows", TEXTS[:4])
    command = timed_command(folders["onnxruntime"], engine="onnxruntime", threads=1, rows=rows)
    timing = time_in_turn(
        [Command("model", tuple(command), ENV)],
        rows=4,
        rounds=1,
        threads=1,
        slot_seconds=0.01,
        more={Work(end_to_end=True): ["model"], Work(batch=2, length=16): ["model"]},
        empty=Command("nothing", tuple(empty_command("onnxruntime")), ENV),
    )
    assert 0 < timing.taken["model"].peak_bytes < 200_000_000
    assert timing.taken["model"].cold_seconds >= timing.start_seconds["model"] - 0.5
    assert len(timing.works_of("model")) == 3
