import json
import os
import shutil
import subprocess
import sys
import types
from typing import get_args

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, contents, write_classifier
from pydantic import ValidationError

from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.export.layout import arrange
from compressor.export.serve import FASTAPI, SERVERS
from compressor.export.settings import Server
from compressor.model.digest import model_digest
from compressor.model.graph_file import folder_precision
from compressor.model.manifest import read_manifest
from compressor.runtime.predictor import load
from compressor.stages.export import Export


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_classifier):
    """Folders `fp32`, and `int8` made of it by onnxruntime alone."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = tmp_path_factory.mktemp("layout")
    fp32 = Exporter(write_classifier(root / "model", tiny_classifier)).export(root / "fp32")
    int8 = Exporter(fp32).export(root / "int8")
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    file = str(int8 / "model.onnx")
    quantize_dynamic(str(fp32 / "model.onnx"), file, weight_type=QuantType.QInt8, extra_options=options)
    about = json.loads((int8 / "compressor.json").read_text())
    (int8 / "compressor.json").write_text(json.dumps({**about, "precision": "int8"}))
    return root


def test_hub_layout_holds_both_graphs_below_onnx_and_the_rest_at_the_top(root, tmp_path):
    out = Exporter(root / "int8", layout="hub", fp32=root / "fp32").export(tmp_path / "out")
    files = set(contents(out))
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json", "predict.py"} <= files
    assert "model.onnx" not in files
    assert (out / "onnx" / "model.onnx").read_bytes() == (root / "fp32" / "model.onnx").read_bytes()
    assert (out / "onnx" / "model_quantized.onnx").read_bytes() == (root / "int8" / "model.onnx").read_bytes()


def test_each_precision_has_its_own_name_below_onnx(root, tmp_path):
    for precision, name in (("fp32", "model.onnx"), ("fp16", "model_fp16.onnx"), ("bf16", "model_bf16.onnx")):
        out = Exporter(root / "model", precision=precision, layout="hub").export(tmp_path / precision)
        assert [path.name for path in (out / "onnx").iterdir()] == [name]
        np.testing.assert_allclose(load(out).logits(TEXTS), load(root / "fp32").logits(TEXTS), atol=0.2)


def test_load_and_predict_answer_from_hub_layout_as_from_flat(root, tmp_path):
    out = Exporter(root / "int8", layout="hub", fp32=root / "fp32").export(tmp_path / "out")
    np.testing.assert_array_equal(load(out).logits(TEXTS), load(root / "int8").logits(TEXTS))
    said = []
    for folder in (out, root / "int8"):
        command = [sys.executable, str(folder / "predict.py")]
        done = subprocess.run(command, input="\n".join(TEXTS), capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == len(TEXTS)


def test_the_digest_of_hub_layout_sees_its_graphs(root, tmp_path):
    out = Exporter(root / "fp32", layout="hub").export(tmp_path / "out")
    before = model_digest(out)
    with (out / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert model_digest(out) != before


def test_fp32_beside_int8_must_be_fp32(root, tmp_path):
    with pytest.raises(InputError, match=r"fp32 must be a folder with an fp32 model\.onnx \(got .*int8\)"):
        Exporter(root / "int8", layout="hub", fp32=root / "int8").export(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds no model\.onnx at its top"):
        arrange(tmp_path, layout="hub")


def test_fp32_that_no_layout_would_keep_and_a_server_named_twice_are_refused(root, tmp_path):
    with pytest.raises(InputError, match=r"fp32 is kept in layout hub alone \(got layout flat\)"):
        Exporter(root / "int8", fp32=root / "fp32")
    with pytest.raises(InputError, match=r"fp32 is kept beside a model of fewer bits \(got .*fp32 beside fp32\)"):
        Exporter(root / "fp32", layout="hub", fp32=root / "fp32").export(tmp_path / "out")
    twice = ["fastapi", "fastapi"]
    with pytest.raises(InputError, match=r"serve must name each server once \(got fastapi, fastapi\)"):
        Exporter(root / "fp32", serve=twice)
    with pytest.raises(ValidationError, match="serve must name each server once"):
        Export.model_validate({"id": "ship", "serve": twice})
    assert not list(tmp_path.iterdir())


def test_an_int8_graph_without_a_manifest_is_exported_as_what_it_is(root, tmp_path):
    foreign = shutil.copytree(root / "int8", tmp_path / "foreign")
    (foreign / "compressor.json").unlink()
    assert folder_precision(foreign) == "int8"
    about = read_manifest(Exporter(foreign).export(tmp_path / "out"))
    assert (about.precision, about.asked_alone) == ("int8", True)
    with pytest.raises(InputError, match="is int8 already and cannot be written as fp16"):
        Exporter(foreign, precision="fp16").export(tmp_path / "half")
    with pytest.raises(InputError, match=r"fp32 must be a folder with an fp32 model\.onnx \(got .*foreign\)"):
        Exporter(root / "int8", layout="hub", fp32=foreign).export(tmp_path / "hub")


def test_servers_in_table_and_settings_are_the_same():
    assert set(SERVERS) == set(get_args(Server))


def test_triton_gets_a_repository_that_names_the_graphs_own_inputs(root, tmp_path):
    out = Exporter(root / "int8", serve=["triton"]).export(tmp_path / "out")
    home = out / "serve" / "triton" / "classifier"
    config = (home / "config.pbtxt").read_text()
    graph = onnx.load(home / "1" / "model.onnx").graph
    for value in graph.input:
        assert f'name: "{value.name}" data_type: TYPE_INT64 dims: [ -1, -1 ]' in config
    assert config.count("TYPE_INT64") == len(graph.input)
    assert '{ name: "logits" data_type: TYPE_FP32 dims: [ -1, 2 ] }' in config
    assert "send one row a request" in config
    assert config.count("[") == config.count("]")


class FakeApp:
    """FastAPI's decorators, which keep nothing."""

    def __init__(self, **_settings):
        self.get = self.post = lambda path: lambda handler: handler


