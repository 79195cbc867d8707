import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from model_folders import STOCK, TEXTS, UNEVEN, contents, data_of, write_classifier
from onnx import numpy_helper

import compressor
from compressor.data.rows import Rows
from compressor.device import cpu_isa, has_vnni
from compressor.errors import InputError, StageError
from compressor.evaluate.proportions import wilson
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.quantize import quantizer, targets
from compressor.quantize.material import calibration_texts
from compressor.quantize.products import integer_products
from compressor.quantize.quantizer import Quantizer
from compressor.quantize.schemes import SCHEMES
from compressor.quantize.settings import EXACT_SUMS, Calibrate, Isa, Mixed, Scheme
from compressor.quantize.targets import check_schemes, check_target, made_for, need_torch, reduced_range
from compressor.quantize.trials import Limits, Trial, agreement, require_related
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


def outcome(passed):
    return Outcome("pass" if passed else "fail", passed, "because", {})


def broken(material, settings, *, float_nodes=frozenset()):
    """Dynamic INT8 that answers the opposite."""
    graph = SCHEMES["dynamic"](material, settings, float_nodes=float_nodes)
    maker = next(node for node in graph.graph.node if "logits" in node.output)
    maker.output[0] = "upside_down"
    graph.graph.node.append(onnx.helper.make_node("Neg", ["upside_down"], ["logits"]))
    return graph


def noisy(share):
    """Dynamic INT8 whose first logit is so much of it too large on every row."""

    def made(material, _settings, *, float_nodes=frozenset()):
        graph = SCHEMES["dynamic"](material, None, float_nodes=float_nodes)
        maker = next(node for node in graph.graph.node if "logits" in node.output)
        maker.output[0] = "plain"
        graph.graph.initializer.append(numpy_helper.from_array(np.array([[share, 0]], dtype=np.float32), "more"))
        graph.graph.node.append(onnx.helper.make_node("Add", ["plain", "more"], ["logits"]))
        return graph

    return made


@pytest.fixture
def scheme(monkeypatch):
    """A function that puts another scheme in the table under a name."""
    original = dict(SCHEMES)
    monkeypatch.setattr(quantizer, "SCHEMES", original)
    return original.__setitem__


def test_the_schemes_of_the_recipe_are_those_of_the_table():
    assert set(get_args(Scheme)) == {*SCHEMES, "mixed"}


def test_only_what_trains_or_is_for_tensorrt_needs_safetensors():
    every = list(get_args(Scheme))
    assert need_torch(every, "cpu", of="static") == ["qat"]
    assert need_torch(every, "tensorrt", of="static") == ["static", "mixed", "qat"]
    assert need_torch(every, "tensorrt") == ["static", "qat"]


