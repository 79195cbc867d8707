import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import make_reviews, write_tiny_bert
from torch import Tensor

from compressor.data.batches import Batch, Pool
from compressor.data.encode import open_encoder
from compressor.data.mixing import BatchPlan, mixed_batches
from compressor.data.rows import Rows
from compressor.data.settings import Mix, Unlabelled
from compressor.distill import match
from compressor.distill.losses import kd_kl
from compressor.distill.settings import DEFAULT_MATCH, HiddenMatch, LabelsMatch, LogitsMatch
from compressor.distill.teacher_cache import LiveTeacher
from compressor.distill.terms import Teaching, Term, make_projections, term_names, term_pairs
from compressor.model.encoders import load_model
from compressor.model.settings import Student
from compressor.model.student import make_student
from compressor.settings import Number, ramp
from compressor.train.losses import cross_entropy


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("teacher") / "teacher", layers=4, labels=("bad", "good"))


@pytest.fixture(scope="module")
def pools(folder: Path) -> tuple[Pool, Pool]:
    encoder = open_encoder(folder, 32)
    rows = make_reviews(60, seed=2)
    labelled = Rows(tuple(text for text, _ in rows[:35]), tuple(int(label == "good") for _, label in rows[:35]))
    rest = Rows(tuple(text for text, _ in rows[35:]), (None,) * 25)
    return Pool.of(labelled, encoder), Pool.of(rest, encoder)


class Lesson:
    """A teacher, a student of half its depth (and width, if asked), and the loss between them."""

    def __init__(self, folder: Path, *terms: Term, weight: Number = 1.0, hidden: int | None = None) -> None:
        self.teacher = load_model(folder)
        self.student = make_student(self.teacher, Student(layers=2, hidden=hidden), seed=1)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.student.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        self.pairs = term_pairs(terms, teacher_layers=4, student_layers=2)
        layers = tuple(sorted({layer for each in self.pairs.values() for layer, _ in each}))
        self.projections = make_projections(self.pairs, self.student, self.teacher, seed=1)
        self.live = LiveTeacher(self.teacher, layers)
        self.loss = Teaching(terms, self.live, self.pairs, self.projections, weight)

    def gradient(self, batch: Batch, progress: float = 0.0) -> Tensor:
        self.student.zero_grad()
        self.loss(self.student, batch, progress).total.backward()
        return torch.cat([p.grad.flatten() for p in self.student.parameters() if p.grad is not None])


def batch_of(pools: tuple[Pool, Pool], labelled: list[int], unlabelled: list[int]) -> Batch:
    source = mixed_batches(
        *pools, Mix(unlabelled=Unlabelled()), type("T", (), {"batch_rows": 4, "batch_tokens": None})(), seed=1
    )
    return source.make(BatchPlan(tuple(labelled), tuple(unlabelled)))


def test_names_number_the_terms_of_a_kind() -> None:
    assert term_names([HiddenMatch(), LogitsMatch(), HiddenMatch(), HiddenMatch()]) == (
        "hidden", "logits", "hidden2", "hidden3",
    )  # fmt: skip


def test_the_sum_is_that_of_its_parts(folder: Path, pools: tuple[Pool, Pool]) -> None:
    terms = (match.logits(temperature=2.0, weight=0.7), match.labels(weight=0.3), match.hidden(weight=0.5))
    lesson, batch = Lesson(folder, *terms), batch_of(pools, [0, 1, 2, 3], [4, 5])
    found = lesson.loss(lesson.student, batch, 0.0)
    logits = lesson.student(**batch.inputs).logits
    taught = lesson.live.answers(batch, hidden=True)
    torch.testing.assert_close(found.terms["logits"], kd_kl(logits, taught.logits, temperature=2.0))
    torch.testing.assert_close(found.terms["labels"], cross_entropy(logits[:4], batch.targets[:4]))
    expected = 0.7 * found.terms["logits"] + 0.3 * found.terms["labels"] + 0.5 * found.terms["hidden"]
    torch.testing.assert_close(found.total, expected)
    assert list(found.terms) == ["logits", "labels", "hidden"]


def test_labelled_and_unlabelled_rows_have_the_same_soft_loss_scale(folder: Path, pools: tuple[Pool, Pool]) -> None:
    twins = (pools[0], Pool(pools[0].encoded, torch.full((35,), -100).numpy(), pools[0].pad_id))
    for term in (match.logits(temperature=3.0), match.hidden()):
        lesson = Lesson(folder, term)
        as_labelled = lesson.gradient(batch_of(twins, [0, 1, 2, 3], []))
        as_unlabelled = lesson.gradient(batch_of(twins, [0, 1], [2, 3]))
        torch.testing.assert_close(as_labelled, as_unlabelled)


def test_more_unlabelled_rows_do_not_change_the_labels_term(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.labels())
    alone = lesson.gradient(batch_of(pools, [0, 1, 2], []))
    among = lesson.gradient(batch_of(pools, [0, 1, 2], [0, 1, 2, 3, 4]))
    torch.testing.assert_close(alone, among, atol=1e-6, rtol=1e-4)


def test_a_batch_without_labelled_rows_has_a_labels_term_of_zero(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.labels())
    batch = batch_of(pools, [0], [1, 2])
    unlabelled = Batch(batch.inputs, torch.full((3,), -100), batch.rows, batch.unlabelled)
    assert lesson.loss(lesson.student, unlabelled, 0.0).terms["labels"].item() == 0.0


