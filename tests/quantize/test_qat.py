from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from model_folders import TEXTS, data_of, write_classifier

from compressor.data.encode import collate, open_encoder
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.model.encoders import load_model
from compressor.quantize.fake import round_channels, rounding
from compressor.quantize.material import Material
from compressor.quantize.qat import learn, qat, traced
from compressor.quantize.settings import Qat, Smooth
from compressor.runtime.onnx import OnnxEngine

DATA = data_of(TEXTS)
LEARNING = Qat.model_validate(
    {"train": {"steps": 30, "learning_rate": 1e-3, "dropout": 0.0}, "match": [{"of": "logits", "loss": "mse"}]}
)


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("source") / "model", tiny_classifier)


@pytest.fixture(scope="module")
def fp32(source, tmp_path_factory):
    return Exporter(source, data=DATA).export(tmp_path_factory.mktemp("fp32") / "model")


def material(fp32, source, work, **changed):
    made = Material(
        folder=fp32, torch_folder=source, raw=lambda: traced(source), batches=lambda: iter(()), reduce_range=True,
        seed=3, work=work, data=DATA,
    )  # fmt: skip
    return replace(made, **changed)


@pytest.fixture(scope="module")
def learned(fp32, source, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return learn(material(fp32, source, work), LEARNING)


def rounded_logits(folder, *, reduce_range=True):
    model = load_model(folder)
    with rounding(model, reduce_range=reduce_range):
        return logits_of(model)


def logits_of(model):
    encoder = open_encoder(Path(model.config.name_or_path), 64)
    inputs = collate(encoder.encode(TEXTS), range(len(TEXTS)), encoder.pad_id)
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()


def test_after_learning_rounded_answers_are_nearer_to_those_of_fp32(source, learned):
    reference = logits_of(load_model(source))
    before, after = (np.square(rounded_logits(each) - reference).mean() for each in (source, learned))
    assert after < 0.5 * before


def test_the_saved_weights_are_fp32_and_not_rounded(source, learned):
    weights = {name: each for name, each in load_model(learned).named_parameters() if name.endswith("dense.weight")}
    assert len(weights) == 7
    for name, weight in weights.items():
        assert (round_channels(weight.detach(), reduce_range=True) - weight).abs().max() > 1e-4, name
    assert load_model(learned).config.id2label == load_model(source).config.id2label


def test_the_int8_file_answers_as_the_model_did_while_it_learned(fp32, source, learned):
    graph = qat(material(fp32, source, learned.parent.parent), LEARNING)
    kinds = [node.op_type for node in graph.graph.node]
    assert {"QAttention", "MatMulInteger"} <= set(kinds)
    engine = OnnxEngine(graph.SerializeToString(), threads=1, precise=True)
    encoder = open_encoder(source, 64)
    encoded = encoder.encode(TEXTS)
    int8 = np.concatenate([engine.logits(collate(encoded, [row], encoder.pad_id)) for row in range(len(TEXTS))])
    assert np.median(np.abs(int8 - rounded_logits(learned))) < 1e-4
    assert np.median(np.abs(int8 - logits_of(load_model(learned)))) > 1e-2


def test_learning_again_from_the_same_seed_gives_the_same_weights(fp32, source, learned, tmp_path):
    again = learn(material(fp32, source, tmp_path), LEARNING)
    assert (again / "model.safetensors").read_bytes() == (learned / "model.safetensors").read_bytes()


def test_a_finished_training_is_not_made_twice_and_other_rounding_is_another_training(fp32, source, tmp_path):
    steps = Qat.model_validate({"train": {"steps": 2}, "match": [{"of": "logits"}]})
    seen = []
    given = material(fp32, source, tmp_path, progress=lambda what, done, _total: seen.append((what, done)))
    learn(given, steps)
    assert ("qat", 2) in seen
    seen.clear()
    learn(given, steps)
    assert ("qat", 1) not in seen
    learn(replace(given, reduce_range=False), steps)
    assert ("qat", 1) in seen
    assert not (tmp_path / "qat" / "cache").exists()


def test_named_products_stay_in_float(fp32, source, tmp_path):
    names = [node.name for node in onnx.load(fp32 / "model.onnx").graph.node if node.op_type == "Attention"]
    steps = Qat.model_validate({"train": {"steps": 1}, "match": [{"of": "logits"}]})
    smooth = Smooth(alpha=0.5)
    told = []
    graph = qat(
        material(fp32, source, tmp_path, smooth=smooth, decide=told.append), steps, float_nodes=frozenset(names)
    )
    assert [node.name for node in graph.graph.node if node.op_type == "Attention"] == names
    assert ("qat", "not smoothed") in {(each.kind, each.chosen) for each in told}


def test_without_torch_weights_or_rows_it_says_what_to_give(fp32, source, tmp_path):
    with pytest.raises(InputError, match=r"scheme qat trains the model, which needs its safetensors \(got ONNX alone"):
        learn(material(fp32, source, tmp_path, torch_folder=None), LEARNING)
    with pytest.raises(InputError, match=r"scheme qat learns from rows \(got none\); give data="):
        learn(material(fp32, source, tmp_path, data=None), LEARNING)
