import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_reviews, write_tiny_bert
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from compressor.data.batches import Pool
from compressor.data.encode import open_encoder
from compressor.data.encoded import Encoded
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.manifest import read_manifest
from compressor.runtime.predictor import load
from compressor.train.finetune import Finetuner, encoded_pool, import_model
from compressor.train.scoring import pool_logits, select_scorer
from compressor.train.settings import EarlyStop, Train


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(train: int = 64, select: int = 30, pool: int = 0, *, metric: str = "accuracy") -> DataSets:
    rows = make_reviews(train + select + pool, seed=4)
    texts = tuple(text for text, _ in rows)
    labels = tuple(int(label == "good") for _, label in rows)
    held = train + select
    return DataSets(
        task=Task.model_validate({"metric": metric}), labels=("bad", "good"), text_columns=("review",), max_tokens=24,
        train=Rows(texts[:train], labels[:train]), select=Rows(texts[train:held], labels[train:held]), test=None,
        unlabelled=Rows(texts[held:], (None,) * pool),
    )  # fmt: skip


TRAIN = Train(epochs=12, learning_rate=5e-3, batch_rows=8, checkpoint=7, precision="fp32")


def score_of(folder: Path, data: DataSets) -> float:
    pool = encoded_pool(data.select, open_encoder(folder, data.max_tokens), "select")
    return select_scorer(data, pool, None)(load_model(folder))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_finetuning_learns_the_reviews(tiny_bert: Path, tmp_path: Path) -> None:
    data = reviews()
    out = Finetuner(tiny_bert, data=data, train=TRAIN).fit(tmp_path / "teacher")
    assert score_of(out, data) > 0.9
    manifest = read_manifest(out)
    assert (manifest.labels, manifest.text, manifest.max_tokens) == (("bad", "good"), ("review",), 24)
    stock = AutoModelForSequenceClassification.from_pretrained(out)
    assert stock.config.id2label == {0: "bad", 1: "good"}


def test_a_finished_training_leaves_the_model_and_its_steps_alone(tiny_bert: Path, tmp_path: Path) -> None:
    out = Finetuner(tiny_bert, data=reviews(), train=TRAIN).fit(tmp_path / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 97))
    assert not list(out.rglob("*.bin"))


