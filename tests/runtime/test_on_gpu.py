"""What only an NVIDIA device can show; `make test-gpu` runs these and keeps their figures."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from model_folders import TEXTS, data_of, write_classifier

import compressor
from compressor.bench.isolation import time_in_turn
from compressor.bench.process import PLAIN, Command, Work
from compressor.device import open_device
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.export.tensorrt import write_tensorrt
from compressor.quantize.quantizer import Quantizer
from compressor.runtime.choose import choose_engine
from compressor.runtime.engine import Opening
from compressor.runtime.predictor import load
from compressor.runtime.timed import timed_command, write_rows

pytestmark = pytest.mark.gpu
MIXED = [*TEXTS, " ".join(TEXTS), "", *TEXTS[:3]]
CLOSE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 0.3}
"""Largest difference of a logit from fp32 on the processor; the logits of these models spread over about 10."""


@pytest.fixture(scope="module", autouse=True)
def _device():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


def need(provider: str) -> None:
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime was built without {provider}; install onnxruntime-gpu in its place")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier):
    root = tmp_path_factory.mktemp("gpu")
    weights = write_classifier(root / "torch", tiny_classifier)
    return {"torch": weights, "onnx": Path(Exporter(weights).export(root / "onnx")), "root": root}


@pytest.fixture(scope="module")
def wanted(folders):
    return load(folders["onnx"], threads=1).logits(MIXED)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_torch_answers_on_the_gpu_as_on_the_cpu(folders, wanted, precision, record_property):
    model = load(folders["torch"], device="gpu", precision=precision)
    assert next(model.runner.model.parameters()).is_cuda
    apart = float(np.abs(model.logits(MIXED) - wanted).max())
    record_property("largest_difference", apart)
    assert apart < CLOSE[precision]


def test_cuda_graphs_answer_every_shape_as_the_cpu_does_again_and_again(folders, wanted, record_property):
    need("CUDAExecutionProvider")
    model = load(folders["onnx"], device="gpu")
    record_property("graphs", model.runner.graphs)
    answers = [model.logits(MIXED) for _ in range(3)]
    apart = float(np.abs(answers[-1] - wanted).max())
    record_property("largest_difference", apart)
    assert apart < CLOSE["fp32"]
    assert np.array_equal(answers[1], answers[2])
    np.testing.assert_allclose(model.logits(MIXED[::-1])[::-1], wanted, atol=CLOSE["fp32"])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_file_in_half_precision_runs_through_cuda(folders, wanted, precision, tmp_path, record_property):
    need("CUDAExecutionProvider")
    folder = Exporter(folders["torch"], precision=precision).export(tmp_path / precision)
    apart = float(np.abs(load(folder, device="gpu").logits(MIXED) - wanted).max())
    record_property("largest_difference", apart)
    assert apart < CLOSE[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_tensorrt_answers_as_the_cpu_does(folders, wanted, precision, tmp_path, record_property):
    need("TensorrtExecutionProvider")
    folder = Path(shutil.copytree(folders["onnx"], tmp_path / "model"))
    write_tensorrt(folders["torch"], folder)
    apart = float(
        np.abs(load(folder, engine="tensorrt", device="gpu", precision=precision).logits(MIXED) - wanted).max()
    )
    record_property("largest_difference", apart)
    assert apart < CLOSE[precision]


def test_symmetric_int8_runs_through_tensorrt(folders, wanted, tmp_path, record_property):
    need("TensorrtExecutionProvider")
    made = Quantizer(folders["torch"], data=data_of(TEXTS), try_=["static"], target="tensorrt", smoke=True)
    answers = load(made.fit(tmp_path / "int8"), engine="tensorrt", device="gpu").logits(MIXED)
    agreement = float((answers.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    record_property("agreement", agreement)
    assert agreement > 0.9


def test_int8_through_cuda_is_refused(folders, tmp_path):
    folder = Quantizer(folders["onnx"], data=data_of(TEXTS), smoke=True).fit(tmp_path / "int8")
    with pytest.raises(InputError, match="has no INT8 kernels"):
        load(folder, device="gpu")


def test_marks_of_the_device_measure_work_and_not_the_wait_for_it():
    device = open_device("gpu")
    a = torch.randn(4096, 4096, device=device.place())
    with device.queue():
        a @ a
        device.synchronise()
        taken = []
        for repeats in (1, 8):
            start = device.event()
            for _ in range(repeats):
                a @ a
            taken.append(device.nanoseconds(start, device.event()))
    assert 4 < taken[1] / taken[0] < 12


@pytest.mark.parametrize(
    ("engine", "precision"), [("torch", "fp32"), ("torch", "fp16"), ("torch", "bf16"), ("onnxruntime", "fp32")]
)
def test_a_gpu_is_timed_by_wall_and_by_event(folders, tmp_path, engine, precision, record_property):
    if engine == "onnxruntime":
        need("CUDAExecutionProvider")
    rows = write_rows(tmp_path / "rows", TEXTS[:8])
    folder = folders["torch" if engine == "torch" else "onnx"]
    line = timed_command(folder, engine=engine, threads=1, rows=rows, device="gpu", precision=precision)
    env = {**os.environ, "PYTHONPATH": str(Path(compressor.__file__).parents[1])}
    event = Work(clock="event")
    timing = time_in_turn([Command("it", tuple(line), env)], rows=8, rounds=5, threads=1, more={event: ["it"]})
    p50 = {
        work: np.median([ns for one in timing.rounds_of("it", work).values() for ns in one]) for work in (PLAIN, event)
    }
    record_property("wall_ms", p50[PLAIN] / 1e6)
    record_property("event_ms", p50[event] / 1e6)
    assert 0 < p50[event] < 2 * p50[PLAIN]


def test_the_fastest_engine_of_the_gpu_is_found(folders, tmp_path, record_property):
    folder = Path(shutil.copytree(folders["onnx"], tmp_path / "model"))
    shutil.copy(folders["torch"] / "model.safetensors", folder)
    found = choose_engine(folder, TEXTS, opening=Opening(device="gpu", threads=1), rounds=3, record=False)
    record_property("chosen", found.engine)
    record_property("p50_ms", {name: one.value for name, one in found.milliseconds.items()})
    assert "torch" in found.milliseconds
