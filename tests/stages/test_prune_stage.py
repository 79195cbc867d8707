"""What a recipe may say about where pruning stops, where latency is measured, and what decides the key."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from tiny import write_reviews

from compressor.data.rows import open_data
from compressor.device import machine_id
from compressor.errors import InputError
from compressor.model.manifest import read_manifest
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import stages_of
from compressor.runner.plan import plan
from compressor.stage import Decision, Job, silent
from compressor.stages import prune as prune_module
from compressor.stages.prune import Prune


def stage(**settings) -> Prune:
    return Prune.model_validate({"id": "slim", **settings})


def recipe_with(desk: Path, prune: dict, **more) -> Recipe:
    """A recipe of one prune stage, with a benchmark and targets of its own."""
    data = {"train": "reviews.csv", "text": "review", "label": "stars"}
    text = {"version": 1, "name": "small", "data": data, "teacher": {"model": "./my-bert", "finetune": {}}}
    text |= {"stages": [{"id": "slim", "prune": prune}], **more}
    (desk / "recipe.yaml").write_text(yaml.safe_dump(text))
    return Recipe.load(desk / "recipe.yaml")


LATENCY = {"until": {"latency": "0.6x"}}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"until": {"latency": "5ms"}}, "must be a share such as 0.5x"),
        ({"until": {"latency": "1x"}}, "until.latency must be below 1x"),
        ({"until": {"bytes": "1x"}}, "until.bytes must be below 1x"),
        ({"until": {"bytes": "40 mega"}}, "must be a share such as 0.5x or a size such as 40MB"),
        ({"until": {"bytes": 40}}, "must be a share such as 0.5x"),
        ({"until": {"latency": "0.5x", "bytes": "0.5x"}}, "takes exactly one of macs, parameters, bytes, latency"),
        ({"until": {"macs": "0.5x"}, "engine": "torch"}, "has engine or threads, which say where until.latency"),
        ({"threads": 2}, "has engine or threads, which say where until.latency"),
        ({**LATENCY, "engine": "fastest"}, "engine"),
        ({"remove": {"vocabulary": "unseen"}, "until": {"macs": "0.5x"}}, "cannot be aimed at by remove.vocabulary"),
        ({"remove": {"vocabulary": "unseen"}, "steps": 2}, "has steps, which is for cuts of heads"),
        ({"remove": {"vocabulary": "unseen"}, "recover": {}}, "has recover, which is for cuts of heads"),
        ({"remove": {"vocabulary": "unseen", "against": "labels"}}, "has against or normalise, which are for scores"),
        ({"remove": {"vocabulary": "unseen"}, "threads": 2}, "has engine or threads"),
        ({"remove": {"vocabulary": "unseen"}, "teacher": "teacher"}, "names a teacher, which only recover"),
        ({"remove": {"vocabulary": "all"}}, "unseen"),
        ({"remove": {"ffn": "taylor"}, "until": None}, "until says how much of ffn shall go"),
    ],
)
def test_targets_that_cannot_be_are_refused(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        stage(**settings)


def test_the_target_is_070x_unless_tokens_alone_go():
    assert stage().until.target == ("macs", "0.7x")
    assert stage(remove={"ffn": "taylor", "vocabulary": "unseen"}).until.target == ("macs", "0.7x")
    assert stage(remove={"vocabulary": "unseen"}).until is None


def test_latency_is_measured_with_the_engine_and_threads_of_the_first_cpu_target(desk: Path):
    targets = {
        "fast": {"device": "gpu", "engine": "torch"},
        "small": {"engine": "torch", "threads": 1},
        "large": {"threads": 2},
    }
    more = {"targets": targets, "benchmark": {"targets": ["fast", "small", "large"]}}
    (_, made) = stages_of(recipe_with(desk, LATENCY, **more))
    assert (made.engine, made.threads) == ("torch", 1)
    (_, made) = stages_of(recipe_with(desk, {**LATENCY, "engine": "onnxruntime", "threads": 2}, **more))
    assert (made.engine, made.threads) == ("onnxruntime", 2)
    (_, made) = stages_of(recipe_with(desk, {"until": {"macs": "0.6x"}}, **more))
    assert (made.engine, made.threads) == (None, None)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ({"device": "gpu", "engine": "torch"}, "the benchmark has no target with device cpu"),
        ({"engine": "fastest"}, "the benchmark has engine fastest, known after pruning"),
    ],
)
def test_latency_without_an_engine_to_measure_in_is_refused_before_anything_runs(desk: Path, target: dict, found: str):
    more = {"targets": {"here": target}, "benchmark": {"targets": ["here"]}}
    with pytest.raises(InputError) as error:
        stages_of(recipe_with(desk, LATENCY, **more))
    assert f"stage slim: until.latency is measured on a processor, and {found}" in str(error.value)
    assert "write engine: onnxruntime beside until" in str(error.value)
    (_, made) = stages_of(recipe_with(desk, {**LATENCY, "engine": "onnxruntime"}, **more))
    assert made.engine == "onnxruntime"


def test_the_key_holds_machine_engine_and_threads_only_where_a_timing_decides():
    timed, counted = stage(**LATENCY, engine="torch", threads=2), stage()
    assert timed.conditions("cpu")["machine"] == machine_id()
    assert "machine" not in counted.conditions("cpu")
    assert "openvino" not in timed.conditions("cpu")
    assert timed.key_settings()["engine"] == "torch"
    assert not {"engine", "threads"} & set(counted.key_settings())


def test_the_key_holds_the_version_of_openvino_where_it_times(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune_module, "versions", lambda names: dict.fromkeys(names, "2026.1"))
    assert stage(**LATENCY, engine="openvino").conditions("cpu")["openvino"] == "2026.1"


@pytest.mark.parametrize(
    ("prune", "words"),
    [
        (
            {**LATENCY, "threads": 2},
            "0.6x of the latency of teacher (onnxruntime, 2 threads; a table of layers' times is measured first, "
            "a minute or two); layers' shapes known after slim",
        ),
        ({"until": {"bytes": "40MB"}}, "at most 40MB of teacher; layers' shapes known after slim"),
        ({"until": {"bytes": "0.5x"}}, "0.5x of the bytes of teacher; layers' shapes known after slim"),
        ({"remove": {"vocabulary": "unseen"}}, "teacher without the tokens that neither train nor the pool holds"),
        (
            {"remove": {"ffn": "taylor", "vocabulary": "unseen"}, "until": {"bytes": "40MB"}},
            "at most 40MB of teacher, without the tokens that neither train nor the pool holds; layers' shapes known "
            "after slim",
        ),
    ],
)
def test_a_plan_says_what_shall_remain(desk: Path, prune: dict, words: str):
    lines = plan(recipe_with(desk, prune), desk / "run")
    assert lines[1].details[0] == words


def test_a_smoke_run_of_the_stage_prunes_by_a_made_up_table(tmp_path: Path, tiny_classifier: Path):
    write_reviews(tmp_path)
    data = {"train": "reviews.csv", "text": "review", "label": "stars", "max_tokens": 32}
    said = list[Decision]()
    job = Job(
        out=tmp_path / "out",
        inputs={"model": tiny_classifier},
        data=open_data(data, base=tmp_path),
        seed=3,
        device="cpu",
        threads=1,
        progress=silent,
        decide=said.append,
        gate=None,
        smoke=True,
    )
    stage(**LATENCY, engine="onnxruntime", threads=1).run(job)
    assert [each.kind for each in said] == ["latency table", "cut", "pruned"]
    before, after = (read_manifest(folder).shapes for folder in (tiny_classifier, tmp_path / "out" / "model"))
    assert sum(layer.ffn + layer.heads for layer in after.layers) < sum(
        layer.ffn + layer.heads for layer in before.layers
    )
