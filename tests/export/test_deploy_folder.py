import json
from dataclasses import replace

import numpy as np
import pytest
from model_folders import TEXTS, UNEVEN, contents, data_of, write_classifier
from transformers import AutoConfig, AutoTokenizer

from compressor.errors import InputError, StageError
from compressor.export.exporter import Exporter
from compressor.export.folder import deploy, stock_config
from compressor.model.manifest import read_manifest
from compressor.runtime.predictor import load


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, tiny_classifier):
    return write_classifier(tmp_path_factory.mktemp("uneven") / "model", tiny_classifier, layers=UNEVEN)


@pytest.fixture(scope="module")
def final(uneven, tmp_path_factory):
    return Exporter(uneven, data=data_of(TEXTS)).export(tmp_path_factory.mktemp("deployed") / "final")


def test_the_folder_holds_what_is_needed_and_nothing_else(final):
    files = set(contents(final))
    assert files >= {"model.onnx", "config.json", "tokenizer.json", "compressor.json", "predict.py"}
    assert not [name for name in files if name.endswith((".safetensors", ".bin", ".partial")) or "modeling" in name]
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_config_names_a_stock_model_type_and_the_manifest_the_true_shapes(final, uneven):
    config = AutoConfig.from_pretrained(final)
    assert config.model_type == "bert"
    assert config.architectures == ["BertForSequenceClassification"]
    assert config.id2label == {0: "bad", 1: "good"}
    assert not {"auto_map", "layer_shapes", "head_size"} & set(json.loads((final / "config.json").read_text()))
    assert read_manifest(final) == read_manifest(uneven)
    assert [layer.heads for layer in read_manifest(final).shapes.layers] == [3, 1]


def test_the_tokenizer_opens_in_transformers_4_and_5(final, uneven):
    assert json.loads((uneven / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    assert json.loads((final / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    opened, given = AutoTokenizer.from_pretrained(final), AutoTokenizer.from_pretrained(uneven)
    assert opened(TEXTS)["input_ids"] == given(TEXTS)["input_ids"]


def test_it_answers_as_the_folder_it_was_made_from(final, uneven):
    np.testing.assert_allclose(load(final).logits(TEXTS), load(uneven).logits(TEXTS), atol=1e-4)


def test_two_exports_are_the_same_to_the_byte(final, uneven, tmp_path):
    again = Exporter(uneven).export(tmp_path / "again")
    assert contents(again) == contents(final)


def test_an_onnx_folder_is_taken_as_it_is(final, tmp_path):
    copy = Exporter(final, data=data_of(TEXTS)).export(tmp_path / "copy")
    assert contents(copy) == contents(final)


def test_exporting_tells_what_was_fused(uneven, tmp_path):
    told = []
    Exporter(uneven, decide=told.append).export(tmp_path / "out")
    assert [each.kind for each in told] == ["fusion"]
    assert told[0].chosen.startswith("EmbedLayerNormalization 1 of 1, Attention 2 of 2")
    assert told[0].because.startswith("beside PyTorch, logits differ by ")
    assert told[0].because.endswith(" on average, no decision of 5 changed")
    assert [form["form"] for form in told[0].candidates] == ["traced", "fused"]


def test_an_output_that_is_there_is_not_overwritten(uneven, tmp_path):
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(StageError, match="is there already and not empty; give another folder"):
        Exporter(uneven).export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(StageError, match="precious is there already and no folder; give another folder"):
        Exporter(uneven).export(tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_folder_without_tokenizer_is_refused(final, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        deploy(final / "model.onnx", tmp_path, tmp_path / "out", manifest=read_manifest(final))


def test_places_where_a_model_once_lay_are_not_carried_along(final):
    manifest = replace(read_manifest(final), labels=("no", "yes"))
    config = stock_config({"_name_or_path": "/home/me/model", "model_type": "bert", "hidden_size": 8}, manifest)
    assert config == {
        "model_type": "bert", "hidden_size": 8, "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1},
    }  # fmt: skip
