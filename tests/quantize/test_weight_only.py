import numpy as np
import onnx
import pytest
from model_families import write_family
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.data.encode import collate
from compressor.errors import StageError
from compressor.export.exporter import Exporter
from compressor.quantize.material import Material
from compressor.quantize.settings import WeightOnly
from compressor.quantize.weight_only import shrink, weight_only
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load


@pytest.fixture(scope="module", params=[None, UNEVEN], ids=["stock", "uneven"])
def fp32(request, tmp_path_factory, tiny_classifier):
    place = tmp_path_factory.mktemp("fp32")
    layers = {} if request.param is None else {"layers": request.param}
    source = write_classifier(place / "source", tiny_classifier, **layers)
    return Exporter(source, data=data_of(TEXTS)).export(place / "model")


def answers(graph, folder):
    encoder = load(folder).encoder
    encoded = encoder.encode(TEXTS)
    engine = OnnxEngine(graph.SerializeToString(), threads=1)
    alone = np.concatenate([engine.logits(collate(encoded, [row], encoder.pad_id)) for row in range(len(TEXTS))])
    together = engine.logits(collate(encoded, range(len(TEXTS)), encoder.pad_id))
    return alone, together


def in_fp32(graph):
    """The graph with each MatMulNBits as a MatMul of its weights unpacked by numpy."""
    parts = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    del result.graph.node[:]
    for node in graph.graph.node:
        if node.op_type != "MatMulNBits":
            result.graph.node.append(node)
            continue
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        packed, scales = parts[node.input[1]], parts[node.input[2]]
        numbers = packed.astype(np.float64)
        if given["bits"] == 4:
            numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float64)
            zeros = parts[node.input[3]].reshape(given["N"], -1)
            zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(given["N"], -1)[:, : packed.shape[1]]
            numbers -= zeros[..., None]
        else:
            numbers -= 128
        weight = (numbers * scales.reshape(given["N"], -1, 1)).reshape(given["N"], -1)[:, : given["K"]].T
        name = node.name + "_weight"
        result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight, dtype=np.float32), name))
        bias = node.input[5] if len(node.input) > 5 else None
        out = node.output[0] if bias is None else node.name + "_unbiased"
        result.graph.node.append(helper.make_node("MatMul", [node.input[0], name], [out]))
        if bias is not None:
            result.graph.node.append(helper.make_node("Add", [out, bias], [node.output[0]]))
    return result


@pytest.mark.parametrize(("bits", "block"), [(8, 32), (4, 32), (4, 16)])
def test_with_activations_in_fp32_the_graph_computes_what_its_unpacked_weights_say(fp32, bits, block):
    graph = shrink(onnx.load(fp32 / "model.onnx"), WeightOnly(bits=bits, block=block))
    expected, _ = answers(in_fp32(graph), fp32)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    alone, together = answers(graph, fp32)
    np.testing.assert_allclose(alone, expected, atol=1e-3)
    np.testing.assert_allclose(together, expected, atol=1e-3)


def test_eight_bits_decide_as_fp32_does_and_four_are_further_away(fp32):
    model = onnx.load(fp32 / "model.onnx")
    reference, _ = answers(model, fp32)
    shrunk = {bits: answers(shrink(model, WeightOnly(bits=bits)), fp32)[0] for bits in (8, 4)}
    off = {bits: float(np.sqrt(np.mean((each - reference) ** 2))) for bits, each in shrunk.items()}
    assert (reference.argmax(1) == shrunk[8].argmax(1)).mean() >= 0.95
    assert off[8] < 0.1 * reference.std()
    assert off[4] > 2 * off[8]


def test_a_row_is_answered_alike_alone_and_in_a_padded_batch(fp32):
    alone, together = answers(shrink(onnx.load(fp32 / "model.onnx"), WeightOnly()), fp32)
    assert np.median(np.abs(alone - together)) < 1e-3


def test_no_product_keeps_fp32_weights(fp32):
    graph = shrink(onnx.load(fp32 / "model.onnx"), WeightOnly()).graph
    kinds = [node.op_type for node in graph.node]
    assert not {"MatMul", "Gemm", "Attention"} & set(kinds)
    assert kinds.count("MultiHeadAttention") == 2
    assert kinds.count("MatMulNBits") == 2 * 6 + 2
    used = {name for node in graph.node for name in node.input}
    assert {each.name for each in graph.initializer} <= used


def test_the_scheme_writes_embeddings_in_bytes_too(fp32, tmp_path):
    given = Material(
        folder=fp32, torch_folder=None, raw=onnx.ModelProto, batches=lambda: iter(()), reduce_range=True, seed=3,
        work=tmp_path,
    )  # fmt: skip
    graph = weight_only(given, WeightOnly())
    large = [each for each in graph.graph.initializer if each.data_type == TensorProto.FLOAT and len(each.dims) > 1]
    assert [tuple(each.dims) for each in large if "scales" not in each.name] == [(2, 32)]  # token types
    (reference, _), (alone, together) = answers(onnx.load(fp32 / "model.onnx"), fp32), answers(graph, fp32)
    assert np.sqrt(np.mean((alone - reference) ** 2)) < 0.1 * reference.std()
    assert np.median(np.abs(alone - together)) < 1e-3


def test_products_named_as_float_keep_their_weights(fp32):
    model = onnx.load(fp32 / "model.onnx")
    names = [node.name for node in model.graph.node if node.op_type in ("Attention", "Gemm")]
    graph = shrink(model, WeightOnly(), float_nodes=frozenset(names)).graph
    assert [node.name for node in graph.node if node.op_type in ("Attention", "Gemm")] == names
    assert "MultiHeadAttention" not in {node.op_type for node in graph.node}


def test_a_graph_without_products_is_refused():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["logits"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(StageError, match="no product of the graph has weights of its own"):
        shrink(helper.make_model(graph), WeightOnly())


@pytest.mark.parametrize("kind", ["distilbert", "electra", "mpnet"])
def test_other_families_answer_as_in_fp32(tmp_path, kind):
    fp32 = Exporter(write_family(tmp_path / "source", kind)).export(tmp_path / "model")
    model = onnx.load(fp32 / "model.onnx")
    graph = shrink(model, WeightOnly())
    assert sum(node.op_type == "MatMulNBits" for node in graph.graph.node) >= 2 * 6
    reference, shrunk = (answers(each, fp32)[0] for each in (model, graph))
    assert np.sqrt(np.mean((shrunk - reference) ** 2)) < 0.15 * reference.std()
