from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.errors import StageError
from compressor.export.exporter import Exporter
from compressor.quantize.dynamic import dynamic, write_int8
from compressor.quantize.material import Material
from compressor.quantize.products import products
from compressor.runtime.onnx import OnnxEngine


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier, layers=UNEVEN)
    folder = Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)
    rows = [collate(encoded, [row], encoder.pad_id) for row in range(len(TEXTS))]
    work = tmp_path_factory.mktemp("work")
    return Material(folder, None, raw=lambda: None, batches=lambda: iter(rows), reduce_range=True, seed=0, work=work)


def answers(model, material, *, precise):
    engine = OnnxEngine(model.SerializeToString(), threads=1, precise=precise)
    return np.concatenate([engine.logits(inputs) for inputs in material.batches()])


def fused(material):
    return onnx.load(material.folder / "model.onnx")


def test_every_product_is_written_in_the_forms_that_onnxruntime_runs_as_one(material, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    content = dynamic(material).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "opened.onnx").graph.node)
    assert kinds["QAttention"] == 2
    assert kinds["DynamicQuantizeMatMul"] == 2 * 3 + 2
    assert not {"MatMul", "Gemm", "MatMulInteger", "Attention"} & set(kinds)


def test_without_eight_bits_in_sums_answers_are_the_same_on_every_processor(material):
    model = dynamic(material)
    np.testing.assert_allclose(
        answers(model, material, precise=False), answers(model, material, precise=True), atol=1e-5
    )


def test_it_errs_less_than_the_dynamic_quantization_of_onnxruntime(material, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(material.folder / "model.onnx"), str(tmp_path / "stock.onnx"), per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
    exact = answers(fused(material), material, precise=True)
    stock = answers(onnx.load(tmp_path / "stock.onnx"), material, precise=True) - exact
    ours = answers(dynamic(material), material, precise=True) - exact
    assert np.square(ours).mean() < np.square(stock).mean()


def test_products_named_stay_in_float_and_the_rest_does_not(material):
    for product in products(fused(material)):
        kept = {node.name: node.op_type for node in dynamic(material, float_nodes={product.node}).graph.node}
        assert kept[product.node] in ("MatMul", "Gemm", "Attention")
        assert sum(kind in ("MatMulInteger", "QAttention") for kind in kept.values()) == 9


def test_with_every_product_in_float_only_the_embeddings_move(material):
    every = {each.node for each in products(fused(material))}
    model = dynamic(material, float_nodes=every)
    moved = answers(model, material, precise=True) - answers(fused(material), material, precise=True)
    assert 0 < np.abs(moved).max() < 0.5


def test_weights_that_learned_are_not_evened(material):
    plain = dynamic(material, even=False)
    assert plain.SerializeToString() == write_int8(fused(material), reduce_range=True).SerializeToString()


def test_bytes_do_not_depend_on_the_try(material, tmp_path):
    first = dynamic(material).SerializeToString(deterministic=True)
    assert dynamic(replace(material, work=tmp_path)).SerializeToString(deterministic=True) == first


def test_attention_that_has_no_int8_form_stays_in_float(material):
    model = fused(material)
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.attribute.append(onnx.helper.make_attribute("qkv_hidden_sizes", [24, 24, 24]))
    kinds = [node.op_type for node in write_int8(model, reduce_range=True).graph.node]
    assert kinds.count("Attention") == 1


def test_a_graph_without_products_is_refused(material, tmp_path):
    model = fused(material)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Attention"):
            node.input[1] = "hidden_" + node.input[1]
    for stored in list(model.graph.initializer):
        if len(stored.dims) == 2 and "embeddings" not in stored.name:
            stored.name = "hidden_" + stored.name
            model.graph.node.insert(0, onnx.helper.make_node("Identity", [stored.name + "_kept"], [stored.name]))
            stored.name += "_kept"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(StageError, match="left every product of the graph in fp32"):
        dynamic(replace(material, folder=tmp_path), even=False)
