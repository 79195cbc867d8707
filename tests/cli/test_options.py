"""Options of the verbs: errors in their own words, names as the user gave them, usage lines that hold."""

import json
from pathlib import Path

import pytest
from tiny import make_reviews, write_tiny_bert
from typer.testing import CliRunner

from compressor import cli
from compressor.cli.app import verbs
from compressor.cli.options import benchmark_of, targets_of
from compressor.errors import InputError


def compress(*words: str):
    return CliRunner().invoke(cli.app, list(words), prog_name="compress")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((["fast"], None, [], None), "--scenario: Input should be 'single stream', 'one core', 'offline'"),
        (([], None, [4, 0], None), r"--batch: Input should be greater than or equal to 1 \(got 0\)"),
        (([], None, [], -1.0), r"--price: Input should be greater than 0 \(got -1.0\)"),
        ((["arrivals"], -1.0, [], None), r"--p99-ms: Input should be greater than 0"),
        (([], 5.0, [], None), r"--scenario arrivals and --p99-ms MS need each other.*got --p99-ms 5"),
        ((["arrivals"], None, [], None), r"need each other; give both or neither \(got --scenario arrivals\)"),
    ],
)
def test_a_wrong_option_is_called_by_its_name(said: tuple, message: str):
    with pytest.raises(InputError, match=message) as found:
        benchmark_of(*said)
    assert "bench." not in str(found.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("cpu/foo", "--target cpu/foo: engine: Input should be 'onnxruntime'"),
        ("tpu", "--target tpu: device: Input should be 'cpu' or 'gpu'"),
        ("cpu/torch/fp16", "--target cpu/torch/fp16: precision fp16 is for device gpu"),
        ("gpu/openvino", "--target gpu/openvino: device gpu has the engines"),
        ("cpu/torch/fp32/2", "--target must be DEVICE, DEVICE/ENGINE or DEVICE/ENGINE/PRECISION"),
    ],
)
def test_a_wrong_target_is_called_as_it_was_given(said: str, message: str):
    with pytest.raises(InputError, match=message):
        targets_of(["cpu", said])


def test_targets_are_named_after_what_was_asked_for():
    assert targets_of([]) is None
    found = targets_of(["cpu", "gpu/tensorrt/fp16", "cpu"])
    assert found == {
        "cpu": {"device": "cpu"},
        "gpu-tensorrt-fp16": {"device": "gpu", "engine": "tensorrt", "precision": "fp16"},
    }


def test_options_make_the_settings_of_a_recipes_benchmark():
    found = benchmark_of(["arrivals"], 50.0, [8], 0.5)
    assert found.scenarios == ["single stream", "arrivals"]
    assert (found.p99_ms, found.grid.batch, found.price) == (50.0, [8], 0.5)


def test_every_verbs_usage_line_is_one_that_can_be_typed():
    assert len(verbs()) > 8
    for verb in verbs():
        usage = next(line for line in compress(verb, "--help").output.split("\n") if line.startswith("Usage:"))
        assert usage.startswith(f"Usage: compress {verb}")
    assert "Usage: compress [OPTIONS] [RECIPE]" in compress("--help").output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"review": text}) + "\n" for text, _ in make_reviews(120, seed=1)))
    return path


def test_a_missing_column_is_answered_with_the_option_that_names_it(tiny_classifier: Path, rows: Path):
    model = str(tiny_classifier)
    found = compress("score", model, str(rows), "--against", model)
    assert found.exit_code == 2
    assert "no column 'text'; its columns are review; name it with --text COLUMN" in found.stderr
    found = compress("bench", model, "--rows", str(rows), "--text", "review", "--label", "stars")
    assert "no column 'stars'; its columns are review; name it with --label COLUMN" in found.stderr


def test_a_model_without_names_of_classes_is_scored_beside_one_that_has_them(
    tiny_classifier: Path, rows: Path, tmp_path: Path
):
    plain = write_tiny_bert(tmp_path / "plain", layers=1, labels=("LABEL_0", "LABEL_1"), seed=3)
    words = ("score", str(plain), str(rows), "--against", str(tiny_classifier), "--text", "review", "--json")
    found = json.loads(compress(*words).stdout)
    assert set(found["answered"]) == {"bad", "good"}
    assert found["model"] == str(plain)
    assert found["calibrated"] is False
    assert found["calibration"].startswith("uncalibrated: the interval is that of the mean confidence")


def test_an_error_about_a_model_names_the_folder_that_was_given(tiny_classifier: Path, rows: Path, tmp_path: Path):
    stranger = write_tiny_bert(tmp_path / "stranger", labels=("x", "y"))
    (stranger / "compressor.json").unlink(missing_ok=True)
    found = compress("score", str(stranger), str(rows), "--against", str(tiny_classifier), "--text", "review")
    assert found.exit_code == 2
    assert f"{stranger} answers x, y" in found.stderr
    assert "compressor-score-" not in found.stderr
