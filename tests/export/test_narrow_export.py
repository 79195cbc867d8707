"""A model of fewer hidden channels, whose heads do not fill its width, is fused, quantized and deployed like others."""

import numpy as np
import onnx
import pytest
import torch
from model_families import LABELS, write_family
from model_folders import TEXTS, write_classifier
from transformers import AutoConfig

from compressor.data.encode import collate, open_encoder
from compressor.export.audit import audit_int8
from compressor.export.exporter import Exporter, export_onnx
from compressor.model.encoders import load_model, save_model
from compressor.model.families import FAMILIES
from compressor.model.manifest import Manifest, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load

ALL = ((0, 1, 2, 3),) * 2, (tuple(range(64)),) * 2, (0, 1)
CUTS = {
    "14 of 32 channels": Kept(*ALL, tuple(range(2, 30, 2))),
    "21 channels, uneven heads": Kept(((0, 2, 3), (1,)), (tuple(range(9)), (1, 5)), (0, 1), tuple(range(5, 26))),
    "24 channels, an empty half": Kept(((), (1, 2)), (tuple(range(9)), ()), (0, 1), tuple(range(24))),
}


def narrow(folder, source, kept, labels):
    model = cut(load_model(source), kept)
    manifest = Manifest(labels=labels, shapes=shapes(model), max_tokens=64)
    probe = {"input_ids": torch.tensor([[2, 6, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    return save_model(model, folder, tokenizer_from=source, manifest=manifest, probe=probe)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {kind: write_family(root / kind, kind) for kind in FAMILIES}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", CUTS)
def test_the_fused_graph_of_a_narrower_model_answers_as_pytorch(folders, tmp_path, kind, name):
    folder = narrow(tmp_path / "narrow", folders[kind], CUTS[name], LABELS)
    parity = export_onnx(folder, tmp_path / "narrow.onnx", texts=[*TEXTS[:20], "", "dull"])
    assert max(parity.raw.largest, parity.fused.largest) < 1e-4
    heads = [len(each) for each in CUTS[name].heads]
    left = [f"attention of layer {number}" for number, count in enumerate(heads) if count and kind == "mpnet"]
    assert parity.audit.left == tuple(left)
    nodes = onnx.load(tmp_path / "narrow.onnx").graph.node
    found = [each.i for node in nodes for each in node.attribute if each.name == "num_heads"]
    assert found == ([] if kind == "mpnet" else [count for count in heads if count])


@pytest.mark.parametrize("name", CUTS)
def test_a_narrower_model_is_deployed_with_its_true_shapes(tiny_classifier, tmp_path, name):
    source = write_classifier(tmp_path / "model", tiny_classifier)
    folder = narrow(tmp_path / "narrow", source, CUTS[name], ("bad", "good"))
    out = Exporter(folder).export(tmp_path / "out")
    assert read_manifest(out).shapes == read_manifest(folder).shapes == shapes(load_model(folder))
    config = AutoConfig.from_pretrained(out)
    assert config.hidden_size == len(CUTS[name].hidden)
    answers, wanted = load(out).logits(TEXTS), load(folder).logits(TEXTS)
    np.testing.assert_allclose(answers, wanted, atol=1e-4)


def test_dynamic_int8_of_a_narrower_model_leaves_no_product_in_float_and_answers_alike(tiny_classifier, tmp_path):
    source = write_classifier(tmp_path / "model", tiny_classifier)
    folder = narrow(tmp_path / "narrow", source, CUTS["21 channels, uneven heads"], ("bad", "good"))
    export_onnx(folder, tmp_path / "fp32.onnx", texts=TEXTS)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(
        str(tmp_path / "fp32.onnx"),
        str(tmp_path / "int8.onnx"),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options=options,
    )
    found = audit_int8(onnx.load(tmp_path / "int8.onnx"), read_manifest(folder).shapes)
    assert found.in_float == ()
    assert found.integer == found.products > 0
    encoder = open_encoder(folder, 64)
    inputs = collate(encoder.encode(TEXTS), range(len(TEXTS)), encoder.pad_id)
    engines = [OnnxEngine((tmp_path / f"{name}.onnx").read_bytes(), threads=1) for name in ("fp32", "int8")]
    plain, coarse = (engine.logits(inputs) for engine in engines)
    assert float((plain.argmax(1) == coarse.argmax(1)).mean()) >= 0.9
