import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_reviews, write_tiny_bert
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from compressor.data import mix
from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Mix, Task
from compressor.device import native_bf16
from compressor.distill import match
from compressor.distill.distiller import Distiller
from compressor.errors import InputError, StageError
from compressor.model.encoders import load_model
from compressor.model.settings import Student
from compressor.stage import Decision
from compressor.train.finetune import Finetuner, encoded_pool
from compressor.train.scoring import pool_logits
from compressor.train.settings import EarlyStop, Train


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CPU = "cpu"


def reviews(train: int = 40, select: int = 30, pool: int = 80) -> DataSets:
    rows = make_reviews(train + select + pool, seed=4)
    texts = tuple(text for text, _ in rows)
    labels = tuple(int(label == "good") for _, label in rows)
    held = train + select
    return DataSets(
        task=Task(), labels=("bad", "good"), text_columns=("review",), max_tokens=24,
        train=Rows(texts[:train], labels[:train]), select=Rows(texts[train:held], labels[train:held]), test=None,
        unlabelled=Rows(texts[held:], (None,) * pool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer classifier that has learned the reviews."""
    home = tmp_path_factory.mktemp("teacher")
    train = Train(epochs=14, learning_rate=5e-3, batch_rows=16, precision="fp32")
    encoder = write_tiny_bert(home / "encoder", layers=4)
    return Finetuner(encoder, data=reviews(train=150), train=train).fit(home / "teacher")


SHORT: dict[str, Any] = {"steps": 13, "learning_rate": 1e-3, "batch_rows": 8, "checkpoint": 5, "precision": "fp32"}


def distiller(teacher: Path, **changes: Any) -> Distiller:
    settings: dict[str, Any] = {"student": Student(layers=2), "data": reviews(), "train": SHORT, **changes}
    return Distiller(teacher, **settings)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def agreement(one: Path, other: Path, data: DataSets) -> float:
    pools = [encoded_pool(data.select, open_encoder(folder, 24), "select") for folder in (one, other)]
    answers = [pool_logits(load_model(f), p).argmax(1) for f, p in zip((one, other), pools, strict=True)]
    return float((answers[0] == answers[1]).mean())


def test_a_student_learns_to_answer_as_its_teacher(teacher: Path, tmp_path: Path) -> None:
    train = {"epochs": 15, "learning_rate": 3e-3, "batch_rows": 16}
    out = distiller(teacher, train=train).fit(tmp_path / "student")
    assert agreement(out, teacher, reviews()) >= 0.9
    stock = AutoModelForSequenceClassification.from_pretrained(out)
    assert stock.config.num_hidden_layers == 2
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "compressor.json", "steps.jsonl"} <= names
    assert not any("hidden-" in name for name in stock.state_dict())


KINDS: dict[str, dict[str, Any]] = {
    "cached": {},
    "narrow with projections": {"student": Student(layers=2, hidden=16)},
    "masked": {"mix": {"unlabelled": {"ratio": 0.5}, "augment": {"mask": 0.2}}},
    "average and early stop": {
        "train": {**SHORT, "average": 0.9, "early_stop": EarlyStop(patience=3), "epochs": 2.2, "steps": None}
    },
    "live": {"cache": "1kB"},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_killed_distillation_ends_with_the_same_file(kind: str, teacher: Path, tmp_path: Path) -> None:
    def killed(what: str, done: int, _total: int | None) -> None:
        if what == "distill" and done == 8:
            raise KeyboardInterrupt

    whole = distiller(teacher, **KINDS[kind]).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distiller(teacher, progress=killed, **KINDS[kind]).fit(tmp_path / "killed")
    torch.manual_seed(99)
    resumed = distiller(teacher, **KINDS[kind]).fit(tmp_path / "killed")
    assert weights(whole) == weights(resumed)
    rows = [json.loads(line) for line in (resumed / "steps.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in rows if row["attempt"] == 2) == 6
    assert set(rows[0]["terms"]) == {"logits", "labels", "hidden"}


def test_the_teacher_is_left_unchanged(teacher: Path, tmp_path: Path) -> None:
    before = weights(teacher)
    made = distiller(teacher)
    made.fit(tmp_path / "student")
    assert weights(teacher) == before
    assert made._ready is not None
    fresh = load_model(teacher)
    assert all(
        torch.equal(a, b)
        for a, b in zip(made._ready.teacher.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


CHANGES: dict[str, dict[str, Any]] = {
    "student": {"student": Student(layers=1)},
    "match": {"match": [match.logits()]},
    "mix none": {"mix": Mix()},
    "mix ratio": {"mix": {"unlabelled": {"ratio": 0.2}}},
    "mix weight": {"mix": {"unlabelled": {"weight": 0.1}}},
    "mix keep": {"mix": {"unlabelled": {"keep": {"confidence": 1.0}}}},
    "mix mask": {"mix": {"unlabelled": {}, "augment": {"mask": 0.3}}},
    "train": {"train": {**SHORT, "learning_rate": 2e-3}},
    "seed": {"seed": 18},
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_every_option_of_the_distiller_changes_the_student(change: str, teacher: Path, tmp_path: Path) -> None:
    one = distiller(teacher, mix={"unlabelled": {}}).fit(tmp_path / "a")
    two = distiller(teacher, **{"mix": {"unlabelled": {}}, **CHANGES[change]}).fit(tmp_path / "b")
    assert weights(one) != weights(two)


def test_unless_told_half_of_the_rows_are_unlabelled(teacher: Path, tmp_path: Path) -> None:
    one = distiller(teacher).fit(tmp_path / "a")
    two = distiller(teacher, mix={"unlabelled": {"ratio": 0.5}}).fit(tmp_path / "b")
    assert weights(one) == weights(two)


def test_cached_and_live_hidden_states_train_nearly_the_same_student(teacher: Path, tmp_path: Path) -> None:
    folders = [distiller(teacher, cache=size).fit(tmp_path / size) for size in ("2GB", "1kB")]
    data = reviews()
    pool = encoded_pool(data.select, open_encoder(teacher, 24), "select")
    one, two = (pool_logits(load_model(folder), pool) for folder in folders)
    assert abs(one - two).max() < 0.02


def test_decisions_tell_the_start_the_cache_and_the_confidence(teacher: Path, tmp_path: Path) -> None:
    told: list[Decision] = []
    sure = {"unlabelled": {"keep": {"confidence": 0.9}}}
    distiller(teacher, decide=told.append, mix=sure).fit(tmp_path / "a")
    assert [decision.kind for decision in told] == ["confidence", "cache", "start"]
    kept, cache, start = told
    assert 0 < kept.chosen <= kept.candidates == 80
    assert cache.chosen == "logits and hidden states"
    assert cache.because == "hidden states of 2 teacher layers fit in 2000 MB"
    assert 0 <= start.chosen <= 1
    assert start.because == "accuracy of the student on select before training"


def test_a_cut_student_is_trained_in_place_and_shares_the_teachers_answers(teacher: Path, tmp_path: Path) -> None:
    passes: list[str] = []

    def progress(what: str, done: int, total: int | None) -> None:
        if what == "teacher's answers" and done == total:
            passes.append(what)

    recovery = distiller(teacher, student=None, progress=progress, what="recover")
    for step in (1, 2):
        model = load_model(teacher)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trained = recovery.train_model(model, tmp_path / f"step{step}", cache_at=tmp_path / "cache")
        assert trained is model
        assert not trained.training
        assert any(not torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert len(passes) == 1


def test_a_student_folder_is_taken_as_it_is(teacher: Path, tmp_path: Path) -> None:
    student = distiller(teacher, smoke=True).fit(tmp_path / "first")
    again = distiller(teacher, student=student, smoke=True).fit(tmp_path / "second")
    assert load_model(again).config.num_hidden_layers == 2


def test_a_student_with_another_tokenizer_is_refused(teacher: Path, tmp_path: Path) -> None:
    student = distiller(teacher, smoke=True).fit(tmp_path / "first")
    content = json.loads((student / "tokenizer.json").read_text())
    content["model"]["vocab"]["good-bye"] = len(content["model"]["vocab"])
    (student / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="different tokenizers; take a student with the teacher's tokenizer"):
        distiller(teacher, student=student).fit(tmp_path / "second")


def test_a_teacher_of_other_classes_or_without_classes_is_refused(
    teacher: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    three = DataSets(**{**reviews().__dict__, "labels": ("bad", "good", "so-so")})
    with pytest.raises(InputError, match="so-so"):
        distiller(teacher, data=three).fit(tmp_path / "a")
    with pytest.raises(InputError, match="no trained classifier"):
        distiller(tiny_bert).fit(tmp_path / "b")


def test_a_layer_that_is_not_there_is_refused_before_training(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names teacher layer 9, but the teacher has layers 1 to 4"):
        distiller(teacher, match=[match.hidden(map="9:1")]).fit(tmp_path / "a")
    assert not (tmp_path / "a.partial" / "steps.jsonl").exists()


def test_unknown_terms_and_no_terms_are_refused(teacher: Path) -> None:
    with pytest.raises(InputError, match="match needs at least one term"):
        distiller(teacher, match=[])
    with pytest.raises(InputError, match=r"match\.1\.logits\.temprature: is not a setting \(got 2\)"):
        distiller(teacher, match=[match.labels(), {"of": "logits", "temprature": 2}])


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "train": (lambda: Distiller("t", data={}, train={"epochs": 1.0, "steps": 2}), "train: takes epochs or steps"),
    "mix": (lambda: Distiller("t", data={}, mix={"unlabelled": {"ratio": 2}}), "mix.unlabelled.ratio: "),
    "cache": (lambda: Distiller("t", data={}, cache="2 gigs"), "cache: must be a size such as 40MB"),
    "student": (lambda: Distiller("t", {"layer": 2}, data={}), "student.layer: is not a setting (got 2)"),
    "match.hidden": (lambda: match.hidden(map="each"), "match.hidden.map: must be one of uniform, first, last"),
    "match.logits": (lambda: match.logits("kd"), "match.logits.loss: "),  # type: ignore[arg-type]
    "match.labels": (lambda: match.labels(weight=-1.0), "match.labels.weight: must not be negative (got -1)"),
    "mix.unlabelled": (lambda: mix.unlabelled(0.5, keep={"sure": 1.0}), "mix.unlabelled.keep.sure: is not a setting"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_in_a_setting_is_an_input_error_that_names_it(mistake: str) -> None:
    make, text = MISTAKES[mistake]
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(text)


def test_with_a_work_folder_a_rerun_finds_the_training_done_and_tells_the_same(teacher: Path, tmp_path: Path) -> None:
    def made(name: str, told: list[Decision]) -> bytes:
        work = str(tmp_path / "work")
        return weights(distiller(teacher, decide=told.append).fit(tmp_path / name, work=work))  # type: ignore[arg-type]

    first: list[Decision] = []
    again: list[Decision] = []
    assert made("one", first) == made("two", again)
    assert [decision.kind for decision in again] == ["cache", "start"]
    assert again == first
    steps = [json.loads(line)["step"] for line in (tmp_path / "work" / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 14))


def test_a_checkpoint_of_another_student_is_refused(teacher: Path, tmp_path: Path) -> None:
    distiller(teacher, smoke=True).fit(tmp_path / "one", work=tmp_path / "work")
    other = Student.model_validate({"layers": 2, "init": {"layers": "first"}})
    with pytest.raises(InputError, match="another training"):
        distiller(teacher, student=other, smoke=True).fit(tmp_path / "two", work=tmp_path / "work")


@pytest.mark.parametrize("setting", ["vocab_size", "num_labels"])
def test_a_student_model_of_another_vocabulary_or_other_classes_is_refused(
    setting: str, teacher: Path, tmp_path: Path
) -> None:
    config = load_model(teacher).config
    setattr(config, setting, 7)
    student = BertForSequenceClassification(config)
    with pytest.raises(InputError, match=r"the student has 7 (vocabulary entries|classes), the teacher \d+;"):
        distiller(teacher, student=student).fit(tmp_path / "a")


def test_a_loss_that_explodes_names_its_term_and_keeps_the_checkpoint(teacher: Path, tmp_path: Path) -> None:
    broken = distiller(teacher, train={**SHORT, "learning_rate": 1e30, "clip": None, "checkpoint": 1, "warmup": 0.0})
    with pytest.raises(StageError, match=r"distill: \w+ became (nan|inf) at step \d+"):
        broken.fit(tmp_path / "a")
    assert (tmp_path / "a.partial" / "checkpoint" / "checkpoint.json").exists()


def test_rows_of_the_pool_are_not_needed(teacher: Path, tmp_path: Path) -> None:
    out = distiller(teacher, data=reviews(pool=0)).fit(tmp_path / "a")
    assert load_model(out).config.num_hidden_layers == 2


def test_bf16_trains_fp32_weights(teacher: Path, tmp_path: Path) -> None:
    steps = 5 if native_bf16(CPU) else 1
    out = distiller(teacher, train={**SHORT, "steps": steps, "precision": "bf16"}).fit(tmp_path / "a")
    assert all(value.dtype == torch.float32 for value in load_model(out).parameters())
