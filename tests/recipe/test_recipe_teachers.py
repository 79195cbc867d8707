"""What a recipe says about teachers, terms and students of a distill stage: how it is read, and what is refused."""

import json
from pathlib import Path

import pytest
from test_recipe import PLAIN, complaints, load

from compressor.errors import InputError
from compressor.recipe.recipe import Recipe, schema
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune

FULL = """\
match:
  - {of: logits, loss: decoupled, temperature: {from: 4, to: 1}, weight: auto}
  - {of: labels, loss: focal, gamma: 1.0, smoothing: 0.1, weight: {auto: 0.5}}
  - {of: hidden, loss: gram, map: random}
  - {of: attention, loss: mse, map: nearest}
  - {of: relations, pairs: [qq, vv], heads: 6}
  - {of: embeddings, loss: cosine}
combine: most_confident
mix:
  unlabelled: {ratio: {from: 0.2, to: 0.8}, keep: {confidence: 0.5, weigh: true, balance: true}}
  augment: {mask: 0.1, delete: 0.1, ngram: 0.2, views: 3}
cache: {budget: 1GB, states: int8, precision: fp32}
control: true
student: {layers: 1, hidden: 192, heads: 6, init: {layers: importance, width: svd}}
train: {epochs: 2, dropout: 0.0}
"""


@pytest.fixture
def desk(project: Path) -> Path:
    """The project with an ONNX model, a file of answers and a second teacher."""
    config = (project / "teacher" / "config.json").read_text()
    for name, weights in (("onnx", "model.onnx"), ("second", "model.safetensors")):
        (project / name).mkdir()
        (project / name / "config.json").write_text(config)
        (project / name / weights).write_bytes(b"")
    (project / "answers.jsonl").write_text('{"text": "good film 1", "p": [0.1, 0.9]}\n')
    return project


def distill(desk: Path, settings: str) -> Distill:
    stage = load(desk, PLAIN + f"stages: [{{id: a, distill: {{{settings}}}}}]\n").stages[0]
    assert isinstance(stage, Distill)
    return stage


def test_a_teacher_in_one_word_is_a_stage_and_any_other_text_a_source(desk):
    assert [part.stage for part in distill(desk, "teacher: teacher").teachers] == ["teacher"]
    stage = distill(desk, "teacher: [teacher, ./second, {probabilities: {path: answers.jsonl, column: p}, weight: 2}]")
    assert stage.references() == {"teacher": "teacher"}
    assert {role: source.path for role, source in stage.sources().items()} == {
        "teacher2": "./second",
        "teacher3": "answers.jsonl",
    }


def test_the_checkpoint_of_a_student_is_a_source_too(desk):
    stage = distill(desk, "student: {init: {from: ./second}}")
    assert {role: source.path for role, source in stage.sources().items()} == {"student": "./second"}


def test_every_setting_survives_being_written_out_and_read_again(desk, tmp_path_factory):
    body = "\n".join(f"      {line}" for line in FULL.splitlines())
    text = PLAIN + f"stages:\n  - id: a\n    distill:\n      teacher: [teacher, ./second]\n{body}\n"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "again.yaml"
    for recipe in (load(desk, text), load(desk, text).smoke()):
        elsewhere.write_text(recipe.resolved(), encoding="utf-8")
        assert Recipe.load(elsewhere).stages == recipe.stages


def test_the_schema_describes_the_keys_of_distillation():
    found = schema()["$defs"]
    assert {"teacher", "combine", "match", "mix", "train", "cache", "control", "phases"} <= set(
        found["Distill"]["properties"]
    )
    assert {"stage", "model", "probabilities", "votes", "label_names", "weight"} == set(
        found["TeacherPart"]["properties"]
    )
    for name in ("RelationsMatch", "AutoWeight", "Phase", "Cache", "Keep", "Augment"):
        assert all("description" in each for each in found[name]["properties"].values()), name


