"""Every family that opens as a text classifier is exported, fused and quantized, and answers as PyTorch does."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from model_families import CONFIGS, LABELS, write_family
from model_folders import TEXTS

from compressor.export.audit import audit_int8
from compressor.export.exporter import Exporter, export_onnx
from compressor.model.encoders import load_model
from compressor.model.manifest import read_manifest
from compressor.model.parts import shapes
from compressor.runtime.predictor import load

LEFT = {
    "mpnet": ("attention of layer 0", "attention of layer 1"),
    "albert": ("embeddings", "attention of layer 0"),
}
"""What onnxruntime's optimizer leaves in pieces, and our audit must name."""
PAIRS = [*zip(TEXTS[:6], TEXTS[6:12], strict=True), ("dull", "warm")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {kind: write_family(root / kind, kind) for kind in CONFIGS}


@pytest.fixture(scope="module")
def exported(folders):
    found = {}
    for kind, folder in folders.items():
        file = folder.parent / f"{kind}.onnx"
        found[kind] = (file, export_onnx(folder, file, texts=[*TEXTS[:20], "", "dull"]))
    return found


def test_there_are_families():
    assert len(CONFIGS) == 6


@pytest.mark.parametrize("kind", CONFIGS)
def test_traced_and_fused_graphs_answer_as_pytorch(exported, kind):
    _, parity = exported[kind]
    assert len(set(parity.logits.argmax(axis=1))) > 1
    for difference in (parity.raw, parity.fused):
        assert difference.largest < 1e-4
        assert difference.mean <= difference.largest
        assert difference.flips == 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_is_fused_or_named(exported, kind):
    _, parity = exported[kind]
    assert parity.audit.left == LEFT.get(kind, ())
    assert sum(parity.audit.missing.values()) == len(LEFT.get(kind, ()))


@pytest.mark.parametrize("kind", CONFIGS)
def test_fused_attention_knows_its_heads(exported, kind):
    graph = onnx.load(exported[kind][0]).graph
    heads = [each.i for node in graph.node for each in node.attribute if each.name == "num_heads"]
    assert set(heads) <= {4}
    assert len(heads) == exported[kind][1].audit.found["Attention"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_pairs_are_answered_as_stock_transformers_answers_them(folders, tmp_path, kind):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = Exporter(folders[kind]).export(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    model = AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    takes_types = "token_type_ids" in {each.name for each in onnx.load(out / "model.onnx").graph.input}
    content = json.loads((out / "compressor.json").read_text())
    (out / "compressor.json").write_text(json.dumps({**content, "text": ["one", "two"]}))
    found = load(out).logits(PAIRS)
    for pair, row in zip(PAIRS, found, strict=True):
        inputs = tokenizer(*pair, return_tensors="pt", return_token_type_ids=takes_types)
        with torch.inference_mode():
            np.testing.assert_allclose(row, model(**inputs).logits[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "albert"])
def test_padding_changes_nothing_where_positions_or_types_are_special(folders, tmp_path, kind):
    out = Exporter(folders[kind]).export(tmp_path / "out")
    texts = ["dull", " ".join(TEXTS[:5])]
    together = load(out).logits(texts)
    alone = np.concatenate([load(out).logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_predict_runs_for_a_family_without_token_types(folders, tmp_path):
    out = Exporter(folders["roberta"]).export(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, str(out / "predict.py")], input="a dull film\n\n", capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == load(out).predict(["a dull film", ""])
    assert set(json.loads(done.stdout.splitlines()[0])["scores"]) == set(LABELS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_dynamic_int8_leaves_no_product_of_a_fused_family_in_float(folders, exported, tmp_path, kind):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(exported[kind][0]),
        str(tmp_path / "int8.onnx"),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    found = audit_int8(onnx.load(tmp_path / "int8.onnx"), shapes(load_model(folders[kind])))
    assert found.in_float == ()
    assert found.integer == found.products >= 2 * 4
    assert found.embeddings
    before = audit_int8(onnx.load(exported[kind][0]), read_manifest(folders[kind]).shapes)
    assert before.integer == 0
    assert len(before.in_float) == before.products == found.products
    assert not before.embeddings
