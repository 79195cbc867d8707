import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.model.manifest import LayerShape, Manifest, Shapes, config_shapes, read_manifest, teacher_labels

UNEVEN = Shapes(hidden=32, layers=(LayerShape(3, 8, 40), LayerShape(0, 8, 0)), vocabulary=50)
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": 512,
    "id2label": {"0": "bad", "1": "good"},
}


def write_config(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    return folder


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path):
    manifest = Manifest(("schlecht", "gut"), UNEVEN, text=("satz", "antwort"), max_tokens=64, precision="int8")
    manifest.write(tmp_path, extra={"verdict": "pass"})
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "compressor.json").read_text())["verdict"] == "pass"


def test_a_folder_of_another_tool_is_read_from_its_config(tmp_path: Path):
    manifest = read_manifest(write_config(tmp_path))
    assert manifest.labels == ("bad", "good")
    assert manifest.shapes == Shapes(32, (LayerShape(4, 8, 64),) * 2, 50)
    assert manifest.max_tokens == 128
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    assert read_manifest(tmp_path).max_tokens == 64


def test_a_pruned_config_names_each_layer(tmp_path: Path):
    shapes = [{"heads": 3, "ffn": 40}, {"heads": 0, "ffn": 0}]
    assert config_shapes({**CONFIG, "layer_shapes": shapes, "head_size": 8}) == UNEVEN


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ("bad", "good")),
        ({"id2label": {"1": "good", "0": "bad"}}, ("bad", "good")),
        ({"architectures": ["BertModel"]}, None),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"id2label": None}, None),
    ],
)
def test_only_a_fine_tuned_model_names_classes(tmp_path: Path, changes: dict[str, object], labels: object):
    assert teacher_labels(write_config(tmp_path, **changes)) == labels


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("compressor.json", "{", "cannot be read as JSON"),
        ("compressor.json", "[]", "must hold a JSON object"),
        ("compressor.json", '{"schema": 2}', "has schema 2, this version reads 1"),
        ("compressor.json", '{"schema": 1}', "is not a manifest"),
        ("config.json", '{"model_type": "t5"}', "does not name an encoder's sizes"),
        ("README.md", "", "holds no config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, file: str, content: str, text: str):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_manifest(tmp_path)
    assert text in str(error.value)
    assert str(tmp_path) in str(error.value) or file == "config.json"


def test_only_even_layers_that_fill_the_width_are_stock():
    full = LayerShape(4, 8, 64)
    assert Shapes(32, (full, full), 50).is_stock
    assert not Shapes(32, (full, LayerShape(4, 8, 63)), 50).is_stock
    assert not Shapes(32, (LayerShape(3, 8, 64),) * 2, 50).is_stock
    assert not Shapes(32, (LayerShape(4, 8, 0),) * 2, 50).is_stock


def test_reading_a_manifest_loads_nothing_heavy():
    code = "import compressor.model.manifest, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_instructions_that_nobody_knows_are_refused(tmp_path: Path):
    Manifest(labels=("a", "b"), shapes=Shapes(32, (LayerShape(4, 8, 64),), 50), isa="vnni").write(tmp_path)
    assert read_manifest(tmp_path).isa == "vnni"
    written = (tmp_path / "compressor.json").read_text(encoding="utf-8")
    (tmp_path / "compressor.json").write_text(written.replace('"vnni"', '"zmm"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"isa must be one of amx, .*got 'zmm'"):
        read_manifest(tmp_path)
