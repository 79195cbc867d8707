"""`inspect` counts what a model is made of, whatever opens it."""

import json
from pathlib import Path

from model_folders import UNEVEN, write_classifier
from tiny import write_tiny_bert

from compressor.export.exporter import Exporter
from compressor.report.inspect import inspect_model, part_names
from compressor.runtime.torch import TorchEngine

TEXTS = ["a warm film", "the plot is dull and the actors are quite cold"]


def test_parts_of_a_torch_model_add_up_to_the_whole(tiny_classifier: Path):
    found = inspect_model(tiny_classifier, texts=TEXTS, threads=1)
    model = TorchEngine(tiny_classifier).model
    assert [part.name for part in found.parts] == part_names(2)
    assert found.total().parameters == sum(weight.numel() for weight in model.parameters())
    assert found.total().bytes == 4 * found.total().parameters
    attention, feed_forward = found.parts[1:3]
    assert (attention.heads, attention.neurons, feed_forward.heads, feed_forward.neurons) == (4, None, None, 64)
    assert attention.parameters == 4 * (32 * 32 + 32) + 2 * 32
    assert feed_forward.parameters == 2 * 32 * 64 + 64 + 32 + 2 * 32
    assert all(0 < part.low_ms <= part.milliseconds <= part.high_ms for part in found.parts)
    assert (found.total().low_ms, found.total().high_ms) == (None, None)


def test_the_graph_of_a_model_has_the_parts_of_the_model(tiny_bert: Path, tmp_path: Path):
    # weights that are equal, such as zero biases, are stored once in a graph: these are all different
    folder = write_classifier(tmp_path / "model", tiny_bert)
    torch_parts = inspect_model(folder, texts=TEXTS, threads=1)
    graph_parts = inspect_model(Exporter(folder).export(tmp_path / "export"), texts=TEXTS, threads=1)
    assert graph_parts.engine == "onnxruntime"
    assert graph_parts.tokens == torch_parts.tokens
    for one, other in zip(torch_parts.parts[1:-1], graph_parts.parts[1:-1], strict=True):
        assert (one.name, one.heads, one.neurons, one.macs) == (other.name, other.heads, other.neurons, other.macs)
        assert one.parameters == other.parameters
        assert 0 < other.low_ms <= other.milliseconds <= other.high_ms


def test_macs_are_those_of_the_matrix_products(tiny_classifier: Path):
    found = inspect_model(tiny_classifier, texts=["film"], threads=1)
    tokens, hidden, neurons = found.tokens, 32, 64
    assert found.parts[1].macs == 4 * tokens * hidden * hidden + 2 * tokens * tokens * hidden
    assert found.parts[2].macs == 2 * tokens * hidden * neurons


def test_uneven_layers_show_what_each_has_left(tiny_bert: Path, tmp_path: Path):
    folder = write_classifier(tmp_path / "uneven", tiny_bert, layers=UNEVEN)
    for place in (folder, Exporter(folder).export(tmp_path / "export")):
        found = inspect_model(place, texts=TEXTS, threads=1)
        assert [part.heads for part in found.parts if part.heads is not None] == [3, 1]
        assert [part.neurons for part in found.parts if part.neurons is not None] == [10, 64]


def test_the_table_fits_100_columns_and_json_says_the_same(tmp_path: Path):
    deep = write_tiny_bert(tmp_path / "deep", layers=12, labels=("bad", "good"))
    found = inspect_model(deep, texts=TEXTS, threads=1, name="deep")
    assert max(map(len, found.table().splitlines())) <= 100
    shares = [float(line.split()[-1]) for line in found.table().splitlines() if line.startswith("layer")]
    assert len(shares) == 24
    content = json.loads(json.dumps(found.to_dict()))
    assert [part["parameters"] for part in content["parts"]] == [part.parameters for part in found.parts]
