"""Engines beside onnxruntime and torch on the CPU: what they answer, and what they refuse."""

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.export.tensorrt import write_tensorrt
from compressor.model.manifest import read_manifest, record_engine, recorded_engine
from compressor.quantize.quantizer import Quantizer
from compressor.runtime import providers
from compressor.runtime.bound import MOST_SHAPES, NO_GRAPH, BoundEngine, padded, padded_shape
from compressor.runtime.engine import TENSORRT_FILE, EngineName, Opened, Opening
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import ENGINES, PLACES, Predictor, find_engine, load

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier):
    """One model as safetensors, fp32 ONNX and dynamic INT8."""
    root = tmp_path_factory.mktemp("engines")
    torch = write_classifier(root / "torch", tiny_classifier, layers=UNEVEN)
    onnx_folder = Path(Exporter(torch).export(root / "onnx"))
    int8 = Path(Quantizer(onnx_folder, data=data_of(TEXTS), smoke=True).fit(root / "int8"))
    return {"torch": torch, "onnx": onnx_folder, "int8": int8}


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_every_engine_has_its_function_and_its_places():
    assert set(ENGINES) == set(PLACES) == set(get_args(Opened))
    assert set(get_args(EngineName)) == {*get_args(Opened), "auto", "fastest"}


@needs_openvino
def test_openvino_answers_a_fused_uneven_graph_as_onnxruntime_does(folders):
    ours, theirs = load(folders["onnx"], threads=1), load(folders["onnx"], engine="openvino", threads=1)
    assert theirs.engine == "openvino"
    np.testing.assert_allclose(theirs.logits(TEXTS), ours.logits(TEXTS), atol=1e-4)
    assert theirs.predict(TEXTS[:8]) == ours.predict(TEXTS[:8])
    inputs = {name: np.ones((2, 7), dtype=np.int64) for name in theirs.runner.input_names}
    given = theirs.runner.call(inputs)()
    np.testing.assert_allclose(given["logits"], ours.runner.logits(inputs), atol=1e-4)


@needs_openvino
def test_an_answer_of_openvino_outlives_the_next_one(folders):
    model = load(folders["onnx"], engine="openvino", threads=1)
    first = model.logits(TEXTS[:1])
    kept = first.copy()
    model.logits(TEXTS[1:5])
    assert np.array_equal(first, kept)


@needs_openvino
def test_openvino_refuses_onnxruntimes_own_int8_and_says_what_to_give_it(folders):
    with pytest.raises(InputError, match=r"QAttention.*onnxruntime's alone: give OpenVINO the fp32 model"):
        load(folders["int8"], engine="openvino")


@needs_openvino
def test_openvino_refuses_a_broken_graph(folders, tmp_path):
    broken = copied(folders["onnx"], tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"model\.onnx"):
        load(broken, engine="openvino")


def test_an_engine_that_is_not_installed_is_named_with_its_extra(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(InputError, match=r"engine openvino is not installed; run pip install .bert-compressor\[openv"):
        load(folders["onnx"], engine="openvino")


def test_openvino_needs_an_exported_graph(folders):
    with pytest.raises(InputError, match=r"holds no model\.onnx, which engine openvino needs; export it first"):
        load(folders["torch"], engine="openvino")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"engine": "openvino", "device": "gpu"}, r"engine openvino runs on device cpu alone \(got gpu\)"),
        ({"engine": "tensorrt"}, r"engine tensorrt runs on device gpu alone \(got cpu\)"),
        ({"device": "tpu"}, r"device must be one of cpu, gpu \(got 'tpu'\)"),
        ({"precision": "fp16"}, "precision fp16 is for device gpu; on cpu the file says it"),
        ({"precision": "fp8", "device": "gpu"}, r"precision must be one of fp32, fp16, bf16 \(got 'fp8'\)"),
        ({"engine": "fastest", "device": "tpu"}, r"device must be one of cpu, gpu \(got 'tpu'\)"),
        ({"engine": "fastest", "precision": "fp8", "device": "gpu"}, r"^precision must be one of .* \(got 'fp8'\)$"),
        ({"engine": "onnxruntime", "threads": 0}, r"threads must be 1 or more \(got 0\); leave it out for all"),
        ({"engine": "fastest", "threads": -1}, r"^threads must be 1 or more \(got -1\)"),
        ({"engine": "nimble"}, r"engine must be one of auto, onnxruntime, torch, .* \(got 'nimble'\)"),
    ],
)
def test_what_does_not_run_there_is_refused(folders, asked, message):
    with pytest.raises(InputError, match=message):
        load(folders["onnx"], **asked)


