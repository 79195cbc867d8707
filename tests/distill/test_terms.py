import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_reviews, write_tiny_bert
from torch import Tensor
from torch.nn import functional

from compressor.data.batches import Batch, Pool
from compressor.data.encode import open_encoder
from compressor.data.mixing import BatchPlan, mixed_batches
from compressor.data.rows import Rows
from compressor.data.settings import Mix, Unlabelled
from compressor.distill import match
from compressor.distill.answers import Answers, LiveTeacher
from compressor.distill.layer_map import Term, drawn, needed_layers, pairings, term_names
from compressor.distill.losses import HIDDEN_LOSSES, hidden_mse, kd_kl
from compressor.distill.projections import make_parts
from compressor.distill.settings import (
    AttentionMatch,
    EmbeddingsMatch,
    HiddenMatch,
    LabelsMatch,
    LogitsMatch,
    RelationsMatch,
)
from compressor.distill.terms import Teaching
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.parts import shapes
from compressor.model.settings import Student
from compressor.model.states import forward, record_hidden
from compressor.model.student import make_student
from compressor.model.surgery import cut, keep_all
from compressor.settings import Number, ramp
from compressor.train.losses import cross_entropy
from compressor.train.settings import Train

TERMS: list[Term] = [
    match.logits(), match.logits("mse"), match.logits("decoupled"), match.logits("gce"),
    match.hidden(), match.hidden("cosine"), match.hidden("pkd"), match.hidden("mmd"), match.hidden("gram"),
    match.hidden(map="random"), match.hidden(map="attention"), match.attention(), match.attention("mse"),
    match.relations(), match.relations(map="uniform"), match.embeddings(), match.embeddings("cosine"),
]  # fmt: skip
"""A term of each kind on the teacher's answers."""


def words(term: Term) -> str:
    return "-".join(str(value) for name in ("of", "loss", "map") if (value := getattr(term, name, None)))


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
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("teacher") / "three", layers=4, labels=("bad", "good", "odd"))


@pytest.fixture(scope="module")
def pools(folder: Path) -> tuple[Pool, Pool]:
    encoder = open_encoder(folder, 32)
    rows = make_reviews(60, seed=2)
    labelled = Rows(tuple(text for text, _ in rows[:35]), tuple(int(label == "good") for _, label in rows[:35]))
    rest = Rows(tuple(text for text, _ in rows[35:]), (None,) * 25)
    return Pool.of(labelled, encoder), Pool.of(rest, encoder)


class Lesson:
    """A teacher, a student of half its depth (and width, if asked), and the loss between them."""

    def __init__(
        self,
        folder: Path,
        *terms: Term,
        weight: Number = 1.0,
        hidden: int | None = None,
        heads: int | None = None,
        steps: int = 1000,
    ) -> None:
        self.teacher = load_model(folder)
        self.student = make_student(self.teacher, Student(layers=2, hidden=hidden, heads=heads), seed=1)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.student.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        self.pairing = pairings(terms, teacher_layers=4, student_layers=2, nearest=((1, 1), (4, 2)), seed=1, epochs=5)
        self.parts = make_parts(terms, self.pairing, self.student, self.teacher, seed=1)
        self.live = LiveTeacher(self.teacher, needed_layers(terms, self.pairing))
        self.loss = Teaching(terms, self.live, self.pairing, self.parts, steps, self.teacher, weight)

    def gradient(self, batch: Batch, progress: float = 0.0) -> Tensor:
        self.student.zero_grad()
        self.loss(self.student, batch, progress).total.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.student.parameters()]
        return torch.cat([each.flatten() for each in grads])


def batch_of(pools: tuple[Pool, Pool], labelled: list[int], unlabelled: list[int]) -> Batch:
    source = mixed_batches(*pools, Mix(unlabelled=Unlabelled()), Train(batch_rows=4), seed=1)
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
    taught = lesson.live.answers(batch, hidden=())
    torch.testing.assert_close(found.terms["logits"], kd_kl(logits, taught.logits, temperature=2.0))
    torch.testing.assert_close(found.terms["labels"], cross_entropy(logits[:4], batch.targets[:4]))
    expected = 0.7 * found.terms["logits"] + 0.3 * found.terms["labels"] + 0.5 * found.terms["hidden"]
    torch.testing.assert_close(found.total, expected)
    assert list(found.terms) == ["logits", "labels", "hidden"]


