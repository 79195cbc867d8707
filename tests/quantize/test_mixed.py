from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, data_of, write_classifier
from onnx import numpy_helper

from compressor.bench.statistics import Interval
from compressor.errors import InputError, StageError
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.quantize import choice, mixed, quantizer, targets
from compressor.quantize.mixed import Price, fewest, in_half
from compressor.quantize.products import KEPT, between, combined, integer_products, products
from compressor.quantize.quantizer import Quantizer
from compressor.quantize.schemes import SCHEMES
from compressor.quantize.targets import check_keep
from compressor.quantize.trials import agreement
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load
from compressor.stage import Outcome

VICTIM = "layer 1 feed-forward in"


@pytest.fixture(scope="module")
def fp32(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier)
    return Exporter(source, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("fp32") / "final")


@pytest.fixture(scope="module")
def data(fp32):
    """Rows whose labels are what fp32 decides, so that any other decision costs score."""
    plain = data_of(TEXTS)
    right = tuple(int(each) for each in load(fp32).logits(TEXTS).argmax(axis=1))
    return replace(plain, select=replace(plain.select, labels=right))


def spoiled(material, settings, *, float_nodes=frozenset()):
    """Dynamic INT8 with one product's weights upside down where it is in INT8."""
    graph = SCHEMES["dynamic"](material, settings, float_nodes=float_nodes)
    victim = next(each for each in products(onnx.load(material.folder / "model.onnx")) if each.words == VICTIM)
    if victim.node not in float_nodes:
        read = {name for node in between(graph.graph, victim) for name in node.input}
        for weight in graph.graph.initializer:
            if weight.name in read and len(weight.dims) == 2:
                turned = numpy_helper.to_array(weight)[:, ::-1].copy()
                weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    return graph


@pytest.fixture
def broken_product(monkeypatch):
    """The table with a dynamic scheme that spoils one product, timings made up, and one row sure enough to fail on."""
    monkeypatch.setattr(quantizer, "SCHEMES", {**SCHEMES, "dynamic": spoiled})

    def timed(folders, *_arguments, **_named):
        rounds = {name: ((2_000_000 + 40_000 * place,),) * 3 for place, name in enumerate(folders)}
        return choice.Times(rounds)

    monkeypatch.setattr(mixed, "time_side_by_side", timed)
    monkeypatch.setattr("compressor.quantize.trials.LEAST_AGREEMENT", 0.0)


def test_the_one_product_that_matters_is_found_and_priced(fp32, data, tmp_path, broken_product):
    told = []
    limits = {"drop": "<= 5pp", "agreement": 0.95}
    folder = Quantizer(fp32, data=data, try_=["mixed"], mixed=limits, decide=told.append).fit(tmp_path / "model")
    search, final = (next(each for each in told if each.kind == kind) for kind in ("mixed", "quantize"))
    assert (search.kind, search.chosen) == ("mixed", "1 of 10 products in fp32")
    assert search.because.startswith(f"the fewest that suffice: {VICTIM} in fp32: +")
    assert search.because.endswith(" pp, +2 percent latency (+2 to +2)")
    assert search.cost[VICTIM]["gain"] > 0.003
    assert search.cost[VICTIM]["latency_ratio"]["value"] == pytest.approx(1.02)
    assert search.candidates[0]["product"] == VICTIM
    assert len(search.candidates) == 10
    assert final.candidates[0]["kept_in_float"] == [VICTIM]
    assert integer_products(onnx.load(folder / "model.onnx")) == 9
    assert agreement(load(fp32).logits(TEXTS), load(folder).logits(TEXTS)) >= 0.95
    assert read_manifest(folder).asked_alone


def test_times_of_this_cpu_are_no_price_for_another_target(fp32, data, tmp_path, broken_product):
    told = []
    other = next(name for name in ("avx2", "avx512") if name != choice.cpu_isa())
    limits = {"drop": "<= 5pp", "agreement": 0.95}
    made = Quantizer(fp32, data=data, try_=["mixed"], mixed=limits, isa=other, decide=told.append)
    made.fit(tmp_path / "model")
    search = next(each for each in told if each.kind == "mixed")
    assert search.because.endswith(f" (timed on this CPU, which has {choice.cpu_isa()}, not {other})")
    there, sure = SimpleNamespace(target="tensorrt"), SimpleNamespace(smoke=False)
    assert mixed._prices(there, sure, form=None, kept=("one",), integers=None) == []


