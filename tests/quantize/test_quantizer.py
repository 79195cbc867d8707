import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from model_folders import STOCK, TEXTS, UNEVEN, contents, data_of, write_classifier

import compressor
from compressor.data.encode import collate
from compressor.device import has_vnni
from compressor.errors import InputError, StageError
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.quantize import quantizer
from compressor.quantize.quantizer import Candidate, Quantizer, agreement, choose, require_related
from compressor.quantize.schemes import SCHEMES, dynamic
from compressor.quantize.settings import Choice, Scheme
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load
from compressor.stage import Outcome

DATA = data_of(TEXTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier, layers=UNEVEN)


@pytest.fixture(scope="module")
def fp32(source, tmp_path_factory):
    return Exporter(source, data=DATA).export(tmp_path_factory.mktemp("fp32") / "final")


@pytest.fixture(scope="module")
def int8(fp32, tmp_path_factory):
    return Quantizer(fp32, data=DATA).fit(tmp_path_factory.mktemp("int8") / "model")


def test_the_schemes_of_the_recipe_are_those_of_the_table():
    assert set(get_args(Scheme)) == set(SCHEMES)


def test_every_product_and_the_embeddings_become_int8(int8):
    graph = onnx.load(int8 / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QAttention") == 2
    assert kinds.count("QEmbedLayerNormalization") == 1
    assert kinds.count("MatMulInteger") == 2 * 3 + 2  # output, up and down of each layer, pooler, classifier
    assert not {"MatMul", "Gemm", "Attention"} & set(kinds)
    floats = [each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1]
    assert [each.name for each in floats] == []


@pytest.mark.parametrize("layers", [STOCK, [(0, 10), (2, 7)], [(2, 0), (4, 64)], [(3, 5), (0, 0)]], ids=str)
def test_int8_decides_as_fp32_does(tmp_path, tiny_classifier, layers):
    source = write_classifier(tmp_path / "source", tiny_classifier, layers=layers)
    int8 = Quantizer(source, data=DATA).fit(tmp_path / "int8")
    assert agreement(load(source).logits(TEXTS), load(int8).logits(TEXTS)) >= 0.9


def test_the_folder_says_int8_and_holds_what_a_deployed_one_holds(int8, fp32, tmp_path_factory):
    assert read_manifest(int8).precision == "int8"
    assert read_manifest(fp32).precision == "fp32"
    assert read_manifest(int8).shapes == read_manifest(fp32).shapes
    assert set(contents(int8)) == set(contents(fp32))
    assert [path.name for path in int8.parent.iterdir()] == ["model"]


def test_from_safetensors_or_from_their_export_the_result_is_the_same(source, int8, tmp_path):
    assert contents(Quantizer(source, data=DATA).fit(tmp_path / "model")) == contents(int8)


QUANTIZE = """
import sys
from pathlib import Path
import onnx
from compressor.quantize.schemes import dynamic
graph = dynamic(onnx.load(sys.argv[1]), reduce_range=sys.argv[3] == "True")
Path(sys.argv[2]).write_bytes(graph.SerializeToString(deterministic=True))
"""


def test_bytes_are_the_same_in_a_fresh_process(fp32, int8, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(compressor.__file__).parents[1]), "PYTHONHASHSEED": "5"}
    paths = [str(fp32 / "model.onnx"), str(tmp_path / "model.onnx")]
    subprocess.run([sys.executable, "-c", QUANTIZE, *paths, str(not has_vnni())], check=True, env=env)
    content = (tmp_path / "model.onnx").read_bytes()
    assert hashlib.sha256(content).digest() == hashlib.sha256((int8 / "model.onnx").read_bytes()).digest()
    assert str(tmp_path).encode() not in content


def test_seven_bit_weights_answer_alike_whether_or_not_the_cpu_saturates(fp32):
    graph = dynamic(onnx.load(fp32 / "model.onnx"), reduce_range=True).SerializeToString()
    encoder = load(fp32).encoder
    encoded = encoder.encode(TEXTS)
    quick, precise = (OnnxEngine(graph, threads=1, precise=each) for each in (False, True))
    for row in range(len(TEXTS)):
        inputs = collate(encoded, [row], encoder.pad_id)
        np.testing.assert_allclose(quick.logits(inputs), precise.logits(inputs), atol=1e-6)
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx.load_from_string(graph).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2
    ]
    assert weights
    assert max(np.abs(each.astype(int)).max() for each in weights) <= 64


def test_weights_are_kept_to_seven_bits_exactly_where_the_cpu_needs_it(fp32):
    assert Quantizer(fp32, data=DATA).reduce_range is not has_vnni()
    assert Quantizer(fp32, data=DATA, reduce_range=False).reduce_range is False


def test_the_decision_tells_what_was_kept_and_what_it_costs(fp32, int8, tmp_path):
    told = []
    Quantizer(fp32, data=DATA, decide=told.append, reduce_range=True).fit(tmp_path / "model")
    (decision,) = told
    assert (decision.kind, decision.chosen) == ("quantize", "dynamic")
    (candidate,) = decision.candidates
    assert candidate["bytes"] == (tmp_path / "model" / "model.onnx").stat().st_size
    assert candidate["agreement"] == agreement(load(fp32).logits(TEXTS), load(tmp_path / "model").logits(TEXTS))
    assert candidate["integer_products"] == 10
    assert f"decides as fp32 on {candidate['agreement']:.1%} of 40 rows of select" in decision.because
    assert "weights in 7 bits" in decision.because


