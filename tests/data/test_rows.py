import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import compressor
from compressor.data.rows import DataSets, Rows, check_columns, open_data
from compressor.data.settings import Data
from compressor.errors import InputError

MOVIES = {
    "path": "pypi://vaderSentiment==3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    "!/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "sha256": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "format": "tsv",
    "columns": ["id", "rating", "text"],
}
RATED = {"column": "rating", "bins": {"negative": "< -0.5", "positive": "> 0.5"}}


def write(tmp_path, name, rows):
    """jsonl of dicts, or of (text, label) pairs."""
    rows = [row if isinstance(row, dict) else {"text": row[0], "label": row[1]} for row in rows]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def many(count, start=0):
    return [(f"row {n}", "pos" if n % 3 else "neg") for n in range(start, start + count)]


def texts_of(*parts):
    return {text for part in parts for text in part.texts}


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_split_takes_rows_in_ascending_hash_test_first_then_select_then_train(tmp_path):
    rows = [*many(60), ("  unstripped\u00a0", "pos"), ("no label", None)]
    train = write(tmp_path, "r.jsonl", rows)
    data = open_data({"train": train, "split": {"test": 10, "select": 5, "train": 20}}, base=tmp_path)
    order = sorted((text for text, label in rows if label), key=sha)
    assert list(data.test.texts) == order[:10]
    assert list(data.select.texts) == order[10:15]
    assert list(data.train.texts) == order[15:35]
    assert set(data.unlabelled.texts) == {*order[35:], "no label"}
    assert set(data.unlabelled.labels) == {None}
    whole = open_data({"train": train, "split": {"test": 10, "select": 5}}, base=tmp_path)
    assert list(whole.train.texts) == order[15:]


def test_a_pair_is_hashed_as_its_texts_joined_by_a_tab(tmp_path):
    rows = [{"a": f"q{n}", "b": f"a{n}", "label": n % 2} for n in range(30)]
    train = write(tmp_path, "r.jsonl", rows)
    data = open_data({"train": train, "text": ["a", "b"], "split": {"test": 7, "select": 3}}, base=tmp_path)
    assert list(data.test.texts) == sorted(((r["a"], r["b"]) for r in rows), key=lambda pair: sha("\t".join(pair)))[:7]
    assert data.text_columns == ("a", "b")


def test_removed_rows_are_counted_and_test_and_select_stay_whole(tmp_path):
    train = write(
        tmp_path, "train.jsonl", [*many(6), ("row 1", "neg"), (" \t", "pos"), ("in test", "pos"), ("in select", "neg")]
    )
    select = write(tmp_path, "select.jsonl", [("in select", "pos"), ("in select", "pos"), ("s", "neg")])
    test = write(tmp_path, "test.jsonl", [("in test", "pos"), ("in test", "neg"), ("", "pos"), ("t", None)])
    (tmp_path / "pool.txt").write_text("row 2\nnew\n\nnew\nin test\nin select\n   \nnewer")
    given = {"train": train, "select": select, "test": test, "unlabelled": ["pool.txt"]}
    data = open_data(given, base=tmp_path)
    assert list(data.train.texts) == [f"row {n}" for n in range(6)]
    assert list(data.unlabelled.texts) == ["new", "newer"]
    assert data.removed == {"leaked": 4, "duplicate": 3, "empty": 3}
    assert list(data.select.texts) == ["in select", "in select", "s"]
    assert list(data.test.texts) == ["in test", "in test", ""]
    assert data.notes == (
        "test.jsonl: 1 rows without a label are left out.",
        "test holds 1 empty rows; they are scored as they are.",
        "1 texts of train stand with different labels; the first of each was kept.",
    )


def test_without_select_a_tenth_of_train_is_taken_class_by_class_by_hash(tmp_path):
    rows = many(300)
    data = open_data({"train": write(tmp_path, "r.jsonl", rows)}, base=tmp_path)
    for label, name in enumerate(("neg", "pos")):
        mine = sorted((text for text, given in rows if given == name), key=sha)
        taken = [t for t, i in zip(data.select.texts, data.select.labels, strict=True) if i == label]
        assert taken == mine[: round(0.1 * len(mine))]
    assert texts_of(data.train) == {text for text, _label in rows} - texts_of(data.select)
    assert data.test is None


