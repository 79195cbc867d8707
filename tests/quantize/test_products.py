"""Which products have a form in few bits, and how they are counted: by one rule whatever the scheme."""

import numpy as np
import onnx
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier
from onnx import helper, numpy_helper

from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.export.audit import audit_int8, product_kinds
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.quantize.dynamic import write_int8
from compressor.quantize.products import integer_products, quantizable
from compressor.quantize.qat import traced
from compressor.quantize.qdq import qdq_graph
from compressor.quantize.ranges import Range
from compressor.quantize.settings import WeightOnly
from compressor.quantize.static import integer_graph
from compressor.quantize.weight_only import shrink
from compressor.runtime.onnx import OnnxEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier):
    source = write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier, layers=UNEVEN)
    return Exporter(source, data=data_of(TEXTS)).export(source.parent / "fp32")


@pytest.fixture
def fused(folder):
    return onnx.load(folder / "model.onnx")


def node_of(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


def without_bias(model):
    """Attention whose bias is nothing, as it is left out."""
    node_of(model, "Attention").input[2] = ""


def other_widths(model):
    node_of(model, "Attention").attribute.append(helper.make_attribute("qkv_hidden_sizes", [24, 24, 24]))


def doubled(model):
    next(each for each in node_of(model, "Gemm").attribute if each.name == "alpha").f = 2.0


def one_matrix_more(model):
    """Weights of shape (1, inputs, outputs)."""
    name = node_of(model, "MatMul").input[1]
    stored = next(each for each in model.graph.initializer if each.name == name)
    stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored)[None], name))


def ranges(model):
    return {node.input[0]: Range(-5.0, 5.0) for node in quantizable(model)}


def static(model):
    names = [node.name for node in quantizable(model)]
    return integer_graph(model, names, ranges(model), reduce_range=True)


SCHEMES = {
    "dynamic": lambda model: write_int8(model, reduce_range=True),
    "static": static,
    "weight_only": lambda model: shrink(model, WeightOnly()),
    "4 bits": lambda model: shrink(model, WeightOnly(bits=4)),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("change", [without_bias, other_widths, doubled, one_matrix_more])
def test_what_has_no_form_in_few_bits_stays_in_float_in_every_scheme_and_the_graph_runs(folder, fused, change, scheme):
    assert len(quantizable(fused)) == 10
    change(fused)
    assert len(quantizable(fused)) == 9
    made = SCHEMES[scheme](fused)
    assert list(product_kinds(made.graph).values()).count("") == 1
    encoder = open_encoder(folder, 64)
    inputs = collate(encoder.encode(TEXTS[:1]), [0], encoder.pad_id)
    assert np.isfinite(OnnxEngine(made.SerializeToString(), threads=1).logits(inputs)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_counted_alike_wherever_they_are_counted(folder, fused, scheme):
    made = SCHEMES[scheme](fused)
    found = audit_int8(made, read_manifest(folder).shapes)
    assert found.integer == found.products == integer_products(made) == sum(found.found.values())
    assert found.products == (14 if scheme in ("weight_only", "4 bits") else 10)  # attention is three there
    assert (set(found.found) == {"MatMulNBits of 4 bits"}) is (scheme == "4 bits")


def test_pairs_for_tensorrt_are_counted_among_all_products(folder):
    raw = traced(folder.parent / "model")
    names = [node.name for node in quantizable(raw)]
    made = qdq_graph(raw, names[1:], ranges(raw))
    found = audit_int8(made, read_manifest(folder).shapes)
    assert (found.products, found.integer) == (len(names), len(names) - 1)