def test_a_recorded_engine_is_taken_and_other_keys_stay(folders, tmp_path):
    folder = copied(folders["onnx"], tmp_path / "model")
    before = read_manifest(folder)
    read_manifest(folder).write(folder, extra={"verdict": "pass"})
    assert recorded_engine(folder) is None
    record_engine(folder, "onnxruntime")
    assert (recorded_engine(folder), read_manifest(folder)) == ("onnxruntime", before)
    assert '"verdict": "pass"' in (folder / "compressor.json").read_text()
    if importlib.util.find_spec("openvino") is not None:
        record_engine(folder, "openvino")
        assert load(folder, threads=1).engine == "openvino"
        assert load(folder, threads=1, engine="onnxruntime").engine == "onnxruntime"
    assert find_engine(folder) == "onnxruntime"
    read_manifest(folder).write(folder)
    assert recorded_engine(folder) is None, "what is made of a model does not inherit its engine"


def test_a_recorded_engine_that_is_not_installed_is_said(folders, tmp_path, monkeypatch):
    folder = copied(folders["onnx"], tmp_path / "model")
    record_engine(folder, "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"fastest in engine openvino, which is not installed, so another answers"):
        assert load(folder, threads=1).engine == "onnxruntime"
    record_engine(folder, "tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder, threads=1).engine == "onnxruntime"


def test_an_engine_is_recorded_in_a_manifest_alone(tmp_path):
    with pytest.raises(InputError, match=r"holds no compressor\.json to record an engine in"):
        record_engine(tmp_path, "torch")
    (tmp_path / "compressor.json").write_text('{"engine": 3}')
    with pytest.raises(InputError, match=r"engine must be a name \(got 3\)"):
        recorded_engine(tmp_path)


# --- I/O binding, run for real on the CPU ---


def bound(folder: Path, *, graphs: bool = True, most_tokens: int = 64) -> BoundEngine:
    opened = OnnxEngine(folder / "model.onnx", threads=1).session
    return BoundEngine(opened, name="onnxruntime", classes=2, most_tokens=most_tokens, place="cpu", graphs=graphs)


def test_bound_inputs_in_padded_shapes_give_the_same_answers(folders):
    plain = load(folders["onnx"], threads=1)
    ours = Predictor(folders["onnx"], manifest=plain.manifest, engine=bound(folders["onnx"]), rows_per_batch=32)
    mixed = [*TEXTS, " ".join(TEXTS), "", "dull"]
    np.testing.assert_allclose(ours.logits(mixed), plain.logits(mixed), atol=1e-5)
    np.testing.assert_allclose(ours.logits(mixed[::-1]), plain.logits(mixed[::-1]), atol=1e-5)


def test_a_bound_call_answers_its_own_inputs_though_shapes_share_buffers(folders):
    engine, plain = bound(folders["onnx"]), load(folders["onnx"], threads=1).runner
    draw = np.random.default_rng(0)
    asked = [{name: np.ones((1, 5), dtype=np.int64) for name in engine.input_names} for _ in range(2)]
    for inputs in asked:
        inputs["input_ids"] = draw.integers(5, 20, (1, 5))
    calls = [engine.call(inputs) for inputs in asked]
    for call, inputs in [*zip(calls, asked, strict=True), (calls[0], asked[0])]:
        call()
        np.testing.assert_allclose(engine._kept[1, 16].answer.numpy(), plain.logits(inputs), atol=1e-5)


def test_each_shape_has_a_graph_of_its_own_and_there_are_not_too_many(folders, monkeypatch):
    engine = bound(folders["onnx"])
    for rows, tokens in [(1, 3), (1, 15), (2, 3), (3, 20)]:
        engine.logits({name: np.ones((rows, tokens), dtype=np.int64) for name in engine.input_names})
    assert {shape: kept.graph for shape, kept in engine._kept.items()} == {(1, 16): 1, (2, 16): 2, (4, 32): 3}
    monkeypatch.setattr("compressor.runtime.bound.MOST_SHAPES", 3)
    answer = engine.logits({name: np.ones((1, 33), dtype=np.int64) for name in engine.input_names})
    assert answer.shape == (1, 2)
    assert len(engine._kept) == 3
    assert engine.next_graph() == NO_GRAPH
    assert bound(folders["onnx"], graphs=False).next_graph() == NO_GRAPH
    assert MOST_SHAPES > 3


def test_what_padding_adds_is_masked_but_no_row_is_empty():
    given = {"input_ids": np.full((1, 2), 7), "attention_mask": np.ones((1, 2), dtype=np.int64)}
    made = padded(given, padded_shape(3, 2, most_tokens=9))
    assert made["input_ids"].shape == (4, 9)
    assert made["attention_mask"].sum(axis=1).tolist() == [2, 1, 1, 1]
    assert padded_shape(1, 70, most_tokens=64) == (1, 70), "never narrower than what is asked"


# --- CUDA and TensorRT: what is asked of onnxruntime, and what is refused ---


def test_int8_through_cuda_is_refused_with_the_reason(folders):
    with pytest.raises(InputError, match=r"is INT8: onnxruntime's CUDA provider has no INT8 kernels.*fp16 or bf16"):
        load(folders["int8"], device="gpu")


def test_a_provider_that_is_not_there_is_named_with_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"needs CUDAExecutionProvider.*has CPUExecutionProvider; .*onnxruntime-gpu"):
        load(folders["onnx"], device="gpu")
    with pytest.raises(InputError, match=r"model\.onnx says \(got precision fp16\); export the model in it"):
        load(folders["onnx"], device="gpu", precision="fp16")


class FakeSession:
    """A session that remembers how it was opened, and fails where its provider cannot capture graphs."""

    def __init__(self, opened: list, *, started: bool = True, captures: bool = True) -> None:
        self.opened, self.started, self.captures = opened, started, captures

    def __call__(self, path, *, threads, spinning, providers):
        self.opened.append((path.name, providers))
        if not self.captures and any(value == "1" and "cuda_graph" in key for key, value in providers[0][1].items()):
            raise InputError("onnxruntime cannot read it: This session cannot use the graph capture feature")
        self.providers = [providers[0][0]] if self.started else ["CPUExecutionProvider"]
        return self

    def get_providers(self):
        return self.providers

    def get_inputs(self):
        return [type("Input", (), {"name": "input_ids"})]

    def get_outputs(self):
        return [type("Output", (), {"name": "logits", "type": "tensor(float16)"})]


@pytest.fixture
def nvidia(monkeypatch, tmp_path):
    """An onnxruntime that says it has both providers; gives how sessions are opened."""
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)

    def fake(**how):
        opened = []
        monkeypatch.setattr(providers, "session", FakeSession(opened, **how))
        return opened

    return fake


