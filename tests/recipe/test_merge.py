import pytest

from compressor.recipe.document import plain, read_document
from compressor.recipe.merge import Loader, builtin_names


def tree(text: str):
    document = read_document(text, "r.yaml")
    assert not document.problems
    return document.root


def merged(first: str, second: str):
    loader = Loader()
    result = plain(loader.merge(tree(first), tree(second)))
    assert not loader.problems, loader.problems
    return result


def with_set(text: str, assignment: str):
    loader = Loader()
    return plain(loader.set_value(tree(text), assignment)), [str(problem) for problem in loader.problems]


def test_maps_merge_deeply_and_lists_replace():
    assert merged("{a: {b: 1, c: [1, 2]}, d: 1}", "{a: {c: [3], e: 4}}") == {"a": {"b": 1, "c": [3], "e": 4}, "d": 1}


def test_stages_merge_by_id_and_new_ones_go_last():
    first = "stages: [{id: a, prune: {steps: 2, until: {macs: 0.5x}}}, {id: b, export: {}}]"
    second = "stages: [{id: c, export: {}}, {id: a, prune: {steps: 3}}]"
    assert merged(first, second)["stages"] == [
        {"id": "a", "prune": {"steps": 3, "until": {"macs": "0.5x"}}},
        {"id": "b", "export": {}},
        {"id": "c", "export": {}},
    ]


def test_another_verb_replaces_the_inherited_one_and_keeps_the_gate():
    found = merged("stages: [{id: a, prune: {steps: 2}, gate: {else: warn}}]", "stages: [{id: a, quantize: {}}]")
    assert found["stages"] == [{"id": "a", "quantize": {}, "gate": {"else": "warn"}}]


def test_drop_removes_an_inherited_stage():
    assert merged("stages: [{id: a, prune: {}}, {id: b, export: {}}]", "stages: [{id: a, drop: true}]")["stages"] == [
        {"id": "b", "export": {}}
    ]


def test_dropping_a_stage_that_is_not_there_suggests_one():
    loader = Loader()
    loader.merge(tree("stages: [{id: slim, prune: {}}]"), tree("stages: [{id: slm, drop: true}]"))
    assert [str(problem) for problem in loader.problems] == [
        "r.yaml:1:10 stages.slm drops a stage that is not there; did you mean slim?"
    ]


def test_extends_goes_left_to_right_with_the_file_last(tmp_path):
    (tmp_path / "a.yaml").write_text("{seed: 1, name: a, vars: {x: 1}}")
    (tmp_path / "b.yaml").write_text("{seed: 2, name: b, vars: {y: 2}}")
    (tmp_path / "c.yaml").write_text("{extends: [a.yaml, b.yaml], name: c}")
    loader = Loader()
    root = loader.file(tmp_path / "c.yaml", name="c.yaml")
    assert plain(root) == {"seed": 2, "name": "c", "vars": {"x": 1, "y": 2}}


def test_a_circle_of_extends_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    loader = Loader()
    loader.file(tmp_path / "a.yaml", name="a.yaml")
    assert "goes round in a circle" in str(loader.problems[0])
    assert len(loader.problems) == 1


def test_unknown_builtins_and_files_get_did_you_mean(tmp_path):
    (tmp_path / "ours.yaml").write_text("seed: 1\n")
    (tmp_path / "a.yaml").write_text("extends: [builtin:text-clasification, our.yaml]\n")
    loader = Loader()
    loader.file(tmp_path / "a.yaml", name="a.yaml")
    assert [str(problem) for problem in loader.problems] == [
        "a.yaml:1:11 extends names no builtin recipe (got builtin:text-clasification); "
        "did you mean builtin:text-classification?",
        "a.yaml:1:39 extends names no file (got our.yaml); did you mean ours.yaml?",
    ]


def test_there_are_builtin_recipes():
    assert builtin_names() == ["text-classification"]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seed=3", {"seed": 3, "stages": [{"id": "a", "prune": {"steps": 1}}]}),
        ("name='3'", {"name": "3", "stages": [{"id": "a", "prune": {"steps": 1}}]}),
        ("stages.a.prune.steps=5", {"stages": [{"id": "a", "prune": {"steps": 5}}]}),
        ("stages.a.gate.accuracy.drop=<= 1pp", None),
        ("data.train=rows=2.csv", {"data": {"train": "rows=2.csv"}, "stages": [{"id": "a", "prune": {"steps": 1}}]}),
    ],
)
def test_set_puts_a_value_at_a_dotted_key(assignment, expected):
    found, problems = with_set("stages: [{id: a, prune: {steps: 1}}]", assignment)
    assert not problems
    if expected is None:
        assert found["stages"][0]["gate"] == {"accuracy": {"drop": "<= 1pp"}}
    else:
        assert found == expected


def test_set_of_a_stage_that_is_not_there_suggests_one():
    _found, problems = with_set("stages: [{id: slim, prune: {}}]", "stages.slm.prune.steps=5")
    assert problems == ["--set stages.slm.prune.steps=5 stages.slm is not in stages (got slm); did you mean slim?"]


@pytest.mark.parametrize("assignment", ["seed", "=3", "a..b=3", "seed.x=3"])
def test_a_set_that_leads_nowhere_is_refused(assignment):
    found, problems = with_set("seed: 1", assignment)
    assert found == {"seed": 1}
    assert len(problems) == 1


def test_vars_keep_their_type_alone_and_become_text_inside_one():
    loader = Loader()
    root = tree("{vars: {n: 64, on: true, w: {a: 1}}, x: '${n}', y: 'data/${n}.csv', z: '${w}', u: '${on}'}")
    found = plain(loader.substitute(root))
    assert (found["x"], found["y"], found["z"], found["u"]) == (64, "data/64.csv", {"a": 1}, True)


def test_an_unknown_variable_is_one_problem():
    loader = Loader()
    loader.substitute(tree("{vars: {length: 64}, data: {max_tokens: '${lenght}'}}"))
    assert [str(problem) for problem in loader.problems] == [
        "r.yaml:1:41 data.max_tokens uses a variable that is not in vars (got '${lenght}'); did you mean length?"
    ]