class FakeRefusal(Exception):  # noqa: N818 - named as FastAPI names it
    def __init__(self, status, words):
        super().__init__(words)
        self.status = status


@pytest.fixture
def app(root, tmp_path, monkeypatch):
    """app.py as a module, on FastAPI where that is installed, else on a stand-in for its three names."""
    out = Exporter(root / "int8", layout="hub", serve=["fastapi"]).export(tmp_path / "out")
    try:
        import fastapi  # noqa: F401
    except ImportError:
        stand_in = types.SimpleNamespace(FastAPI=FakeApp, HTTPException=FakeRefusal)
        monkeypatch.setitem(sys.modules, "fastapi", stand_in)
    file = out / "serve" / "fastapi" / "app.py"
    assert file.read_text() == FASTAPI
    module = types.ModuleType("served_app")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "served_app", module)
    exec(compile(FASTAPI, str(file), "exec"), module.__dict__)
    return module


def test_the_web_service_answers_as_load_does(app, root):
    predictor = load(root / "int8")
    answers = app.predict(app.Question(texts=TEXTS[:10]))
    assert [each["label"] for each in answers] == predictor.predict(TEXTS[:10])
    assert all(sum(each["scores"].values()) == pytest.approx(1, abs=1e-5) for each in answers)
    assert app.health() == {"status": "ok", "labels": ["bad", "good"]}


def test_the_web_service_refuses_a_pair_and_too_many_texts(app):
    with pytest.raises(Exception, match=r"text 1 must hold text \(got 2 texts\)|422"):
        app.predict(app.Question(texts=["dull", ["dull", "warm"]]))
    for texts in ([], ["dull"] * 257, "dull"):
        with pytest.raises(ValidationError):
            app.Question(texts=texts)


def test_flat_without_servers_is_what_it_was(root, tmp_path):
    plain = Exporter(root / "fp32").export(tmp_path / "plain")
    assert contents(plain) == contents(root / "fp32")
    assert read_manifest(plain) == read_manifest(root / "fp32")
    assert not os.path.exists(plain / "serve")