def test_cuda_is_opened_with_graphs_full_precision_and_the_stream_given(folders, nvidia):
    opened = nvidia()
    engine = providers.open_cuda(folders["onnx"], Opening(device="gpu", stream=99))
    options = {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0", "user_compute_stream": "99"}
    assert opened == [("model.onnx", (("CUDAExecutionProvider", options),))]
    assert (engine.graphs, engine.place, engine.dtype, engine.most_tokens) == (True, "cuda", np.float16, 64)


def test_a_graph_that_cannot_be_captured_runs_without(folders, nvidia):
    opened = nvidia(captures=False)
    engine = providers.open_cuda(folders["onnx"], Opening(device="gpu"))
    assert [one[1][0][1]["enable_cuda_graph"] for one in opened] == ["1", "0"]
    assert engine.graphs is False


def test_a_provider_that_does_not_start_is_an_error(folders, nvidia):
    nvidia(started=False)
    with pytest.raises(InputError, match=r"CUDAExecutionProvider could not start .*\(onnxruntime took CPUExec"):
        providers.open_cuda(folders["onnx"], Opening(device="gpu"))


def test_tensorrt_refuses_fused_operators_and_takes_a_file_of_its_own(folders, nvidia, tmp_path):
    opened = nvidia()
    folder = copied(folders["onnx"], tmp_path / "model")
    with pytest.raises(InputError, match=r"holds Attention, .*which TensorRT does not read; quantize for a target"):
        load(folder, engine="tensorrt", device="gpu")
    path = write_tensorrt(folders["torch"], folder)
    own = OnnxEngine(path, threads=1)
    inputs = {name: np.ones((2, 9), dtype=np.int64) for name in own.input_names}
    np.testing.assert_allclose(own.logits(inputs), load(folder, threads=1).runner.logits(inputs), atol=1e-4)
    providers.open_tensorrt(folder, Opening(device="gpu", precision="fp16", stream=5))
    name, ((first, options), (second, _)) = opened[-1]
    assert (name, first, second) == (TENSORRT_FILE, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    said = {key: options[f"trt_{key}_enable"] for key in ("fp16", "bf16", "int8", "cuda_graph", "engine_cache")}
    assert said == {"fp16": "1", "bf16": "0", "int8": "0", "cuda_graph": "1", "engine_cache": "1"}
    feeds = own.input_names
    assert options["trt_profile_min_shapes"] == ",".join(f"{each}:1x1" for each in feeds)
    assert options["trt_profile_max_shapes"] == ",".join(f"{each}:32x64" for each in feeds)
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert options["user_compute_stream"] == "5"


def test_static_int8_made_for_tensorrt_is_what_tensorrt_takes(folders, nvidia, tmp_path):
    opened = nvidia()
    made = Quantizer(folders["torch"], data=data_of(TEXTS), try_=["static"], target="tensorrt", smoke=True)
    folder = Path(made.fit(tmp_path / "int8"))
    assert read_manifest(folder).asked_alone is False
    providers.open_tensorrt(folder, Opening(device="gpu"))
    name, ((_, options), _) = opened[-1]
    assert (name, options["trt_int8_enable"]) == ("model.onnx", "1")
    with pytest.raises(InputError, match="has no INT8 kernels"):
        load(folder, device="gpu")


def test_tensorrt_is_not_written_into_the_folder_of_another_model(folders, tiny_classifier, tmp_path):
    other = write_classifier(tmp_path / "other", tiny_classifier)
    with pytest.raises(InputError, match="holds another model than"):
        write_tensorrt(other, folders["onnx"])


def quantized_graph(zero: np.ndarray | None, values: np.ndarray | None = None) -> onnx.ModelProto:
    """x through QuantizeLinear with this zero point, and constants `values` through DequantizeLinear with none."""
    inputs = ["x", "scale"] + (["zero"] if zero is not None else [])
    nodes = [helper.make_node("QuantizeLinear", inputs, ["logits"])]
    constants = [numpy_helper.from_array(np.float32(0.1), "scale")]
    if zero is not None:
        constants.append(numpy_helper.from_array(zero, "zero"))
    if values is not None:
        constants.append(numpy_helper.from_array(values, "values"))
        nodes.append(helper.make_node("DequantizeLinear", ["values", "scale"], ["y"]))
    kind = TensorProto.UINT8 if zero is None or zero.dtype == np.uint8 else TensorProto.INT8
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("logits", kind, [2])],
        constants,
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("zero", "values", "symmetric"),
    [
        (np.int8(0), None, True),
        (np.int8(0), np.arange(3, dtype=np.int32), True),
        (np.int8(0), np.arange(3, dtype=np.int8), True),
        (np.int8(3), None, False),
        (np.uint8(0), None, False),
        (None, None, False),
        (np.int8(0), np.arange(3, dtype=np.uint8), False),
    ],
)
def test_tensorrt_takes_symmetric_s8_alone(zero, values, symmetric):
    model = quantized_graph(None if zero is None else np.asarray(zero), values)
    assert providers.has_int8(model)
    if symmetric:
        providers.require_symmetric(model, Path("m.onnx"))
        return
    with pytest.raises(InputError, match=r"m\.onnx quantizes (x|values) otherwise than symmetric s8"):
        providers.require_symmetric(model, Path("m.onnx"))
