"""`folds`: every labelled row is answered once, by a run that never saw its text; figures are those of the answers."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score
from tiny import make_reviews, write_reviews
from typer.testing import CliRunner

from compressor.cli import app
from compressor.data.rows import Rows
from compressor.errors import InputError
from compressor.evaluate.settings import Budget
from compressor.recipe.recipe import Recipe
from compressor.report.out_of_fold import FoldAnswers, OutOfFold, out_of_fold_report
from compressor.runner import run as runner_run
from compressor.runner.fold_rows import divide, fold_recipe, labelled_rows
from compressor.runner.folds import ending, run_folds, seen_elsewhere
from compressor.runner.prepare import prepare
from compressor.stage import silent

TRAIN = {"epochs": 2, "learning_rate": 3e-3, "batch_rows": 8}
RECIPE = {
    "version": 1,
    "data": {
        "train": "few.csv",
        "test": "test.csv",
        "unlabelled": [{"path": "pool.txt", "share": 0.75}, {"path": "second.txt", "share": 0.25}],
        "text": "review",
        "label": "stars",
    },
    "teacher": {"model": "./my-bert", "finetune": {"train": TRAIN}},
    "stages": [{"id": "student", "distill": {"student": {"layers": 1}, "train": TRAIN}}],
    "budget": {"accuracy": {"drop": "<= 99pp"}, "latency": {"p50": "<= 0.001x"}},
}
LABELLED = make_reviews(64, seed=5)
REPEATED = LABELLED[50]
"""A row that stands twice in the test file."""


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("review", "stars"), *rows])


def write_recipe(home: Path, name: str = "tiny", **changes) -> Path:
    path = home / f"{name}.yaml"
    path.write_text(json.dumps({**RECIPE, **changes}))
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_bert, tiny_classifier):
    """Few rows, two pools and the models."""
    folder = tmp_path_factory.mktemp("folds")
    shutil.copytree(tiny_bert, folder / "my-bert")
    shutil.copytree(tiny_classifier, folder / "given")
    write_reviews(folder, count=0, pool=60)
    (folder / "second.txt").write_text("".join(f"{text}\n" for text, _ in make_reviews(30, seed=8)))
    write_rows(folder / "few.csv", LABELLED[:44])
    write_rows(folder / "test.csv", [*LABELLED[44:], REPEATED])
    return folder


@pytest.fixture(scope="module")
def done(home):
    """Two folds through the command line, and what it printed; on one thread, which is faster for a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_run, "usable_threads", lambda: 1)
        yield home / "out", folds_of(home)


def folds_of(home: Path) -> str:
    result = CliRunner().invoke(app, ["folds", str(write_recipe(home)), "--k", "2", "--out", str(home / "out")])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_labelled_row_is_tested_exactly_once(done):
    folder, _ = done
    tested = [(row["review"], row["label"]) for n in (1, 2) for row in lines_of(folder / f"fold-{n}/rows/test.jsonl")]
    assert sorted(tested) == sorted([*LABELLED, REPEATED])
    assert [(row["text"], row["label"]) for row in lines_of(folder / "answers.jsonl")].count(REPEATED) == 2


def test_no_text_of_a_fold_is_among_what_its_run_reads(done):
    folder, _ = done
    labelled = {text for text, _ in LABELLED}
    for number in (1, 2):
        rows = folder / f"fold-{number}" / "rows"
        tested = {row["review"] for row in lines_of(rows / "test.jsonl")}
        parts = {path.stem: [row["review"] for row in lines_of(path)] for path in rows.glob("*.jsonl")}
        assert sorted(parts) == ["select", "test", "train", "unlabelled-1", "unlabelled-2"]
        known = [text for name, texts in parts.items() if name != "test" for text in texts]
        assert tested.isdisjoint(known)
        assert sorted(parts["train"] + parts["select"]) == sorted(labelled - tested)
        assert len(parts["unlabelled-1"]) == 60
        recipe = Recipe.load(folder / f"fold-{number}" / "recipe.resolved.yaml")
        assert [source.share for source in recipe.data.unlabelled] == [0.75, 0.25]
        assert recipe.benchmark.baselines == []
        counts = json.loads((folder / f"fold-{number}/report/report.json").read_text())["data"]
        assert (counts["train"], counts["select"]) == (len(parts["train"]), len(parts["select"]))
        assert counts["removed"] == {"leaked": 0, "duplicate": 0, "empty": 0}


