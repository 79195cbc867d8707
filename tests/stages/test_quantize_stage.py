"""What a recipe may say about quantize, and what decides its key."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from model_folders import TEXTS, data_of, write_classifier
from pydantic import ValidationError

from compressor.data.rows import Rows
from compressor.data.settings import Mix
from compressor.device import cpu_flags, has_vnni, machine_id
from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.model.manifest import read_manifest
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import stages_of
from compressor.runner.directory import RunDirectory
from compressor.runner.shapes import check_rows_and_forms
from compressor.stage import Job, silent
from compressor.stages.distill import Distill
from compressor.stages.quantize import Quantize
from compressor.stages.teacher import Teacher

TEACHER = Teacher(model="./bert")
GATE = {"gate": {"accuracy": ">= 50%"}}


def stage(**settings):
    return Quantize.model_validate({"id": "int8", **settings})


def recipe_with(desk, **more):
    """A recipe of one quantize stage, with a benchmark and targets of its own."""
    data = {"train": "reviews.csv", "text": "review", "label": "stars"}
    text = {"version": 1, "name": "small", "data": data, "teacher": {"model": "./my-bert", "finetune": {}}}
    text |= {"stages": [{"id": "int8", "quantize": {}}], **more}
    (desk / "recipe.yaml").write_text(yaml.safe_dump(text))
    return Recipe.load(desk / "recipe.yaml")


def test_every_setting_of_a_scheme_can_be_written_in_a_recipe():
    made = stage(
        **{
            "try": ["static", "mixed", "dynamic", "qat", "weight_only"],
            "choose": "fastest",
            "calibrate": {"from": "both", "rows": 64, "method": "entropy"},
            "mixed": {"of": "static", "keep": "fp32", "drop": "<= 0.5pp", "max_float": 0.5, "agreement": 0.99},
            "smooth": {"alpha": 0.6},
            "weight_only": {"bits": 4, "block": 64},
            "qat": {"train": {"steps": 5}},
            "isa": "avx2",
        }
    )
    assert (made.calibrate.source, made.mixed.drop, made.weight_only.bits) == ("both", "<= 0.5pp", 4)
    assert made.key_settings()["calibrate"]["from"] == "both"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"try": ["fast"]}, "try.0"),
        ({"try": ["dynamic", "dynamic"]}, "try names a scheme twice"),
        ({"teacher": "teacher"}, "only scheme qat needs"),
        ({"calibrate": {"rows": 1}}, "greater than or equal to 2"),
        ({"mixed": {"drop": "0.3pp"}}, "must be a comparison with a unit"),
        ({"mixed": {"drop": "<= 3%"}}, "must be a fall in points"),
        ({"weight_only": {"bits": 2}}, "8 or 4"),
        ({"isa": "sse"}, "avx2"),
    ],
)
def test_what_cannot_be_is_refused(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        stage(**settings)


def test_the_key_holds_the_machine_only_where_a_timing_decides():
    assert stage().conditions("cpu") == {"vnni": has_vnni()}
    timed = stage(choose="fastest").conditions("cpu")
    assert timed["machine"] == machine_id()
    assert "training_bf16" in stage(**{"try": ["qat"]}).conditions("cpu")


def test_settings_of_schemes_that_are_not_tried_are_in_no_key():
    plain = stage().key_settings()
    assert not {"qat", "weight_only", "mixed"} & set(plain)
    learned = stage(**{"try": ["qat"]}).key_settings()
    assert "qat" in learned
    assert not {"calibrate", "smooth", "mixed", "weight_only"} & set(learned)
    static = stage(**{"try": ["static"], "mixed": {"max_float": 0.5}})
    assert static.key_settings()["mixed"]["max_float"] == 0.5
    assert stage(isa="vnni").key_settings() != plain


def test_what_an_interrupted_try_left_is_kept_where_it_can_be_taken_up(tmp_path):
    kept, gone = stage(choose="fastest"), stage()
    directory = RunDirectory(tmp_path)
    for number, each in enumerate((kept, gone)):
        key = str(number)
        attempt = directory.begin(each, key, {})
        (attempt.folder / "choice.json").write_text("{}")
        again = directory.begin(each, key, {})
        assert (again.folder / "choice.json").exists() is (each is kept)
    assert stage(**{"try": ["qat"]}).resumes()


def test_the_teacher_of_qat_is_read_as_a_stage_or_a_model():
    assert stage().references() == {"model": None}
    assert stage(**{"try": ["qat"], "teacher": "big"}).references() == {"model": None, "teacher": "big"}
    assert stage(**{"try": ["qat"], "teacher": {"model": "./other"}}).sources()["teacher"].path == "./other"


def test_qat_takes_its_batches_from_the_distill_stage_upstream():
    mix = {"unlabelled": {"ratio": 0.5}}
    student = Distill.model_validate({"id": "student", "mix": mix})
    filled = stage(**{"try": ["qat"]}).filled([TEACHER, student])
    assert filled.qat.mix == Mix.model_validate(mix)
    own = stage(**{"try": ["qat"], "qat": {"mix": {}}}).filled([TEACHER, student])
    assert own.qat.mix == Mix()
    assert stage().filled([TEACHER, student]).qat.mix is None


def test_the_stage_is_for_the_cpu_among_the_benchmarks_targets(desk):
    plain = recipe_with(desk)
    (_, made) = stages_of(plain)
    assert (made.isa, made.target) == (None, "cpu")
    old = {"targets": {"old": {"isa": "avx2"}}, "benchmark": {"targets": ["gpu", "old"]}}
    (_, made) = stages_of(recipe_with(desk, **old))
    assert (made.isa, made.target) == ("avx2", "cpu")
    named = {**old, "stages": [{"id": "int8", "quantize": {"isa": "vnni"}}]}
    assert stages_of(recipe_with(desk, **named))[1].isa == "vnni"
    fixed = {"stages": [{"id": "int8", "quantize": {"try": ["static"]}}]}
    fast = {"targets": {"rt": {"device": "gpu", "engine": "tensorrt"}}, "benchmark": {"targets": ["rt"]}, **fixed}
    assert stages_of(recipe_with(desk, **fast))[1].target == "tensorrt"


def test_a_scheme_that_the_target_cannot_run_is_refused_before_anything_is_made(desk):
    with pytest.raises(InputError, match=r"dynamic cannot run on a target with device gpu: .* precision: fp16"):
        stages_of(recipe_with(desk, benchmark={"targets": ["gpu"]}))
    timed = {"targets": {"rt": {"device": "gpu", "engine": "tensorrt"}}, "benchmark": {"targets": ["rt"]}}
    timed |= {"stages": [{"id": "int8", "quantize": {"try": ["static"], "choose": "fastest"}}]}
    with pytest.raises(InputError, match=r"stage int8: quantize.choose must be smallest or most_accurate"):
        stages_of(recipe_with(desk, **timed))
    light = {"benchmark": {"targets": ["gpu"]}, "stages": [{"id": "small", "quantize": {"try": ["weight_only"]}}]}
    assert stages_of(recipe_with(desk, **light))[1].target == "cuda"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_classifier) -> Path:
    """Folder of a made stage: torch weights, and their export beside them."""
    folder = tmp_path_factory.mktemp("run") / "slim"
    source = write_classifier(folder / "model", tiny_classifier)
    Exporter(source, data=data_of(TEXTS)).export(folder / "onnx")
    return folder


def job(out, run, told, gate=None):
    return Job(
        out=out, inputs={"model": run / "model"}, data=data_of(TEXTS), seed=1, device="cpu", threads=1,
        progress=silent, decide=told.append, gate=gate,
    )  # fmt: skip


def test_the_stage_leaves_an_int8_model_for_the_isa_and_nothing_else(run, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Exporter, "export", lambda *_: pytest.fail("exported again"))
    stage(isa="avx2").run(job(tmp_path, run, told))
    assert read_manifest(tmp_path / "model").isa == "avx2"
    assert "weights for sums of 16 bits, as avx2 has no wider ones" in told[-1].because
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_stage_for_a_gpu_through_cuda_is_refused(run, tmp_path):

    with pytest.raises(InputError, match="no INT8 kernels"):
        stage(target="cuda").run(job(tmp_path, run, []))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"try": ["dynamic"], "weight_only": {"bits": 4}}, "weight_only serves weight_only alone"),
        ({"try": ["dynamic"], "qat": {"train": {"epochs": 3}}}, "qat serves qat alone"),
        ({"try": ["dynamic"], "mixed": {"max_float": 0.1}}, "mixed serves mixed and static alone"),
        ({"try": ["weight_only"], "smooth": {"alpha": 0.5}}, "smooth serves dynamic and mixed and static alone"),
        ({"try": ["dynamic"], "calibrate": {"method": "mse"}}, "calibrate.method mse serves static alone"),
        ({"try": ["static"], "calibrate": {"percentile": 99.0}}, "percentile is set, which only method percentile"),
        ({"try": ["mixed"], "mixed": {"drop": "<= -1pp"}}, "drop must be a fall in points"),
        ({"smooth": {}}, "alpha"),
        ({"try": ["weight_only"], "calibrate": {"rows": 1000}}, "calibrate serves dynamic and mixed and static alone"),
        ({"try": ["qat"], "calibrate": {"from": "both"}}, "calibrate serves dynamic and mixed and static alone"),
        ({"try": ["static"], "mixed": {"of": "static"}}, "mixed.of serves mixed alone; add mixed to try"),
        ({"try": ["static"], "mixed": {"drop": "<= 1pp"}}, "mixed.drop serves mixed alone; add mixed to try"),
        ({"try": ["static"], "mixed": {"agreement": 0.9}}, "mixed.agreement serves mixed alone; add mixed to try"),
        ({"try": ["static"], "mixed": {"max_float": 0.5}, **GATE}, "mixed.max_float serves mixed alone where there is"),
        ({"try": ["mixed"], "mixed": {"drop": "<= 1pp"}, **GATE}, "mixed.drop serves where there is no gate alone"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(said, message):
    with pytest.raises(ValidationError, match=message):
        stage(**said)


def test_settings_of_a_resolved_recipe_are_read_again():
    made = stage(**{"try": ["static", "mixed"], "calibrate": {"method": "percentile", "percentile": 99.0}})
    again = Quantize.model_validate(made.model_dump(mode="json", by_alias=True))
    assert again == made
    assert Quantize.model_validate(stage().model_dump(mode="json", by_alias=True)) == stage()


def test_what_rows_and_stages_before_rule_out_is_refused_by_the_plan(desk):
    calibrated = {"id": "int8", "quantize": {"try": ["static"], "calibrate": {"from": "unlabelled"}}}
    halved = {"id": "ship", "export": {"precision": "fp16"}}
    data = data_of(TEXTS)
    empty = replace(data, unlabelled=Rows((), ()))
    stages = stages_of(recipe_with(desk, stages=[calibrated]))
    with pytest.raises(InputError, match=r"stage int8: quantize.calibrate.from is unlabelled"):
        check_rows_and_forms(stages, empty)
    pool = replace(data, unlabelled=Rows(("one", "two"), (None, None)))
    check_rows_and_forms(stages, pool)
    stages = stages_of(recipe_with(desk, stages=[{"id": "int8", "quantize": {}}, halved]))
    with pytest.raises(InputError, match=r"stage ship: export.precision is fp16, and stage int8 gives INT8"):
        check_rows_and_forms(stages, pool)
    check_rows_and_forms(stages_of(recipe_with(desk, stages=[halved])), pool)
    if not has_half_products():
        kept = {"id": "int8", "quantize": {"try": ["mixed"], "mixed": {"keep": "fp16"}}}
        with pytest.raises(InputError, match=r"stage int8: mixed.keep must be fp32 here"):
            stages_of(recipe_with(desk, stages=[kept]))


def has_half_products():
    return bool(cpu_flags() & {"asimdhp", "fphp"})
