import json

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError, StageError
from compressor.export import exporter
from compressor.export.exporter import Exporter
from compressor.export.halves import to_half
from compressor.export.parity import TOLERANCES, compare
from compressor.model.manifest import read_manifest
from compressor.runtime.predictor import load


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("halves") / "model", tiny_classifier, layers=UNEVEN)


@pytest.fixture(scope="module")
def fp32(source):
    return Exporter(source).export(source.parent / "fp32")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_the_bits_decide_as_fp32_and_take_about_half_of_the_bytes(source, fp32, tmp_path, precision):
    told = []
    out = Exporter(source, data=data_of(TEXTS), precision=precision, decide=told.append).export(tmp_path / "out")
    assert read_manifest(out).precision == precision
    found = compare(load(fp32).logits(TEXTS), load(out).logits(TEXTS), tolerance=TOLERANCES[precision])
    assert 0 < found.mean <= found.largest <= TOLERANCES[precision] * found.scale
    assert found.flips == 0
    assert told[-1].kind == "precision"
    assert told[-1].because.startswith("beside fp32, logits differ by ")
    matrices = {each.data_type for each in onnx.load(out / "model.onnx").graph.initializer if len(each.dims) > 1}
    assert matrices <= {TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16, TensorProto.INT64}
    assert load(out).logits(TEXTS[:3]).dtype == np.float32


def test_an_fp32_onnx_folder_can_be_written_in_fp16_too(fp32, tmp_path):
    out = Exporter(fp32, precision="fp16").export(tmp_path / "out")
    assert read_manifest(out).precision == "fp16"
    again = Exporter(out).export(tmp_path / "again")
    assert (again / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_fewer_bits_are_never_written_as_more(fp32, tmp_path):
    half = Exporter(fp32, precision="fp16").export(tmp_path / "half")
    with pytest.raises(InputError, match="is fp16 already and cannot be written as fp32; give the fp32 model"):
        Exporter(half, precision="fp32").export(tmp_path / "out")
    content = json.loads((fp32 / "compressor.json").read_text())
    assert content["precision"] == "fp32"


def test_a_broken_conversion_fails_and_leaves_nothing(source, tmp_path, monkeypatch):
    def broken(model, precision):
        made = to_half(model, precision)
        weights = next(each for each in made.graph.initializer if len(each.dims) > 1 and each.data_type == 10)
        weights.raw_data = bytes(len(weights.raw_data))
        del weights.int32_data[:]
        return made

    monkeypatch.setattr(exporter, "to_half", broken)
    with pytest.raises((StageError, InputError)):
        Exporter(source, precision="fp16").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_rounds_to_nearest_as_torch_does():
    import torch

    values = np.random.default_rng(0).normal(size=(10, 100)).astype(np.float32)
    values[0, :4] = [0.0, -0.0, 1.00390625, -3.0e38]
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "w")])
    (stored,) = to_half(helper.make_model(graph), "bf16").graph.initializer
    assert (list(stored.dims), stored.data_type) == ([10, 100], TensorProto.BFLOAT16)
    assert stored.raw_data == wanted.astype("<i2").tobytes()


def test_unknown_words_are_refused(source):
    for name, value in (("precision", "int4"), ("layout", "nested"), ("serve", ["apache"])):
        with pytest.raises(InputError, match=rf"{name} must be one of .* \(got "):
            Exporter(source, **{name: value})