def test_the_figures_are_those_of_the_pooled_answers(done):
    folder, _ = done
    found, rows = json.loads((folder / "folds.json").read_text()), lines_of(folder / "answers.jsonl")
    label, teacher, final = ([row[who] for row in rows] for who in ("label", "teacher", "final"))
    assert found["rows"] == len(rows) == 65
    assert found["teacher"]["value"] == pytest.approx(accuracy_score(label, teacher))
    assert found["final"]["value"] == pytest.approx(accuracy_score(label, final))
    assert found["drop"]["value"] == pytest.approx(accuracy_score(label, teacher) - accuracy_score(label, final))
    assert found["agreement"]["value"] == pytest.approx(accuracy_score(teacher, final))
    broken = sum(t == y != f for y, t, f in zip(label, teacher, final, strict=True))
    fixed = sum(f == y != t for y, t, f in zip(label, teacher, final, strict=True))
    assert (found["flips"]["lost"], found["flips"]["won"]) == (broken, fixed)
    expected = stats.binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert found["p_value"] == pytest.approx(expected)
    for key in ("teacher", "final", "drop", "agreement"):
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]
    for number, one in enumerate(found["folds"], 1):
        own = [row for row in rows if row["fold"] == number]
        assert one["rows"] == len(own)
        assert one["final"] == pytest.approx(accuracy_score([r["label"] for r in own], [r["final"] for r in own]))
    assert [(row["what"], row["verdict"]) for row in found["budgets"]] == [("accuracy.drop", "pass")]


def test_the_answers_are_those_of_the_deployed_model(done):
    from compressor.runtime.predictor import load

    folder, _ = done
    rows = [row for row in lines_of(folder / "answers.jsonl") if row["fold"] == 2]
    predictor = load(folder / "fold-2" / "final", engine="onnxruntime", threads=1)
    ids = predictor.logits([row["text"] for row in rows]).argmax(-1)
    assert [predictor.manifest.labels[place] for place in ids] == [row["final"] for row in rows]


def test_page_and_table_say_the_figures_and_the_doubts(done):
    folder, printed = done
    found, page = json.loads((folder / "folds.json").read_text()), (folder / "folds.md").read_text()
    score = f"{100 * found['final']['value']:.1f}"
    for text in (page, printed):
        assert score in text
        assert "rows fixed and" in text
        assert "1 text stands more than once" in text
        assert "not fine-tuned" not in text
    shown = printed[printed.index("tiny: accuracy on 65 rows in 2 folds") :].splitlines()
    assert max(map(len, shown[:-1])) <= 100
    assert "compress folds" in page