def outcome(passed):
    return Outcome("pass" if passed else "fail", passed, "because", {})


def test_the_gate_sees_the_int8_folder_and_may_keep_it(fp32, int8, tmp_path):
    seen = []

    def accept(folder):
        seen.append(load(folder).manifest.precision)
        return outcome(True)

    kept = Quantizer(fp32, data=DATA).fit(tmp_path / "model", accept=accept)
    assert seen == ["int8"]
    assert contents(kept) == contents(int8)


def test_a_gate_that_no_scheme_passes_leaves_the_model_in_fp32(fp32, tmp_path):
    told = []
    kept = Quantizer(fp32, data=DATA, decide=told.append).fit(tmp_path / "model", accept=lambda _: outcome(False))
    assert contents(kept) == contents(fp32)
    assert told[0].chosen == "fp32"
    assert told[0].because == "no scheme passed the gate, so the model stays in fp32"


def test_a_broken_scheme_is_refused_unless_weights_are_random(fp32, tmp_path, monkeypatch):
    def broken(model, *, reduce_range):
        graph = dynamic(model, reduce_range=reduce_range)
        graph.graph.node[-1].output[0] = "upside_down"
        graph.graph.node.append(onnx.helper.make_node("Neg", ["upside_down"], ["logits"]))
        return graph

    monkeypatch.setitem(quantizer.SCHEMES, "dynamic", broken)
    with pytest.raises(StageError, match="the INT8 model is broken; ship the fp32 export instead"):
        Quantizer(fp32, data=DATA).fit(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert Quantizer(fp32, data=DATA, smoke=True).fit(tmp_path / "smoke").is_dir()


def test_rows_that_fp32_is_not_sure_of_are_not_held_against_int8():
    unsure = np.array([[0.0, 0.1]] * 50, dtype=np.float32)
    require_related(unsure, -unsure, what="x")
    sure = unsure * 10
    require_related(sure, sure * 0.5, what="x")
    with pytest.raises(StageError, match="x decides as fp32 on 0% of 50 rows"):
        require_related(sure, -sure, what="x")
    with pytest.raises(StageError, match="broken"):
        require_related(unsure, unsure * np.nan, what="x")


def candidate(size, share, passed=None):
    return Candidate("dynamic", share, 0.0, 10, size, 1, False, passed)


def test_choosing():
    small, good, best = candidate(10, 0.9), candidate(20, 0.95, True), candidate(30, 0.99, False)
    assert choose([small, good, best], "smallest") is small
    assert choose([small, good, best], "most_accurate") is good
    assert choose([best], "smallest") is None
    twin = candidate(20, 0.95, True)
    assert choose([twin, good], "most_accurate") is twin
    assert set(get_args(Choice)) == {"smallest", "most_accurate"}


def test_wrong_arguments_are_refused(fp32, int8, tmp_path):
    with pytest.raises(InputError, match=r"try must list some of dynamic \(got \['fast'\]\)"):
        Quantizer(fp32, data=DATA, try_=["fast"])
    with pytest.raises(InputError, match="try must list some of"):
        Quantizer(fp32, data=DATA, try_=[])
    with pytest.raises(InputError, match="choose must be one of smallest, most_accurate"):
        Quantizer(fp32, data=DATA, choose="best")
    with pytest.raises(InputError, match="is INT8 already; quantize the fp32 model it was made from"):
        Quantizer(int8, data=DATA)
    with pytest.raises(StageError, match="is there already and not empty"):
        Quantizer(fp32, data=DATA).fit(int8)


@pytest.mark.registry
def test_minilm_becomes_23_megabytes_with_all_of_it_fused(minilm, tmp_path):
    import torch

    from compressor.model.encoders import load_model, save_model
    from compressor.model.manifest import Manifest
    from compressor.model.parts import shapes

    torch.manual_seed(0)
    model = load_model(minilm, labels=("bad", "good"))
    probe = {"input_ids": torch.tensor([[101, 2023, 102]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    manifest = Manifest(labels=("bad", "good"), shapes=shapes(model))
    folder = save_model(model, tmp_path / "teacher", tokenizer_from=minilm, manifest=manifest, probe=probe)
    told = []
    fp32 = Exporter(folder, data=DATA, decide=told.append).export(tmp_path / "fp32")
    assert told[0].chosen == (
        "EmbedLayerNormalization 1 of 1, Attention 6 of 6, SkipLayerNormalization 12 of 12, BiasGelu 6 of 6"
    )
    int8 = Quantizer(fp32, data=DATA, smoke=True, decide=told.append).fit(tmp_path / "int8")
    assert 22_900_000 < (int8 / "model.onnx").stat().st_size < 23_100_000
    assert told[1].candidates[0]["integer_products"] == 26
