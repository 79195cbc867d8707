import numpy as np
import onnx
import pytest
from model_folders import TEXTS, UNEVEN, write_classifier
from onnx import TensorProto, helper, numpy_helper

from compressor.export.audit import audit, audit_int8, expected_fusions
from compressor.export.exporter import export_onnx, input_names, trace
from compressor.export.fusion import fuse, pin_heads
from compressor.model.encoders import load_model
from compressor.model.manifest import LayerShape, Shapes, read_manifest


def shapes_of(*layers):
    return Shapes(hidden=32, layers=tuple(LayerShape(heads, 8, ffn) for heads, ffn in layers), vocabulary=30)


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("audit") / "model", tiny_classifier)


@pytest.fixture(scope="module")
def fused(stock):
    export_onnx(stock, stock.parent / "model.onnx", texts=TEXTS)
    return onnx.load(stock.parent / "model.onnx")


def quantized(graph_file, out, **settings):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"extra_options": {"DefaultTensorType": TensorProto.FLOAT}, "weight_type": QuantType.QInt8}
    quantize_dynamic(str(graph_file), str(out), **options, **settings)
    return onnx.load(out)


def test_a_layer_without_heads_or_neurons_is_not_expected_to_have_them():
    assert expected_fusions(shapes_of((0, 10), (2, 0), (2, 7))) == {
        "EmbedLayerNormalization": 0, "Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2,
    }  # fmt: skip
    assert expected_fusions(shapes_of((2, 7)), embeddings=False)["EmbedLayerNormalization"] == 0


def test_a_graph_that_was_not_fused_is_named_piece_by_piece(stock):
    model = load_model(stock, attention="eager")
    raw = trace(model, input_names(model))
    found = audit(raw, read_manifest(stock).shapes)
    assert found.found == {"EmbedLayerNormalization": 0, "Attention": 0, "SkipLayerNormalization": 0, "BiasGelu": 0}
    assert found.missing == {"EmbedLayerNormalization": 1, "Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}
    assert len(found.left) == 9
    assert "skip connection after attention of layer 1" in found.left
    assert "activation of feed-forward of layer 0" in found.left


def test_one_attention_that_fusion_missed_is_named_by_its_layer(stock):
    model = load_model(stock, attention="eager")
    raw = trace(model, input_names(model))
    pin_heads(raw)
    score = next(node for node in raw.graph.node if node.op_type == "Softmax" and "layer.1/" in node.name)
    raw.graph.node.insert(list(raw.graph.node).index(score), helper.make_node("Relu", [score.input[0]], ["odd"]))
    score.input[0] = "odd"  # a shape of attention that the optimizer does not know
    assert audit(fuse(raw), read_manifest(stock).shapes).left == ("attention of layer 1",)


def test_fusion_of_unevenly_pruned_layers_is_whole(tmp_path, tiny_classifier):
    folder = write_classifier(tmp_path / "model", tiny_classifier, layers=[*UNEVEN, (0, 8), (2, 0)])
    parity = export_onnx(folder, tmp_path / "model.onnx", texts=TEXTS)
    assert parity.audit.left == ()
    assert parity.audit.found == parity.audit.expected


def test_products_left_in_float_are_named_in_words(stock, fused, tmp_path):
    wanted = [node.name for node in fused.graph.node if node.op_type == "MatMul" and "layer.1/" in node.name]
    attention = [node.name for node in fused.graph.node if node.op_type == "Attention"][:1]
    assert len(wanted) == 3
    kept = quantized(stock.parent / "model.onnx", tmp_path / "int8.onnx", nodes_to_exclude=[*wanted, *attention])
    found = audit_int8(kept, read_manifest(stock).shapes)
    assert found.in_float == (
        "attention of layer 0", "layer 1 attention output", "layer 1 feed-forward in", "layer 1 feed-forward out",
    )  # fmt: skip
    assert found.products == 2 * 4 + 2
    assert found.integer == 6
    assert found.found == {"QAttention": 1, "MatMulInteger": 5}
    assert str(found).startswith("6 of 10 products in INT8 (")


def test_embeddings_left_in_float_are_told(stock, tmp_path, fused):
    kept = quantized(
        stock.parent / "model.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "Attention", "Gemm"]
    )
    assert not audit_int8(kept, read_manifest(stock).shapes).embeddings
    whole = quantized(stock.parent / "model.onnx", tmp_path / "all.onnx")
    assert audit_int8(whole, read_manifest(stock).shapes).embeddings


def test_a_product_whose_inputs_are_both_dequantized_beside_it_counts_as_integer():
    weights = numpy_helper.from_array(np.ones((2, 2), dtype="int8"), "w")
    scale = numpy_helper.from_array(np.array(0.1, dtype="float32"), "s")
    floats = numpy_helper.from_array(np.ones((2, 2), dtype="float32"), "f")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
        helper.make_node("QuantizeLinear", ["x", "s"], ["xs"]),
        helper.make_node("DequantizeLinear", ["xs", "s"], ["xf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"], name="/model/bert/encoder/layer.0/output/dense/MatMul"),
        helper.make_node("MatMul", ["y", "f"], ["z"], name="/model/bert/pooler/dense/MatMul"),
        helper.make_node("MatMul", ["z", "z"], ["v"], name="/model/bert/encoder/layer.0/attention/self/MatMul"),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [weights, scale, floats])
    found_in = shapes_of((2, 7))
    found = audit_int8(helper.make_model(graph), found_in)
    assert (found.products, found.in_float, dict(found.found)) == (2, ("pooler",), {"MatMul (QDQ)": 1})
    nodes[3].input[0] = "x"  # rounded weights alone, which are multiplied in float
    found = audit_int8(helper.make_model(helper.make_graph(nodes, "g", [], [], [weights, scale, floats])), found_in)
    assert (found.products, found.integer, dict(found.found)) == (2, 0, {})