def test_finished_folds_are_skipped_and_json_is_alone_on_stdout(done, home):
    folder, _ = done
    words = ["folds", str(home / "tiny.yaml"), "--k", "2", "--out", str(folder)]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("fold-*/stages/*/stage.json")}
    assert len(before) == 4
    result = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(result.stdout) == json.loads((folder / "folds.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_models_and_answers_from_outside_are_doubts_as_they_may_know_the_rows(home):
    (home / "votes.jsonl").write_text("".join(json.dumps({"review": text, "v": y}) + "\n" for text, y in LABELLED))

    def doubts(teacher: dict, *teachers) -> str:
        stage = {"id": "s", "distill": {"teacher": list(teachers)} if teachers else {}}
        recipe = Recipe.load(write_recipe(home, "outside", teacher=teacher, stages=[stage]))
        return " ".join(seen_elsewhere(recipe, prepare(recipe, progress=silent)))

    tuned = {"finetune": {"train": TRAIN}}
    assert "not fine-tuned in this recipe: ./given may have been trained on these very rows" in doubts(
        {"model": "./given"}
    )
    assert "goes on from ./given, a classifier fine-tuned elsewhere" in doubts({"model": "./given", **tuned})
    own = {"model": "./my-bert", **tuned}
    assert doubts(own) == ""
    assert "s takes ./given, a classifier" in doubts(own, "teacher", "./given")
    votes = {"votes": {"path": "votes.jsonl", "column": "v"}}
    assert "s learns from votes.jsonl: whoever gave these answers" in doubts(own, "teacher", votes)


def part_of(references: list[int], teacher: list[int], student: list[int], ended: str | None = None) -> FoldAnswers:
    made = {"teacher": np.array(teacher), "student": np.array(student)}
    return FoldAnswers("fold-1", 8, 2, "teacher" if ended else "student", ended, np.array(references), made)


def figures(*parts: FoldAnswers, budget: dict | None = None) -> OutOfFold:
    held = Budget.model_validate(budget or {})
    return out_of_fold_report("r", parts, ["a", "b"], metric="accuracy", budget=held, doubts=(), command="again")


def test_a_gate_that_ended_a_fold_is_told_and_gives_the_exit_code():
    good, broken = (
        part_of([0, 1], [0, 1], [0, 0]),
        part_of([0, 1], [0, 1], [1, 1], ended="stage student broke its gate"),
    )
    found = figures(good, broken)
    assert (found.final.value, found.flips.lost) == (0.75, 1)
    assert [one.stage for one in found.folds] == ["student", "teacher"]
    assert found.doubts[0] == "fold 2: stage student broke its gate."
    assert "different stages: student, teacher" in found.doubts[1]
    assert ending(found, [0, 3], Budget()) == (3, "fold-1: stage student broke its gate")
    assert ending(found, [0, 4], Budget())[0] == 4


@pytest.mark.parametrize(
    ("budget", "verdict", "code"),
    [
        ({}, "none", 0),
        ({"accuracy": ">= 60pp"}, "pass", 0),
        ({"accuracy": {"drop": "<= 1pp"}}, "fail", 3),
        ({"accuracy": {"drop": "<= 25pp"}}, "undecided", 0),
        ({"accuracy": {"drop": "<= 25pp"}, "undecided": "fail"}, "undecided", 4),
        ({"size": "<= 1MB", "latency": {"p50": "<= 1ms"}}, "none", 0),
    ],
)
def test_limits_of_scores_are_held_against_all_rows_and_no_others(budget, verdict, code):
    part = part_of([0, 1] * 20, [0, 1] * 20, [0, 1, 0, 0] * 10)  # a quarter is broken
    found = figures(part, part, budget=budget)
    assert (found.verdict, ending(found, [0, 0], Budget.model_validate(budget))[0]) == (verdict, code)
    assert found.drop.value == 0.25


def test_folds_are_drawn_by_the_seed_class_by_class_and_keep_copies_together():
    draw = random.Random(3)
    labels = [draw.choice([0, 0, 0, 1, 2]) for _ in range(200)]
    texts = [f"text {place}" for place in range(200)]
    rows = Rows((*texts, *texts[:30]), (*labels, *labels[:30]))
    held = divide(rows, ["a", "b", "c"], 7, seed=1)
    assert sorted(place for fold in held for place in fold) == list(range(230))
    fold_of = {place: number for number, fold in enumerate(held) for place in fold}
    assert all(fold_of[place] == fold_of[200 + place] for place in range(30))
    for label in range(3):
        counts = [sum(labels[place] == label for place in fold if place < 200) for fold in held]
        assert max(counts) - min(counts) <= 1
    assert held == divide(rows, ["a", "b", "c"], 7, seed=1)
    assert held != divide(rows, ["a", "b", "c"], 7, seed=2)


@pytest.mark.parametrize(
    ("text", "label"), [("label", "n"), (["label", "class"], "n"), ([0, 1], 2), (1, 2)], ids=["one", "pair", "0 1", "1"]
)
def test_the_rows_of_a_fold_are_read_back_as_they_were_whatever_their_columns_are_called(home, text, label):
    odd = [f'{text}, "quoted"\u2028 and {place}\t' for place, (text, _) in enumerate(LABELLED)]
    rows = list(zip(odd, reversed(odd), ["1", "2"] * 32, strict=True))
    with (home / "odd.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows if label == 2 else [("label", "class", "n"), *rows])
    data = {"train": "odd.csv", "text": text, "label": label}
    recipe = Recipe.load(write_recipe(home, "odd", data={**data, "split": {"test": 10, "select": 20}}))
    before = prepare(recipe, progress=silent).data
    rows = labelled_rows(before)
    held = divide(rows, before.labels, 4, seed=0)
    assert len(rows) == 64
    after = prepare(fold_recipe(recipe, before, rows, held[1], home / "odd-rows"), progress=silent).data
    assert after.test == rows.take(held[1])
    assert after.labels == before.labels == ("1", "2")
    assert after.text_columns == before.text_columns
    assert len(after.select) == pytest.approx(20 / 54 * 48, abs=2)
    assert sorted((*after.train.texts, *after.select.texts, *after.test.texts)) == sorted(rows.texts)


@pytest.mark.parametrize(
    ("k", "data", "message"),
    [
        (1, {}, r"folds must be 2 or more \(got 1\)"),
        (40, {}, r"class 'bad' has fewer different texts \(32, in 3[23] labelled rows\) than the 40 folds"),
        (2, {"label": "none"}, "no row has a label"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_made(home, k, data, message):
    (home / "blank.csv").write_text("review,none\n" + "".join(f"{text},\n" for text, _ in LABELLED))
    changed = {**RECIPE["data"], **data} | ({"train": "blank.csv", "test": "blank.csv"} if data else {})
    with pytest.raises(InputError, match=message):
        run_folds(write_recipe(home, "refused", data=changed), home / "refused", k=k)
    assert not (home / "refused").exists()


@pytest.mark.parametrize("k", [3, 5])
def test_folds_of_another_number_are_kept(home, done, k):
    folder, _ = done
    before = (folder / "folds.json").read_bytes()
    with pytest.raises(InputError, match=f"holds 2 folds, and --k {k} divides the rows otherwise; give another --out"):
        run_folds(home / "tiny.yaml", folder, k=k)
    assert (folder / "folds.json").read_bytes() == before


def test_the_directory_of_a_run_is_refused(home, done):
    folder, _ = done
    with pytest.raises(InputError, match="is the directory of a run; give another one with --out"):
        run_folds(home / "tiny.yaml", folder / "fold-1", k=2)
