import json
from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.recipe.recipe import Recipe, schema
from compressor.recipe.template import TEMPLATE
from compressor.settings import Ramp
from compressor.stages.verbs import VERBS

PLAIN = """\
data: {train: train.csv}
teacher: {model: ./teacher}
"""


def load(project: Path, text: str, sets: tuple[str, ...] = ()) -> Recipe:
    path = project / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path, sets)


def complaints(project: Path, text: str, sets: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(project, text, sets)
    return [str(problem).replace(str(project / "recipe.yaml"), "recipe.yaml") for problem in caught.value.problems]


TEN_MISTAKES = """\
version: 1
name: ten
seed: 17
seed: 18
data:
  train: {path: train.csv}
  test: gone.csv
  text: review
  labels: [positive, negative]
  max_tokens: many
teacher: {model: ./teacher}
stages:
  - id: student
    distill: {student: {layers: 1, hiden: 384}, teacher: slim}
  - id: slim
    prune: {until: {heads: 50}}
  - id: int8
    quantise: {try: [dynamic]}
budget: {size: 40}
"""


def test_ten_mistakes_are_ten_problems_each_with_place_value_and_advice(project):
    found = complaints(project, TEN_MISTAKES)
    expected = [
        ("recipe.yaml:4:1 seed is written twice", "line 3", "remove one"),
        ("recipe.yaml:7:9 data.test", "gone.csv", ""),
        ("recipe.yaml:8:9 data.text", "review", "text"),
        ("recipe.yaml:9:11 data.labels", "(got positive, negative)", "negative, positive"),
        ("recipe.yaml:10:15 data.max_tokens must be a whole number", "(got 'many')", "such as 128"),
        ("recipe.yaml:14:36 stages.student.distill.student.hiden is not", "(got 384)", "did you mean hidden?"),
        ("recipe.yaml:14:58 stages.student.distill.teacher must name", "(got slim,", "choose from teacher"),
        ("recipe.yaml:16:28 stages.slim.prune.until.heads must be a share", "(got 50)", "write 0.5x"),
        ("recipe.yaml:18:5 stages.int8.quantise is not a verb", "(got quantise)", "did you mean quantize?"),
        ("recipe.yaml:19:16 budget.size must be a comparison with a unit", "(got 40)", "'<= 40MB'"),
    ]
    assert len(found) == len(expected) == 10, "\n".join(found)
    for line, (start, given, advice) in zip(found, expected, strict=True):
        assert line.startswith(start)
        assert given in line
        assert advice in line


ONE_MISTAKE = [
    ("sed: 3", "sed is not a key here (got 3); did you mean seed?"),
    ("seed: '17'", "seed must be a whole number such as 17 (got '17'); write 17 without quotes"),
    ("seed: -1", "seed must be at least 0 (got -1); choose a larger one"),
    ("seed: true", "seed must be a whole number such as 17 (got true)"),
    ("version: 2", "version must be 1 (got 2); write 1, for example"),
    ("name: a/b", "name must be usable as a folder's name (got 'a/b'); use letters"),
    ("name: 5", "name must be a text such as recipe (got 5); quote it: '5'"),
    ("task: {kind: text-clasification}", "task.kind must be text-classification (got 'text-clasi"),
    ("budget: {acuracy: {drop: '<= 1pp'}}", "budget.acuracy is neither a metric nor a key here"),
    ("budget: {accuracy: {drop: 1}}", "budget.accuracy.drop must be a comparison with a unit such as"),
    ("budget: {accuracy: {dorp: '<= 1pp'}}", "budget.accuracy.dorp is not a key here (got '<= 1pp'); did you"),
    ("budget: {accuracy: {drop: '<= 1ms'}}", "budget.accuracy.drop must look like '<= 0.8pp' or '<= 1%'"),
    ("budget: {accuracy: {drop: '<= 1pp', vs: nobody}}", "budget.accuracy.vs must name a stage or teacher"),
    ("budget: {size: '<= 2pp'}", "budget.size must look like '<= 40MB' (got '<= 2pp')"),
    ("budget: {latency: {p50: 5}}", "budget.latency.p50 must be a comparison with a unit such as '<= 0.1x' (got 5)"),
    ("budget: [1]", "budget must be a map of latency, size, undecided, confidence (got a list of 1)"),
    ("budget: {accuracy@up: '>= 3pp'}\ndata: {train: train.csv, labels: [negative, positive]}", "accuracy@up names"),
    ("benchmark: {targets: [cqu]}", "benchmark.targets.0 names no target (got cqu); did you mean cpu?"),
    ("sweep: {seed: [1, 2]}", "sweep is not available in this version; write one recipe"),
    ("stages: []", "stages must be a list of stages (got a list of 0); write at least"),
    ("stages: [{id: a}]", "stages.a has no verb; add one of finetune, distill, prune"),
    ("stages: [{export: {}}]", "stages.0 has no id; add a name such as id: student"),
    ("stages: [{id: a, export: {}, prune: {}}]", "stages.a has 2 verbs (got export, prune); make a stage of each"),
    ("stages: [{id: a, export: 3}]", "stages.a.export must be a map of settings (got 3)"),
    ("stages: [{id: teacher, export: {}}]", "stages.teacher.id is reserved (got 'teacher')"),
    ("stages: [{id: a/b, export: {}}]", "stages.a/b.id must match"),
    ("stages: [{id: 3, export: {}}]", "stages.3.id must be a text (got 3); quote it: '3'"),
    ("stages: [{id: a, export: {}}, {id: a, export: {}}]", "stages.a.id is used twice (first in recipe.yaml:1:15)"),
    ("stages: [{id: a, form: b, export: {}}]", "stages.a.form is not a key of a stage (got form); did"),
    ("stages: [{id: a, export: {from: teacher}}]", "stages.a.export.from belongs beside export:, not inside it"),
    ("stages: [{id: a, drop: true}]", "stages.a drops a stage"),
    ("stages: [{id: a, from: a, export: {}}]", "stages.a.from must name an earlier stage or teacher"),
    ("stages: [{id: q, quantize: {}}, {id: p, prune: {}}]", "stages.p.prune reads q, whose output is ONNX"),
    (
        "stages: [{id: a, distill: {mix: {unlabelled: {ratio: 70}}}}]",
        "ratio must be at least 0 and below 1 (got 70); write 0.7 for 70 percent",
    ),
    (
        "stages: [{id: a, distill: {match: [{of: label}]}}]",
        "match.0.of must be one of logits, labels, hidden, attention, relations, embeddings (got 'lab",
    ),
    ("stages: [{id: a, distill: {match: [{loss: kl}]}}]", "match.0 must say what it is: add of: logits"),
    ("stages: [{id: a, distill: {match: []}}]", "stages.a.distill.match must have at least 1 entries"),
    (
        "stages: [{id: a, distill: {match: [{of: logits, temperature: {from: 4, too: 1}}]}}]",
        "stages.a.distill.match.0.temperature.too is not a key here (got 1); did you mean to?",
    ),
    (
        "stages: [{id: a, distill: {match: [{of: logits, temperature: hot}]}}]",
        "stages.a.distill.match.0.temperature must be a number or a map of from, to, over, shape (got 'hot')",
    ),
    (
        "stages: [{id: a, distill: {match: [{of: logits, temperature: 0}]}}]",
        "stages.a.distill.match.0.temperature must be above 0 (got 0)",
    ),
    ("stages: [{id: a, distill: {train: {epochs: 1, steps: 2}}}]", "train takes epochs or steps, not"),
    ("stages: [{id: a, prune: {until: {macs: 0.5x, heads: 0.5x}}}]", "until takes exactly one of macs, parameters"),
    ("stages: [{id: a, prune: {}, gate: {acuracy: '>= 3pp'}}]", "stages.a.gate.acuracy is neither a metric nor a key"),
    ("stages: [{id: a, prune: {}, gate: {accuracy: '>= 3%'}}]", "gate.accuracy must look like '>= 84pp'"),
    ("stages: [{id: a, prune: {}, gate: {else: backtrak}}]", "stages.a.gate.else must be one of fail, backtrack"),
    ("stages: [{id: a, prune: {}, gate: {accuracy: {drop: '<= 1pp', vs: b}}}, {id: b, export: {}}]", "(got b, which"),
    ("data: {train: {path: train.csv, sha256: abc}}", "data.train.sha256 must be a SHA-256 of 64 hex digits"),
    ("data: {train: train.csv, select: {shar: 0.1}}", "data.select.shar is not a key here (got 0.1); did"),
    ("data: {train: train.csv, select: {share: 10}}", "data.select.share must be at most 1 (got 10); write 0.1 for 10"),
    ("data: {train: train.csv, select: {pth: train.csv}}", "data.select.pth is not a key here (got 'train"),
    ("data: {tran: train.csv}", "data.tran is not a key here (got 'train.csv'); did you mean train?"),
    ("data: {train: '${1}'}", "data.train has a '${' that names no variable (got '${1}'); write '${name}'"),
    ("vras: {t: train.csv}\ndata: {train: '${t}'}", "vras is not a key here (got a map of t); did you mean vars?"),
    ("vars: {t: '${u}'}\ndata: {train: '${t}'}", "vars.t uses another variable (got '${u}'); write its value out"),
    ("stages: [{id: '${u}', export: {}}]", "id uses a variable that is not in vars (got '${u}')"),
    ("stages: '${u}'", "stages uses a variable that is not in vars (got '${u}')"),
    ("vars: [1]\ndata: {train: '${t}'}", "vars must be a map of names to values"),
    ("stages: [{iq: a, export: {}}]", "stages.0.iq is not a key of a stage (got iq); choose from id, from, gate"),
    ("data: {text: text}", "data.train is missing; add train:"),
    ("data: {train: '${where}'}", "data.train uses a variable that is not in vars (got '${where}')"),
    ("teacher: {model: ./nobody}", "teacher.model ./nobody does not exist"),
    ("teacher: {model: ./teacher, expect: {accuracy: {drop: '<= 1pp'}}}", "teacher.expect.accuracy must"),
]


@pytest.mark.parametrize(("line", "message"), ONE_MISTAKE)
def test_one_mistake_is_one_problem(project, line, message):
    keys = {part.split(":")[0] for part in line.split("\n")}
    rest = "".join(part + "\n" for part in PLAIN.splitlines() if part.split(":")[0] not in keys)
    found = complaints(project, line + "\n" + rest)
    assert len(found) == 1, "\n".join(found)
    assert message in found[0]
    assert found[0].startswith("recipe.yaml:")


def test_everything_but_data_and_teacher_has_a_default(project):
    recipe = load(project, PLAIN)
    assert (recipe.name, recipe.seed, recipe.base) == ("recipe", 17, project.resolve())
    assert [(stage.id, stage.verb) for stage in recipe.stages] == [
        ("student", "distill"),
        ("slim", "prune"),
        ("int8", "quantize"),
        ("ship", "export"),
    ]
    assert list(recipe.targets) == ["cpu", "gpu"]


def test_the_stages_that_a_recipe_gets_without_stages_are_those_it_can_extend(project):
    assert load(project, PLAIN).stages == load(project, "extends: builtin:text-classification\n" + PLAIN).stages


def test_settings_reach_the_stage(project):
    term = "{of: logits, temperature: {from: 4, to: 1}}"
    text = PLAIN + f"stages: [{{id: a, distill: {{match: [{term}]}}}}, {{id: b, export: }}]\n"
    first, second = load(project, text).stages
    assert first.match[0].temperature == Ramp.model_validate({"from": 4, "to": 1})
    assert second.to == "onnx"


def test_set_comes_last(project):
    text = "vars: {tokens: 32}\n" + PLAIN.replace("train.csv", "train.csv, max_tokens: '${tokens}'")
    assert load(project, text).data.max_tokens == 32
    assert load(project, text, ("vars.tokens=64",)).data.max_tokens == 64
    assert load(project, text, ("stages.slim.prune.steps=7", "stages=~")).stages[1].steps == 2


def test_a_wrong_set_is_a_problem_of_the_command_line(project):
    assert complaints(project, PLAIN, ("seed=x",)) == ["--set seed=x seed must be a whole number such as 17 (got 'x')"]


def test_resolved_loads_again_from_anywhere_to_an_equal_recipe(project, tmp_path_factory):
    text = PLAIN.replace("train.csv", "{path: train.csv, columns: ['1e5', text, label]}, text: text") + (
        "extends: builtin:text-classification\n"
        "seed: 3\n"
        "budget: {accuracy: {drop: '<= 2pp'}, accuracy@negative: '>= 10pp', size: '<= 40MB',"
        " latency: {p50: '<= 0.1x'}}\n"
        "stages: [{id: int8, drop: true}, {id: slim, gate: {else: warn, accuracy@positive: '>= 1pp'}}]\n"
    )
    recipe = load(project, text)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "recipe.resolved.yaml"
    elsewhere.write_text(recipe.resolved(), encoding="utf-8")
    again = Recipe.load(elsewhere)
    assert again == recipe
    assert again.resolved() == recipe.resolved()


def test_label_order_is_compared_with_the_teacher_only_if_its_head_is_kept(project):
    text = PLAIN.replace("train.csv", "train.csv, labels: [positive, negative]")
    (line,) = complaints(project, text)
    assert "data.labels is in another order than in the teacher's config.json (got positive, negative)" in line
    assert "write the classes in the order negative, positive" in line
    assert load(project, text.replace("./teacher", "./teacher, finetune: {}")).data.labels == ["positive", "negative"]


def test_the_order_of_bins_is_the_order_of_labels(project):
    rows = (project / "train.csv").read_text().replace("positive", "1").replace("negative", "-1")
    (project / "train.csv").write_text(rows)
    bins = "train.csv, label: {column: label, bins: {positive: '> 0.5', negative: '< -0.5'}}"
    (line,) = complaints(project, PLAIN.replace("train.csv", bins))
    assert "data.label.bins is in another order" in line


def test_smoke_scales_widths_and_heads_and_never_stops_at_a_gate(project):
    text = PLAIN + (
        "extends: builtin:text-classification\n"
        "stages: [{id: student, distill: {student: {layers: 1, hidden: 192, heads: 6, ffn: 768}}}]\n"
    )
    small = load(project, text).smoke()
    student, slim, int8, _ship = small.stages
    assert (student.student.layers, student.student.hidden, student.student.heads) == (1, 16, 2)
    assert student.student.ffn == 32
    assert student.train.steps == slim.recover.train.steps == 2
    assert student.train.epochs is None
    assert slim.gate.otherwise == int8.gate.otherwise == "warn"
    assert small.smoke_rows == 64
    assert load(project, text).smoke_rows is None


def test_a_smoke_recipe_without_given_widths_keeps_the_teachers(project):
    assert load(project, PLAIN).smoke().stages[0].student.hidden is None


@pytest.mark.parametrize("schemes", ["dynamic, static", "qat"])
def test_smoke_changes_no_setting_that_its_scheme_does_not_read(project, schemes):
    text = PLAIN + f"stages: [{{id: int8, quantize: {{try: [{schemes}]}}}}]\n"
    int8 = load(project, text).smoke().stages[0]
    assert int8.qat.train.steps == (2 if schemes == "qat" else None)
    assert type(int8)(**int8.model_dump()) == int8


def test_the_schema_describes_every_verb_without_the_keys_beside_it():
    found = schema()
    json.dumps(found)
    stage = found["properties"]["stages"]["items"]["properties"]
    assert set(VERBS) < set(stage)
    for verb in VERBS:
        name = stage[verb]["anyOf"][0]["$ref"].rpartition("/")[2]
        assert not {"id", "from", "gate"} & set(found["$defs"][name]["properties"])


def test_the_template_is_a_recipe(project):
    (project / "data").mkdir()
    (project / "train.csv").rename(project / "data" / "train.csv")
    (project / "teacher").rename(project / "my-fine-tuned-bert")
    recipe = load(project, TEMPLATE)
    assert recipe.name == "my-classifier"
    assert len(recipe.stages) == 4


def test_a_missing_recipe_suggests_one(project):
    load(project, PLAIN)
    with pytest.raises(RecipeError, match=r"is no file; did you mean .*recipe\.yaml"):
        Recipe.load(project / "recpie.yaml")


@pytest.mark.parametrize("text", ["", "[1, 2]", "hello", "3"])
def test_what_is_no_map_is_one_problem(project, text):
    (line,) = complaints(project, text)
    assert "must be a map of keys such as data: and teacher:" in line


def test_a_gate_action_that_the_verb_cannot_do_is_refused(project):
    stage = "{id: student, distill: {}, gate: {accuracy: {drop: '<= 1pp'}, else: backtrack}}"
    path = project / "gate.yaml"
    path.write_text(f"data: {{train: train.csv}}\nteacher: {{model: ./teacher}}\nstages: [{stage}]\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert (
        "stages.student.gate.else is not something that distill can do (got backtrack); it can fail, skip, warn"
        in str(caught.value)
    )


def test_set_reaches_a_setting_of_the_default_stages(project):
    path = project / "short.yaml"
    path.write_text("data: {train: train.csv}\nteacher: {model: ./teacher}\n")
    recipe = Recipe.load(path, ["stages.slim.prune.steps=4"])
    assert next(stage for stage in recipe.stages if stage.id == "slim").steps == 4
    assert [stage.id for stage in recipe.stages] == [stage.id for stage in Recipe.load(path).stages]


def test_a_pruning_that_could_change_nothing_is_refused_before_anything_runs(project):
    path = project / "prune.yaml"
    path.write_text(
        "data: {train: train.csv}\nteacher: {model: ./teacher}\nstages: [{id: slim, prune: {until: {heads: 0.5x}}}]\n"
    )
    with pytest.raises(RecipeError, match=r"heads alone, so remove\.ffn would do nothing"):
        Recipe.load(path)