def test_where_int8_suffices_nothing_stays_in_float(fp32, data, tmp_path):
    told = []
    loose = {"drop": "<= 20pp", "agreement": 0.5}
    kept = Quantizer(fp32, data=data, try_=["mixed"], mixed=loose, decide=told.append).fit(tmp_path / "mixed")
    search = next(each for each in told if each.kind == "mixed")
    assert (search.chosen, search.because) == ("0 of 10 products in fp32", "INT8 suffices as it is")
    plain = Quantizer(fp32, data=data).fit(tmp_path / "dynamic")
    np.testing.assert_array_equal(load(kept).logits(TEXTS), load(plain).logits(TEXTS))


def shifting(material, settings, *, float_nodes=frozenset()):
    """Dynamic INT8 that doubles a tensor between products as long as the first is in INT8: the two forms do not fit."""
    graph = SCHEMES["dynamic"](material, settings, float_nodes=float_nodes)
    first, _, third = products(onnx.load(material.folder / "model.onnx"))[:3]
    if first.node not in float_nodes:
        maker = next(node for node in graph.graph.node if third.inputs[0] in node.output)
        maker.output[:] = ["before" if name == third.inputs[0] else name for name in maker.output]
        place = list(graph.graph.node).index(maker) + 1
        graph.graph.initializer.append(numpy_helper.from_array(np.array(2, dtype=np.float32), "two"))
        graph.graph.node.insert(place, onnx.helper.make_node("Mul", ["before", "two"], [third.inputs[0]]))
    return graph


def test_forms_that_do_not_fit_each_other_are_made_by_the_scheme_itself(fp32, data, tmp_path, monkeypatch):
    asked = []

    def counted(material, settings, *, float_nodes=frozenset()):
        asked.append(len(float_nodes))
        return shifting(material, settings, float_nodes=float_nodes)

    monkeypatch.setattr(quantizer, "SCHEMES", {**SCHEMES, "dynamic": counted})

    def accept(folder):
        count = integer_products(onnx.load(folder / "model.onnx"))
        return Outcome("pass" if count == 9 else "fail", count == 9, "", {})

    limits = {"max_float": 0.1}
    made = Quantizer(fp32, data=data, try_=["mixed"], mixed=limits, smoke=True)
    assert integer_products(onnx.load(made.fit(tmp_path / "model", accept=accept) / "model.onnx")) == 9
    assert asked[:2] == [0, 10]
    assert asked[2:12] == [9] * 10  # each product alone in INT8


def test_the_gate_decides_where_there_is_one(fp32, data, tmp_path, broken_product):
    seen = []

    def accept(folder):
        count = integer_products(onnx.load(folder / "model.onnx"))
        seen.append(count)
        return Outcome("pass" if count <= 8 else "fail", count <= 8, f"{count} in INT8", {})

    kept = Quantizer(fp32, data=data, try_=["mixed"]).fit(tmp_path / "model", accept=accept)
    assert integer_products(onnx.load(kept / "model.onnx")) == 8
    assert sorted(seen) == [8, 9, 10]  # each form once


def test_where_even_the_most_float_does_not_suffice_it_is_refused_and_kept_as_the_best_there_is(fp32, data, tmp_path):
    told = []

    def accept(_folder):
        return Outcome("fail", False, "drop is 9 pp", {})

    made = Quantizer(fp32, data=data, try_=["mixed"], decide=told.append, smoke=True)
    kept = made.fit(tmp_path / "model", accept=accept, fallback=False)
    search = next(each for each in told if each.kind == "mixed")
    assert search.because == "with as many as max_float 0.25 allows it still drop is 9 pp"
    assert integer_products(onnx.load(kept / "model.onnx")) == 8
    assert contents_are_fp32(made.fit(tmp_path / "fp32", accept=accept), fp32)