def test_a_text_of_test_never_becomes_select(tmp_path):
    rows = many(40)
    test = write(tmp_path, "t.jsonl", rows[:20])
    data = open_data({"train": write(tmp_path, "r.jsonl", rows), "test": test, "select": {"share": 0.5}}, base=tmp_path)
    assert not texts_of(data.test) & texts_of(data.select, data.train)
    assert data.removed["leaked"] == 20


def test_no_text_is_in_two_places_and_no_row_is_lost(tmp_path):
    rows = [(f"text {n % 700}", "ab"[n % 2]) for n in range(1000)]
    data = open_data(
        {"train": write(tmp_path, "r.jsonl", rows), "split": {"test": 100, "select": 100, "train": 300}}, base=tmp_path
    )
    parts = (data.train, data.unlabelled)
    assert not texts_of(*parts) & texts_of(data.test, data.select)
    assert all(len(set(part.texts)) == len(part) for part in parts)
    assert not texts_of(data.train) & texts_of(data.unlabelled)
    assert len(data.test) + len(data.select) + sum(map(len, parts)) + sum(data.removed.values()) == 1000


@pytest.mark.parametrize(
    ("values", "settings", "teacher", "names", "ids"),
    [
        (["pos", "neg"], {}, None, ("neg", "pos"), [1, 0]),
        ([10, 9], {}, None, ("9", "10"), [1, 0]),
        ([1.0, 0.0], {}, None, ("0", "1"), [1, 0]),
        (["pos", "neg"], {}, ["pos", "neg"], ("pos", "neg"), [0, 1]),
        (["pos", "neg"], {"labels": ["pos", "neg"]}, None, ("pos", "neg"), [0, 1]),
        ([1, 0], {}, ["bad", "good"], ("bad", "good"), [1, 0]),
        (
            ["2", "-2"],
            {"label": {"column": "label", "bins": {"hi": ">= 1 and < 3", "lo": "< 0"}}},
            None,
            ("hi", "lo"),
            [0, 1],
        ),
    ],
)
def test_ids_follow_the_names_given_then_the_teacher_then_the_bins_then_the_alphabet(
    tmp_path, values, settings, teacher, names, ids
):
    train = write(tmp_path, "r.jsonl", [(f"t{n}", value) for n, value in enumerate(values * 10)])
    select = write(tmp_path, "s.jsonl", [(f"s{n}", value) for n, value in enumerate(values * 10)])
    data = open_data({"train": train, "select": select, **settings}, base=tmp_path, teacher_labels=teacher)
    assert data.labels == names
    assert list(data.select.labels) == ids * 10


def binned(**bins):
    return {"label": {"column": "label", "bins": bins}}


