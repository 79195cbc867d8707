import numpy as np
import onnx
import pytest
from model_folders import TEXTS, data_of, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.export.exporter import Exporter
from compressor.quantize.embeddings import integer_embeddings, round_rows, split_embeddings
from compressor.runtime.onnx import OnnxEngine, session


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier)
    return Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")


def answers(folder, model):
    """Logits of the rows in two padded batches."""
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)
    engine = OnnxEngine(model.SerializeToString(), threads=1)
    return np.concatenate(
        [engine.logits(collate(encoded, rows, encoder.pad_id)) for rows in (range(1), range(1, len(TEXTS)))]
    )


def test_embeddings_in_parts_answer_as_the_fused_ones_padding_and_all(folder):
    fused = onnx.load(folder / "model.onnx")
    parts = onnx.load(folder / "model.onnx")
    split_embeddings(parts.graph)
    assert "EmbedLayerNormalization" not in {node.op_type for node in parts.graph.node}
    np.testing.assert_allclose(answers(folder, parts), answers(folder, fused), atol=1e-4)


def test_every_table_but_the_two_token_types_becomes_bytes(folder):
    model = onnx.load(folder / "model.onnx")
    before = answers(folder, model)
    integer_embeddings(model)
    kinds = {each.name: each.data_type for each in model.graph.initializer if "embeddings.weight" in each.name}
    assert {name.split(".")[-2]: kind for name, kind in kinds.items() if name.endswith(("weight", "/steps"))} == {
        "word_embeddings": TensorProto.INT8,
        "position_embeddings": TensorProto.INT8,
        "token_type_embeddings": TensorProto.FLOAT,
    }
    after = answers(folder, model)
    assert np.abs(after - before).max() < 0.5
    assert np.abs(after - before).max() > 0


def test_rows_keep_their_own_precision_beside_one_that_is_a_thousand_times_larger():
    table = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    table[7] *= 1000
    steps, codes, sizes = round_rows(table)
    moved = np.abs(steps * sizes[codes] - table).max(axis=1)
    assert (moved <= np.abs(table).max(axis=1) / 127 * 0.52).all()
    assert codes.dtype == np.uint8
    assert steps.dtype == np.int8


def test_rows_of_zeros_and_tables_of_one_size_are_kept():
    steps, codes, sizes = round_rows(np.zeros((3, 4), np.float32))
    assert not (steps * sizes[codes]).any()
    same = np.full((3, 4), -2.0, np.float32)
    steps, codes, sizes = round_rows(same)
    np.testing.assert_allclose(steps * sizes[codes], same, rtol=1e-6)


def lookup(*, opset=17, axis=0, also_read=False):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], "look", axis=axis)]
    if also_read:
        nodes.append(helper.make_node("ReduceSum", ["table"], ["z"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "tokens"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")[: 1 + also_read]],
        [numpy_helper.from_array(np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32), "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_a_lookup_that_is_not_fused_is_rounded_too():
    model = lookup()
    ids = {"ids": np.array([[3, 19], [0, 3]])}
    before = session(model.SerializeToString(), threads=1).run(None, ids)[0]
    integer_embeddings(model)
    after = session(model.SerializeToString(), threads=1).run(None, ids)[0]
    assert 0 < np.abs(after - before).max() < 0.02


@pytest.mark.parametrize("how", [{"axis": 1}, {"also_read": True}, {"opset": 13}])
def test_a_table_that_something_else_reads_stays_as_it_is(how):
    model = lookup(**how)
    before = model.SerializeToString()
    integer_embeddings(model)
    assert model.SerializeToString() == before
