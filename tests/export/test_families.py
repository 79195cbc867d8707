"""Every family that opens as a text classifier is exported, fused and quantized, and answers as PyTorch does."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from model_families import CONFIGS, LABELS, write_family
from model_folders import TEXTS
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from compressor.export.audit import audit_int8
from compressor.export.exporter import Exporter, export_onnx
from compressor.model.encoders import load_model, save_model
from compressor.model.families import FAMILIES
from compressor.model.manifest import Manifest, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut
from compressor.runtime.predictor import load

LEFT = {
    "mpnet": ("attention of layer 0", "attention of layer 1"),
    "albert": ("embeddings", "attention of layer 0"),
}
"""What onnxruntime's optimizer leaves in pieces, and our audit must name."""
CUTS = {
    "uneven": Kept(((0, 2, 3), (1,)), (tuple(range(0, 64, 3)), (1, 5, 63)), (0, 1)),
    "no attention first": Kept(((), (1, 2)), (tuple(range(9)), ()), (0, 1)),
    "no feed-forward first": Kept(((1,), ()), ((), (3, 4, 5)), (0, 1)),
}
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


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", CUTS)
def test_a_pruned_model_is_exported_with_its_answers_and_the_heads_of_each_layer(folders, tmp_path, kind, name):
    model = cut(load_model(folders[kind]), CUTS[name])
    manifest = Manifest(labels=LABELS, shapes=shapes(model))
    probe = {"input_ids": torch.tensor([[2, 6, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    folder = save_model(model, tmp_path / "pruned", tokenizer_from=folders[kind], manifest=manifest, probe=probe)
    parity = export_onnx(folder, tmp_path / "pruned.onnx", texts=[*TEXTS[:20], "", "dull"])
    assert max(parity.raw.largest, parity.fused.largest) < 1e-4
    heads = [len(each) for each in CUTS[name].heads]
    left = [f"attention of layer {number}" for number, count in enumerate(heads) if count and kind == "mpnet"]
    assert parity.audit.left == tuple(left)
    nodes = onnx.load(tmp_path / "pruned.onnx").graph.node
    found = [each.i for node in nodes for each in node.attribute if each.name == "num_heads"]
    assert found == ([] if kind == "mpnet" else [count for count in heads if count])
    config = AutoConfig.from_pretrained(Exporter(folder).export(tmp_path / "out"))
    assert config.model_type == kind
    assert not {"layer_shapes", "head_size", "relative_attention_heads", "auto_map"} & set(config.to_dict())


@pytest.mark.parametrize("kind", CONFIGS)
def test_pairs_are_answered_as_stock_transformers_answers_them(folders, tmp_path, kind):
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