WRONG = [
    (
        many(3, 1)[:2],
        {},
        None,
        r"^r\.jsonl: every row to train on has the label 'pos'; a classifier needs at least two",
    ),
    ([("a", None)], {}, None, r"^r\.jsonl: no row has a label; look at data\.label$"),
    ([("a", ["x"])], {}, None, r"^r\.jsonl: line 1: a label is one string or one integer \(got \['x'\]\)"),
    ([("a", 0.5)], {}, None, r"^r\.jsonl: line 1: a label is one string or one integer \(got 0\.5\); derive"),
    ([(7, "a")], {}, None, r"^r\.jsonl: line 1 holds a number, not a text \(got 7\); look at data\.text$"),
    ([("\ud800", "a")], {}, None, r"^r\.jsonl: line 1 holds half a character"),
    ([(" ", "a"), (" ", "b")] * 9, {}, None, r"^r\.jsonl: too few labelled rows \(0\) to set a share aside"),
    (many(20), {"select": "r.jsonl"}, None, r"^r\.jsonl: no row to train on is left \(removed: 20 leaked, 0 dup"),
    (many(20), {"labels": ["pos"]}, None, r"^r\.jsonl: class 'neg' is not one of those of data\.labels: pos$"),
    (many(20), {"labels": ["pos", "pos"]}, None, r"^data\.labels names a class twice"),
    (many(20), {}, ["bad", "good"], r"^r\.jsonl: class 'neg' is not one of those of the teacher: bad, good$"),
    (
        many(20),
        {"labels": ["neg", "pos"]},
        ["pos", "neg"],
        r"^data\.labels must be in the teacher's order, pos, neg \(got neg, pos\)",
    ),
    (many(20), binned(a="> 1", b="< 1"), None, r"line 1: data\.label\.bins needs a number \(got 'neg'\)"),
    (many(20), binned(a="about 1", b="< 1"), None, r"^data\.label\.bins\.a must be a comparison such as '> 0\.5'"),
    (many(20), binned(a="> 1"), None, r"^data\.label\.bins needs at least two classes \(got 1\)"),
    (
        [("a", 2)],
        binned(a="> 1", b="> 0"),
        None,
        r"line 1: 2 lies in the bins a and b; make data\.label\.bins disjoint",
    ),
    (
        many(9),
        {"split": {"test": 5, "select": 4}},
        None,
        r"^data\.split takes 5 rows for test, 4 for select and at least 1 for train, but r\.jsonl has 9 labelled rows",
    ),
    (many(9), {"split": {"test": 2}, "test": "r.jsonl"}, None, r"^data\.test cannot stand beside data\.split"),
    (
        many(9),
        {"split": {"select": 2}, "select": {"share": 0.5}},
        None,
        r"^data\.select cannot stand beside data\.split",
    ),
    (many(9), {"typo": 1}, None, r"^data\.typo: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("rows", "settings", "teacher", "message"), WRONG)
def test_what_cannot_be_used_is_named(tmp_path, rows, settings, teacher, message):
    train = write(tmp_path, "r.jsonl", rows)
    with pytest.raises(InputError, match=message):
        open_data({"train": train, **settings}, base=tmp_path, teacher_labels=teacher)


def test_a_class_that_only_test_has_is_named_with_its_line(tmp_path):
    given = {
        "train": write(tmp_path, "r.jsonl", many(30)),
        "test": write(tmp_path, "t.jsonl", [*many(3, 50), ("x", "odd")]),
    }
    with pytest.raises(
        InputError, match=r"^t\.jsonl: line 4: class 'odd' is not one of the classes neg, pos; correct the row"
    ):
        open_data(given, base=tmp_path)


def test_a_row_in_no_bin_joins_the_pool(tmp_path):
    (tmp_path / "r.tsv").write_bytes(b"".join(b"%d\t%.1f\tt%d\r\n" % (n, n / 2 - 5, n) for n in range(21)))
    given = {"train": {"path": "r.tsv", "columns": ["id", "rating", "text"]}, "label": RATED}
    data = open_data(given, base=tmp_path)
    assert data.unlabelled.texts == ("t9", "t10", "t11")  # -0.5, 0.0 and 0.5: the edges are in no bin
    assert data.labels == ("negative", "positive")


def test_a_digest_tells_texts_and_labels_apart():
    same = Rows(("a", "b"), (0, None))
    assert same.digest() == Rows(("a", "b"), (0, None)).digest()
    others = [Rows(("ab",), (0,)), Rows(("a", "b"), (0, 1)), Rows(("b", "a"), (0, None)), Rows((("a", "b"),), (0,))]
    assert len({same.digest(), *(rows.digest() for rows in others)}) == 5


def test_rows_are_taken_by_position():
    rows = Rows(("a", "b", "c"), (0, 1, None))
    assert rows.take([2, 0]) == Rows(("c", "a"), (None, 0))
    assert rows.head(2) == Rows(("a", "b"), (0, 1))
    with pytest.raises(ValueError, match="needs a label"):
        Rows(("a",), ())


def test_open_data_gives_back_what_is_read_already_and_takes_the_task_of_a_mapping(tmp_path):
    given = {"train": write(tmp_path, "r.jsonl", many(30)), "task": {"metric": "macro_f1"}, "max_tokens": 32}
    data = open_data(given, base=tmp_path)
    assert isinstance(data, DataSets)
    assert (data.task.metric, data.max_tokens, data.text_columns) == ("macro_f1", 32, ("text",))
    assert open_data(data) is data


def test_columns_are_checked_before_anything_is_read(tmp_path):
    write(tmp_path, "r.jsonl", [{"review": "a", "stars": 1}])
    (tmp_path / "t.csv").write_text("review,stars\na,1\n")
    (tmp_path / "empty.txt").touch()
    given = {
        "train": "r.jsonl",
        "text": "reviews",
        "label": "stars",
        "test": "gone.csv",
        "select": "t.csv",
        "unlabelled": ["x.txt", "pypi://no-such-rows==9.9/rows.txt"],
    }
    assert check_columns(Data.model_validate(given), tmp_path) == [
        ("text", "r.jsonl: no column 'reviews'; its columns are review, stars"),
        ("unlabelled.0", f"x.txt does not exist (looked for {tmp_path}/x.txt)"),
        ("text", "t.csv: no column 'reviews'; its columns are review, stars"),
        ("test", f"gone.csv does not exist (looked for {tmp_path}/gone.csv)"),
    ]  # fmt: skip
    right = Data.model_validate(
        {
            "train": "r.jsonl",
            "text": "review",
            "label": {"column": "star", "bins": {"a": "> x", "b": "<1"}},
            "labels": ["b", "a"],
        }
    )
    assert check_columns(right, tmp_path, teacher_labels=["a", "b"]) == [
        ("label.bins.a", "must be a comparison such as '> 0.5' or '>= 1 and < 2' (got '> x')"),
        ("labels", "must be in the teacher's order, a, b (got b, a); leave data.labels out to take it"),
        ("label.column", "r.jsonl: no column 'star'; its columns are review, stars"),
    ]


def test_a_pool_of_many_rows_is_cleaned_against_train_select_and_test(tmp_path):
    train = write(tmp_path, "r.jsonl", many(1000))
    lines = [f"row {n}" for n in range(500, 200_000)]
    (tmp_path / "pool.txt").write_text("\n".join([*lines, *lines]))
    data = open_data({"train": train, "unlabelled": ["pool.txt"], "split": {"test": 200, "select": 200}}, base=tmp_path)
    assert data.unlabelled.texts == tuple(lines[500:])
    assert sum(data.removed.values()) == 2 * len(lines) - len(data.unlabelled)


def pool_data(tmp_path, *sources, split=None, rows=40):
    train = write(tmp_path, "r.jsonl", [*many(rows), ("no label", None)])
    given = {"train": train, "unlabelled": list(sources)} | ({"split": split} if split else {})
    return open_data(given, base=tmp_path)


def test_each_source_of_the_pool_keeps_its_rows_together_with_its_share_and_what_it_lost(tmp_path):
    (tmp_path / "a.txt").write_text("a1\n\na2\nrow 3\n")
    (tmp_path / "b.txt").write_text("b1\na1\nb2\nb1\n")
    data = pool_data(tmp_path, {"path": "a.txt", "share": 0.25}, "b.txt", split={"train": 30})
    rest, first, second = data.pools
    assert (rest.name, rest.rows, rest.share) == ("unlabelled rows of r.jsonl", 11, None)
    assert (first.name, first.rows, first.share) == ("a.txt", 2, 0.25)
    assert (second.name, second.rows, second.share) == ("b.txt", 2, None)
    assert second.removed == {"leaked": 0, "duplicate": 2, "empty": 0}
    assert first.removed["empty"] == 1
    assert data.unlabelled.texts[-second.rows :] == ("b1", "b2")
    assert sum(part.rows for part in data.pools) == len(data.unlabelled)
    assert {why: sum(part.removed[why] for part in data.pools) for why in data.removed} == data.removed


def test_a_pool_without_rows_has_no_sources(tmp_path):
    write(tmp_path, "r.jsonl", many(40))
    assert open_data({"train": "r.jsonl"}, base=tmp_path).pools == ()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            [{"path": "a.txt", "share": 0.7}, {"path": "b.txt", "share": 0.4}],
            "data.unlabelled has shares that sum to 1.1; make them sum to 1 at most",
        ),
        (
            [{"path": "a.txt", "share": 1.0}, "b.txt"],
            "data.unlabelled has shares that sum to 1, which leaves nothing for its sources without a share; give each "
            "one",
        ),
        (
            [{"path": "a.txt", "share": 0.7}, {"path": "b.txt", "share": 0.2}],
            "data.unlabelled has shares that sum to 0.9, and no other source has rows for the rest; make them sum to 1",
        ),
        (
            [{"path": "a.txt", "share": 0.7}, {"path": "same.txt", "share": 0.3}],
            "data.unlabelled: same.txt has share 0.3, but none of its rows is left (removed: 0 leaked, 2 duplicate, "
            "1 empty); give it rows of its own or leave it out",
        ),
    ],
)
def test_shares_that_cannot_be_had_are_refused(tmp_path, sources, message):
    for name, text in (("a.txt", "a1\na2\n"), ("b.txt", "b1\nb2\n"), ("same.txt", "a1\n\na2\n")):
        (tmp_path / name).write_text(text)
    write(tmp_path, "r.jsonl", many(40))
    given = {"train": "r.jsonl", "unlabelled": sources}
    with pytest.raises(InputError) as told:
        open_data(given, base=tmp_path)
    assert str(told.value) == message
    early = check_columns(Data.model_validate(given), tmp_path)
    assert early == ([("unlabelled", message.removeprefix("data.unlabelled "))] if "rows" not in message else [])