def test_labelled_and_unlabelled_rows_have_the_same_soft_loss_scale(folder: Path, pools: tuple[Pool, Pool]) -> None:
    twins = (pools[0], Pool(pools[0].encoded, torch.full((35,), -100).numpy(), pools[0].pad_id))
    for term in TERMS:
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


@pytest.mark.parametrize("term", TERMS, ids=words)
def test_unlabelled_weight_scales_the_unlabelled_rows_alone(term: Term, folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1], [0, 1])
    none, half, full = (Lesson(folder, term, weight=w).gradient(batch) for w in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + full) / 2, atol=1e-6, rtol=1e-4)
    assert (full - none).norm() > 1e-3 * full.norm()


@pytest.mark.parametrize("term", [match.labels(), match.labels("focal"), match.labels("gce"), *TERMS], ids=words)
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
    terms = (
        match.logits(), match.logits("mse"), match.embeddings(), match.attention(), match.attention("mse"),
        match.relations(map="first"), *(match.hidden(name, map="0:0 2:2 4:4") for name in HIDDEN_LOSSES),
    )  # fmt: skip
    teacher, pairing = load_model(folder), pairings(terms, teacher_layers=4, student_layers=4)
    live = LiveTeacher(teacher, needed_layers(terms, pairing))
    found = Teaching(terms, live, pairing, None, 10, teacher)(load_model(folder), batch_of(pools, [0, 1, 2], [3]), 0.0)
    assert {name: value.item() for name, value in found.terms.items()} == pytest.approx(
        dict.fromkeys(term_names(terms), 0.0), abs=1e-5
    )


OPTIONS: dict[str, tuple[Term, Term]] = {
    "logits.loss": (match.logits("kl"), match.logits("mse")),
    "logits.loss.decoupled": (
        match.logits("kl", temperature=2.0),
        match.logits("decoupled", temperature=2.0, beta=1.0),
    ),
    "logits.loss.gce": (match.logits("kl"), match.logits("gce")),
    "logits.temperature": (match.logits(temperature=1.0), match.logits(temperature=4.0)),
    "logits.beta": (match.logits("decoupled", beta=1.0), match.logits("decoupled", beta=8.0)),
    "logits.weight": (match.logits(weight=1.0), match.logits(weight=0.4)),
    "labels.loss": (match.labels("ce"), match.labels("focal")),
    "labels.loss.gce": (match.labels("ce"), match.labels("gce")),
    "labels.gamma": (match.labels("focal", gamma=1.0), match.labels("focal", gamma=3.0)),
    "labels.smoothing": (match.labels("ce"), match.labels("ce", smoothing=0.3)),
    "labels.smoothing.focal": (match.labels("focal"), match.labels("focal", smoothing=0.3)),
    "labels.weight": (match.labels(weight=1.0), match.labels(weight=0.4)),
    "hidden.loss": (match.hidden("mse"), match.hidden("cosine")),
    "hidden.loss.pkd": (match.hidden("mse"), match.hidden("pkd")),
    "hidden.loss.mmd": (match.hidden("mse"), match.hidden("mmd")),
    "hidden.loss.gram": (match.hidden("mse"), match.hidden("gram")),
    "hidden.map": (match.hidden(map="uniform"), match.hidden(map="last")),
    "hidden.map.first": (match.hidden(map="uniform"), match.hidden(map="first")),
    "hidden.map.random": (match.hidden(map="last"), match.hidden(map="random")),
    "hidden.map.attention": (match.hidden(map="uniform"), match.hidden(map="attention")),
    "hidden.map.nearest": (match.hidden(map="uniform"), match.hidden(map="nearest")),
    "hidden.map.pairs": (match.hidden(map="uniform"), match.hidden(map="0:0 4:2")),
    "hidden.weight": (match.hidden(weight=1.0), match.hidden(weight=0.4)),
    "attention.loss": (match.attention("mse"), match.attention("kl")),
    "attention.map": (match.attention(map="uniform"), match.attention(map="4:1")),
    "attention.map.random": (match.attention(map="last"), match.attention(map="random")),
    "attention.weight": (match.attention(weight=1.0), match.attention(weight=0.4)),
    "relations.pairs": (match.relations(), match.relations(pairs=["vv"])),
    "relations.heads": (match.relations(heads=2), match.relations(heads=8)),
    "relations.map": (match.relations(), match.relations(map="uniform")),
    "relations.map.nearest": (match.relations(map="uniform"), match.relations(map="nearest")),
    "relations.weight": (match.relations(weight=1.0), match.relations(weight=0.4)),
    "embeddings.loss": (match.embeddings("mse"), match.embeddings("cosine")),
    "embeddings.weight": (match.embeddings(weight=1.0), match.embeddings(weight=0.4)),
}
ONE_VALUE = {"relations.loss"}
SCHEMAS = (LogitsMatch, LabelsMatch, HiddenMatch, AttentionMatch, RelationsMatch, EmbeddingsMatch)


