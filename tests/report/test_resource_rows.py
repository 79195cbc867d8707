"""What subjects take, beside counts made another way."""

from pathlib import Path

import pytest
from model_folders import TEXTS, UNEVEN, write_classifier

from compressor.bench.isolation import Slot, Timing
from compressor.bench.process import PLAIN, Work
from compressor.bench.resources import Taken
from compressor.bench.scenarios import Answered
from compressor.export.exporter import Exporter
from compressor.report.resources import cost_per_million, embedding_elements, parameters_without_embeddings, resources
from compressor.report.subjects import Subject, count_parameters

WHOLE = Work(end_to_end=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_classifier: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("resources")
    torch = write_classifier(root / "torch", tiny_classifier, layers=UNEVEN)
    return {"torch": torch, "onnx": Path(Exporter(torch).export(root / "onnx"))}


def timing(**more) -> Timing:
    slots = [Slot("model", 0, 0, (0, 1), (2_000_000, 2_000_000), work) for work in (PLAIN, WHOLE)]
    return Timing(tuple(slots), 2, None, {}, 0.0, None, None, None, **more)


def test_parameters_without_embeddings_are_those_of_torch_without_its_tables(folders: dict[str, Path]):
    from transformers import AutoModelForSequenceClassification

    import compressor.auto  # noqa: F401

    model = AutoModelForSequenceClassification.from_pretrained(folders["torch"])
    named = dict(model.named_parameters())
    tables = sum(one.numel() for name, one in named.items() if "embeddings" in name and "LayerNorm" not in name)
    wanted = sum(one.numel() for one in named.values()) - tables
    trained = Subject("model", folders["torch"], engine="torch")
    assert parameters_without_embeddings(trained) == wanted
    assert embedding_elements(folders["onnx"] / "model.onnx") == tables
    exported = Subject("model", folders["onnx"], parameters=count_parameters(trained))
    assert parameters_without_embeddings(exported) == wanted


def test_tables_are_counted_in_quantized_and_plain_graphs_alike(folders: dict[str, Path], tmp_path: Path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = {}
    for name, operators in (("tables too", None), ("matrices alone", ["MatMul"])):
        place = tmp_path / f"{name}.onnx"
        options = {} if operators is None else {"op_types_to_quantize": operators}
        quantize_dynamic(
            str(folders["onnx"] / "model.onnx"),
            str(place),
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
            **options,
        )
        kept[name] = embedding_elements(place)
    assert len(kept) == 2
    assert set(kept.values()) == {embedding_elements(folders["onnx"] / "model.onnx")}


def test_multiply_adds_are_those_of_the_mean_length(folders: dict[str, Path]):
    found = resources(Subject("model", folders["onnx"]), "model", {}, texts=["the film", "the film is a warm story"])
    tokens, hidden, macs = round((4 + 8) / 2), 32, 0
    for heads, neurons in UNEVEN:
        macs += tokens * 4 * hidden * heads * 8 + 2 * tokens * tokens * heads * 8 + tokens * 2 * hidden * neurons
    assert found.macs == macs


def test_what_was_not_timed_has_its_reasons(folders: dict[str, Path]):
    found = resources(Subject("model", folders["onnx"]), "model", {}, texts=TEXTS, untimed="a smoke run")
    assert found.peak_memory_bytes is None
    for name in ("peak_memory_bytes", "cold_start_seconds", "energy_joules", "cost_per_million"):
        assert found.reasons[name] == "a smoke run"


def test_figures_of_the_process_are_repeated_with_their_conditions(folders: dict[str, Path]):
    taken = {"model": Taken(0.8, (3, 2, 2), 1, 50_000_000, None)}
    timed = timing(taken=taken, energy_reason="no counters")
    found = resources(Subject("ship", folders["onnx"]), "model", {"cpu": timed}, texts=TEXTS)
    assert (found.peak_memory_bytes, found.cold_start_seconds, found.energy_joules) == (50_000_000, 0.8, None)
    assert found.reasons == {
        "cost_per_million": "no benchmark.price was given",
        "cold_start_seconds": "the model's files were in the page cache",
        "energy_joules": "no counters",
    }


def test_a_model_that_cannot_be_counted_says_why(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"")
    found = resources(Subject("model", tmp_path, parameters=5), "model", {}, texts=TEXTS)
    assert found.macs is None
    assert "holds no config.json" in found.reasons["macs"]


def test_cost_is_the_price_over_the_rows_of_an_hour():
    cost, how = cost_per_million(timing(), "model", 0.36)
    assert cost == pytest.approx(1e6 / (500 * 3600) * 0.36)
    assert how == "from 500 rows a second of single stream"
    answered = (Answered("model", "offline", 1, WHOLE, 2, 1000.0),)
    cost, how = cost_per_million(timing(answered=answered), "model", 0.36)
    assert cost == pytest.approx(0.1)
    assert how == "from 1000 rows a second of offline"