def test_shares_of_one_leave_the_train_files_own_rows_undrawn_and_say_so(tmp_path):
    (tmp_path / "a.txt").write_text("a1\na2\n")
    data = pool_data(tmp_path, {"path": "a.txt", "share": 1.0})
    assert data.notes == ("unlabelled rows of r.jsonl: 1 rows are never drawn, as the shares sum to 1.",)


@pytest.mark.registry
def test_the_movie_snippets_are_those_described():
    data = open_data({"train": MOVIES, "label": RATED, "split": {"test": 2000, "select": 1000}})
    assert (len(data.test), len(data.select), len(data.unlabelled)) == (2000, 1000, 562)
    assert 7041 <= len(data.train) <= 7043
    assert len(data.train) + sum(data.removed.values()) == 7043
    labels = Counter(label for part in (data.train, data.select, data.test) for label in part.labels)
    assert labels[0] + labels[1] == 4982 + 5061 - sum(data.removed.values())
    digests = [sha(text) for text in data.test.texts]
    assert digests == sorted(digests)
    assert digests[-1] <= sha(data.select.texts[0])


def test_bins_that_the_teacher_does_not_know_are_told_early(tmp_path):
    write(tmp_path, "r.jsonl", many(3))
    data = Data.model_validate({"train": "r.jsonl", **binned(bad="< 0", good="> 0")})
    assert check_columns(data, tmp_path, teacher_labels=["bad", "fine"]) == [
        ("label.bins.good", "is not one of the classes of the teacher: bad, fine")
    ]


def test_reading_rows_and_tokens_loads_no_heavy_library(tmp_path):
    write(tmp_path, "r.jsonl", many(30))
    program = (
        "import sys, compressor.data.encode, compressor.data.mix, compressor.sources.models\n"
        "from compressor.data.rows import open_data\n"
        "open_data({'train': 'r.jsonl'})\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'evaluate', 'pandas', 'datasets', 'optimum', 'pyarrow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    root = str(Path(compressor.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