ONE_MISTAKE = [
    ("match: [{of: logits, weight: autoo}]", "weight must be a number or a map of from, to, over, shape or auto or a"),
    ("match: [{of: logits, weight: {auto: -1}}]", "match.0.weight.auto must be above 0 (got -1)"),
    ("match: [{of: logits, weight: {aut: 1}}]", "match.0.weight.aut is not a key here (got 1); did you mean auto?"),
    ("match: [{of: logits, weight: {from: -1, to: 1}}]", "match.0.weight must not be negative (got -1)"),
    ("match: [{of: logits, weight: {from: 1, too: 0}}]", "match.0.weight.too is not a key here (got 0); did you mean"),
    ("match: [{of: relations, map: attention}]", "map must be one of uniform, first, last, random, nearest or pairs"),
    ("match: [{of: relations, pairs: [qk]}]", "match.0.pairs.0 must be one of qq, kk, vv (got 'qk')"),
    ("mix: {unlabelled: {ratio: {from: 0, to: 1}}}", "mix.unlabelled.ratio must be at least 0 and below 1 (got 1)"),
    ("mix: {unlabelled: {ratio: half}}", "mix.unlabelled.ratio must be a number or a map of from, to, over, shape"),
    ("mix: {augment: {views: 2}}", "mix.augment.views needs a change such as mask: 0.1"),
    ("cache: 2", "cache must be a size such as 2GB or a map of budget, states, precision (got 2)"),
    ("cache: 2TB", "cache must be a size such as 40MB or 2GB (got '2TB')"),
    ("cache: {state: int8}", "cache.state is not a key here (got 'int8'); did you mean states?"),
    ("control: sure", "control must be true or false (got 'sure')"),
    ("control: true, match: [{of: labels}]", "control compares with labels alone, which is all that match holds"),
    ("phases: [{}]", "phases.0.train is missing; add train: and its value"),
    ("phases: [{train: {}}], train: {epochs: 2}", "train is unused with phases, each of which has its own"),
    ("combine: most_confident", "combine needs several teachers, and there is one (got most_confident)"),
    (
        "teacher: 5",
        "teacher must be a text or a map of stage, model, probabilities, votes, label_names, weight or a list",
    ),
    ("teacher: techer", "teacher must name an earlier stage or teacher (got techer); did you mean teacher?"),
    ("teacher: second", "(got second); choose from teacher; a folder is written ./second, a model of the hub {model: "),
    ("teacher: a", "teacher must name an earlier stage or teacher (got a, which is this stage itself)"),
    ("teacher: [teacher, {stage: techer}]", "teacher.1.stage must name an earlier stage or teacher (got techer)"),
    ("teacher: {stage: teacher, model: ./second}", "teacher needs exactly one of stage, model, probabilities, votes"),
    ("teacher: [teacher, teacher]", "teacher names teacher twice; give it once, with a weight"),
    ("teacher: [teacher, {model: ./second, weight: 0}]", "teacher.1.weight must be above 0 (got 0)"),
    ("teacher: {stage: teacher, weight: 2}", "teacher has a weight, which counts beside other teachers alone"),
    ("combine: most_confident, teacher: [teacher, {model: ./second, weight: 2}]", "a weight changes nothing"),
    ("teacher: [teacher, ./gone]", "teacher.1 ./gone does not exist (looked for"),
    ("teacher: [teacher, {votes: {path: gone.jsonl, column: p}}]", "teacher.1 gone.jsonl does not exist (looked for"),
    (
        "teacher: [teacher, {votes: answers.jsonl}]",
        "teacher.1.votes must be a map of path, column (got 'answers.jsonl')",
    ),
    ("student: {init: {from: ./gone}}", "student.init.from ./gone does not exist (looked for"),
    ("student: {init: {from: 3}}", "student.init.from must be a text or a map of path, sha256 (got 3)"),
    ("teacher: ./onnx", "teacher has no layers to make the student of; add student: {init: {from: ...}}"),
    ("teacher: {votes: {path: answers.jsonl, column: p}}", "teacher has no layers to make the student of"),
    ("teacher: ./onnx, student: {init: {from: ./second}}", "match needs a teacher with torch weights for {of: hidden}"),
]


@pytest.mark.parametrize(("settings", "message"), ONE_MISTAKE)
def test_one_mistake_of_a_distill_stage_is_one_line(desk, settings, message):
    (line,) = complaints(desk, PLAIN + f"stages: [{{id: a, distill: {{{settings}}}}}]\n")
    assert message in line
    assert line.startswith("recipe.yaml:3:")
    assert "stages.a.distill." in line


def test_a_student_with_a_checkpoint_of_its_own_may_learn_from_answers_alone(desk):
    stage = distill(desk, "teacher: ./onnx, student: {init: {from: ./second}}, match: [{of: logits}]")
    assert stage.teachers[0].model.path == "./onnx"


def test_a_stage_of_onnx_teaches_but_gives_no_layers(desk):
    stages = "stages: [{{id: q, quantize: {{}}}}, {{id: a, distill: {{teacher: {}}}}}]\n"
    assert load(desk, PLAIN + stages.format("[teacher, q]")).stages[1].references() == {
        "teacher": "teacher",
        "teacher2": "q",
    }
    (line,) = complaints(desk, PLAIN + stages.format("q"))
    assert "reads q, whose output is ONNX without layers to make the student of" in line


def recovering(teacher: str, own: str = "") -> str:
    return PLAIN + f"stages: [{{id: a, distill: {{teacher: {teacher}}}}}, {{id: p, prune: {{recover: {{}}{own}}}}}]\n"


def test_recovery_takes_the_teacher_of_the_distill_stage_where_it_is_one_model(desk):
    first, second = load(desk, recovering("./second")).stages
    filled = second.filled([first])
    assert isinstance(filled, Prune)
    assert {role: source.path for role, source in filled.sources().items()} == {"teacher": "./second"}
    assert "teacher" not in filled.references()


def test_recovery_refuses_to_choose_among_several_teachers(desk):
    (line,) = complaints(desk, recovering("[teacher, ./second]"))
    assert "stages.p.prune.recover needs one teacher, a stage or a model, and a has 2 teachers" in line
    _, second = load(desk, recovering("[teacher, ./second]", ", teacher: a")).stages
    assert second.references()["teacher"] == "a"
    with pytest.raises(InputError, match="a has 2 teachers"):
        Prune.model_validate({"id": "p", "recover": {}}).filled(
            [Distill.model_validate({"id": "a", "teacher": ["teacher", "./second"]})]
        )


def test_a_smoke_run_cuts_every_phase_and_scales_a_checkpoint_by_its_own_width(desk):
    config = json.loads((desk / "second" / "config.json").read_text())
    (desk / "second" / "config.json").write_text(json.dumps({**config, "hidden_size": 768}))
    start = "student: {hidden: 384, heads: 12, init: {from: ./second}}"
    phases = "phases: [{train: {epochs: 9}, match: [{of: relations, heads: 12}]}, {train: {steps: 9}}]"
    small = load(desk, PLAIN + f"stages: [{{id: a, distill: {{{start}, {phases}}}}}]\n").smoke().stages[0]
    assert [phase.train.steps for phase in small.phases] == [2, 2]
    assert small.phases[0].match[0].heads is None
    assert small.student.hidden == 16