@pytest.mark.parametrize("term", [match.logits(), match.logits("mse"), match.hidden(), match.hidden("cosine")])
def test_unlabelled_weight_scales_the_unlabelled_rows_alone(term: Term, folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1], [0, 1])
    none, half, full = (Lesson(folder, term, weight=w).gradient(batch) for w in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + full) / 2, atol=1e-6, rtol=1e-4)
    assert (full - none).norm() > 1e-3 * full.norm()


@pytest.mark.parametrize("term", DEFAULT_MATCH, ids=lambda term: term.of)
def test_padding_changes_no_term(term: Term, folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson, batch = Lesson(folder, term), batch_of(pools, [0, 1, 2], [3])
    longer = {name: torch.nn.functional.pad(value, (0, 7)) for name, value in batch.inputs.items()}
    padded = Batch(longer, batch.targets, batch.rows, batch.unlabelled)
    torch.testing.assert_close(
        lesson.loss(lesson.student, batch, 0.0).total,
        lesson.loss(lesson.student, padded, 0.0).total,
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(folder: Path, pools: tuple[Pool, Pool]) -> None:
    terms = (match.logits(), match.hidden(map="0:0 2:2 4:4"))
    pairs = term_pairs(terms, teacher_layers=4, student_layers=4)
    loss = Teaching(terms, LiveTeacher(load_model(folder), (0, 2, 4)), pairs, None)
    found = loss(load_model(folder), batch_of(pools, [0, 1, 2], [3]), 0.0)
    assert found.total.item() == pytest.approx(0.0, abs=1e-6)


OPTIONS: dict[str, tuple[Term, Term]] = {
    "logits.loss": (match.logits("kl"), match.logits("mse")),
    "logits.temperature": (match.logits(temperature=1.0), match.logits(temperature=4.0)),
    "logits.weight": (match.logits(weight=1.0), match.logits(weight=0.4)),
    "labels.weight": (match.labels(weight=1.0), match.labels(weight=0.4)),
    "hidden.loss": (match.hidden("mse"), match.hidden("cosine")),
    "hidden.map": (match.hidden(map="uniform"), match.hidden(map="last")),
    "hidden.weight": (match.hidden(weight=1.0), match.hidden(weight=0.4)),
}


def test_every_option_of_match_is_listed_here() -> None:
    fields = {
        f"{name}.{field}"
        for name, schema in (("logits", LogitsMatch), ("labels", LabelsMatch), ("hidden", HiddenMatch))
        for field in schema.model_fields
        if field != "of"
    }
    assert fields - set(OPTIONS) == {"labels.loss"}  # it has one value


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_of_match_changes_the_gradient(option: str, folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1, 2, 3], [4, 5])
    one, two = (Lesson(folder, term).gradient(batch) for term in OPTIONS[option])
    assert (one - two).norm() > 1e-3 * one.norm()


def test_ce_has_the_gradient_of_kl_and_another_value(folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1, 2, 3], [4, 5])
    one, two = Lesson(folder, match.logits("kl")), Lesson(folder, match.logits("ce"))
    torch.testing.assert_close(one.gradient(batch), two.gradient(batch), atol=1e-6, rtol=1e-4)
    assert one.loss(one.student, batch, 0.0).total < two.loss(two.student, batch, 0.0).total


def test_schedules_move_weights_and_temperatures(folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1, 2, 3], [])
    moving = Lesson(folder, match.logits(temperature=ramp(4, 1), weight=ramp(0.2, 1.0)))
    for progress, temperature, weight in ((0.0, 4.0, 0.2), (0.5, 2.5, 0.6), (1.0, 1.0, 1.0)):
        fixed = Lesson(folder, match.logits(temperature=temperature, weight=weight))
        torch.testing.assert_close(moving.gradient(batch, progress), fixed.gradient(batch))


def test_a_hidden_term_of_weight_zero_does_not_read_hidden_states(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.logits(), match.hidden(weight=ramp(1, 0, over=0.5)))
    asked: list[bool] = []

    class Listening:
        def answers(self, batch: Batch, *, hidden: bool) -> object:
            asked.append(hidden)
            return lesson.live.answers(batch, hidden=hidden)

    loss = Teaching(lesson.loss.match, Listening(), lesson.pairs, None)  # type: ignore[arg-type]
    batch = batch_of(pools, [0, 1], [])
    assert loss(lesson.student, batch, 0.2).terms["hidden"].item() > 0
    assert loss(lesson.student, batch, 0.8).terms["hidden"].item() == 0
    assert asked == [True, False]


def test_a_narrower_student_gets_a_projection_for_each_pair(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.hidden(), match.hidden("cosine", map="4:2"), hidden=16)
    assert lesson.projections is not None
    assert sorted(lesson.projections) == ["hidden-2-1", "hidden-4-2", "hidden2-4-2"]
    lesson.loss(lesson.student, batch_of(pools, [0, 1], [2]), 0.0).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lesson.projections.parameters())
    assert Lesson(folder, match.hidden()).projections is None
    assert Lesson(folder, match.logits(), hidden=16).projections is None


def test_all_weights_zero_still_gives_a_loss_to_differentiate(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.logits(weight=0.0))
    assert lesson.gradient(batch_of(pools, [0, 1], [])).abs().sum().item() == 0.0


def test_match_functions_say_what_the_recipe_says() -> None:
    assert match.logits("mse", weight=2.0) == LogitsMatch.model_validate({"of": "logits", "loss": "mse", "weight": 2.0})
    assert match.labels(weight=0.3) == LabelsMatch.model_validate({"of": "labels", "weight": 0.3})
    assert json.loads(match.hidden(map="2:1").model_dump_json())["map"] == "2:1"