def test_every_option_of_match_is_listed_here() -> None:
    fields = {
        f"{schema.model_fields['of'].default}.{field}"
        for schema in SCHEMAS
        for field in schema.model_fields
        if field != "of"
    }
    assert fields - {".".join(option.split(".")[:2]) for option in OPTIONS} == ONE_VALUE


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_of_match_changes_the_gradient(
    option: str, folder: Path, three: Path, pools: tuple[Pool, Pool]
) -> None:
    batch = batch_of(pools, [0, 1, 2, 3], [4, 5])
    # decoupled differs from kl where there is more than one other class
    place = three if option in ("logits.beta", "logits.loss.decoupled") else folder
    one, two = (Lesson(place, term).gradient(batch) for term in OPTIONS[option])
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


class Listening:
    """A teacher that notes which layers it is asked for."""

    def __init__(self, live: LiveTeacher) -> None:
        self.live, self.asked = live, []

    def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
        self.asked.append(hidden)
        return self.live.answers(batch, hidden=hidden)


def test_a_hidden_term_of_weight_zero_does_not_read_hidden_states(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.logits(), match.hidden(weight=ramp(1, 0, over=0.5)))
    teacher = Listening(lesson.live)
    loss, batch = replace(lesson.loss, teacher=teacher), batch_of(pools, [0, 1], [])
    assert loss(lesson.student, batch, 0.2).terms["hidden"].item() > 0
    assert "hidden" not in loss(lesson.student, batch, 0.8).terms
    assert teacher.asked == [(2, 4), ()]


def test_each_step_reads_the_layers_of_its_own_pairs_alone(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.hidden(map="random"), match.relations(), match.embeddings())
    teacher = Listening(lesson.live)
    loss, batch = replace(lesson.loss, teacher=teacher), batch_of(pools, [0, 1], [])
    for epoch in range(5):
        loss(lesson.student, replace(batch, epoch=epoch), 0.2)
    pairs = [drawn(4, 2, seed=1, name="hidden", epoch=epoch) for epoch in range(5)]
    assert teacher.asked == [tuple(sorted({0, 3, *(layer for layer, _ in each)})) for each in pairs]
    assert len(set(teacher.asked)) > 1