def contents_are_fp32(folder, fp32):
    return (folder / "model.onnx").read_bytes() == (fp32 / "model.onnx").read_bytes()


@pytest.mark.parametrize("most", range(12))
def test_the_search_finds_the_least_count_that_passes_in_few_tries(most):
    for least in range(14):
        asked = []

        def passes(count, least=least, asked=asked):
            asked.append(count)
            return count >= least

        assert fewest(most, passes) == min(least, most)
        assert len(asked) <= 2 + np.log2(max(1, most)) + 1


def test_a_price_is_a_sentence():
    price = Price("layer 4 feed-forward out", 0.004, Interval(1.02, 0.99, 1.05))
    assert price.told("fp32") == "layer 4 feed-forward out in fp32: +0.4 pp, +2 percent latency (-1 to +5)"


@pytest.fixture(scope="module")
def kept_graph(fp32):
    """The fused graph with three products taken from itself, as combined marks them."""
    model = onnx.load(fp32 / "model.onnx")
    chosen = [products(model)[place] for place in (0, 3, -1)]  # attention, a MatMul, a Gemm
    return combined(model, model, chosen), chosen


def test_products_kept_in_fp16_answer_nearly_as_in_fp32(kept_graph, fp32):
    graph, chosen = kept_graph
    halves = in_half(graph, chosen, "fp16")
    onnx.checker.check_model(halves)
    inputs = {"input_ids": np.array([[2, 9, 11, 3]]), "attention_mask": np.ones((1, 4), dtype=np.int64)}
    inputs["token_type_ids"] = np.zeros((1, 4), dtype=np.int64)
    wanted, found = (OnnxEngine(each.SerializeToString(), threads=1).logits(inputs) for each in (graph, halves))
    assert 0 < np.abs(wanted - found).max() < 0.01 * max(1, np.abs(wanted).max())
    assert in_half(graph, chosen, "fp32") is graph


@pytest.mark.parametrize(("keep", "kind"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)])
def test_weights_of_what_is_kept_are_in_half_precision_between_casts(kept_graph, keep, kind):
    graph, chosen = kept_graph
    halves = in_half(graph, chosen, keep).graph
    halved = [each for each in halves.initializer if each.data_type == kind]
    assert len(halved) == 2 + 1 + 2  # weights of each, and the bias of attention and Gemm
    casts = [node for node in halves.node if node.op_type == "Cast" and node.name.startswith(KEPT)]
    assert len(casts) == 2 * len(chosen)
    read = {name for node in halves.node for name in node.input}
    assert {each.name for each in halves.initializer} <= read


def test_half_precision_is_refused_where_the_processor_would_be_slower(monkeypatch, fp32, data, tmp_path):
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(InputError, match=r"mixed.keep must be fp32 here \(got fp16\): this CPU multiplies no fp16"):
        check_keep("fp16", "cpu")
    with pytest.raises(InputError, match="onnxruntime multiplies no bf16 on a CPU"):
        check_keep("bf16", "cpu")
    with pytest.raises(InputError, match=r"mixed.keep must be fp32 here"):
        Quantizer(fp32, data=data, try_=["mixed"], mixed={"keep": "bf16"})
    check_keep("fp32", "cpu")
    check_keep("bf16", "tensorrt")
    monkeypatch.setattr(targets, "cpu_flags", lambda: frozenset({"asimdhp"}))
    check_keep("fp16", "cpu")


def test_a_graph_without_integer_products_cannot_be_mixed(fp32, data, tmp_path, monkeypatch):
    def nothing(material, _settings, *, float_nodes=frozenset()):
        return onnx.load(material.folder / "model.onnx")

    monkeypatch.setattr(quantizer, "SCHEMES", {**SCHEMES, "dynamic": nothing})
    with pytest.raises(StageError, match="no product of the INT8 graph could be told apart"):
        Quantizer(fp32, data=data, try_=["mixed"]).fit(tmp_path / "model")
