"""Static INT8 on tiny models: what becomes INT8, how it answers, and what leaves the fp32 function alone."""

from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import onnx
import pytest
from model_folders import STOCK, TEXTS, UNEVEN, data_of, write_classifier

from compressor.data.encode import collate, open_encoder
from compressor.errors import InputError, StageError
from compressor.export.exporter import Exporter, input_names, trace
from compressor.export.fusion import pin_heads
from compressor.model.encoders import load_model
from compressor.quantize.calibration import calibrate, observe
from compressor.quantize.channels import divisors, even, groups
from compressor.quantize.material import Material
from compressor.quantize.products import integer_products, products, quantizable
from compressor.quantize.ranges import Range
from compressor.quantize.settings import Calibrate, RangeMethod, Smooth
from compressor.quantize.static import integer_graph, scale_and_zero, static
from compressor.runtime.onnx import OnnxEngine, session

DATA = data_of(TEXTS)


def material_of(place, tiny_classifier, layers):
    source = write_classifier(place / "source", tiny_classifier, layers=layers)
    folder = Exporter(source, data=DATA).export(place / "fp32")
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)

    def raw():
        model = load_model(source, attention="eager").eval()
        model.config.use_cache = False
        graph = trace(model, input_names(model))
        pin_heads(graph)
        return graph

    def batches():
        return (collate(encoded, [row], encoder.pad_id) for row in range(len(encoded)))

    return Material(
        folder=folder, torch_folder=source, raw=raw, batches=batches, reduce_range=True, seed=17, work=place
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_classifier):
    return material_of(tmp_path_factory.mktemp("static"), tiny_classifier, UNEVEN)


@pytest.fixture(scope="module")
def fp32(material):
    return onnx.load(material.folder / "model.onnx")


def answers(graph, material, *, precise=False):
    engine = OnnxEngine(graph.SerializeToString(), threads=1, precise=precise)
    return np.concatenate([engine.logits(inputs) for inputs in material.batches()])


def channel_maxima(graph, material):
    found = {}

    def see(name, values):
        largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        found[name] = np.maximum(found.get(name, 0), largest)

    observe(graph, {node.input[0] for node in quantizable(graph)}, material.batches(), see)
    return found


def agreement(left, right):
    return (left.argmax(axis=1) == right.argmax(axis=1)).mean()


def test_every_product_and_the_embeddings_become_int8(material):
    graph = static(material)
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds["QAttention"] == 2
    assert kinds["MatMulIntegerToFloat"] == 2 * 3 + 2
    assert not {"MatMul", "Gemm", "Attention"} & set(kinds)
    assert integer_products(graph) == 10
    floats = [each for each in graph.graph.initializer if each.data_type == 1 and len(each.dims) > 1]
    assert all(each.dims[0] < 8 for each in floats)  # only the table of segments


@pytest.mark.parametrize("layers", [STOCK, [(0, 10), (2, 7)], [(2, 0), (4, 64)], [(3, 5), (0, 0)]], ids=str)
def test_it_decides_as_fp32_does_however_the_model_was_pruned(tmp_path, tiny_classifier, layers):
    given = material_of(tmp_path, tiny_classifier, layers)
    assert agreement(answers(static(given), given), answers(onnx.load(given.folder / "model.onnx"), given)) >= 0.9


@pytest.mark.parametrize("method", get_args(RangeMethod))
def test_every_method_decides_as_fp32_does(material, fp32, method):
    graph = static(material, Calibrate(method=method))
    assert agreement(answers(graph, material), answers(fp32, material)) >= 0.85


def test_reduced_weights_answer_alike_whether_or_not_the_cpu_saturates(material):
    graph = static(material)
    np.testing.assert_allclose(answers(graph, material), answers(graph, material, precise=True), atol=1e-5)


