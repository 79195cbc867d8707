"""`engine: fastest`: who is timed, who is refused, which is kept and where it is written."""

import importlib.util
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from model_folders import TEXTS, write_classifier

from compressor.bench.isolation import Slot, Timing
from compressor.bench.settings import Target
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.model.manifest import recorded_engine
from compressor.runtime import choose, predictor
from compressor.runtime.choose import at_target, choose_engine, chosen_of, made_up, not_here, why_not
from compressor.runtime.engine import Opening
from compressor.runtime.predictor import load

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier):
    """A folder that onnxruntime, OpenVINO and torch can all open."""
    root = tmp_path_factory.mktemp("choose")
    torch = write_classifier(root / "torch", tiny_classifier)
    both = Exporter(torch).export(root / "onnx")
    shutil.copy(torch / "model.safetensors", both)
    return both


def timing(milliseconds: dict[str, list[float]]) -> Timing:
    """Rounds of one sample each."""
    slots = [
        Slot(name, number, 0, (0,), (round(1e6 * each),))
        for name, rounds in milliseconds.items()
        for number, each in enumerate(rounds)
    ]
    start = dict.fromkeys(milliseconds, 1.0)
    return Timing(tuple(slots), 2, None, start, busy_before=0.0, load_before=0.0, stolen_seconds=0.0, throttled=0)


STEADY = [2.0, 2.02, 1.98, 2.01, 1.99]


def test_the_fastest_beyond_doubt_is_chosen():
    faster = {"openvino": [0.6 * one for one in STEADY], "torch": [0.7 * one for one in STEADY]}
    times = timing({"onnxruntime": STEADY, **faster})
    found = chosen_of(["onnxruntime", "openvino", "torch"], times, {"tensorrt": "no GPU"})
    assert found.engine == "openvino"
    assert found.because.startswith("0.60x the time of onnxruntime (0.60 to 0.60) on 2 threads of ")
    line = found.decision()
    assert (line.kind, line.chosen) == ("engine", "openvino")
    assert line.candidates["torch"]["p50_ms"] == pytest.approx(1.4, rel=0.01)
    assert line.candidates["tensorrt"] == {"refused": "no GPU"}


def test_an_engine_that_is_not_surely_faster_is_not_chosen():
    shaky = [1.0, 3.0, 1.0, 3.0, 1.2]
    found = chosen_of(["onnxruntime", "openvino"], timing({"onnxruntime": STEADY, "openvino": shaky}), {})
    assert np.median(shaky) < np.median(STEADY)
    assert found.engine == "onnxruntime"
    assert "none is surely faster" in found.because
    assert chosen_of(["onnxruntime"], timing({"onnxruntime": STEADY}), {}).engine == "onnxruntime"


def test_engines_are_timed_in_processes_of_their_own_and_the_choice_is_recorded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "SLOT_SECONDS", 0.01)
    folder = shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    said = set()
    found = choose_engine(
        folder, TEXTS, opening=Opening(threads=1), rounds=3, progress=lambda what, _done, _total: said.add(what)
    )
    assert set(found.milliseconds) == {"onnxruntime", *(["openvino"] if HAS_OPENVINO else [])}
    assert "holds no *.safetensors" in found.refused["torch"]
    assert "tensorrt" not in found.refused, "it has no place on a CPU"
    assert recorded_engine(folder) == found.engine
    assert load(folder, threads=1).engine == found.engine
    assert said == {"timing engines"}


def test_an_engine_that_answers_otherwise_is_refused(folder, monkeypatch):
    monkeypatch.setattr(choose, "SLOT_SECONDS", 0.01)
    logits = choose.Predictor.logits

    def wrong(self, texts):
        return logits(self, texts) + (1.0 if self.engine == "torch" else 0.0)

    monkeypatch.setattr(choose.Predictor, "logits", wrong)
    found = choose_engine(folder, TEXTS[:3], opening=Opening(threads=1), rounds=3, record=False)
    assert found.refused["torch"] == "its logits are up to 1 from those of onnxruntime, 0.002 is rounding"
    assert "torch" not in found.milliseconds


def test_a_target_of_the_fastest_engine_is_given_one(folder, monkeypatch):
    plain = Target(engine="torch")
    assert at_target(plain, folder) == (plain, None)
    asked = []
    choice = choose.EngineChoice("openvino", {})

    def fake(model, texts, *, opening, record, progress):
        asked.append((model, texts, opening, record))
        return choice

    monkeypatch.setattr(choose, "choose_engine", fake)
    fastest = Target(engine="fastest", threads=1)
    assert at_target(fastest, folder, TEXTS[:2]) == (Target(engine="openvino", threads=1), choice)
    assert asked == [(folder, TEXTS[:2], Opening(threads=1), False)]


