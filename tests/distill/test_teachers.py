import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_tokens import write_tiny_mpnet_tokenizer
from tiny import BAD, FILLER, GOOD, make_reviews, write_tiny_bert

from compressor.data.batches import Batch, Pool
from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Augment, Task
from compressor.distill.desk import check_score
from compressor.distill.members import ask_onnx
from compressor.distill.settings import TeacherPart
from compressor.distill.teachers import class_columns, classifier_folder, near_chance, open_teachers
from compressor.distill.together import Teachers, device_of, mean_logits, most_confident_logits
from compressor.errors import InputError, StageError
from compressor.export.exporter import export_onnx
from compressor.model.encoders import load_model
from compressor.stage import Decision, silent

REVIEWS = make_reviews(70, seed=2)
LABELS = ("bad", "good")


def rows_of(start: int, stop: int, *, labelled: bool = True) -> Rows:
    part = REVIEWS[start:stop]
    return Rows(tuple(text for text, _ in part), tuple(LABELS.index(label) if labelled else None for _, label in part))


DATA = DataSets(
    Task(), LABELS, ("text",), 32, train=rows_of(0, 30), select=rows_of(30, 45), test=None,
    unlabelled=rows_of(45, 70, labelled=False),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("teacher") / "one", layers=4, labels=LABELS)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("teacher") / "two", labels=LABELS, seed=7)


@pytest.fixture(scope="module")
def batch(folder: Path) -> Batch:
    """Labelled and unlabelled rows among each other."""
    encoder = open_encoder(folder, 32)
    pool = Pool.of(Rows(DATA.train.texts[:3] + DATA.unlabelled.texts[:2], (0,) * 5), encoder)
    order = [3, 0, 4, 2, 1]
    rows, unlabelled = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([True, False, True, False, False])
    return replace(pool.batch(order), rows=rows, unlabelled=unlabelled)


TEXTS = [
    DATA.unlabelled.texts[0],
    DATA.train.texts[0],
    DATA.unlabelled.texts[1],
    DATA.train.texts[2],
    DATA.train.texts[1],
]


def part(**said: Any) -> TeacherPart:
    return TeacherPart.model_validate(said)


def opened(folder: Path, *parts: Any, base: Path | None = None, **options: Any) -> Teachers:
    """Teachers of folders and parts, for a student with the tokenizer of `folder`."""
    placed = [(part(model=str(each)), each) if isinstance(each, Path) else (each, None) for each in parts]
    return open_teachers(
        options.pop("placed", placed), data=options.pop("data", DATA), encoder=open_encoder(folder, 32),
        base=folder if base is None else base, **options,
    )  # fmt: skip


def said(teachers: Teachers, batch: Batch) -> torch.Tensor:
    return teachers.live(()).answers(batch, hidden=False).logits


def stock(folder: Path, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = load_model(folder)(**batch.inputs).logits
    return logits


def write_answers(folder: Path, column: str, answers: dict[str, Any]) -> Path:
    lines = [json.dumps({"text": text, column: answer}) for text, answer in answers.items()]
    (folder / "answers.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def file_part(kind: str, **more: Any) -> TeacherPart:
    return part(**{kind: {"path": "answers.jsonl", "column": "said"}}, **more)


def test_one_classifier_answers_with_its_own_logits_to_the_bit(folder: Path, batch: Batch) -> None:
    teachers = opened(folder, folder, terms=("hidden",))
    assert torch.equal(said(teachers, batch), stock(folder, batch))
    assert teachers.encoder_teacher is not None
    assert not any(parameter.requires_grad for parameter in teachers.encoder_teacher.parameters())
    assert list(teachers.live((0, 4)).answers(batch, hidden=True).hidden) == [0, 4]


def test_several_teachers_give_the_weighted_mean_of_their_probabilities(
    folder: Path, other: Path, batch: Batch
) -> None:
    placed = [(part(model="a", weight=3.0), folder), (part(model="b"), other)]
    wanted = (3 * stock(folder, batch).softmax(-1) + stock(other, batch).softmax(-1)) / 4
    torch.testing.assert_close(said(opened(folder, placed=placed), batch).softmax(-1), wanted)


def test_the_mean_is_over_those_who_answered() -> None:
    one = torch.tensor([[2.0, 0.0], [torch.nan, torch.nan], [torch.nan, torch.nan]])
    two = torch.tensor([[0.0, 1.0], [0.0, 3.0], [torch.nan, torch.nan]])
    found = mean_logits([one, two], [1.0, 3.0])
    torch.testing.assert_close(found[0].exp(), (one[0].softmax(-1) + 3 * two[0].softmax(-1)) / 4)
    torch.testing.assert_close(found[1].exp(), two[1].softmax(-1))
    assert bool(found[2].isnan().all())


def test_each_row_takes_the_logits_of_its_most_confident_teacher() -> None:
    one = torch.tensor([[2.0, 0.0], [1.0, 1.0], [torch.nan, torch.nan], [torch.nan, torch.nan]])
    two = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 0.1], [torch.nan, torch.nan]])
    found = most_confident_logits([one, two], [1.0, 1.0])
    assert torch.equal(found[:3], torch.stack([one[0], two[1], two[2]]))
    assert bool(found[3].isnan().all())


