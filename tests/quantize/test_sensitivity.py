import numpy as np
import onnx
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import numpy_helper
from scipy.special import rel_entr, softmax

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.export.exporter import Exporter
from compressor.quantize.material import Material
from compressor.quantize.products import between, clean, combined, in_int8, integer_products, products
from compressor.quantize.schemes import SCHEMES
from compressor.quantize.sensitivity import kl, rank
from compressor.runtime.onnx import OnnxEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier, layers=UNEVEN)
    return Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")


@pytest.fixture(scope="module")
def rows(folder):
    encoder = open_encoder(folder, 64)
    encoded = encoder.encode(TEXTS)
    return [collate(encoded, [row], encoder.pad_id) for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def material(folder, rows, tmp_path_factory):
    return Material(
        folder, None, raw=lambda: None, batches=lambda: iter(rows), reduce_range=True, seed=0,
        work=tmp_path_factory.mktemp("work"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def forms(folder, material):
    """The fused graph with every product in float, and with none."""
    names = frozenset(each.node for each in products(onnx.load(folder / "model.onnx")))
    return SCHEMES["dynamic"](material, None, float_nodes=names), SCHEMES["dynamic"](material, None)


def answers(graph, rows):
    engine = OnnxEngine(graph.SerializeToString(), threads=1, precise=True)
    return np.concatenate([engine.logits(inputs) for inputs in rows])


def test_the_products_of_a_fused_graph_are_those_with_weights_in_words(folder):
    found = products(onnx.load(folder / "model.onnx"))
    parts = ("attention", "attention output", "feed-forward in", "feed-forward out")
    layers = [f"layer {layer} {part}" for layer in range(2) for part in parts]
    assert [each.words for each in found] == [*layers, "pooler", "classifier"]


def test_scores_and_contexts_are_no_products(folder):
    model = onnx.load(folder / "model.onnx")
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"], "scores")
    model.graph.node.append(node)
    assert "scores" not in [each.node for each in products(model)]


def test_a_combination_lies_between_all_in_float_and_none(forms, rows):
    floats, integers = forms
    every = products(floats)
    assert len(every) == integer_products(integers) == 10
    assert integer_products(floats) == 0
    np.testing.assert_allclose(answers(combined(floats, integers, every), rows), answers(floats, rows), atol=1e-6)
    np.testing.assert_array_equal(answers(combined(floats, integers, []), rows), answers(integers, rows))
    some = combined(floats, integers, every[1:4])
    assert integer_products(some) == 7
    onnx.checker.check_model(some)
    assert [each.words for each in products(some)] == [each.words for each in every[1:4]]
    gap = np.abs(answers(some, rows) - answers(floats, rows)).mean()
    assert 0 < gap < np.abs(answers(integers, rows) - answers(floats, rows)).mean() * 1.5


def test_a_combination_is_that_which_the_scheme_makes_itself(folder, material, forms, rows):
    floats, integers = forms
    for product in products(floats):
        direct = SCHEMES["dynamic"](material, None, float_nodes=frozenset({product.node}))
        swapped = combined(floats, integers, [product])
        np.testing.assert_allclose(answers(swapped, rows[:5]), answers(direct, rows[:5]), atol=1e-5)


def test_a_combination_carries_no_weights_that_nothing_reads(forms):
    floats, integers = forms
    for kept in ([], products(floats)):
        graph = combined(floats, integers, kept).graph
        read = {name for node in graph.node for name in node.input}
        assert {each.name for each in graph.initializer} <= read
    before = integers.ByteSize()
    copy = onnx.ModelProto()
    copy.CopyFrom(integers)
    copy.graph.initializer.append(numpy_helper.from_array(np.zeros(9, dtype=np.float32), "lonely"))
    clean(copy.graph)
    assert copy.ByteSize() <= before


def test_a_product_that_a_graph_does_not_have_is_named(forms):
    floats, integers = forms
    product = products(floats)[0]
    other = onnx.ModelProto()
    other.CopyFrom(integers)
    for node in other.graph.node:
        node.output[:] = [name + "_renamed" if name == product.output else name for name in node.output]
    with pytest.raises(KeyError, match="layer 0 attention lies"):
        between(other.graph, product)
    assert not in_int8(other, product)
    assert in_int8(integers, product)
    assert not in_int8(floats, product)


def test_the_product_whose_weights_are_spoiled_is_ranked_first(forms, rows):
    floats, integers = forms
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(integers)
    victim = next(each for each in products(floats) if each.words == "layer 1 feed-forward in")
    names = {name for node in between(spoiled.graph, victim) for name in node.input}
    for weight in spoiled.graph.initializer:
        if weight.name in names and len(weight.dims) == 2:
            turned = numpy_helper.to_array(weight)[::-1].copy()
            weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    plain, found = rank(floats, integers, rows), rank(floats, spoiled, rows)
    assert found[0].product == victim
    assert found[0].signal_to_noise < 10 < min(each.signal_to_noise for each in found[1:])
    assert [each.divergence for each in plain] == sorted((each.divergence for each in plain), reverse=True)
    assert {each.product for each in found} == {each.product for each in plain} == set(products(floats))


def test_signal_to_noise_and_divergence_are_those_of_a_plain_computation(forms, rows):
    floats, integers = forms
    first = rank(floats, integers, rows[:6])[-1]
    alone = combined(floats, integers, [each for each in products(floats) if each != first.product])
    outputs = []
    for graph in (floats, alone):
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        if first.product.output != "logits":
            copy.graph.output.append(onnx.helper.make_tensor_value_info(first.product.output, 1, None))
        engine = OnnxEngine(copy.SerializeToString(), threads=1)
        names = [first.product.output, "logits"]
        outputs.append([engine.session.run(names, engine.feed(inputs)) for inputs in rows[:6]])
    wanted, got = (np.concatenate([each[0].ravel() for each in side]) for side in outputs)
    assert first.signal_to_noise == pytest.approx(
        10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()), abs=0.01
    )
    before, after = (softmax(np.concatenate([each[1] for each in side]), axis=1) for side in outputs)
    assert first.divergence == pytest.approx(rel_entr(before, after).sum(axis=1).mean(), rel=1e-2, abs=1e-9)


def test_divergence_is_zero_for_equal_answers_and_that_of_scipy_else():
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(20, 3)).astype(np.float32) for _ in range(2))
    assert kl(first, first) == 0.0
    assert kl(first, first + 5) == pytest.approx(0.0, abs=1e-6)
    expected = rel_entr(softmax(first, axis=1), softmax(second, axis=1)).sum(axis=1).mean()
    assert kl(first, second) == pytest.approx(expected, rel=1e-5)