def test_what_a_machine_lacks_for_a_target_is_said(monkeypatch):
    assert not_here(Target()) is None
    assert not_here(Target(engine="torch")) is None
    monkeypatch.setattr(choose, "training_device", lambda: "cpu")
    assert "no NVIDIA device" in not_here(Target(device="gpu", engine="tensorrt"))
    monkeypatch.setattr(choose, "training_device", lambda: "gpu")
    assert "needs TensorrtExecutionProvider" in not_here(Target(device="gpu", engine="tensorrt"))
    assert "needs CUDAExecutionProvider" in not_here(Target(device="gpu"))
    assert not_here(Target(device="gpu", engine="torch")) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'bert-compressor[openvino]'" in not_here(Target(engine="openvino"))


def test_why_a_model_does_not_run_at_a_target_is_known_beforehand(folder, tmp_path):
    assert why_not(folder, Target(threads=1)) is None
    assert "which TensorRT does not read" in why_not(folder, Target(device="gpu", engine="tensorrt"))
    assert "is not a folder" in why_not(tmp_path / "nowhere", Target())
    assert "engine fastest is known once it was measured" in why_not(folder, Target(engine="fastest"))


def test_a_folder_that_opens_nowhere_is_refused_with_every_reason_once(tmp_path, folder):
    with pytest.raises(InputError, match=r"^\S+nowhere is not a folder; give the folder of a model, such as \S+$"):
        choose_engine(tmp_path / "nowhere")
    broken = shutil.copytree(folder, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"opens in no engine on device cpu: onnxruntime: .*; torch: .*; openvino: "):
        choose_engine(broken)
    with pytest.raises(InputError, match=r"rounds must be 3 or more \(got 2\)"):
        choose_engine(folder, rounds=2)


@pytest.fixture
def untimed(monkeypatch):
    """Timing that takes no time and finds torch the fastest; gives the names that it was asked for."""
    asked = []

    def fake(commands, **_more):
        asked.extend(one.name for one in commands)
        slower = {one.name: STEADY for one in commands if one.name != "torch"}
        return timing(slower | {"torch": [0.5 * one for one in STEADY]})

    monkeypatch.setattr(choose, "time_in_turn", fake)
    return asked


def test_what_was_measured_on_a_gpu_is_not_recorded_for_the_cpu(folder, tmp_path, monkeypatch, untimed):
    folder = shutil.copytree(folder, tmp_path / "model")
    open_here = choose.open_predictor

    def on_cpu(where, engine, opening):
        return open_here(where, "torch", replace(opening, device="cpu")) if engine == "torch" else refuse(engine)

    def refuse(engine):
        raise InputError(f"no {engine} here")

    monkeypatch.setattr(choose, "open_predictor", on_cpu)
    assert choose_engine(folder, TEXTS[:2], opening=Opening(device="gpu")).engine == "torch"
    assert recorded_engine(folder) is None
    assert load(folder, threads=1).engine == "onnxruntime"
    monkeypatch.setattr(predictor, "open_predictor", lambda where, engine, _opening: (where, engine))
    assert load(folder, engine="fastest", device="gpu") == (folder, "torch")
    assert recorded_engine(folder) is None


def test_a_folder_that_takes_no_record_is_answered_all_the_same(
    tiny_classifier, folder, tmp_path, monkeypatch, untimed
):
    stock = shutil.copytree(tiny_classifier, tmp_path / "stock")
    with pytest.warns(
        UserWarning, match=r"torch is the fastest here and will be measured again: .* no compressor\.json"
    ):
        assert load(stock, engine="fastest").predict(["dull"])[0] in ("bad", "good")
    untimed.clear()
    with pytest.raises(InputError, match=r"holds no compressor\.json to record an engine in"):
        choose_engine(stock)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(InputError, match=r"cannot be written, so no engine is kept in it; copy the folder"):
        choose_engine(folder)
    assert untimed == []


def test_looking_for_engines_leaves_the_threads_of_torch_alone(folder, untimed):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        choose_engine(folder, TEXTS[:2], opening=Opening(threads=1), record=False)
        assert untimed[0:2] == ["onnxruntime", "torch"]
        assert why_not(folder, Target(engine="torch", threads=1)) is None
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_rows_are_made_where_none_are_given(folder, tmp_path, tiny_classifier):
    model = load(folder, engine="onnxruntime", threads=1)
    rows = made_up(model)
    assert rows == made_up(model)
    lengths = model.encoder.encode(rows).lengths
    assert len(rows) == choose.ROWS
    assert min(lengths) < 20 < 50 < max(lengths) <= 64
    pairs = write_classifier(tmp_path / "pairs", tiny_classifier, text=("question", "answer"))
    assert all(isinstance(row, tuple) and len(row) == 2 for row in made_up(load(pairs, threads=1)))
