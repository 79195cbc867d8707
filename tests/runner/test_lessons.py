"""What a plan says of distillation, and what of it is in a stage's key."""

import shutil
from pathlib import Path

import pytest
import yaml
from tiny import write_reviews

from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.recipe.recipe import Recipe
from compressor.runner.lessons import tokens_a_row
from compressor.runner.plan import plan
from compressor.runner.run import run
from compressor.stages.distill import Distill

DATA = {"train": "reviews.csv", "unlabelled": ["pool.txt"], "text": "review", "label": "stars"}


@pytest.fixture
def home(tmp_path: Path, tiny_classifier: Path, monkeypatch) -> Path:
    shutil.copytree(tiny_classifier, tmp_path / "teacher")
    shutil.copytree(tiny_classifier, tmp_path / "second")
    write_reviews(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"review": "a", "p": null}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_of(home: Path, *stages: dict, **data) -> Recipe:
    path = home / "recipe.yaml"
    whole = {"data": {**DATA, **data}, "teacher": {"model": "./teacher"}, "stages": list(stages)}
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return Recipe.load(path)


def planned(home: Path, **settings) -> dict[str, tuple[str, ...]]:
    lines = plan(recipe_of(home, {"id": "s", "distill": settings}), home / "out")
    return {line.stage: line.details for line in lines}


def test_a_plan_shows_the_pairs_of_every_term_and_what_only_training_tells(home):
    match = [
        {"of": "hidden", "map": "0:0 2:1"},
        {"of": "hidden", "map": "random"},
        {"of": "hidden", "map": "attention"},
        {"of": "attention", "map": "nearest"},
        {"of": "relations"},
    ]
    text = "\n".join(planned(home, match=match)["s"])
    for words in (
        "hidden 0:0 2:1",
        "hidden2 drawn each epoch",
        "hidden3 learned mixture of layers 1 to 2",
        "attention known after the probe",
        "relations 2:1",
        "relations in 4 relation heads",
        "layers 0, 1, 2 in fp16",
    ):
        assert words in text, words


def test_a_plan_names_the_teachers_and_says_which_layers_stay_live(home):
    teacher = ["teacher", {"model": "./second", "weight": 2.0}, {"votes": {"path": "answers.jsonl", "column": "p"}}]
    details = planned(home, teacher=teacher, match=[{"of": "hidden", "map": "1:1 2:1"}], cache="200kB")["s"]
    assert "taught by teacher, ./second (weight 2), votes in answers.jsonl; answers by mean" in details
    (cache,) = [line for line in details if line.startswith("teacher cache")]
    assert "layer 1 in int8" in cache
    assert "computed at every step: layer 2" in cache


def test_a_plan_says_when_augmentation_keeps_the_teacher_at_work(home):
    live = planned(home, mix={"augment": {"mask": 0.1}})["s"]
    assert any("computed at every step" in line for line in live)
    kept = planned(home, mix={"augment": {"mask": 0.1, "views": 3}})["s"]
    assert any("in 3 views" in line for line in kept)


