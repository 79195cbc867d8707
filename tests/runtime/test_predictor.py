import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_folders import TEXTS, UNEVEN, data_of, write_classifier

import compressor
from compressor.data.rows import Rows
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.quantize.quantizer import Quantizer
from compressor.runtime import predictor
from compressor.runtime.predictor import find_engine, load


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier):
    """The same model as safetensors, fp32 ONNX and INT8 ONNX."""
    root = tmp_path_factory.mktemp("predictor")
    torch = write_classifier(root / "torch", tiny_classifier, layers=UNEVEN)
    onnx = Exporter(torch).export(root / "onnx")
    int8 = Quantizer(onnx, data=data_of(TEXTS), smoke=True).fit(root / "int8")
    return {"torch": torch, "onnxruntime": onnx, "int8": int8}


MIXED = [*TEXTS, " ".join(TEXTS), "dull", "", *TEXTS[:7]]


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "int8"])
def test_answers_keep_the_order_and_do_not_depend_on_their_neighbours(folders, name):
    model = load(folders[name], threads=1)
    together = model.logits(MIXED)
    alone = np.concatenate([model.logits([text]) for text in MIXED])
    assert together.shape == (len(MIXED), 2)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(model.logits(MIXED[::-1])[::-1], together, atol=1e-5)


def test_rows_of_dynamic_int8_from_elsewhere_do_not_depend_on_their_neighbours(folders, tmp_path):
    foreign = shutil.copytree(folders["int8"], tmp_path / "foreign")
    (foreign / "compressor.json").unlink()
    together = load(foreign, threads=1).logits(MIXED)
    np.testing.assert_array_equal(together, load(folders["int8"], threads=1).logits(MIXED))


def test_engines_agree(folders):
    torch, onnx = load(folders["torch"]), load(folders["onnxruntime"])
    assert (torch.engine, onnx.engine) == ("torch", "onnxruntime")
    np.testing.assert_allclose(torch.logits(MIXED), onnx.logits(MIXED), atol=1e-4)
    assert torch.predict(MIXED) == onnx.predict(MIXED)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "int8"])
def test_labels_are_those_of_the_largest_logit(folders, name):
    model = load(folders[name])
    named = [("bad", "good")[int(good > bad)] for bad, good in model.logits(MIXED)]
    assert model.predict(MIXED) == named
    assert set(named) == {"bad", "good"}


def test_no_texts_give_no_answers(folders):
    for folder in folders.values():
        assert load(folder).logits([]).shape == (0, 2)
        assert load(folder).predict([]) == []


PAIRS = [("dull plot", "warm actors"), ("film", "the story is a plot and very bright")]


@pytest.fixture(scope="module")
def pair_model(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("pairs") / "torch", tiny_classifier, text=("question", "answer"))


def test_pairs_are_read_as_two_segments(pair_model, tmp_path):
    torch, onnx = load(pair_model), load(Exporter(pair_model).export(tmp_path / "onnx"))
    np.testing.assert_allclose(torch.logits(PAIRS), onnx.logits(PAIRS), atol=1e-4)
    assert np.abs(torch.logits(PAIRS) - torch.logits([(one, "") for one, _ in PAIRS])).max() > 1e-3
    assert np.array_equal(torch.logits([list(pair) for pair in PAIRS]), torch.logits(PAIRS))


def test_a_text_for_a_pair_or_a_pair_for_a_text_is_refused(folders, pair_model):
    with pytest.raises(
        InputError, match=r"reads two texts \(question and answer\) a row: row 1 \(from 0\) is not that: 'x'"
    ):
        load(pair_model).predict([PAIRS[0], "x"])
    for pair in (("dull", "warm"), ["dull", "warm"]):
        with pytest.raises(InputError, match=r"reads one text a row: row 0 \(from 0\) is not that: .'dull', 'warm'"):
            load(folders["onnxruntime"]).predict([pair])