@pytest.mark.parametrize("combine", [mean_logits, most_confident_logits])
def test_a_broken_teacher_is_not_hidden_by_the_others(combine: Any) -> None:
    good = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [torch.nan, torch.nan]])
    broken = torch.tensor([[torch.inf, torch.inf], [torch.inf, 1.0], [torch.nan, torch.nan], [torch.inf, 0.0]])
    for both in ([good, broken], [broken, good]):
        found = combine(both, [1.0, 1.0])
        assert found.isinf().all(1).tolist() == [True, True, False, True]
        assert bool(found[2].isfinite().all())


def test_weights_that_would_change_nothing_are_refused(folder: Path, other: Path) -> None:
    placed = [(part(model="a", weight=3.0), folder), (part(model="b"), other)]
    with pytest.raises(InputError, match="weight applies to combine: mean alone"):
        opened(folder, placed=placed, combine="most_confident")


def test_classes_in_another_order_are_put_in_that_of_the_rows(folder: Path, batch: Batch) -> None:
    data = replace(DATA, labels=("good", "bad"))
    assert torch.equal(said(opened(folder, folder, data=data), batch), stock(folder, batch)[:, [1, 0]])


def test_other_classes_are_refused_with_both_lists(folder: Path) -> None:
    with pytest.raises(InputError, match="answers bad, good, but the rows' classes are no, yes"):
        opened(folder, folder, data=replace(DATA, labels=("no", "yes")))
    with pytest.raises(InputError, match=r"answers 2 classes \(bad, good\), the rows have 3 \(a, b, c\)"):
        opened(folder, folder, data=replace(DATA, labels=("a", "b", "c")))
    with pytest.raises(InputError, match="the teacher answers bad, good, but the rows' classes are no, yes"):
        class_columns(LABELS, ("no", "yes"), where="the teacher")


def test_an_encoder_without_a_classifier_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match="has no trained classifier; fine-tune it on the rows first"):
        opened(tiny_bert, tiny_bert)


