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
from compressor.data.rows import DataSets, PoolPart, Rows
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


def with_shares(share: float) -> DataSets:
    """The reviews with a pool of two sources."""
    parts = (PoolPart("a", 40, share), PoolPart("b", 40, 1 - share))
    return DataSets(**{**reviews().__dict__, "pools": parts})


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
    "stored views": {"mix": {"unlabelled": {}, "augment": {"mask": 0.2, "delete": 0.1, "views": 2}}},
    "mixup": {"mix": {"unlabelled": {}, "augment": {"mixup": 0.5}}},
    "automatic weights": {"match": [match.logits(), match.labels(weight=0.3), match.hidden(weight="auto")]},
    "learned mixture": {"match": [match.logits(), match.labels(), match.hidden(map="attention")]},
    "layers drawn each epoch": {"match": [match.logits(), match.labels(), match.hidden(map="random")]},
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
    assert made._room is not None
    kept = made._room.desk.teachers.encoder_teacher
    assert kept is not None
    fresh = load_model(teacher)
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), fresh.state_dict().values(), strict=True))


def with_term(term: object) -> dict[str, Any]:
    """The answers and one more term."""
    return {"match": [match.logits(), term]}


CHANGES: dict[str, dict[str, Any]] = {
    "student": {"student": Student(layers=1)},
    "match": {"match": [match.logits()]},
    "mix none": {"mix": Mix(unlabelled=None)},
    "mix ratio": {"mix": {"unlabelled": {"ratio": 0.2}}},
    "mix weight": {"mix": {"unlabelled": {"weight": 0.1}}},
    "mix ratio rising": {"mix": {"unlabelled": {"ratio": {"from": 0.2, "to": 0.6}}}},
    "mix weigh": {"mix": {"unlabelled": {"keep": {"weigh": True}}}},
    "mix balance": {"mix": {"unlabelled": {"keep": {"balance": True}}}},
    "mix mask": {"mix": {"unlabelled": {}, "augment": {"mask": 0.3}}},
    "mix delete": {"mix": {"unlabelled": {}, "augment": {"delete": 0.3}}},
    "mix ngram": {"mix": {"unlabelled": {}, "augment": {"ngram": 0.5}}},
    "mix mixup": {"mix": {"unlabelled": {}, "augment": {"mixup": 0.5}}},
    "mix stored views": {"mix": {"unlabelled": {}, "augment": {"mask": 0.3, "views": 2}}},
    "start by importance": {"student": {"layers": 2, "hidden": 16, "init": {"width": "importance"}}},
    "start by svd": {"student": {"layers": 2, "hidden": 16, "init": {"width": "svd"}}},
    "layers by importance": {"student": {"layers": 3, "init": {"layers": "importance"}}},
    "logits decoupled": with_term(match.logits("decoupled", temperature=2.0)),
    "logits gce": with_term(match.logits("gce")),
    "labels focal": with_term(match.labels("focal")),
    "labels gce": with_term(match.labels("gce")),
    "labels smoothed": with_term(match.labels(smoothing=0.2)),
    "hidden cosine": with_term(match.hidden("cosine")),
    "hidden pkd": with_term(match.hidden("pkd")),
    "hidden mmd": with_term(match.hidden("mmd")),
    "hidden gram": with_term(match.hidden("gram")),
    "hidden random": with_term(match.hidden(map="random")),
    "hidden attention": with_term(match.hidden(map="attention")),
    "hidden nearest": with_term(match.hidden(map="nearest")),
    "attention mse": with_term(match.attention("mse")),
    "attention kl": with_term(match.attention("kl")),
    "relations": with_term(match.relations()),
    "relations vv": with_term(match.relations(pairs=["vv"], map="uniform")),
    "embeddings": with_term(match.embeddings()),
    "weight auto": with_term(match.hidden(weight="auto")),
    "train dropout": {"train": {**SHORT, "dropout": 0.0}},
    "phases": {"train": None, "phases": [{"match": [match.hidden()], "train": SHORT}, {"train": SHORT}]},
    "train": {"train": {**SHORT, "learning_rate": 2e-3}},
    "seed": {"seed": 18},
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_every_option_of_the_distiller_changes_the_student(change: str, teacher: Path, tmp_path: Path) -> None:
    one = distiller(teacher, mix={"unlabelled": {}}).fit(tmp_path / "a")
    two = distiller(teacher, **{"mix": {"unlabelled": {}}, **CHANGES[change]}).fit(tmp_path / "b")
    assert weights(one) != weights(two)


def test_no_two_options_of_the_distiller_train_the_same_student(teacher: Path, tmp_path: Path) -> None:
    made = {
        change: weights(distiller(teacher, **{"mix": {"unlabelled": {}}, **CHANGES[change]}).fit(tmp_path / change))
        for change in CHANGES
    }
    assert len(set(made.values())) == len(made) > 30


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
    found = {decision.kind: decision for decision in told}
    kept, cache, start = found["confidence"], found["cache"], found["start"]
    assert found["teacher"].chosen >= 0.8
    assert 0 < kept.chosen <= kept.candidates == 80
    assert cache.chosen == "logits and hidden states"
    assert cache.because.startswith("logits and layers 2, 4 in fp16 (")
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


def other_words(teacher: Path, student: Path) -> Path:
    """The student with a tokenizer that splits the texts otherwise."""
    content = json.loads((student / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for word in ("gripping", "dull"):
        vocabulary[f"##{word[3:]}"] = vocabulary.pop(word)
        vocabulary[word[:3]] = vocabulary.pop({"gripping": "with", "dull": "and"}[word])
    (student / "tokenizer.json").write_text(json.dumps(content))
    return student


def test_a_student_that_splits_words_otherwise_learns_from_answers_alone(teacher: Path, tmp_path: Path) -> None:
    student = other_words(teacher, distiller(teacher, smoke=True).fit(tmp_path / "first"))
    told: list[Decision] = []
    made = distiller(teacher, student=student, match=[match.logits()], smoke=True, decide=told.append)
    assert load_model(made.fit(tmp_path / "second")).config.num_hidden_layers == 2
    assert next(decision for decision in told if decision.kind == "teacher tokens").chosen == "separate"


def test_hidden_terms_between_tokenizers_that_do_not_align_are_refused_with_the_row(
    teacher: Path, tmp_path: Path
) -> None:
    student = other_words(teacher, distiller(teacher, smoke=True).fit(tmp_path / "first"))
    with pytest.raises(InputError, match=r"hidden needs the teacher's hidden states, token by token: .*gripping|dull"):
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
    "cache": (lambda: Distiller("t", data={}, cache="2 gigs"), "cache.budget: must be a size such as 40MB"),
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
    assert {decision.kind for decision in again} >= {"teacher", "cache", "start"}
    assert again == [decision for decision in first if decision.kind != "teacher precision"]
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
    with pytest.raises(
        InputError, match=r"the student (has 7 tokens, its tokenizer|answers 7 classes, the rows have 2)"
    ):
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


def test_a_student_starts_from_a_small_checkpoint(teacher: Path, tmp_path: Path) -> None:
    small = write_tiny_bert(tmp_path / "small", layers=3, seed=5)
    student = {"layers": 2, "init": {"from": str(small)}}
    out = distiller(teacher, student=student).fit(tmp_path / "student")
    config = load_model(out).config
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)


def test_two_teachers_teach_otherwise_than_one(teacher: Path, tmp_path: Path) -> None:
    encoder = write_tiny_bert(tmp_path / "encoder", layers=2, seed=3)
    train = Train(steps=60, learning_rate=5e-3)
    other = Finetuner(encoder, data=reviews(), train=train).fit(tmp_path / "other")
    made = {}
    for name, teachers, combine in (
        ("one", [other], "mean"),
        ("mean", [{"model": str(other), "weight": 0.5}, teacher], "mean"),
        ("confident", [other, teacher], "most_confident"),
    ):
        made[name] = weights(distiller(teachers, combine=combine).fit(tmp_path / name))  # type: ignore[arg-type]
    assert len(set(made.values())) == 3


def test_probabilities_in_a_file_teach_without_a_model(teacher: Path, tmp_path: Path) -> None:
    data = reviews()
    rows = [*zip(data.train.texts, data.train.labels, strict=True)]
    lines = [json.dumps({"review": text, "said": [0.9, 0.1] if label == 0 else [0.2, 0.8]}) for text, label in rows]
    (tmp_path / "api.jsonl").write_text(
        "\n".join([*lines, json.dumps({"review": data.unlabelled.texts[0], "said": None})])
    )
    part = {"probabilities": {"path": str(tmp_path / "api.jsonl"), "column": "said"}}
    small = {"init": {"from": str(write_tiny_bert(tmp_path / "small"))}}
    train = {"epochs": 20, "learning_rate": 3e-3, "batch_rows": 16}
    out = distiller(part, student=small, match=[match.logits()], train=train).fit(tmp_path / "student")  # type: ignore[arg-type]
    assert agreement(out, teacher, data) > 0.7


def test_controls_start_and_end_as_the_student_does(teacher: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    distiller(teacher, control=True).fit(work / "model", work=work)
    found = json.loads((work / "controls" / "controls.json").read_text())
    assert set(found) == {"no_kd", "no_mix"}
    assert {control["steps"] for control in found.values()} == {13}
    scores = found["no_kd"]["learning_rates"]
    assert list(scores) == ["0.0005", "0.001", "0.002"]
    assert scores[found["no_kd"]["chosen"]] == max(scores.values())
    folders = [work / "controls" / name / "model" for name in found]
    assert len({weights(folder) for folder in [work / "model", *folders]}) == 3
    assert all(load_model(folder).config.num_hidden_layers == 2 for folder in folders)


def test_a_control_without_a_teacher_is_plain_training_on_the_labels(teacher: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    distiller(teacher, control=True).fit(work / "model", work=work)
    chosen = json.loads((work / "controls" / "controls.json").read_text())["no_kd"]["chosen"]
    plain = distiller(
        teacher, match=[match.labels()], mix=Mix(unlabelled=None), train={**SHORT, "learning_rate": float(chosen)}
    )
    assert weights(plain.fit(tmp_path / "plain")) == weights(work / "controls" / "no_kd" / "model")


def test_a_teacher_that_answers_by_chance_is_refused(teacher: Path, tmp_path: Path) -> None:
    data = reviews(select=240)
    flipped = torch.randperm(240, generator=torch.Generator().manual_seed(1)).tolist()
    labels = tuple(data.select.labels[place] for place in flipped)
    mixed_up = DataSets(**{**data.__dict__, "select": Rows(data.select.texts, labels)})
    with pytest.raises(InputError, match="its answers do not depend on the labels"):
        distiller(teacher, data=mixed_up).fit(tmp_path / "a")


def test_phases_go_on_from_each_other(teacher: Path, tmp_path: Path) -> None:
    body = {"match": [match.hidden()], "train": SHORT}
    head = {"match": [match.logits()], "train": {**SHORT, "learning_rate": 5e-4}}
    work = tmp_path / "work"
    whole = distiller(teacher, train=None, phases=[body, head]).fit(work / "model", work=work)
    first = distiller(teacher, match=[match.hidden()]).fit(tmp_path / "body")
    second = distiller(teacher, student=first, match=[match.logits()], train=head["train"], seed=18).fit(
        tmp_path / "head"
    )
    assert weights(whole) == weights(second)
    lines = [json.loads(line) for line in (work / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 27))
    assert {line["phase"] for line in lines} == {1, 2}


def test_a_teacher_that_is_not_sure_of_any_unlabelled_row_is_told_before_training(
    teacher: Path, tmp_path: Path
) -> None:
    sure = {"unlabelled": {"keep": {"confidence": 1.0}}}
    with pytest.raises(InputError, match="none of the unlabelled rows may be drawn"):
        distiller(teacher, mix=sure).fit(tmp_path / "a")


RETRAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "how states are kept": ({"cache": {"states": "fp16"}}, {"cache": {"states": "int8"}}),
    "shares of the pools": (
        {"data": with_shares(0.1)},
        {"data": with_shares(0.9)},
    ),
    "metric": ({}, {"data": DataSets(**{**reviews().__dict__, "task": Task(metric="macro_f1")})}),
}


@pytest.mark.parametrize("change", sorted(RETRAINED))
def test_what_decides_the_weights_is_not_taken_for_the_same_training(
    change: str, teacher: Path, tmp_path: Path
) -> None:
    before, after = RETRAINED[change]
    distiller(teacher, **before).fit(tmp_path / "one", work=tmp_path / "work")
    with pytest.raises(InputError, match="another training"):
        distiller(teacher, **after).fit(tmp_path / "two", work=tmp_path / "work")


def test_controls_take_as_many_steps_as_a_student_that_stopped_early(teacher: Path, tmp_path: Path) -> None:
    train = {**SHORT, "steps": None, "epochs": 30, "early_stop": EarlyStop(patience=1)}
    work = tmp_path / "work"
    made = distiller(teacher, train=train, mix={"unlabelled": {"ratio": 0.6}}, control=True)
    made.fit(work / "model", work=work)
    steps = [json.loads(line)["step"] for line in (work / "steps.jsonl").read_text().splitlines()]
    found = json.loads((work / "controls" / "controls.json").read_text())
    for name in ("no_kd", "no_mix"):
        log = (work / "controls" / name / "steps.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == steps
        assert found[name]["steps"] == len(steps) < 30 * 13


def test_settings_that_would_change_nothing_are_refused(teacher: Path) -> None:
    with pytest.raises(InputError, match="tokenizer= is for a student given as a model"):
        distiller(teacher, tokenizer=teacher)
    with pytest.raises(InputError, match="combine needs several teachers, and there is one"):
        distiller(teacher, combine="most_confident")
    with pytest.raises(InputError, match="match: has one term, whose weight auto"):
        distiller(teacher, match=[match.logits(weight="auto")])
    with pytest.raises(InputError, match="no term of a weight above 0"):
        distiller(teacher, match=[match.logits(weight=0.0)])
    with pytest.raises(InputError, match="a term of logits twice"):
        distiller(teacher, match=[match.logits(), match.logits()])
    with pytest.raises(InputError, match="control compares with labels alone"):
        distiller(teacher, match=[match.labels()], control=True)