def test_a_stock_folder_answers_pairs_and_is_exported_with_the_columns_of_the_rows(tiny_classifier, tmp_path):
    rows = Rows(tuple(PAIRS), (0, 1))
    data = replace(data_of(TEXTS), text_columns=("question", "answer"), train=rows, select=rows)
    logits = load(tiny_classifier).logits(PAIRS)
    onnx = load(Exporter(tiny_classifier, data=data).export(tmp_path / "onnx"))
    assert onnx.manifest.text == ("question", "answer")
    np.testing.assert_allclose(onnx.logits(PAIRS), logits, atol=1e-4)


def test_features_are_the_first_tokens_hidden_states(folders):
    model = load(folders["torch"])
    assert model.features(MIXED, layer=0).shape == (len(MIXED), 32)
    embedded = model.features(MIXED, layer=0)
    np.testing.assert_allclose(embedded, np.broadcast_to(embedded[0], embedded.shape), atol=1e-6)  # always [CLS]
    import torch

    last = torch.from_numpy(model.features(MIXED, layer=2))
    head = model.runner.model
    with torch.inference_mode():
        logits = head.classifier(torch.tanh(head.bert.pooler.dense(last))).numpy()
    np.testing.assert_allclose(logits, model.logits(MIXED), atol=1e-5)
    with pytest.raises(InputError, match=r"layer must be 0 \(embeddings\) to 2 \(got 3\)"):
        model.features(MIXED, layer=3)


def test_features_of_an_exported_graph_are_refused(folders):
    with pytest.raises(InputError, match="features need engine 'torch'"):
        load(folders["onnxruntime"]).features(MIXED, layer=1)


def test_one_text_instead_of_a_list_is_refused(folders):
    with pytest.raises(InputError, match="texts must be a list of texts"):
        load(folders["torch"]).predict("dull")


@pytest.mark.parametrize(
    ("files", "engine", "message"),
    [
        ([], "auto", r"must hold model\.onnx or \*\.safetensors \(found neither\)"),
        (["pytorch_model.bin"], "auto", "only a pickle, which is never read: save it as safetensors"),
        (["model.onnx"], "torch", r"holds no \*\.safetensors, which engine torch needs; torch cannot read ONNX"),
        (
            ["model.safetensors"],
            "onnxruntime",
            r"holds no model\.onnx, which engine onnxruntime needs; export it first",
        ),
        ([], "tensorrt", r"must hold model\.onnx or \*\.safetensors \(found neither\)"),
        (["model.onnx"], "fastest", "engine fastest is known once it was measured; use load or choose_engine"),
    ],
)
def test_folders_that_an_engine_cannot_open_are_refused(tmp_path, files, engine, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        find_engine(tmp_path, engine)


def test_a_missing_folder_and_a_broken_graph_are_named(tmp_path, folders):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    for path in folders["onnxruntime"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"onnxruntime cannot read .*model\.onnx"):
        load(tmp_path)


def test_an_onnx_folder_is_answered_without_torch_or_transformers(folders):
    code = (
        "import sys; from compressor.runtime.predictor import load\n"
        f"load({str(folders['onnxruntime'])!r}).predict(['dull'])\n"
        "print(sorted({'torch', 'transformers', 'optimum', 'onnx', 'pandas', 'datasets'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(compressor.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("isa", "exact_here", "precise"), [("vnni", False, True), ("avx2", False, False), ("vnni", True, False)]
)
def test_a_file_for_exact_sums_is_summed_exactly_where_the_cpu_would_saturate(
    folders, tmp_path, monkeypatch, isa, exact_here, precise
):
    asked = []
    shutil.copytree(folders["int8"], tmp_path / "int8")
    replace(read_manifest(tmp_path / "int8"), isa=isa).write(tmp_path / "int8")
    monkeypatch.setattr(predictor, "has_vnni", lambda: exact_here)
    monkeypatch.setattr(predictor, "OnnxEngine", lambda *_given, **named: asked.append(named["precise"]))
    load(tmp_path / "int8")
    assert asked == [precise]