@pytest.fixture(scope="module")
def onnx(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("onnx")
    export_onnx(folder, made / "model.onnx", texts=DATA.train.texts)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (made / name).write_bytes((folder / name).read_bytes())
    return made


def test_an_onnx_teacher_answers_as_the_model_it_was_made_of(folder: Path, onnx: Path, batch: Batch) -> None:
    found = opened(folder, onnx)
    torch.testing.assert_close(said(found, batch), stock(folder, batch), atol=1e-5, rtol=0)
    assert found.encoder_teacher is None
    turned = opened(folder, onnx, data=replace(DATA, labels=("good", "bad")))
    torch.testing.assert_close(said(turned, batch), stock(folder, batch)[:, [1, 0]], atol=1e-5, rtol=0)


def test_an_onnx_teacher_has_no_hidden_states_and_takes_no_mixed_rows(folder: Path, onnx: Path) -> None:
    with pytest.raises(
        InputError, match=r"match: hidden, relations need the teacher's hidden states.*none of the teach"
    ):
        opened(folder, onnx, terms=("hidden", "relations"))
    with pytest.raises(InputError, match=r"mixup mixes embeddings, which the ONNX teacher .* does not take"):
        opened(folder, onnx, augment=Augment(mixup=0.5))


class CountingEngine:
    """Answers the sum of a row's ids and their number, and remembers the shapes it was asked with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        self.shapes.append(inputs["input_ids"].shape)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return np.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype(np.float32)


def test_an_int8_onnx_teacher_is_asked_row_by_row_without_padding(batch: Batch) -> None:
    alone, together = CountingEngine(), CountingEngine()
    one = ask_onnx(alone, [1, 0], alone=True)(batch, "fp32")
    two = ask_onnx(together, [1, 0], alone=False)(batch, "fp32")
    assert torch.equal(one, two)
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    assert one[:, 0].tolist() == lengths
    assert alone.shapes == [(1, length) for length in lengths]
    assert len(together.shapes) == 1


def retokenised(folder: Path, home: Path, words: tuple[str, ...]) -> Path:
    """The classifier with another tokenizer, its embeddings as many as that needs."""
    model = load_model(folder)
    torch.manual_seed(3)
    encoder = write_tiny_mpnet_tokenizer(home, words)
    model.resize_token_embeddings(encoder.tokenizer.get_vocab_size())
    model.get_input_embeddings().weight.data.normal_()
    model.save_pretrained(home)
    return home


def answers_of(home: Path, texts: list[str]) -> torch.Tensor:
    """Of the model itself, each text alone, in its own tokens."""
    pool = Pool.of(Rows(tuple(texts), (0,) * len(texts)), open_encoder(home, 32))
    return torch.cat([stock(home, pool.batch([row])) for row in range(len(texts))])


def test_a_teacher_with_other_numbers_for_the_same_words_reads_them_token_by_token(
    folder: Path, batch: Batch, tmp_path: Path
) -> None:
    home = retokenised(folder, tmp_path, (*FILLER, *BAD, *GOOD, ".", ","))
    told: list[Decision] = []
    teachers = opened(folder, home, terms=("hidden",), decide=told.append)
    assert told[0].chosen == "mapped"
    assert told[0].because.endswith("under ids of its own; in 0 of 55 rows its own tokenizer makes other tokens")
    torch.testing.assert_close(said(teachers, batch), answers_of(home, TEXTS), atol=1e-5, rtol=0)
    states = teachers.live((4,)).answers(batch, hidden=True).hidden[4]
    assert states.shape[:2] == batch.inputs["input_ids"].shape


def test_a_teacher_with_other_words_reads_the_texts_itself(folder: Path, batch: Batch, tmp_path: Path) -> None:
    home = retokenised(folder, tmp_path, ("f", "##ilm", *FILLER[2:], *BAD, *GOOD))
    teachers = opened(folder, home)
    torch.testing.assert_close(said(teachers, batch), answers_of(home, TEXTS), atol=1e-5, rtol=0)
    pool = Pool.of(DATA.select, open_encoder(folder, 32))
    found = torch.from_numpy(teachers.answered(DATA.select, pool))
    torch.testing.assert_close(found, answers_of(home, list(DATA.select.texts)), atol=1e-5, rtol=0)
    assert teachers.encoder is None
    assert teachers.encoder_teacher is not None
    with pytest.raises(
        InputError, match=r"match: attention needs the teacher's hidden states.*the tokenizers differ: of"
    ):
        opened(folder, home, terms=("attention",))
    with pytest.raises(InputError, match=r"mix.augment changes the rows in the student's tokens, which the teacher"):
        opened(folder, home, augment=Augment(mask=0.1))


def test_written_probabilities_are_found_by_text_and_gaps_stay_gaps(folder: Path, batch: Batch, tmp_path: Path) -> None:
    answers = {TEXTS[0]: [0.25, 0.75], TEXTS[1]: {"good": 0.4, "bad": 0.6}, TEXTS[2]: None, TEXTS[3]: {"bad": 1.0005}}
    told: list[Decision] = []
    base = write_answers(tmp_path, "said", {**answers, "no row at all": [0.5, 0.5]})
    teachers = opened(folder, file_part("probabilities"), base=base, decide=told.append)
    found = said(teachers, batch).softmax(-1)
    torch.testing.assert_close(found[:2], torch.tensor([[0.25, 0.75], [0.6, 0.4]]))
    torch.testing.assert_close(found[3], torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
    assert found.isnan().all(1).tolist() == [False, False, True, False, True]
    assert not teachers.computes
    assert told[0].chosen == 3
    assert told[0].because == (
        "rows of train (2 of 30) and unlabelled (1 of 25) that answers.jsonl answers; 1 of its texts are no row"
    )


def test_a_file_fills_in_beside_a_model(folder: Path, batch: Batch, tmp_path: Path) -> None:
    base = write_answers(tmp_path, "said", {TEXTS[0]: [0.25, 0.75]})
    found = said(opened(folder, folder, file_part("probabilities"), base=base), batch).softmax(-1)
    model = stock(folder, batch).softmax(-1)
    torch.testing.assert_close(found[1:], model[1:])
    torch.testing.assert_close(found[0], (model[0] + torch.tensor([0.25, 0.75])) / 2)


def test_votes_become_probabilities(folder: Path, batch: Batch, tmp_path: Path) -> None:
    base = write_answers(tmp_path, "said", {TEXTS[0]: "good", TEXTS[1]: "bad", TEXTS[2]: None})
    found = said(opened(folder, file_part("votes"), base=base), batch).softmax(-1)
    torch.testing.assert_close(found[:2], torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    assert bool(found[2:].isnan().all())
    several = {text: ["good" if "g" in text else "bad", None, "good"] for text in DATA.train.texts}
    base = write_answers(tmp_path, "said", several)
    found = said(opened(folder, file_part("votes"), base=base), batch).softmax(-1)
    torch.testing.assert_close(found[[1, 3, 4]].sum(1), torch.ones(3))


WRONG = {
    "unknown class": ("probabilities", {"great": 1.0}, "line 1: class 'great' is not one of the classes bad, good"),
    "sum": ("probabilities", [0.5, 0.6], r"line 1 holds no probabilities: \[0.5, 0.6\] sums to 1.1"),
    "negative": ("probabilities", [-0.5, 1.5], "line 1 holds no probabilities"),
    "count": ("probabilities", [1.0], "line 1 must hold a list of 2 probabilities in the order bad, good"),
    "kind": ("probabilities", "good", "line 1 must hold a list of 2 probabilities"),
    "truth": ("probabilities", [True, False], "line 1 must hold a list of 2 probabilities"),
    "no votes": ("votes", [], "line 1 holds an empty list of votes; give one place a voter"),
    "unknown vote": ("votes", ["good", "great"], "line 1: class 'great' is not one of the classes bad, good"),
    "vote's kind": ("votes", 0.5, "line 1: class 0.5 is not one of the classes bad, good"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_a_file_is_told_with_its_line(mistake: str, folder: Path, tmp_path: Path) -> None:
    kind, answer, message = WRONG[mistake]
    base = write_answers(tmp_path, "said", {TEXTS[0]: answer})
    with pytest.raises(InputError, match=message):
        opened(folder, file_part(kind), base=base)


def test_lists_of_votes_have_a_place_for_every_voter(folder: Path, tmp_path: Path) -> None:
    base = write_answers(tmp_path, "said", {TEXTS[0]: ["good", "bad"], TEXTS[1]: ["good"]})
    with pytest.raises(InputError, match="line 2 holds 1 votes where 2 are expected, one place a voter"):
        opened(folder, file_part("votes"), base=base)


def test_an_empty_list_of_votes_is_blamed_on_its_own_line(folder: Path, tmp_path: Path) -> None:
    for first, line in (([], 1), (["good", "bad"], 2)):
        base = write_answers(tmp_path, "said", {TEXTS[0]: first, TEXTS[1]: [] if first else ["good", "bad"]})
        with pytest.raises(InputError, match=f"line {line} holds an empty list of votes"):
            opened(folder, file_part("votes"), base=base)


def test_a_text_with_two_answers_is_refused(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": TEXTS[0], "said": vote}) + "\n" for vote in ("good", "good", "bad")]
    (tmp_path / "answers.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=r"line 3 answers '.*' otherwise than answers.jsonl: line 1; keep one"):
        opened(folder, file_part("votes"), base=tmp_path)


def test_a_file_that_fits_no_row_or_changed_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    base = write_answers(tmp_path, "said", {"something else": "good"})
    with pytest.raises(InputError, match="none of its 1 texts is one of the rows, such as"):
        opened(folder, file_part("votes"), base=base)
    with pytest.raises(
        InputError, match=r"mix.augment changes the rows, but answers.jsonl holds answers to the rows as"
    ):
        opened(folder, file_part("votes"), base=base, augment=Augment(delete=0.1))


def test_class_names_are_compared_with_the_mean_of_the_tokens(tiny_bert: Path, batch: Batch) -> None:
    names = {"good": "the film is gripping"}
    settings = {"model": str(tiny_bert), "names": names, "temperature": 0.2}
    before = torch.random.get_rng_state()
    teachers = opened(tiny_bert, part(label_names=settings))
    assert torch.equal(torch.random.get_rng_state(), before)
    model = load_model(tiny_bert, labels=LABELS).base_model
    encoder = open_encoder(tiny_bert, 32)

    def vector(text: str) -> torch.Tensor:
        ids = torch.from_numpy(encoder.encode([text]).row(0).astype(np.int64))[None]
        with torch.inference_mode():
            mean: torch.Tensor = model(ids).last_hidden_state[0].mean(0)
        return mean / mean.norm()

    wanted = torch.stack(
        [torch.stack([vector(text) @ vector(name) for name in ("bad", names["good"])]) / 0.2 for text in TEXTS]
    )
    torch.testing.assert_close(said(teachers, batch), wanted, atol=1e-4, rtol=1e-4)


def test_names_of_classes_that_are_not_there_are_refused(tiny_bert: Path) -> None:
    settings = {"model": str(tiny_bert), "names": {"great": "gripping"}}
    with pytest.raises(InputError, match="'great' is not one of the classes bad, good"):
        opened(tiny_bert, part(label_names=settings))


@pytest.mark.registry
def test_class_names_tell_real_topics_apart(minilm: Path) -> None:
    sports = ["The team won the match in extra time.", "He scored two goals in the final."]
    money = ["Shares of the bank fell after the report.", "The company doubled its profit this year."]
    rows = Rows((*sports, *money), (1, 1, 0, 0))
    data = replace(DATA, labels=("finance", "sports"), train=rows, select=rows, unlabelled=Rows((), ()))
    teachers = opened(minilm, part(label_names={"model": str(minilm)}), data=data)
    logits = teachers.answered(rows, Pool.of(rows, open_encoder(minilm, 32)))
    assert logits.argmax(1).tolist() == [1, 1, 0, 0]


def test_the_digest_follows_everything_that_decides_the_answers(folder: Path, other: Path, tmp_path: Path) -> None:
    base = write_answers(tmp_path, "said", {TEXTS[0]: "good"})
    digests = [
        opened(folder, folder).digest,
        opened(folder, other).digest,
        opened(folder, folder, other).digest,
        opened(folder, folder, other, combine="most_confident").digest,
        opened(folder, placed=[(part(model="a", weight=2.0), folder), (part(model="b"), other)]).digest,
        opened(folder, folder, data=replace(DATA, train=rows_of(1, 30))).digest,
        opened(folder, file_part("votes"), base=base).digest,
        opened(folder, file_part("votes"), base=write_answers(tmp_path, "said", {TEXTS[0]: "bad"})).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert opened(folder, folder).digest == digests[0]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "1_Pooling/config.json"])
def test_the_digest_follows_how_a_folder_tokenises_and_pools(name: str, tiny_bert: Path, tmp_path: Path) -> None:
    home = tmp_path / "encoder"
    shutil.copytree(tiny_bert, home)
    teacher = part(label_names={"model": str(home)})
    before = opened(tiny_bert, teacher).digest
    assert opened(tiny_bert, teacher).digest == before
    file = home / name
    file.parent.mkdir(exist_ok=True)
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**said, "pooling_mode_cls_token": True}))
    assert opened(tiny_bert, teacher).digest != before


def test_batches_go_to_the_device_of_a_teacher_of_class_names(tiny_bert: Path) -> None:
    teachers = opened(tiny_bert, part(label_names={"model": str(tiny_bert)}))
    assert teachers.encoder_teacher is None
    assert device_of(teachers) == torch.device("cpu")
    assert device_of(replace(teachers, device=torch.device("meta"))) == torch.device("meta")


def test_the_first_folder_of_torch_weights_is_that_of_the_student(folder: Path, onnx: Path) -> None:
    parts = [(part(votes={"path": "a", "column": "b"}), None), (part(model="x"), onnx), (part(model="y"), folder)]
    assert classifier_folder(parts) == folder
    assert classifier_folder(parts[:2]) is None


def test_a_broken_teacher_stops_with_the_row_and_its_text(folder: Path, batch: Batch) -> None:
    teachers = opened(folder, folder)
    assert teachers.encoder_teacher is not None
    with torch.no_grad():
        teachers.encoder_teacher.classifier.bias.fill_(torch.inf)
    with pytest.raises(
        StageError, match=r"answers row 0 \(from 0\) of data.unlabelled, '.*', with numbers that are not"
    ):
        said(teachers, batch)


def chance(rows: int, right: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.integers(2, size=rows)
    answers = np.where(random.random(rows) < right, targets, 1 - targets)
    return np.eye(2, dtype=np.float32)[answers], targets


def test_answers_that_do_not_follow_the_labels_are_called_chance() -> None:
    said = near_chance(*chance(400, 0.5))
    assert said is not None
    assert "its answers do not depend on the labels" in said
    assert near_chance(*chance(400, 0.7)) is None
    alone = near_chance(np.tile([1.0, 0.0], (300, 1)), chance(300, 0.5)[1])
    assert alone is not None
    assert alone.endswith("it answers one class alone")


def test_answers_that_follow_the_labels_backwards_are_told() -> None:
    said = near_chance(*chance(400, 0.1))
    assert said is not None
    assert said.endswith("the wrong way round, so the classes may be mixed up")


def test_too_few_rows_tell_nothing_and_gaps_do_not_count() -> None:
    assert near_chance(*chance(199, 0.5)) is None
    logits, targets = chance(240, 0.5)
    logits[:50] = np.nan
    assert near_chance(logits, targets) is None
    logits, targets = chance(240, 0.5)
    targets[:50] = -100
    assert near_chance(logits, targets) is None


def test_one_teacher_at_chance_among_good_ones_is_named() -> None:
    good, targets = chance(400, 0.9)
    bad, _ = chance(400, 0.5, seed=1)
    teachers = SimpleNamespace(
        members=[SimpleNamespace(name="first"), SimpleNamespace(name="second")],
        answered_each=lambda *_given, **_named: np.stack([4 * good, bad]),
        together=lambda each: each.mean(0),
    )
    desk: Any = SimpleNamespace(
        teachers=teachers, data=SimpleNamespace(select=None), select=SimpleNamespace(targets=targets)
    )
    assert near_chance(teachers.together(teachers.answered_each()), targets) is None
    with pytest.raises(InputError, match=r"^second: the teacher is right in .* do not depend on the labels"):
        check_score(desk, progress=silent)


def test_members_answers_are_what_they_say_alone_and_together_what_they_say_as_one(folder: Path, other: Path) -> None:
    rows = DATA.select
    both, alone = opened(folder, folder, other), opened(folder, other)
    pool = Pool.of(rows, open_encoder(folder, 32))
    each = both.answered_each(rows, pool)
    assert each.shape == (2, len(rows), 2)
    np.testing.assert_allclose(each[1], alone.answered(rows, pool), atol=1e-6)
    np.testing.assert_allclose(both.together(each), both.answered(rows, pool), atol=1e-6)