def test_with_a_work_folder_a_rerun_finds_the_training_done(tiny_bert: Path, tmp_path: Path) -> None:
    def made() -> bytes:
        work = str(tmp_path / "stage")
        return weights(Finetuner(tiny_bert, data=reviews(), train=TRAIN).fit(tmp_path / "model", work=work))

    first = made()
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == ["checkpoint", "steps.jsonl"]
    steps = (tmp_path / "stage" / "steps.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "model")
    assert made() == first
    assert (tmp_path / "stage" / "steps.jsonl").read_bytes() == steps


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json"])
def test_a_checkpoint_of_another_source_model_is_refused(tiny_bert: Path, tmp_path: Path, changed: str) -> None:
    train, work = Train(steps=2, batch_rows=8), tmp_path / "work"
    source = shutil.copytree(tiny_bert, tmp_path / "source")
    Finetuner(source, data=reviews(), train=train).fit(tmp_path / "one", work=work)
    other = write_tiny_bert(tmp_path / "other", seed=1)
    if changed == "tokenizer.json":
        (other / changed).write_text((other / changed).read_text().replace('"lowercase": true', '"lowercase": false'))
    shutil.copyfile(other / changed, source / changed)
    with pytest.raises(InputError, match="another training"):
        Finetuner(source, data=reviews(), train=train).fit(tmp_path / "two", work=work)


def test_a_killed_finetuning_ends_with_the_same_file(tiny_bert: Path, tmp_path: Path) -> None:
    def killed(_what: str, done: int, _total: int | None) -> None:
        if done == 33:
            raise KeyboardInterrupt

    whole = Finetuner(tiny_bert, data=reviews(), train=TRAIN).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Finetuner(tiny_bert, data=reviews(), train=TRAIN, progress=killed).fit(tmp_path / "killed")
    torch.manual_seed(1234)
    resumed = Finetuner(tiny_bert, data=reviews(), train=TRAIN).fit(tmp_path / "killed")
    assert weights(whole) == weights(resumed)
    rows = [json.loads(line) for line in (resumed / "steps.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in rows if row["attempt"] == 2) == 29


def test_the_seed_decides(tiny_bert: Path, tmp_path: Path) -> None:
    train = Train(steps=4, batch_rows=8)
    one, two, three = (
        Finetuner(tiny_bert, data=reviews(), train=train, seed=seed).fit(tmp_path / name)
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert weights(one) == weights(two)
    assert weights(one) != weights(three)


def test_batch_options_say_how_many_rows_a_step_has(tiny_bert: Path, tmp_path: Path) -> None:
    steps = {}
    for name, option in (("rows", {"batch_rows": 16}), ("tokens", {"batch_tokens": 64}), ("default", {})):
        finetuner = Finetuner(tiny_bert, data=reviews(), train={"epochs": 1, **option})
        finetuner.fit(tmp_path / name)
        assert finetuner.fitted is not None
        steps[name] = finetuner.fitted.steps
    assert steps["rows"] == 4
    assert steps["tokens"] > 8 > steps["default"]


def test_early_stopping_scores_select_by_the_tasks_metric(tiny_bert: Path, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"early_stop": EarlyStop(patience=1)})
    finetuner = Finetuner(tiny_bert, data=reviews(), train=train)
    out = finetuner.fit(tmp_path / "a")
    assert finetuner.fitted is not None
    assert finetuner.fitted.best_score == pytest.approx(score_of(out, reviews()))
    with pytest.raises(InputError, match=r"scoring macro_f1 needs score=compressor\.evaluate\.metrics\.score"):
        Finetuner(tiny_bert, data=reviews(metric="macro_f1"), train=train).fit(tmp_path / "b")
    asked = []

    def score(metric: str, predictions: np.ndarray, references: np.ndarray, labels: object) -> float:
        asked.append((metric, labels))
        return float((predictions == references).mean())

    Finetuner(tiny_bert, data=reviews(metric="macro_f1"), train=train, score=score).fit(tmp_path / "c")
    assert set(asked) == {("macro_f1", ("bad", "good"))}


def test_smoke_stops_after_two_steps(tiny_bert: Path, tmp_path: Path) -> None:
    finetuner = Finetuner(tiny_bert, data=reviews(), train=TRAIN, smoke=True)
    finetuner.fit(tmp_path / "a")
    assert finetuner.fitted is not None
    assert finetuner.fitted.steps == 2


def test_train_as_a_mapping_refuses_an_unknown_key(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match=r"train\.epoch: is not a setting \(got 3\)"):
        Finetuner(tiny_bert, data=reviews(), train={"epoch": 3})


def test_a_classifier_is_imported_as_it_is(tiny_classifier: Path, tmp_path: Path) -> None:
    data = reviews()
    out = import_model(tiny_classifier, tmp_path / "teacher", data=data)
    pool = encoded_pool(data.select, open_encoder(out, 24), "select")
    assert np.array_equal(pool_logits(load_model(out), pool), pool_logits(load_model(tiny_classifier), pool))
    assert read_manifest(out).labels == ("bad", "good")


def test_an_encoder_without_classifier_cannot_be_imported(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no trained classifier.*add `finetune: \{\.\.\.\}`"):
        import_model(tiny_bert, tmp_path / "teacher", data=reviews())


def test_a_classifier_of_other_classes_cannot_be_imported(tiny_classifier: Path, tmp_path: Path) -> None:
    data = reviews()
    three = DataSets(**{**data.__dict__, "labels": ("bad", "good", "so-so")})
    with pytest.raises(InputError, match=r"answers 2 classes \(bad, good\), the rows have 3"):
        import_model(tiny_classifier, tmp_path / "teacher", data=three)


def test_logits_come_in_the_order_of_the_rows(tiny_classifier: Path) -> None:
    data, model = reviews(), load_model(tiny_classifier)
    pool = encoded_pool(data.train, open_encoder(tiny_classifier, 24), "train")
    logits = pool_logits(model.train(), pool)
    assert model.training
    model.eval()
    for row in (0, 9, 63):
        with torch.no_grad():
            alone = model(**pool.batch([row]).inputs).logits[0].numpy()
        np.testing.assert_allclose(logits[row], alone, atol=1e-5)


def test_a_classifier_of_other_classes_is_finetuned_with_a_new_head(tiny_classifier: Path, tmp_path: Path) -> None:
    rows = "".join(
        json.dumps({"text": text, "label": label.upper() + "!"}) + "\n" for text, label in make_reviews(94, seed=4)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    given = {"train": str(tmp_path / "rows.jsonl"), "text": "text", "label": "label", "max_tokens": 24}
    out = Finetuner(tiny_classifier, data=given, train=TRAIN).fit(tmp_path / "teacher")
    assert read_manifest(out).labels == ("BAD!", "GOOD!")
    assert np.mean(np.array(load(out).predict(["a dull film", "a warm film"])) == ["BAD!", "GOOD!"]) == 1


def test_every_loss_of_finetune_gives_other_weights_and_another_name_is_refused(
    tiny_bert: Path, tmp_path: Path
) -> None:
    train = Train(steps=3, learning_rate=5e-3, batch_rows=8, precision="fp32")
    names = ("ce", "focal", "gce")
    made = [Finetuner(tiny_bert, data=reviews(), train=train, loss=name).fit(tmp_path / name) for name in names]
    assert len({weights(folder) for folder in made}) == 3
    with pytest.raises(InputError, match=r"finetune\.loss.*'ce', 'focal' or 'gce'"):
        Finetuner(tiny_bert, data=reviews(), loss="hinge")


def test_an_encoder_without_segments_is_scored_with_what_it_takes() -> None:
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=40)
    model = DistilBertForSequenceClassification(config).eval()
    encoded = Encoded.of([[2, 7, 9, 3], [2, 8, 3]])
    found = pool_logits(model, Pool(encoded, np.zeros(2, dtype=np.int64), 0))
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits[0].numpy() for ids in ([2, 7, 9, 3], [2, 8, 3])]
    np.testing.assert_allclose(found, alone, atol=1e-5)
