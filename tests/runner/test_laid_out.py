"""`final/` lies as the last export stage says, whichever model is deployed."""

import json
import shutil
from types import SimpleNamespace

import onnx
import pytest
from model_folders import contents, write_classifier
from pydantic import ValidationError

from compressor.export.exporter import Exporter
from compressor.runner.laid_out import lay_out, layout_asked
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_classifier):
    """Stages of a run: teacher with its fp32 export, int8 made of it, and ship, which took that as it is."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = tmp_path_factory.mktemp("laid-out")
    source = write_classifier(root / "teacher" / "model", tiny_classifier)
    fp32 = Exporter(source).export(root / "teacher" / "onnx")
    int8 = Exporter(fp32).export(root / "int8" / "model")
    quantize_dynamic(
        str(fp32 / "model.onnx"),
        str(int8 / "model.onnx"),
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    about = json.loads((int8 / "compressor.json").read_text())
    (int8 / "compressor.json").write_text(json.dumps({**about, "precision": "int8"}))
    shutil.copytree(int8, root / "ship" / "model")
    return root


def chain_of(root, *stages):
    teacher = SimpleNamespace(model="./bert", finetune=None, expect=None)
    return SimpleNamespace(recipe=SimpleNamespace(teacher=teacher, stages=stages), folder=root.joinpath, data=None)


def final_of(root, tmp_path, best, *stages):
    source = root / best / ("model" if best != "teacher" else "onnx")
    return lay_out(chain_of(root, *stages), shutil.copytree(source, tmp_path / "final"), best)


def test_hub_layout_puts_the_model_before_quantization_beside_the_int8_one(root, tmp_path):
    ship = Export.model_validate({"id": "ship", "layout": "hub", "serve": ["triton"]})
    final = final_of(root, tmp_path, "ship", Quantize(id="int8"), ship)
    fp32, int8 = root / "teacher" / "onnx" / "model.onnx", root / "int8" / "model" / "model.onnx"
    assert (final / "onnx" / "model.onnx").read_bytes() == fp32.read_bytes()
    assert (final / "onnx" / "model_quantized.onnx").read_bytes() == int8.read_bytes()
    assert (final / "serve" / "triton" / "classifier" / "1" / "model.onnx").read_bytes() == int8.read_bytes()


def test_an_fp32_model_that_is_deployed_because_a_gate_broke_lies_so_too(root, tmp_path):
    stages = [Quantize(id="int8"), Export(id="ship", layout="hub")]
    final = final_of(root, tmp_path, "teacher", *stages)
    assert [path.name for path in (final / "onnx").iterdir()] == ["model.onnx"]
    assert not (final / "model.onnx").exists()


@pytest.mark.parametrize("stages", [(Quantize(id="int8"),), (Quantize(id="int8"), Export(id="ship"))], ids=len)
def test_without_a_wish_final_is_the_flat_folder(root, tmp_path, stages):
    assert contents(final_of(root, tmp_path, "int8", *stages)) == contents(root / "int8" / "model")


def test_a_server_is_named_once():
    with pytest.raises(ValidationError, match=r"must name each server once \(got triton, triton\)"):
        Export(id="ship", serve=["triton", "triton"])


def test_the_layout_asked_for_is_that_of_the_last_export_stage_reached_or_not():
    def asked(*stages):
        return layout_asked(SimpleNamespace(stages=stages))

    flat, hub = Export(id="a"), Export.model_validate({"id": "b", "layout": "hub", "serve": ["fastapi"]})
    assert asked() == asked(flat) == asked(hub, flat) == {}
    assert asked(flat, hub) == {"layout": "hub", "serve": ["fastapi"]}
    assert asked(flat, hub) != asked(flat, Export.model_validate({"id": "b", "layout": "hub"}))