def test_every_product_becomes_int8(int8):
    graph = onnx.load(int8 / "model.onnx")
    assert integer_products(graph) == 2 * 4 + 2  # attention, its output, up and down of each layer; pooler, classifier
    assert not {"MatMul", "Gemm", "Attention"} & {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("layers", [STOCK, [(0, 10), (2, 7)], [(2, 0), (4, 64)], [(3, 5), (0, 0)]], ids=str)
def test_int8_decides_as_fp32_does(tmp_path, tiny_classifier, layers):
    source = write_classifier(tmp_path / "source", tiny_classifier, layers=layers)
    int8 = Quantizer(source, data=DATA).fit(tmp_path / "int8")
    assert agreement(load(source).logits(TEXTS), load(int8).logits(TEXTS)) >= 0.9


def test_the_folder_says_int8_and_holds_what_a_deployed_one_holds(int8, fp32, tmp_path_factory):
    assert read_manifest(int8).precision == "int8"
    assert read_manifest(int8).asked_alone
    assert read_manifest(fp32).precision == "fp32"
    assert read_manifest(int8).shapes == read_manifest(fp32).shapes
    assert set(contents(int8)) == set(contents(fp32))
    assert [path.name for path in int8.parent.iterdir()] == ["model"]


def test_from_safetensors_or_from_their_export_the_result_is_the_same(source, int8, tmp_path):
    assert contents(Quantizer(source, data=DATA).fit(tmp_path / "model")) == contents(int8)


QUANTIZE = """
import sys
from pathlib import Path
from compressor.data.encode import open_encoder
from compressor.data.encoded import collate
from compressor.quantize.dynamic import dynamic
from compressor.quantize.material import Material
from model_folders import TEXTS
folder, work = Path(sys.argv[1]), Path(sys.argv[2])
encoder = open_encoder(folder, 64)
encoded = encoder.encode(TEXTS)
rows = [collate(encoded, [row], encoder.pad_id) for row in range(len(TEXTS))]
material = Material(folder, None, raw=None, batches=lambda: iter(rows), reduce_range=True, seed=17, work=work)
(work / "model.onnx").write_bytes(dynamic(material, None).SerializeToString(deterministic=True))
"""


def test_bytes_are_the_same_in_every_process_and_name_no_place(fp32, tmp_path):
    places = [str(Path(compressor.__file__).parents[1]), str(Path(__file__).parents[1])]
    contents = []
    for seed in ("5", "6"):
        (tmp_path / seed).mkdir()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", QUANTIZE, str(fp32), str(tmp_path / seed)], check=True, env=env)
        contents.append((tmp_path / seed / "model.onnx").read_bytes())
    assert hashlib.sha256(contents[0]).digest() == hashlib.sha256(contents[1]).digest()
    assert str(tmp_path).encode() not in contents[0]


@pytest.mark.parametrize("isa", [None, *get_args(Isa)])
def test_weights_are_kept_to_seven_bits_exactly_where_the_cpu_of_the_target_needs_it(fp32, isa):
    made = Quantizer(fp32, data=DATA, isa=isa)
    assert made.reduce_range is (not has_vnni() if isa is None else isa in ("avx2", "avx512"))
    assert Quantizer(fp32, data=DATA, reduce_range=False).reduce_range is False


def test_only_a_cpu_of_known_exact_sums_takes_eight_bits():
    assert set(get_args(Isa)) - EXACT_SUMS == {"avx2", "avx512"}
    assert reduced_range(None, has_vnni=False)
    assert not reduced_range("vnni", has_vnni=False)


def test_the_folder_says_for_which_cpu_it_was_made_and_its_weights_are_for_that_one(fp32, int8, tmp_path):
    assert read_manifest(int8).isa == cpu_isa()
    made = {isa: Quantizer(fp32, data=DATA, isa=isa).fit(tmp_path / isa) for isa in ("avx2", "vnni")}
    assert {isa: read_manifest(folder).isa for isa, folder in made.items()} == {"avx2": "avx2", "vnni": "vnni"}
    assert (made["avx2"] / "model.onnx").read_bytes() != (made["vnni"] / "model.onnx").read_bytes()
    same = made["vnni" if has_vnni() else "avx2"] / "model.onnx"
    assert same.read_bytes() == (int8 / "model.onnx").read_bytes()


def test_the_decision_tells_what_was_kept_and_what_it_costs(fp32, int8, tmp_path):
    told = []
    Quantizer(fp32, data=DATA, decide=told.append, reduce_range=True).fit(tmp_path / "model")
    decision = told[-1]
    assert (decision.kind, decision.chosen) == ("quantize", "dynamic")
    (candidate,) = decision.candidates
    assert candidate["bytes"] == (tmp_path / "model" / "model.onnx").stat().st_size
    assert candidate["agreement"] == agreement(load(fp32).logits(TEXTS), load(tmp_path / "model").logits(TEXTS))
    assert candidate["integer_products"] == 10
    assert f"decides as fp32 on {candidate['agreement']:.1%} of 40 rows of select" in decision.because
    answers = [load(folder).logits(TEXTS) for folder in (fp32, tmp_path / "model")]
    gaps = np.abs(answers[0] - answers[1])
    assert candidate["largest_difference"] == pytest.approx(gaps.max(), rel=1e-4)
    assert candidate["mean_difference"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert candidate["flips"] == (answers[0].argmax(1) != answers[1].argmax(1)).sum()
    true = np.array(DATA.select.labels)
    scores = [(each.argmax(1) == true).mean() for each in answers]
    assert candidate["drop"] == pytest.approx(scores[0] - scores[1])
    assert "weights for sums of 16 bits" in decision.because


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
    assert told[-1].chosen == "fp32"
    assert told[-1].because == "no scheme passed the gate, so the model stays in fp32 (dynamic: because)"


def test_without_a_way_out_the_best_candidate_is_kept_for_the_gate_to_judge_again(fp32, int8, tmp_path):
    told = []
    made = Quantizer(fp32, data=DATA, decide=told.append)
    kept = made.fit(tmp_path / "model", accept=lambda _: outcome(False), fallback=False)
    assert contents(kept) == contents(int8)
    assert told[-1].because.startswith("the most accurate, although because; decides as fp32")


def test_a_broken_scheme_is_refused_unless_weights_are_random(fp32, tmp_path, scheme):
    scheme("dynamic", broken)
    with pytest.raises(StageError, match="the INT8 model is broken; ship the fp32 export instead"):
        Quantizer(fp32, data=DATA).fit(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert Quantizer(fp32, data=DATA, smoke=True).fit(tmp_path / "smoke").is_dir()


def test_a_scheme_that_fails_does_not_stop_the_others(fp32, int8, tmp_path, scheme):
    def fails(*_arguments, **_named):
        raise StageError("no room on the disk")

    scheme("weight_only", fails)
    told = []
    kept = Quantizer(fp32, data=DATA, try_=["weight_only", "dynamic"], decide=told.append).fit(tmp_path / "model")
    assert contents(kept) == contents(int8)
    assert told[-1].because.startswith("the only one of 2 that passed; ")
    first, second = told[-1].candidates
    assert (first["scheme"], first["passed"], first["because"]) == ("weight_only", False, "no room on the disk")
    assert (second["scheme"], second["because"]) == ("dynamic", "")
    gate = Quantizer(fp32, data=DATA, try_=["weight_only"]).fit(tmp_path / "fp32", accept=lambda _: outcome(True))
    assert contents(gate) == contents(fp32)


def with_answers_of(folder):
    """DATA with the model's own decisions as labels, so that any other decision costs score."""
    right = replace(DATA.select, labels=tuple(int(each) for each in load(folder).logits(TEXTS).argmax(axis=1)))
    return replace(DATA, select=right)


def fails_to_mix(*_arguments, **_named):
    raise StageError("nothing suffices")


def test_static_that_loses_over_a_point_is_followed_by_mixed_and_then_by_dynamic(source, tmp_path, scheme, monkeypatch):
    told = []
    scheme("static", noisy(0.8))
    monkeypatch.setattr(quantizer, "mixed", fails_to_mix)
    made = Quantizer(source, data=with_answers_of(source), try_=["static"], decide=told.append)
    made.fit(tmp_path / "model")
    first, second, last = (each for each in told if each.kind in ("static", "mixed", "quantize"))
    assert [each.chosen for each in (first, second, last)] == ["mixed is tried too", "dynamic is tried too", "dynamic"]
    assert "pp on select, over 1 pp, and no gate is set" in first.because
    assert second.because == "nothing suffices, and no gate is set"
    assert [each["scheme"] for each in last.candidates] == ["static", "mixed", "dynamic"]


@pytest.mark.parametrize(("others", "limit"), [(["static"], "over 1 pp"), (["static", "mixed"], "over 0.3 pp")])
def test_without_a_gate_a_worse_scheme_is_not_kept_because_a_better_one_was_refused(
    source, tmp_path, scheme, monkeypatch, others, limit
):
    told = []
    scheme("static", noisy(0.4))
    scheme("dynamic", noisy(2.0))
    monkeypatch.setattr(quantizer, "mixed", fails_to_mix)
    monkeypatch.setattr("compressor.quantize.trials.LEAST_AGREEMENT", 0.0)
    made = Quantizer(source, data=with_answers_of(source), try_=[*others, "dynamic"], decide=told.append)
    made.fit(tmp_path / "model")
    found = {each["scheme"]: each for each in told[-1].candidates}
    assert found["dynamic"]["agreement"] < found["static"]["agreement"] < 1
    assert all(limit in found[name]["because"] for name in ("static", "dynamic"))
    assert told[-1].chosen == "static"
    assert told[-1].because.startswith("the most accurate, although loses ")


def test_static_that_keeps_its_score_is_followed_by_nothing(source, tmp_path, scheme):
    told = []
    scheme("static", noisy(0.0))
    Quantizer(source, data=DATA, try_=["static"], decide=told.append).fit(tmp_path / "model")
    assert told[-1].chosen == "static"
    assert [each["scheme"] for each in told[-1].candidates] == ["static"]


def test_with_a_gate_nothing_is_tried_that_was_not_asked_for(source, tmp_path, scheme):
    told = []
    scheme("static", noisy(0.8))
    made = Quantizer(source, data=DATA, try_=["static"], decide=told.append)
    made.fit(tmp_path / "model", accept=lambda _: outcome(False))
    assert told[-1].chosen == "fp32"
    assert [each["scheme"] for each in told[-1].candidates] == ["static"]


def test_limits_say_in_words_what_is_beyond_them():
    trial = Trial(0.97, 0.1, 0.01, 3, 0.02, 100, None, "")
    assert Limits().broken(trial) == ""
    assert Limits(drop=0.02, agreement=0.97).broken(trial) == ""
    assert Limits(drop=0.01, agreement=0.985).broken(trial) == (
        "loses 2.00 pp on select, over 1 pp and decides as fp32 on 97.0% of rows, below 98.5%"
    )


def test_an_interrupted_try_leaves_checkpoints_and_nothing_else(fp32, int8, tmp_path):
    left = tmp_path / "model.quantize"
    (left / "qat").mkdir(parents=True)
    (left / "qat" / "step").write_text("1")
    (left / "made-dynamic").mkdir()
    (left / "made-dynamic" / "model.onnx").write_text("torn")
    quantizer._empty(left)
    assert [str(path.relative_to(left)) for path in sorted(left.rglob("*"))] == ["qat", "qat/step"]
    assert contents(Quantizer(fp32, data=DATA).fit(tmp_path / "model")) == contents(int8)
    assert not left.exists()


def test_calibration_rows_are_drawn_from_where_the_recipe_says_the_same_for_one_seed():
    data = replace(DATA, unlabelled=Rows(("a", "b", "c"), (None,) * 3))
    for name, pool in (("train", set(TEXTS)), ("unlabelled", {"a", "b", "c"}), ("both", {*TEXTS, "a", "b", "c"})):
        drawn = calibration_texts(data, Calibrate(source=name, rows=1000), seed=3)
        assert len(drawn) == len(set(drawn)) == len(pool)
        assert set(drawn) == pool
    few = Calibrate(rows=5)
    assert calibration_texts(data, few, seed=3) == calibration_texts(data, few, seed=3)
    assert len(calibration_texts(data, few, seed=3)) == 5
    assert calibration_texts(data, few, seed=3) != calibration_texts(data, few, seed=4)
    with pytest.raises(InputError, match=r"calibrate.from is unlabelled, and the data holds no such rows"):
        calibration_texts(DATA, Calibrate(source="unlabelled"), seed=3)


def test_a_gpu_is_told_what_to_take_instead():
    with pytest.raises(InputError, match=r"CUDA provider has no INT8 kernels.*precision: fp16"):
        check_target(["dynamic"], "cuda")
    with pytest.raises(InputError, match=r"dynamic cannot run on a target with engine tensorrt.*try: \[static\]"):
        check_target(["static", "dynamic"], "tensorrt")
    with pytest.raises(InputError, match="mixed cannot run"):
        check_target(["mixed"], "tensorrt", of="dynamic")
    check_target(["weight_only"], "cuda")
    check_target(["static", "mixed"], "tensorrt", of="static")
    check_target(list(get_args(Scheme)), "cpu")


def test_rows_that_fp32_is_not_sure_of_are_not_held_against_int8():
    unsure = np.array([[0.0, 0.1]] * 50, dtype=np.float32)
    require_related(unsure, -unsure, what="x")
    sure = unsure * 10
    require_related(sure, sure * 0.5, what="x")
    with pytest.raises(StageError, match="x decides as fp32 on 0% of 50 rows"):
        require_related(sure, -sure, what="x")
    with pytest.raises(StageError, match="broken"):
        require_related(unsure, unsure * np.nan, what="x")


def test_wrong_arguments_are_refused(fp32, int8, tmp_path):
    with pytest.raises(InputError, match=r"try must list some of dynamic, static, .* \(got \['fast'\]\)"):
        Quantizer(fp32, data=DATA, try_=["fast"])
    with pytest.raises(InputError, match="try must list some of"):
        Quantizer(fp32, data=DATA, try_=[])
    with pytest.raises(InputError, match=r"choose must be one of fastest, smallest, most_accurate"):
        Quantizer(fp32, data=DATA, choose="best")
    with pytest.raises(InputError, match=r"isa must be one of avx2, .*got 'sse'"):
        Quantizer(fp32, data=DATA, isa="sse")
    with pytest.raises(InputError, match=r"calibrate.rows: .*greater than or equal to 2"):
        Quantizer(fp32, data=DATA, calibrate={"rows": 1})
    with pytest.raises(InputError, match=r"mixed.drop.*must be a|mixed: drop must be a fall in points"):
        Quantizer(fp32, data=DATA, mixed={"drop": ">= 1pp"})
    with pytest.raises(InputError, match="scheme qat starts from safetensors"):
        Quantizer(fp32, data=DATA, try_=["dynamic", "qat"])
    with pytest.raises(InputError, match="scheme static starts from safetensors"):
        Quantizer(fp32, data=DATA, try_=["static"], target="tensorrt")
    with pytest.raises(InputError, match="is INT8 already; quantize the fp32 model it was made from"):
        Quantizer(int8, data=DATA)
    with pytest.raises(StageError, match="is there already and not empty"):
        Quantizer(fp32, data=DATA).fit(int8)
    with pytest.raises(StageError, match=r"model.onnx is there already and no folder; give another folder"):
        Quantizer(fp32, data=DATA).fit(int8 / "model.onnx")
    with pytest.raises(InputError, match=r"choose must be one of .* \(got None\)"):
        Quantizer(fp32, data=DATA, choose=None, try_=["dynamic", "weight_only"])
    with pytest.raises(InputError, match=r"device must be one of cpu, gpu \(got 'tpu'\)"):
        Quantizer(fp32, data=DATA, device="tpu")
    with pytest.raises(InputError, match=r"try names a scheme twice \(got dynamic, dynamic\)"):
        Quantizer(fp32, data=DATA, try_=["dynamic", "dynamic"])


def test_an_int8_graph_without_a_manifest_is_known_by_its_operators(int8, tmp_path):
    foreign = shutil.copytree(int8, tmp_path / "foreign")
    (foreign / "compressor.json").unlink()
    with pytest.raises(InputError, match="is INT8 already; quantize the fp32 model it was made from"):
        Quantizer(foreign, data=DATA)


@pytest.mark.parametrize("scheme", ["dynamic", "static", "mixed"])
def test_a_graph_whose_nodes_have_no_names_becomes_the_same_int8(fp32, tmp_path, scheme):
    unnamed = shutil.copytree(fp32, tmp_path / "unnamed")
    graph = onnx.load(unnamed / "model.onnx")
    for number, node in enumerate(graph.graph.node):
        node.name = "" if number % 2 else "twice"
    onnx.save(graph, unnamed / "model.onnx")
    made = [
        Quantizer(folder, data=DATA, try_=[scheme], smoke=True).fit(tmp_path / name)
        for name, folder in (("a", fp32), ("b", unnamed))
    ]
    first, second = (Counter(node.op_type for node in onnx.load(each / "model.onnx").graph.node) for each in made)
    assert first == second
    np.testing.assert_array_equal(*(load(each, threads=1).logits(TEXTS) for each in made))


def test_settings_that_a_gate_leaves_without_a_reader_are_refused(fp32, source, tmp_path):
    static = Quantizer(source, data=DATA, try_=["static"], mixed={"max_float": 0.5})
    mixed = Quantizer(fp32, data=DATA, try_=["mixed"], mixed={"drop": "<= 1pp"})
    with pytest.raises(InputError, match=r"mixed.max_float serves mixed alone where there is a gate; add mixed"):
        static.fit(tmp_path / "static", accept=lambda _: outcome(True))
    with pytest.raises(InputError, match=r"mixed.drop serves where there is no gate alone; remove it"):
        mixed.fit(tmp_path / "mixed", accept=lambda _: outcome(True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("here", [None, *get_args(Isa)])
def test_weights_are_said_to_be_for_exact_sums_where_they_were_made_for_them_and_nowhere_else(monkeypatch, here):
    monkeypatch.setattr(targets, "cpu_isa", lambda: here)
    for isa in (None, *get_args(Isa)):
        for reduce_range in (True, False) if isa is None else (isa not in EXACT_SUMS,):
            made = made_for(isa, reduce_range=reduce_range)
            assert (made in EXACT_SUMS) is not reduce_range
            assert isa is None or made == isa
    assert made_for(None, reduce_range=True) == {"vnni": "avx2", "amx": "avx2"}.get(
        here, None if here in EXACT_SUMS else here
    )


def test_what_runs_elsewhere_is_not_chosen_by_times_of_this_cpu():
    with pytest.raises(InputError, match=r"quantize.choose must be smallest or most_accurate for target tensorrt"):
        check_schemes(["static"], "tensorrt", Mixed(), "fastest")
    check_schemes(["static"], "tensorrt", Mixed(), "smallest")
    check_schemes(["static"], "cpu", Mixed(), "fastest")


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
    assert told[-1].candidates[0]["integer_products"] == 26


def test_rows_of_other_classes_are_refused_before_anything_is_made(fp32, tmp_path):
    for labels in (DATA.labels[::-1], (*DATA.labels, "other")):
        with pytest.raises(InputError, match=r"answers .*, the rows have .*; set data.labels"):
            Quantizer(fp32, data=replace(DATA, labels=labels)).fit(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_names_no_classes_is_taken_where_there_are_as_many(fp32, tmp_path):
    stock = shutil.copytree(fp32, tmp_path / "stock")
    replace(read_manifest(stock), labels=("LABEL_0", "LABEL_1")).write(stock)
    assert Quantizer(stock, data=DATA).fit(tmp_path / "out").is_dir()


def test_a_scheme_whose_calibration_fails_does_not_stop_the_others(fp32, tmp_path):
    nothing = replace(DATA, unlabelled=Rows((), ()))
    told = []
    settings = {"calibrate": {"from": "unlabelled"}, "decide": told.append}
    Quantizer(fp32, data=nothing, try_=["weight_only", "static"], **settings).fit(tmp_path / "both")
    assert told[-1].chosen == "weight_only"
    refused = {one["scheme"]: one["because"] for one in told[-1].candidates if one["passed"] is False}
    assert "calibrate.from is unlabelled" in refused["static"]
    with pytest.raises(InputError, match=r"calibrate.from is unlabelled"):
        Quantizer(fp32, data=nothing, try_=["static"], **settings).fit(tmp_path / "alone")


def test_a_choice_on_few_rows_says_how_little_they_show(fp32, tmp_path):
    told = []
    Quantizer(fp32, data=DATA, decide=told.append).fit(tmp_path / "few")
    rows = len(DATA.select)
    assert rows < 100
    low = wilson(told[-1].candidates[0]["agreement"], rows).low
    assert f"of so few rows that shows an agreement above {low:.0%} alone" in told[-1].because


def test_weights_and_the_named_cpu_may_not_contradict_each_other(fp32):
    for isa, reduce_range in (("avx2", False), ("vnni", True)):
        with pytest.raises(InputError, match=f"reduce_range must be {not reduce_range} for isa {isa}"):
            Quantizer(fp32, data=DATA, isa=isa, reduce_range=reduce_range)
    with pytest.raises(InputError, match="weight_only serves weight_only alone; add one to try"):
        Quantizer(fp32, data=DATA, weight_only={"bits": 4})
    with pytest.raises(InputError, match="teacher serves scheme qat alone"):
        Quantizer(fp32, data=DATA, teacher=fp32)
    with pytest.raises(InputError, match=r"try must list some of .*got 'dynamic'"):
        Quantizer(fp32, data=DATA, try_="dynamic")
