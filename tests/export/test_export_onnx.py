import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from model_folders import STOCK, TEXTS, UNEVEN, write_classifier

from compressor.data.encode import collate, open_encoder
from compressor.errors import StageError
from compressor.export import exporter
from compressor.export.exporter import export_onnx, input_names, trace
from compressor.export.fusion import fuse, pin_heads
from compressor.export.parity import compare, require_alike
from compressor.model.encoders import load_model
from compressor.runtime.onnx import OnnxEngine

SHAPES = [
    STOCK,
    UNEVEN,
    [(0, 10), (2, 7)],
    [(2, 0), (4, 64)],
    [(3, 5), (0, 0), (1, 1)],
    [(0, 0), (0, 0)],
]


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("stock") / "model", tiny_classifier)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("uneven") / "model", tiny_classifier, layers=UNEVEN)


def graphs(folder):
    model = load_model(folder, attention="eager")
    raw = trace(model, input_names(model))
    pin_heads(raw)
    return model, raw, fuse(raw)


@pytest.mark.parametrize("layers", SHAPES, ids=str)
def test_torch_raw_and_fused_graphs_answer_alike_at_every_batch_size_and_length(tmp_path, tiny_classifier, layers):
    folder = write_classifier(tmp_path / "model", tiny_classifier, layers=layers)
    model, raw, fused = graphs(folder)
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(["dull", *TEXTS, " ".join(TEXTS)])
    engines = [OnnxEngine(graph.SerializeToString(), threads=1) for graph in (raw, fused)]
    for rows in ([0], [41], [0, 41], [1, 2, 3], list(range(20))):
        inputs = collate(encoded, rows, encoder.pad_id)
        with torch.inference_mode():
            wanted = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
        for engine in engines:
            np.testing.assert_allclose(engine.logits(inputs), wanted, atol=1e-4)


@pytest.mark.parametrize("layers", SHAPES, ids=str)
def test_every_layer_with_heads_has_one_fused_attention_with_its_own_head_count(tmp_path, tiny_classifier, layers):
    folder = write_classifier(tmp_path / "model", tiny_classifier, layers=layers)
    parity = export_onnx(folder, tmp_path / "model.onnx", texts=TEXTS)
    graph = onnx.load(tmp_path / "model.onnx").graph
    heads = [node.attribute[0].i for node in graph.node if node.op_type == "Attention"]
    assert heads == [count for count, _ in layers if count]
    assert parity.audit.missing == {}
    assert parity.fused.largest < 1e-4
    assert parity.fused.flips == 0


def test_segments_reach_the_graph(stock):
    _, _, fused = graphs(stock)
    engine = OnnxEngine(fused.SerializeToString(), threads=1)
    encoder = open_encoder(stock, 64)
    pair, single = encoder.encode([("dull film", "warm story")]), encoder.encode(["dull film"])
    inputs = collate(pair, [0], encoder.pad_id)
    without = {**inputs, "token_type_ids": inputs["token_type_ids"] * 0}
    assert inputs["token_type_ids"].any()
    assert not collate(single, [0], encoder.pad_id)["token_type_ids"].any()
    assert np.abs(engine.logits(inputs) - engine.logits(without)).max() > 1e-3


def test_padding_changes_nothing(stock):
    _, _, fused = graphs(stock)
    engine = OnnxEngine(fused.SerializeToString(), threads=1)
    encoder = open_encoder(stock, 64)
    encoded = encoder.encode(["dull", " ".join(TEXTS)])
    alone, together = (engine.logits(collate(encoded, rows, encoder.pad_id))[0] for rows in ([0], [0, 1]))
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_the_graph_takes_any_batch_and_length(uneven):
    _, _, fused = graphs(uneven)
    for value in fused.graph.input:
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "length"]
    assert [value.name for value in fused.graph.output] == ["logits"]


def with_heads(heads):
    def wrong(traced):
        fused = fuse(traced)
        for node in fused.graph.node:
            if node.op_type == "Attention":
                node.attribute[0].i = heads
        return fused

    return wrong


def test_a_wrong_head_count_is_caught_and_nothing_is_written(stock, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "fuse", with_heads(2))
    with pytest.raises(StageError, match=r"the fused ONNX graph of .* does not answer as the model it was made from"):
        export_onnx(stock, tmp_path / "model.onnx", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_one_head_count_for_uneven_layers_is_caught(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "fuse", with_heads(1))
    with pytest.raises(StageError, match="does not answer"):
        export_onnx(uneven, tmp_path / "model.onnx", texts=TEXTS)


def test_parity_forgives_rounding_and_near_ties_but_no_changed_decision():
    reference = np.array([[1.0, 1.0002], [0.0, 3.0]], dtype=np.float32)
    tie_broken = np.array([[1.0003, 1.0002], [0.0, 3.0]], dtype=np.float32)
    assert require_alike(reference, tie_broken, what="x").flips == 0
    flipped = np.array([[1.0, 1.0002], [3.0, 0.0]], dtype=np.float32)
    assert compare(reference, flipped).flips == 1
    assert not compare(reference, np.full_like(reference, np.nan)).alike
    with pytest.raises(StageError, match=r"x does not answer .* 1 of 2 decisions change"):
        require_alike(reference, flipped, what="x")


def test_export_leaves_random_numbers_as_they_were(stock, tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    export_onnx(stock, tmp_path / "model.onnx", texts=TEXTS)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


EXPORT = """
import sys
from pathlib import Path
from compressor.export.exporter import export_onnx
export_onnx(Path(sys.argv[1]), Path(sys.argv[2]), texts=["dull"])
"""


def test_bytes_are_the_same_in_a_fresh_process_and_in_a_used_one(stock, uneven, tmp_path):
    export_onnx(stock, tmp_path / "other.onnx", texts=TEXTS)
    torch.rand(7)
    export_onnx(uneven, tmp_path / "used.onnx", texts=TEXTS)
    root = str(Path(exporter.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", EXPORT, str(uneven), str(tmp_path / "fresh.onnx")]
    subprocess.run(command, check=True, env=env, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "fresh.onnx").read_bytes() == (tmp_path / "used.onnx").read_bytes()
    content = (tmp_path / "used.onnx").read_bytes()
    for trace_of_this_machine in (b"site-packages", str(tmp_path).encode(), str(uneven).encode(), root.encode()):
        assert trace_of_this_machine not in content
