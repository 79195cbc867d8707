"""What a recipe may say about the places where models are timed."""

from typing import get_args

import pytest
from pydantic import ValidationError

from compressor.bench.settings import ENGINES_OF, TARGETS, Target, TargetEngine
from compressor.device import Isa
from compressor.quantize.settings import Isa as QuantizedFor
from compressor.runtime.engine import Cast, EngineName, Opened
from compressor.runtime.predictor import PLACES


def test_the_engines_of_a_target_are_those_that_a_model_opens_in():
    assert set(get_args(TargetEngine)) == {*get_args(Opened), "fastest"}
    assert set(get_args(TargetEngine)) < set(get_args(EngineName))
    for device, engines in ENGINES_OF.items():
        assert set(engines) == {name for name, places in PLACES.items() if device in places} | {"fastest"}
    assert get_args(Target.model_fields["precision"].annotation) == get_args(Cast)


def test_a_target_and_quantization_know_the_same_instructions():
    assert get_args(Isa) == get_args(QuantizedFor)
    assert {"avx2", "vnni", "arm64_i8mm"} < set(get_args(Isa))


def test_predefined_targets_need_nothing():
    assert (TARGETS["cpu"].device, TARGETS["cpu"].engine) == ("cpu", "onnxruntime")
    assert (TARGETS["gpu"].device, TARGETS["gpu"].engine, TARGETS["gpu"].precision) == ("gpu", "torch", "fp32")


@pytest.mark.parametrize(
    "said",
    [
        {"engine": "openvino", "threads": 2},
        {"isa": "avx2", "workload": {"batch": 8, "length": 64}},
        {"engine": "fastest", "workload": {"length": "padded"}},
        {"device": "gpu", "engine": "onnxruntime"},
        {"device": "gpu", "engine": "tensorrt", "precision": "fp16"},
        {"device": "gpu", "engine": "torch", "precision": "bf16"},
    ],
)
def test_a_target_that_makes_sense_comes_back_as_it_was_said(said):
    target = Target.model_validate(said)
    assert Target.model_validate(target.model_dump(mode="json")) == target
    assert target.model_dump(mode="json", exclude_unset=True) == said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"device": "gpu", "engine": "openvino"}, r"device gpu has the engines onnxruntime, torch.*\(got openvino\)"),
        ({"engine": "tensorrt"}, r"device cpu has the engines .* \(got tensorrt\); it needs device: gpu"),
        ({"device": "gpu", "engine": "torch", "isa": "avx2"}, r"isa names instructions of a processor \(got avx2\)"),
        ({"precision": "fp16"}, r"precision fp16 is for device gpu with engine torch or tensorrt \(got device cpu"),
        ({"device": "gpu", "engine": "onnxruntime", "precision": "fp16"}, "elsewhere export a model in that precision"),
        ({"isa": "sse2"}, "'avx2', 'avx512'"),
        ({"workload": {"batch": 0}}, "greater than or equal to 1"),
        ({"workload": {"lenght": 16}}, "Extra inputs are not permitted"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(said, words):
    with pytest.raises(ValidationError, match=words):
        Target.model_validate(said)