def test_random_pairs_change_from_epoch_to_epoch(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson, batch = Lesson(folder, match.hidden(map="random")), batch_of(pools, [0, 1], [2])
    for epoch in range(4):
        found = lesson.loss(lesson.student, replace(batch, epoch=epoch), 0.0)
        pairs = drawn(4, 2, seed=1, name="hidden", epoch=epoch)
        assert list(found.parts) == [f"hidden {one}:{other}" for one, other in pairs]
        fixed = Lesson(folder, match.hidden(map=" ".join(f"{one}:{other}" for one, other in pairs)))
        torch.testing.assert_close(found.total, fixed.loss(fixed.student, batch, 0.0).total)


def test_parts_name_the_pairs_whose_mean_a_term_is(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(
        folder, match.logits(), match.hidden(), match.relations(map="uniform"), match.hidden(map="attention")
    )
    found = lesson.loss(lesson.student, batch_of(pools, [0, 1], [2]), 0.0)
    assert list(found.parts) == [
        "hidden 2:1", "hidden 4:2", "relations 2:1", "relations 4:2", "hidden2 all:1", "hidden2 all:2",
    ]  # fmt: skip
    for name in ("hidden", "relations", "hidden2"):
        mine = [value for part, value in found.parts.items() if part.startswith(f"{name} ")]
        torch.testing.assert_close(found.terms[name], torch.stack(mine).mean())


def test_a_narrower_student_gets_a_projection_for_each_pair(folder: Path, pools: tuple[Pool, Pool]) -> None:
    terms = [match.hidden(), match.hidden("cosine", map="4:2"), match.embeddings(), match.hidden("pkd", map="random")]
    lesson = Lesson(folder, *terms, hidden=16)
    assert lesson.parts is not None
    assert sorted(lesson.parts.projections) == [
        "embeddings-0-0", "hidden-2-1", "hidden-4-2", "hidden2-4-2", "hidden3-any-1", "hidden3-any-2",
    ]  # fmt: skip
    lesson.loss(lesson.student, batch_of(pools, [0, 1], [2]), 0.0).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lesson.parts.parameters())


def test_what_needs_nothing_beside_the_student_gets_nothing(folder: Path) -> None:
    for term in TERMS[:-1]:
        if getattr(term, "map", None) != "attention":
            assert Lesson(folder, term).parts is None
    for term in (match.logits(), match.hidden("mmd"), match.hidden("gram"), match.relations(), match.attention()):
        assert Lesson(folder, term, hidden=16).parts is None
    both = Lesson(folder, match.logits(), match.labels(), hidden=16).parts
    assert both is not None
    assert not list(both.parameters())


@pytest.mark.parametrize("term", TERMS, ids=words)
@pytest.mark.parametrize(("hidden", "heads"), [(16, 4), (32, 2)])
def test_every_term_teaches_a_student_of_another_width_and_head_count(
    term: Term, hidden: int, heads: int, folder: Path, pools: tuple[Pool, Pool]
) -> None:
    lesson, batch = Lesson(folder, term, hidden=hidden, heads=heads), batch_of(pools, [0, 1, 2], [3])
    found = lesson.gradient(batch)
    assert torch.isfinite(found).all()
    assert found.norm() > 0


def test_relations_and_attention_are_those_of_the_models_own_layers(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson, batch = Lesson(folder, match.attention(map="3:1"), match.relations(map="3:1", pairs=["vv"], heads=4)), None
    batch = batch_of(pools, [0, 1], [2])
    lesson.student.eval()
    found = lesson.loss(lesson.student, batch, 0.0)
    mask = batch.inputs["attention_mask"].bool()
    eager = load_model(folder, attention="eager")
    lesson.student.save_pretrained(folder / "student")
    student = load_model(folder / "student", attention="eager")
    with torch.no_grad():
        taught = eager(**batch.inputs, output_attentions=True).attentions[2]
        own = student(**batch.inputs, output_attentions=True).attentions[0]
    by_query = (taught.clamp(min=1e-30).log() - own.clamp(min=1e-30).log()).mul(taught).sum(-1).mean(1)
    torch.testing.assert_close(found.terms["attention"], by_query[mask].mean(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        chances = []
        for model, layer in ((eager, 2), (student, 0)):
            state = model(**batch.inputs, output_hidden_states=True).hidden_states[layer]
            value = model.bert.encoder.layer[layer].attention.self.value(state).unflatten(-1, (4, 8)).transpose(1, 2)
            scores = (value @ value.transpose(-1, -2) / 8**0.5).masked_fill(~mask[:, None, None], -torch.inf)
            chances.append(scores.softmax(-1).clamp(min=1e-30))
    by_token = (chances[0] * (chances[0] / chances[1]).log()).sum(-1).mean(1)
    torch.testing.assert_close(found.terms["relations"], by_token[mask].mean(), rtol=1e-3, atol=1e-6)


def test_a_mixture_begins_as_the_mean_of_all_layers_and_learns(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson, batch = Lesson(folder, match.hidden(map="attention")), batch_of(pools, [0, 1, 2], [3])
    assert lesson.parts is not None
    assert lesson.live.layers == (1, 2, 3, 4)
    taught = lesson.live.answers(batch, hidden=True).hidden
    mean = torch.stack([functional.layer_norm(taught[layer], (32,)) for layer in (1, 2, 3, 4)]).mean(0)
    with record_hidden(lesson.student, layers=[1, 2]) as states, torch.no_grad():
        lesson.student.eval()
        forward(lesson.student, batch)
    expected = [hidden_mse(states[layer], mean, batch.inputs["attention_mask"]) for layer in (1, 2)]
    found = lesson.loss(lesson.student, batch, 0.0)
    torch.testing.assert_close(found.total, torch.stack(expected).mean())
    optimizer = torch.optim.Adam(lesson.parts.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        last = lesson.loss(lesson.student, batch, 0.0).total
        last.backward()
        optimizer.step()
    assert last < found.total


def test_no_gradient_reaches_the_teacher(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, *TERMS)
    lesson.loss(lesson.student, batch_of(pools, [0, 1], [2]), 0.0).total.backward()
    assert all(parameter.grad is None for parameter in lesson.teacher.parameters())


def test_rows_that_no_teacher_answered_take_no_part(folder: Path, pools: tuple[Pool, Pool]) -> None:
    for loss in ("kl", "mse", "ce", "decoupled", "gce"):
        lesson, both = Lesson(folder, match.logits(loss)), batch_of(pools, [0, 1], [2, 3])

        class Silent:
            def answers(
                self, batch: Batch, *, hidden: bool | Collection[int], live: LiveTeacher = lesson.live
            ) -> Answers:
                logits = live.answers(batch, hidden=()).logits
                return Answers(torch.where(batch.unlabelled[:, None], torch.nan, logits), {})

        found = replace(lesson.loss, teacher=Silent())(lesson.student.eval(), both, 0.0).total
        alone = lesson.loss(lesson.student, batch_of(pools, [0, 1], []), 0.0).total
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
        found.backward()
        assert all(torch.isfinite(p.grad).all() for p in lesson.student.parameters() if p.grad is not None)


def test_a_batch_that_no_teacher_answered_has_a_logits_term_of_zero(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.logits())

    class Silent:
        def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
            return Answers(torch.full((len(batch), 2), torch.nan), {})

    found = replace(lesson.loss, teacher=Silent())(lesson.student, batch_of(pools, [0], [1]), 0.0)
    found.total.backward()
    assert found.total.item() == 0.0


def test_row_factors_scale_the_soft_terms_of_their_rows_alone(folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1], [0, 1])
    half = replace(batch, weights=torch.tensor([1.0, 1.0, 0.5, 0.5]))
    for term in TERMS:
        torch.testing.assert_close(
            Lesson(folder, term).gradient(half), Lesson(folder, term, weight=0.5).gradient(batch), atol=1e-6, rtol=1e-4
        )
    both = Lesson(folder, match.logits(), weight=0.5).gradient(half)
    torch.testing.assert_close(both, Lesson(folder, match.logits(), weight=0.25).gradient(batch), atol=1e-6, rtol=1e-4)
    labels = Lesson(folder, match.labels())
    torch.testing.assert_close(labels.gradient(half), labels.gradient(batch))


def test_mixed_rows_are_taught_by_what_the_teacher_says_of_the_mixture(folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1], [2, 3])
    mask = torch.ones_like(batch.inputs["attention_mask"])
    mixed = replace(
        batch,
        inputs={**batch.inputs, "attention_mask": mask},
        partner=torch.tensor([1, 0, 3, 2]),
        kept=torch.tensor([0.7, 0.6, 1.0, 0.5]),
    )
    lesson = Lesson(folder, match.logits(), match.hidden())
    lesson.student.eval()
    found = lesson.loss(lesson.student, mixed, 0.0)
    words = lesson.student.get_input_embeddings()(batch.inputs["input_ids"])
    share = mixed.kept[:, None, None]
    embedded = share * words + (1 - share) * words[mixed.partner]
    inputs = {name: value for name, value in mixed.inputs.items() if name != "input_ids"}
    logits = lesson.student(**inputs, inputs_embeds=embedded).logits
    torch.testing.assert_close(found.terms["logits"], kd_kl(logits, lesson.live.answers(mixed, hidden=()).logits))
    assert found.terms["logits"] != lesson.loss(lesson.student, batch, 0.0).terms["logits"]


def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_halves(folder: Path, pools: tuple[Pool, Pool]) -> None:
    twins = [0, 0, 0, 0]  # rows of one length, so that tokens count alike in both halves
    for term in TERMS:
        lesson = Lesson(folder, term)
        lesson.student.eval()
        whole, half = lesson.gradient(batch_of(pools, twins, [])), lesson.gradient(batch_of(pools, twins[:2], []))
        torch.testing.assert_close(whole, half, atol=1e-6, rtol=1e-4)


def test_losses_are_fp32_under_autocast(folder: Path, pools: tuple[Pool, Pool]) -> None:
    batch = batch_of(pools, [0, 1], [2, 3])
    for hidden in (32, 16):
        lesson = Lesson(folder, *TERMS, hidden=hidden)
        lesson.student.eval()
        plain = lesson.loss(lesson.student, batch, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow = lesson.loss(lesson.student, batch, 0.0)
        for name, value in narrow.terms.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, plain.terms[name], rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([match.relations(heads=5)], r"match relations, layers 4:2: heads must divide the student's 32 channels"),
        (
            [match.logits(), match.relations(heads=64)],
            r"heads must divide the student's 32 channels of queries .got 64",
        ),
    ],
)
def test_relation_heads_that_fit_no_layer_are_refused_before_training(
    terms: list[Term], message: str, folder: Path
) -> None:
    with pytest.raises(InputError, match=message):
        Lesson(folder, *terms)


def test_a_layer_without_attention_is_refused_before_training(folder: Path) -> None:
    teacher = load_model(folder)
    whole = keep_all(shapes(teacher))
    student = cut(teacher, replace(whole, heads=((0, 1), (), (0,), (0, 1, 2, 3))))
    for term in (match.attention(), match.relations(map="2:2")):
        pairing = pairings([term], teacher_layers=4, student_layers=4)
        with pytest.raises(
            InputError, match=f"match {term.of}: the student's layer 2 has no attention left; write pairs"
        ):
            make_parts([term], pairing, student, teacher, seed=1)
    others = [match.attention(map="1:1 3:3"), match.relations(map="1:1 4:4")]
    assert (
        make_parts(others, pairings(others, teacher_layers=4, student_layers=4), student, teacher, seed=1) is not None
    )


def test_terms_on_hidden_states_need_a_teacher_that_has_them(folder: Path) -> None:
    pairing = pairings([match.relations()], teacher_layers=4, student_layers=4)
    with pytest.raises(InputError, match="match relations needs a teacher whose hidden states can be read"):
        make_parts([match.relations()], pairing, load_model(folder), None, seed=1)
    assert make_parts([match.logits()], pairings([match.logits()], teacher_layers=0, student_layers=0),
                      load_model(folder), None, seed=1) is None  # fmt: skip


def test_all_weights_zero_still_gives_a_loss_to_differentiate(folder: Path, pools: tuple[Pool, Pool]) -> None:
    lesson = Lesson(folder, match.logits(weight=0.0))
    assert lesson.gradient(batch_of(pools, [0, 1], [])).abs().sum().item() == 0.0


def test_match_functions_say_what_the_recipe_says() -> None:
    assert match.logits("mse", weight=2.0) == LogitsMatch.model_validate({"of": "logits", "loss": "mse", "weight": 2.0})
    assert match.labels(weight=0.3) == LabelsMatch.model_validate({"of": "labels", "weight": 0.3})
    assert json.loads(match.hidden(map="2:1").model_dump_json())["map"] == "2:1"
    assert match.labels("focal", gamma=3.0, smoothing=0.1) == LabelsMatch(loss="focal", gamma=3.0, smoothing=0.1)
    assert match.attention("mse", map="4:2") == AttentionMatch(loss="mse", map="4:2")
    assert match.relations(pairs=["vv"], heads=8, map="uniform") == RelationsMatch(pairs=["vv"], heads=8, map="uniform")
    assert match.embeddings("cosine", weight=0.1) == EmbeddingsMatch(loss="cosine", weight=0.1)
    assert match.hidden(weight="auto") == match.hidden(weight={"auto": 1.0})
    assert match.hidden(weight={"auto": 0.5}) == HiddenMatch.model_validate({"of": "hidden", "weight": {"auto": 0.5}})


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "logits": match.logits,
    "labels": match.labels,
    "hidden": match.hidden,
    "attention": match.attention,
    "relations": match.relations,
    "embeddings": match.embeddings,
}


def test_match_functions_take_every_option_with_the_recipes_defaults() -> None:
    import inspect

    for schema in SCHEMAS:
        of = schema.model_fields["of"].default
        assert set(inspect.signature(FUNCTIONS[of]).parameters) == set(schema.model_fields) - {"of"}
        assert FUNCTIONS[of]() == schema()


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (
            "logits",
            {"loss": "mse", "temperature": 4.0},
            "loss mse has no temperature .got 4.0.; leave it out, or take kl",
        ),
        ("logits", {"loss": "kl", "beta": 2.0}, "loss kl has no beta .got 2.0.; leave it out, or take decoupled"),
        ("labels", {"loss": "ce", "gamma": 1.0}, "loss ce has no gamma .got 1.0.; leave it out, or take focal"),
        (
            "labels",
            {"loss": "gce", "smoothing": 0.1},
            "loss gce has no smoothing .got 0.1.; leave it out, or take ce or",
        ),
        ("labels", {"smoothing": 1.0}, "match.labels.smoothing: Input should be less than 1"),
        (
            "hidden",
            {"map": "best"},
            "match.hidden.map: must be one of uniform, first, last, random, attention, nearest",
        ),
        (
            "attention",
            {"map": "attention"},
            "match.attention.map: must be one of uniform, first, last, random, nearest",
        ),
        ("relations", {"pairs": []}, "match.relations.pairs: List should have at least 1 item"),
    ],
)
def test_an_option_that_a_loss_does_not_read_is_refused(function: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FUNCTIONS[function](**given)
