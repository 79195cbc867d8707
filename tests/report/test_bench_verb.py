"""`bench` on folders of this tool and of others, with labels and without."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import make_reviews, write_tiny_bert

from compressor.errors import InputError
from compressor.export.exporter import Exporter
from compressor.report.bench import bench
from compressor.report.foreign import as_given, class_ids, label_giver, names_of, open_model, relabelled
from compressor.report.sentences import SENTENCES
from compressor.runtime.predictor import load

REVIEWS = make_reviews(40, seed=5)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it: no manifest of ours, class names in capitals."""
    folder = tmp_path_factory.mktemp("theirs") / "stranger"
    return write_tiny_bert(folder, layers=1, labels=("BAD", "GOOD"), seed=3)


@pytest.fixture(scope="module")
def optimum(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as optimum lays it out: onnx/model.onnx below config and tokenizer."""
    made = Exporter(tiny_classifier).export(tmp_path_factory.mktemp("ours") / "export")
    folder = tmp_path_factory.mktemp("theirs") / "optimum"
    (folder / "onnx").mkdir(parents=True)
    shutil.copyfile(made / "model.onnx", folder / "onnx" / "model_quantized.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / name, folder / name)
    return folder


def labelled(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in REVIEWS))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_models_of_others_are_timed_and_scored_beside_ours(
    tiny_classifier: Path, stranger: Path, optimum: Path, tmp_path: Path
):
    before = [contents(folder) for folder in (tiny_classifier, stranger, optimum)]
    paths = [str(folder) for folder in (tiny_classifier, stranger, optimum)]
    report = bench(paths, rows=labelled(tmp_path), rounds=3, looks=1, threads=1, out=tmp_path / "out")
    assert [row.name for row in report.subjects] == [*(Path(path).name for path in paths), f"{tiny_classifier.name}/aa"]
    texts, wanted = [text for text, _ in REVIEWS], np.array([label == "good" for _, label in REVIEWS])
    for row, path in zip(report.subjects, paths, strict=False):
        folder = Path(path) if "onnx" not in row.name and path != str(optimum) else tiny_classifier
        right = float(np.mean(load(folder, engine="torch").logits(texts).argmax(-1) == wanted))
        assert row.metric.value == pytest.approx(right)
        assert row.path == path
        assert row.latency[0].status == "measured"
    assert report.subject("optimum").versus_teacher.agreement == 1.0
    assert report.noise is not None
    assert (tmp_path / "out" / "index.html").is_file()
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert samples["targets"]["cpu"]["slots"]
    assert [contents(folder) for folder in (tiny_classifier, stranger, optimum)] == before


def test_a_folder_in_hub_layout_is_timed_and_called_as_another_calls_its_classes(
    tiny_classifier: Path, stranger: Path, tmp_path: Path
):
    hub = Exporter(tiny_classifier, layout="hub").export(tmp_path / "hub")
    assert not (hub / "model.onnx").exists()
    report = bench([str(stranger), str(hub)], rounds=3, looks=1, threads=1, benchmark={"pytorch": False})
    row = report.subject("hub")
    assert row.latency[0].status == "measured"
    assert row.bytes == (hub / "onnx" / "model.onnx").stat().st_size
    assert report.pytorch is None


def test_without_rows_our_own_sentences_are_timed_and_nothing_is_scored(tiny_classifier: Path, stranger: Path):
    report = bench([str(tiny_classifier), str(stranger)], rounds=3, looks=1, threads=1)
    other = report.subject("stranger")
    assert all(row.metric is None and row.metrics == {} for row in report.subjects)
    assert other.versus_teacher.drop is None
    assert "no labels" in other.versus_teacher.reason
    answers = [
        load(folder, engine="torch").logits(list(SENTENCES)).argmax(-1) for folder in (tiny_classifier, stranger)
    ]
    assert other.versus_teacher.agreement == pytest.approx(np.mean(answers[0] == answers[1]))
    assert other.versus_teacher.latency_ratio.value > 0
    assert any("built-in sentences" in doubt and "--rows FILE" in doubt for doubt in report.doubts)
    assert report.to_html()
    assert report.table()
    assert report.to_markdown()


def test_baselines_are_made_of_rows_to_train_on_that_are_not_scored(
    tiny_classifier: Path, stranger: Path, tmp_path: Path
):
    train = tmp_path / "train.jsonl"
    rows = [*make_reviews(120, seed=8), *REVIEWS]
    train.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    scored = labelled(tmp_path)
    known = {text for text, _ in REVIEWS}
    report = bench(
        [str(tiny_classifier), str(stranger)],
        rows=scored,
        train=train,
        baselines=["tfidf"],
        rounds=3,
        looks=1,
        threads=1,
    )
    (found,) = report.baselines
    assert (found.name, found.metric.rows) == ("tfidf", len(REVIEWS))
    left = [place for place, (text, _) in enumerate(rows) if text not in known]
    assert report.data["train"] == len(left) - -(-len(left) // 10)
    assert "TF-IDF" in report.to_markdown()
    with pytest.raises(InputError, match="--train makes baselines, which are scored: built-in sentences has no labels"):
        bench([str(tiny_classifier)], train=train)
    train.write_text(json.dumps({"text": "a film"}) + "\n")
    with pytest.raises(InputError, match=r"--train .*train.jsonl: it has no labels to learn from; name their column"):
        bench([str(tiny_classifier)], rows=scored, train=train)
    train.write_text(scored.read_text())
    with pytest.raises(InputError, match="0 labelled rows that are not scored; baselines need 50 or more"):
        bench([str(tiny_classifier)], rows=scored, train=train)


def test_the_first_model_that_has_names_of_classes_gives_them_wherever_it_stands(tiny_classifier: Path, tmp_path: Path):
    plain = write_tiny_bert(tmp_path / "plain", layers=1, labels=("LABEL_0", "LABEL_1"), seed=3)
    ours = Exporter(plain).export(tmp_path / "ours")
    opened = [open_model(str(one), work=tmp_path / "work") for one in (ours, plain, tiny_classifier)]
    giver = label_giver(opened)
    assert giver.given == str(tiny_classifier)
    assert label_giver(opened[:2]) is opened[0]
    before = contents(ours)
    named = [relabelled(one, giver, work=tmp_path / "work") for one in opened]
    assert [one.manifest.labels for one in named] == [("bad", "good")] * 3
    assert set(load(named[0].folder).predict([text for text, _ in REVIEWS])) <= {"bad", "good"}
    assert named[0].folder != ours
    assert contents(ours) == before


def test_an_error_calls_a_copy_by_the_name_that_was_given(tmp_path: Path):
    wanted = pytest.raises(InputError, match=r"^mine is broken, and mine/model\.onnx too$")
    with wanted, as_given({tmp_path / "a": "mine", tmp_path / "a" / "b": "other"}):
        raise InputError(f"{tmp_path / 'a'} is broken, and {tmp_path / 'a' / 'model.onnx'} too")


def test_sentences_are_of_several_lengths_and_two_scripts():
    assert len(set(SENTENCES)) == len(SENTENCES) >= 16
    assert min(map(len, SENTENCES)) < 10
    assert max(map(len, SENTENCES)) > 200
    assert sum(not text.isascii() for text in SENTENCES) >= 4


def test_other_labels_an_encoder_and_an_odd_graph_are_refused(
    tiny_classifier: Path, tiny_bert: Path, optimum: Path, tmp_path: Path
):
    other = write_tiny_bert(tmp_path / "other", labels=("neg", "pos"))
    with pytest.raises(InputError, match=r"answers neg, pos, .* answers bad, good; give models that know the same"):
        bench([str(tiny_classifier), str(other)])
    with pytest.raises(InputError, match=r"has no trained classifier, so it has no answers to compare"):
        bench([str(tiny_bert)])
    odd = shutil.copytree(optimum, tmp_path / "odd")
    file = odd / "onnx" / "model_quantized.onnx"
    graph = onnx.load(str(file))
    graph.graph.output[0].name = "scores"
    onnx.save(graph, str(file))
    with pytest.raises(InputError, match="gives scores and no logits; export it for text-classification"):
        open_model(str(odd), work=tmp_path / "work")
    with pytest.raises(InputError, match="does not exist"):
        bench([str(tmp_path / "nowhere")])


def test_rows_that_do_not_fit_are_named(tiny_classifier: Path, tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na warm film,fine\n")
    with pytest.raises(
        InputError, match="row 1 has the label 'fine', the models answer bad, good; name another column"
    ):
        bench([str(tiny_classifier)], rows=path)
    with pytest.raises(InputError, match="no column 'review'"):
        bench([str(tiny_classifier)], rows=path, text=["review"])
    with pytest.raises(InputError, match="give --rows FILE too"):
        bench([str(tiny_classifier)], label="label")
    path.write_text("text\n \n")
    with pytest.raises(InputError, match="all 1 rows are blank"):
        bench([str(tiny_classifier)], rows=path)


def test_a_file_in_the_place_of_the_report_is_refused_before_anything_is_timed(tiny_classifier: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "report"):
        with pytest.raises(InputError, match="cannot be a folder, as a file is in its place; give another one"):
            bench([str(tmp_path / "nowhere")], out=out)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_revision_stays_in_the_name_that_an_equal_model_is_called(tiny_classifier: Path, tmp_path: Path):
    places = [str(shutil.copytree(tiny_classifier, tmp_path / f"model@{name}")) for name in ("v1", "v2")]
    report = bench(places, rounds=3, looks=1, threads=1)
    assert report.subject("model@v2").same_as == "model@v1"


def test_a_run_stands_for_its_final_model_and_a_stage_for_its_own(tiny_classifier: Path, tmp_path: Path):
    for place in ("run/final", "run/stages/teacher/model"):
        shutil.copytree(tiny_classifier, tmp_path / place)
    found = [
        open_model(str(tmp_path / place), work=tmp_path / "work", base=tmp_path).manifest.labels
        for place in ("run", "run/stages/teacher")
    ]
    assert found == [("bad", "good")] * 2


def test_names_tell_paths_apart():
    assert list(names_of(["a/final", "b/final", "b/final/"])) == ["a", "b", "b (2)"]
    assert list(names_of(["x/stages/teacher/model", "y/stages/teacher/model"])) == ["teacher", "y-teacher"]


def test_unnamed_classes_are_known_by_their_number():
    assert class_ids(["1", None, "0"], ("LABEL_0", "LABEL_1"), where="f") == [1, None, 0]
    assert class_ids(["Good"], ("bad", "good"), where="f") == [1]