def test_a_plan_counts_the_trainings_of_controls_and_phases(home):
    found = planned(home, control=True, phases=[{"train": {"epochs": 1.0}}, {"train": {"epochs": 2.0}}])["s"]
    assert found[-1] == (
        "control: 3 more trainings without a teacher, one for each learning rate, and one without unlabelled rows; "
        "about 1 min more"
    )
    assert {line.split(":")[0] for line in found} >= {"phase 1", "phase 2"}


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"of": "hidden", "map": "9:1"}, r"stages\.s: match hidden: map '9:1' names teacher layer 9"),
        ({"of": "attention", "map": "0:1"}, r"stages\.s: match attention: .*embeddings have no attention"),
        ({"of": "relations", "heads": 7}, r"stages\.s: .*heads must divide the student's 32 channels"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_before_anything_is_made(home, match, message):
    recipe = recipe_of(home, {"id": "s", "distill": {"match": [match]}})
    with pytest.raises(InputError, match=message):
        plan(recipe, home / "out")
    with pytest.raises(InputError, match=message):
        run(recipe, home / "out")
    assert not (home / "out" / "stages").exists()


def test_a_model_that_is_not_here_is_known_after_download_and_the_network_is_left_alone(home):
    stages = [{"id": "s", "distill": {"teacher": ["teacher", "nobody/there"]}}]
    run(recipe_of(home, {"id": "e", "export": {}}).smoke(), home / "out")
    lines = plan(recipe_of(home, *stages).smoke(), home / "out")
    assert [(line.status, line.reason) for line in lines] == [
        ("HIT", lines[0].reason),
        ("MISS", "known after download of nobody/there"),
    ]


def key_settings(**settings) -> dict:
    return Distill.model_validate({"id": "s", **settings}).key_settings()


def test_the_key_holds_what_teachers_are_and_not_where_they_lie():
    assert key_settings(teacher="a") == key_settings(teacher="./b")
    heavy = [{"stage": "a", "weight": 2.0}, {"stage": "b"}]
    assert key_settings(teacher=["a", "b"]) != key_settings(teacher=heavy)
    moved = [{"votes": {"path": name, "column": "v"}} for name in ("x.jsonl", "y.jsonl")]
    assert key_settings(teacher=moved[0]) == key_settings(teacher=moved[1])
    other = {"votes": {"path": "x.jsonl", "column": "w"}}
    assert key_settings(teacher=moved[0]) != key_settings(teacher=other)
    start = [{"init": {"from": name}} for name in ("./x", "./y")]
    assert key_settings(student=start[0]) == key_settings(student=start[1])


def test_a_changed_answers_file_and_a_changed_share_of_a_pool_are_in_the_key(home):
    teacher = ["teacher", {"votes": {"path": "answers.jsonl", "column": "p"}}]
    recipe = recipe_of(home, {"id": "s", "distill": {"teacher": teacher}})

    def key(recipe: Recipe) -> dict:
        from compressor.runner.chain import Chain, stages_of
        from compressor.runner.directory import RunDirectory
        from compressor.runner.prepare import prepare
        from compressor.stage import silent

        found = prepare(recipe, progress=silent)
        chain = Chain(
            RunDirectory(home / "out"), recipe, found.data, found.source, threads=1, device="cpu", smoke=False,
            sources=found.sources, outputs={"teacher": home / "teacher"},
        )  # fmt: skip
        return chain.key(stages_of(recipe)[1], "teacher")[1]

    before = key(recipe)
    assert set(before["inputs"]) == {"teacher", "teacher2"}
    (home / "answers.jsonl").write_text('{"review": "a", "p": "good"}\n')
    after = key(recipe)
    assert before["inputs"]["teacher"] == after["inputs"]["teacher"]
    assert before["inputs"]["teacher2"] != after["inputs"]["teacher2"]
    texts = (home / "pool.txt").read_text().splitlines()
    for name, part in (("one.txt", texts[:60]), ("two.txt", texts[60:])):
        (home / name).write_text("\n".join(part) + "\n")
    plain, shared = (
        recipe_of(home, {"id": "s", "distill": {}}, unlabelled=[{"path": "one.txt", **share}, {"path": "two.txt"}])
        for share in ({}, {"share": 0.25})
    )
    assert key(plain)["rows"]["unlabelled"] != key(shared)["rows"]["unlabelled"]
    assert key(plain)["rows"]["train"] == key(shared)["rows"]["train"]


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (("one two three four",), 2 + 4 * 1.35),
        (("好电影",), 2 + 3),
        (("看 BERT 好",), 2 + 2 + 1.35),
        ((("a b", "c"),), 2 + 3 * 1.35),
        (("word " * 1000,), 16),
        ((), 32),
    ],
)
def test_tokens_of_a_row_are_guessed_from_words_and_signs(texts, wanted):
    none = Rows((), ())
    train = Rows(tuple(texts), (0,) * len(texts))
    data = DataSets(Task(), ("a", "b"), ("text",), 16, train=train, select=none, test=None, unlabelled=none)
    assert tokens_a_row(data) == pytest.approx(wanted)