def test_rows_are_answered_alike_alone_and_in_a_batch(material):
    """Ranges are fixed, so a neighbour cannot change them."""
    engine = OnnxEngine(static(material).SerializeToString(), threads=1)
    rows = list(material.batches())
    length = rows[0]["input_ids"].shape[1]
    alike = [inputs for inputs in rows if inputs["input_ids"].shape[1] == length]
    assert len(alike) > 1
    together = engine.logits({name: np.concatenate([each[name] for each in alike]) for name in alike[0]})
    np.testing.assert_allclose(together, np.concatenate([engine.logits(each) for each in alike]), atol=1e-5)


def test_bytes_are_the_same_each_time(material):
    one, other = (static(material).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_nodes_left_in_float_stay_and_all_others_become_int8(material, fp32):
    kept = {product.node for product in products(fp32)[:3]}
    graph = static(material, float_nodes=frozenset(kept))
    assert {node.name for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Attention")} == kept
    assert integer_products(graph) == 7
    everything = frozenset(product.node for product in products(fp32))
    floats = static(replace(material, smooth=None), float_nodes=everything)
    assert integer_products(floats) == 0
    np.testing.assert_allclose(answers(floats, material), answers(fp32, material), atol=0.2)  # embeddings are INT8


def test_int8_with_more_products_in_float_is_closer_to_fp32(material, fp32):
    names = [product.node for product in products(fp32)]
    reference = answers(fp32, material)
    gaps = [
        np.abs(answers(static(material, float_nodes=frozenset(names[:count])), material) - reference).mean()
        for count in (0, len(names))
    ]
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_evening_out_channels_leaves_the_fp32_function_as_it_was(material, fp32, alpha):
    names = [node.name for node in quantizable(fp32)]
    maxima = channel_maxima(fp32, material)
    evened = even(fp32, names, maxima, alpha=alpha)
    assert Counter(node.op_type for node in evened.graph.node)["Mul"] > 0
    np.testing.assert_allclose(answers(evened, material), answers(fp32, material), atol=1e-4)


def test_the_traced_graph_is_evened_out_too_with_one_division_for_query_key_and_value(material):
    raw = material.raw()
    nodes = quantizable(raw)
    maxima = channel_maxima(raw, material)
    evened = even(raw, [node.name for node in nodes], maxima, alpha=0.8)
    np.testing.assert_allclose(answers(evened, material), answers(raw, material), atol=1e-4)
    added = [node for node in evened.graph.node if node.name.endswith("_even")]
    assert len(added) == len(maxima) < len(nodes)


def test_alpha_one_makes_channels_equal_and_alpha_zero_the_weights():
    activations, weights = np.array([10.0, 1.0, 0.1, 0.0], np.float32), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    assert np.ptp((activations / divisors(activations, weights, 1.0))[:3]) < 1e-6
    assert np.ptp((weights * divisors(activations, weights, 0.0))[:3]) < 1e-6
    assert divisors(activations, weights, 0.5)[3] == 1.0
    assert divisors(np.zeros(2, np.float32), np.ones(2, np.float32), 0.5).tolist() == [1.0, 1.0]


def test_alpha_zero_in_the_recipe_leaves_channels_alone(material):
    assert not any("_even" in node.name for node in static(replace(material, smooth=Smooth(alpha=0.0))).graph.node)
    assert any("_even" in node.name for node in static(replace(material, smooth=Smooth(alpha=0.8))).graph.node)


def test_an_outlying_channel_costs_less_once_channels_are_even(material, fp32):
    """One channel of what a layer's feed-forward reads is made 50 times larger, and its weights 50 times smaller."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(fp32)
    node = next(each for each in quantizable(spoiled) if "intermediate" in each.name)
    maker = next(each for each in spoiled.graph.node if node.input[0] in each.output)
    factor = np.ones(32, np.float32)
    factor[5] = 50.0
    spoiled.graph.initializer.append(onnx.numpy_helper.from_array(factor, "factor"))
    stored = next(each for each in spoiled.graph.initializer if each.name == node.input[1])
    weights = onnx.numpy_helper.to_array(stored) / factor[:, None]
    stored.CopyFrom(onnx.numpy_helper.from_array(weights, stored.name))
    place = list(spoiled.graph.node).index(maker) + 1
    spoiled.graph.node.insert(place, onnx.helper.make_node("Mul", [node.input[0], "factor"], ["spoiled"], "spoil"))
    next(each for each in spoiled.graph.node if each.name == node.name).input[0] = "spoiled"
    reference = answers(spoiled, material)
    np.testing.assert_allclose(reference, answers(fp32, material), atol=1e-4)
    names = [each.name for each in quantizable(spoiled)]
    gaps = []
    for graph in (spoiled, even(spoiled, names, channel_maxima(spoiled, material), alpha=0.8)):
        read = {each.input[0] for each in quantizable(graph)}
        ranges = calibrate(graph, read, material.batches(), Calibrate())
        made = integer_graph(graph, names, ranges, reduce_range=True)
        gaps.append(np.abs(answers(made, material) - reference))
    assert gaps[1].mean() < gaps[0].mean() / 1.5


def test_nodes_that_share_an_input_or_weights_are_evened_together():
    make = onnx.helper.make_node
    nodes = [make("MatMul", [a, b], [c], c) for a, b, c in (("x", "w", "1"), ("y", "v", "2"), ("y", "w", "3"))]
    assert [{node.name for node in group} for group in groups(nodes)] == [{"1", "2", "3"}]
    assert len(groups([nodes[0], nodes[1]])) == 2


def test_one_product_equals_the_arithmetic_it_stands_for():
    draw = np.random.default_rng(0)
    x, weights = draw.normal(size=(5, 8)).astype(np.float32), draw.normal(size=(8, 3)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["logits"], "product")
    infos = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "logits")]
    stored = [onnx.numpy_helper.from_array(weights, "w")]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:], stored)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    made = integer_graph(model, {"product"}, {"x": Range(-2.0, 1.5)}, reduce_range=False)
    step, zero = scale_and_zero(Range(-2.0, 1.5))
    levels = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    sizes = np.abs(weights).max(axis=0) / 127
    expected = (levels @ np.rint(weights / sizes)) * step * sizes
    found = session(made.SerializeToString(), threads=1, precise=True).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tensor_that_is_always_zero_gets_a_scale():
    step, zero = scale_and_zero(Range(0.0, 0.0))
    assert (step, zero) == (1.0, 0)
    assert scale_and_zero(Range(-3.0, 0.0))[1] == 255


def test_for_tensorrt_pairs_are_signed_and_around_zero(material, fp32):
    graph = static(replace(material, target="tensorrt"))
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] > 0
    assert not any(node.domain == "com.microsoft" for node in graph.graph.node)
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.graph.initializer}
    zeros = [stored[node.input[2]] for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert all(each.dtype == np.int8 and not each.any() for each in zeros)
    weighed = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]
    makers = {name: node for node in graph.graph.node for name in node.output}
    fed = [[makers[name].op_type for name in node.input[:2] if name in makers] for node in weighed]
    assert fed.count(["DequantizeLinear"] * 2) == len(quantizable(material.raw()))
    assert agreement(answers(graph, material), answers(fp32, material)) >= 0.8


def test_for_tensorrt_all_products_may_stay_in_float(material):
    everything = frozenset(product.node for product in products(material.raw()))
    graph = static(replace(material, target="tensorrt"), float_nodes=everything)
    assert not any(node.op_type == "QuantizeLinear" for node in graph.graph.node)


def test_a_graph_without_products_is_refused(material, tmp_path):
    empty = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(empty), tmp_path / "model.onnx")
    with pytest.raises(StageError, match="holds no product with weights, so static has nothing to do"):
        static(replace(material, folder=tmp_path))


def test_calibration_rows_of_no_use_are_refused(material):
    with pytest.raises(InputError, match="at least two different texts"):
        static(replace(material, batches=lambda: iter(list(material.batches())[:1])))
