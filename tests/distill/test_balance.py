import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_terms import Lesson, folder, pools  # noqa: F401 - fixtures
from torch import Tensor, nn

from compressor.data.batches import Batch, Pool
from compressor.data.mixing import MixedBatches, mixed_batches
from compressor.data.settings import Mix, Unlabelled
from compressor.distill import match
from compressor.distill.balance import Balance, gradient_norm, is_measured
from compressor.distill.layer_map import Term
from compressor.settings import AutoWeight, ramp, value_at
from compressor.stage import silent
from compressor.train.fit import fit
from compressor.train.settings import Train

AUTO = AutoWeight()
TRAIN = Train(batch_rows=70, steps=60, learning_rate=1e-3, dropout=0.0, checkpoint=20)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batches(pools: tuple[Pool, Pool]) -> MixedBatches:  # noqa: F811
    return mixed_batches(*pools, Mix(unlabelled=Unlabelled()), TRAIN, seed=1)


def batch_list(pools: tuple[Pool, Pool], epochs: range) -> list[Batch]:  # noqa: F811
    source = batches(pools)
    return [source.make(item) for epoch in epochs for item in source.plan(epoch)]


def norm_of(lesson: Lesson, name: str, batch: Batch) -> float:
    """The gradient of one term by plain backward."""
    lesson.student.zero_grad()
    bare = replace(
        lesson.loss, parts=None, match=tuple(t.model_copy(update={"weight": 1.0}) for t in lesson.loss.match)
    )
    bare(lesson.student, batch, 1.0).terms[name].backward()
    squares = [float(p.grad.square().sum()) for p in lesson.student.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


def test_norms_are_measured_often_at_first_where_weights_are_automatic() -> None:
    assert [step for step in range(320) if is_measured(step, automatic=True)] == [*range(0, 51, 5), *range(60, 320, 20)]
    assert [step for step in range(320) if is_measured(step, automatic=False)] == [1, 100, 200, 300]


def test_a_gradients_norm_is_that_of_all_parameters_side_by_side() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    ids = torch.tensor([[1, 2, 2], [5, 1, 2]])
    found = []
    for sparse in (False, True):
        model[0].sparse = sparse
        value = model(ids).square().mean()
        found.append(gradient_norm(value, list(model.parameters())).item())
        value.backward()  # the graph is still there
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(_dense(model, ids), list(model.parameters()))])
    assert found == pytest.approx([flat.norm().item()] * 2, rel=1e-5)


def _dense(model: nn.Sequential, ids: Tensor) -> Tensor:
    model[0].sparse = False  # type: ignore[assignment]
    value: Tensor = model(ids).square().mean()
    return value


def test_a_value_without_a_graph_has_gradient_zero() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert gradient_norm(torch.tensor(3.0), [weight]).item() == 0.0
    assert gradient_norm(nn.Parameter(torch.ones(2)).sum(), [weight]).item() == 0.0


def measured(balance: Balance, terms: dict[str, Tensor], weight: Tensor) -> Tensor:
    """What a step does that measures."""
    balance.follow(terms)
    return balance.measure(terms, [weight])


def two(first: Any, second: Any) -> tuple[Balance, nn.Parameter]:
    return Balance({"a": first, "b": second}), nn.Parameter(torch.tensor([1.0, 1.0]))


def test_automatic_weights_bring_all_terms_to_the_first_ones_size() -> None:
    balance, weight = two(AUTO, AutoWeight(auto=0.5))
    norms = measured(balance, {"a": 3.0 * weight[0], "b": 0.01 * weight[1]}, weight)
    assert norms.tolist() == pytest.approx([3.0, 0.01])
    weights = balance.weights(0.0)
    assert (weights * norms).tolist() == pytest.approx([3.0, 1.5])
    assert {k: v.item() for k, v in balance.share(norms, weights).items()} == pytest.approx({"a": 2 / 3, "b": 1 / 3})


def test_an_automatic_term_follows_the_mean_pull_of_the_fixed_ones() -> None:
    balance = Balance({"a": 0.5, "b": ramp(0.0, 2.0), "c": AutoWeight(auto=2.0)})
    weight = nn.Parameter(torch.ones(3))
    measured(balance, {"a": 4 * weight[0], "b": 3 * weight[1], "c": 0.1 * weight[2]}, weight)
    for progress, mean in ((0.0, 2.0), (0.5, (2.0 + 3.0) / 2), (1.0, (2.0 + 6.0) / 2)):
        assert balance.weights(progress).tolist() == pytest.approx([0.5, 2 * progress, 2 * mean / 0.1])


def test_fixed_weights_stay_what_they_are() -> None:
    balance, weight = two(0.3, ramp(1.0, 0.0))
    measured(balance, {"a": weight[0], "b": weight[1]}, weight)
    assert balance.weights(0.25).tolist() == pytest.approx([0.3, 0.75])
    assert not balance.automatic


def test_norms_that_say_nothing_are_left_out_of_the_mean() -> None:
    balance, weight = two(AUTO, AUTO)
    assert balance.weights(0.0).tolist() == [1.0, 1.0]
    for factor in (2.0, 0.0, math.inf, math.nan, 1e-9, 4.0):
        measured(balance, {"a": 5 * weight[0], "b": factor * weight[1]}, weight)
    ratio = (0.3 * math.sqrt(2.0) + math.sqrt(4.0)) / 1.3  # of norm to root of value, by measurement
    root = (0.64 * math.sqrt(2.0) + 0.8 * math.sqrt(1e-9) + math.sqrt(4.0)) / 2.44  # of values, by step
    assert balance.running().tolist() == pytest.approx([5.0, ratio * root])
    assert torch.isfinite(balance.weights(0.0)).all()


def test_between_measurements_a_norm_goes_as_the_root_of_the_terms_value() -> None:
    balance, weight = two(AUTO, AUTO)
    for step in range(200):
        point = weight * (1.0 - step / 400)  # of a square, whose gradient is twice the root of its value
        terms = {"a": point[0].square(), "b": 9.0 * point[1].square()}
        balance.follow(terms)
        if step == 0:
            balance.measure(terms, [point])
    norms = [2 * point[0].item(), 18 * point[1].item()]
    assert balance.running().tolist() == pytest.approx(norms, rel=0.03)


def test_a_step_without_labels_leaves_the_norm_of_labels_as_it_was() -> None:
    balance, weight = two(AUTO, AUTO)
    measured(balance, {"a": weight[0], "b": weight[1]}, weight)
    before = balance.running()
    balance.follow({"a": weight[0]})
    balance.follow({"a": weight[0], "b": 0.0 * weight[1]})
    assert torch.equal(balance.running(), before)


def test_a_mean_of_equal_norms_is_that_norm_from_the_first_on() -> None:
    balance, weight = two(AUTO, AUTO)
    for _ in range(5):
        measured(balance, {"a": 5 * weight[0], "b": 2 * weight[1]}, weight)
        assert balance.running().tolist() == pytest.approx([5.0, 2.0])


MATCHES: dict[str, tuple[tuple[Term, ...], dict[str, float]]] = {
    "all automatic": (
        (match.logits(temperature=2.0, weight="auto"), match.labels(weight="auto"), match.hidden(weight={"auto": 0.5})),
        {"logits": 0.4, "labels": 0.4, "hidden": 0.2},
    ),
    "inner terms": (
        (match.hidden(weight="auto"), match.attention(weight={"auto": 0.5}), match.relations(weight="auto")),
        {"hidden": 0.4, "attention": 0.2, "relations": 0.4},
    ),
    "beside a fixed one": (
        (match.embeddings(weight=0.3), match.hidden("gram", weight="auto"), match.relations(weight="auto")),
        {"embeddings": 1 / 3, "hidden": 1 / 3, "relations": 1 / 3},
    ),
}


def trained(lesson: Lesson, pools: tuple[Pool, Pool], work: Path, **more: Any) -> None:  # noqa: F811
    lesson.student.requires_grad_(True)
    fit(
        lesson.student, batches(pools), lesson.loss, train=TRAIN, seed=1, device="cpu", work=work,
        progress=more.pop("progress", silent), what="distill", extra=lesson.parts, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(MATCHES))
def test_gradient_shares_are_within_a_tenth_of_those_asked_after_50_steps(
    name: str,
    folder: Path,  # noqa: F811
    pools: tuple[Pool, Pool],  # noqa: F811
) -> None:
    terms, asked = MATCHES[name]
    lesson = Lesson(folder, *terms, steps=1000)
    assert lesson.parts is not None
    assert lesson.parts.balance is not None
    optimizer = torch.optim.AdamW(lesson.student.parameters(), lr=1e-4)
    found = dict.fromkeys(asked, 0.0)
    for step, batch in enumerate(batch_list(pools, range(100))[:100]):
        optimizer.zero_grad()
        loss = lesson.loss(lesson.student, batch, step / 1000)
        loss.total.backward()
        if step > 50:
            if loss.shares:  # a measured step
                assert {name: share.item() for name, share in loss.shares.items()} == pytest.approx(asked, rel=1e-3)
            else:
                weights = dict(zip(asked, lesson.parts.balance.weights(step / 1000).tolist(), strict=True))
                grads = [p.grad if p.grad is None else p.grad.clone() for p in lesson.student.parameters()]
                pulls = {term: weights[term] * norm_of(lesson, term, batch) for term in asked}
                found = {term: found[term] + pull / sum(pulls.values()) for term, pull in pulls.items()}
                for parameter, grad in zip(lesson.student.parameters(), grads, strict=True):
                    parameter.grad = grad
        optimizer.step()
    assert {term: share / sum(found.values()) for term, share in found.items()} == pytest.approx(asked, rel=0.1)


def test_fixed_weights_do_not_bring_shares_about(folder: Path, pools: tuple[Pool, Pool]) -> None:  # noqa: F811
    lesson = Lesson(folder, match.logits(), match.embeddings(), steps=10)
    found = lesson.loss(lesson.student, batch_list(pools, range(1))[0], 0.1)
    norms = {name: norm_of(lesson, name, batch_list(pools, range(1))[0]) for name in ("logits", "embeddings")}
    shares = {name: norm / sum(norms.values()) for name, norm in norms.items()}
    assert {name: share.item() for name, share in found.shares.items()} == pytest.approx(shares, rel=1e-3)
    assert abs(shares["logits"] - 0.5) > 0.1


def test_measuring_changes_neither_loss_nor_gradient(folder: Path, pools: tuple[Pool, Pool]) -> None:  # noqa: F811
    lesson = Lesson(folder, match.logits(), match.labels(weight=0.3), match.hidden(weight=0.5), steps=10)
    batch = batch_list(pools, range(1))[0]
    measured, plain = lesson.gradient(batch, 0.1), lesson.gradient(batch, 0.2)
    assert torch.equal(measured, plain)


class Stop(Exception):  # noqa: N818 - not an error
    pass


def test_a_resumed_training_goes_on_with_the_same_weights_to_the_bit(
    folder: Path,  # noqa: F811
    pools: tuple[Pool, Pool],  # noqa: F811
    tmp_path: Path,
) -> None:
    terms = (match.logits(weight="auto"), match.labels(weight=0.3), match.hidden(map="attention", weight="auto"))

    def stop(_what: str, done: int, _total: int | None) -> None:
        if done == 33:
            raise Stop

    whole, broken, again = (Lesson(folder, *terms, hidden=16, steps=60) for _ in range(3))
    trained(whole, pools, tmp_path / "whole")
    with pytest.raises(Stop):
        trained(broken, pools, tmp_path / "broken", progress=stop)
    trained(again, pools, tmp_path / "broken")
    assert whole.parts is not None
    assert again.parts is not None
    for one, other in ((whole.student, again.student), (whole.parts, again.parts)):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert whole.parts.balance is not None
    assert float(whole.parts.balance.measured) == len([step for step in range(60) if is_measured(step, automatic=True)])
    assert any((query != 0).any() for query in whole.parts.queries.values())


def warned(given: dict[str, Any], norms: dict[str, float]) -> tuple[str, ...]:
    balance = Balance(given)
    weight = nn.Parameter(torch.ones(len(given)))
    for _ in range(3):
        now = measured(balance, {name: norms[name] * weight[i] for i, name in enumerate(given)}, weight)
        balance.share(now, balance.weights(0.0))
    return balance.warnings()


def test_dead_and_dominating_terms_are_named() -> None:
    dead, dominant = warned({"logits": 1.0, "hidden": 0.5}, {"logits": 4.0, "hidden": 0.001})
    assert dead.startswith(
        "term logits dominates: it made 100.0% of the gradient in the last measurements, more than 95%"
    )
    assert dominant.startswith(
        "term hidden is dead: it made 0.0% of the gradient in the last measurements, less than 1%"
    )
    assert warned({"logits": 1.0, "hidden": 0.5}, {"logits": 4.0, "hidden": 0.0})[1].startswith("term hidden is dead")
    assert warned({"logits": 1.0, "hidden": 0.5}, {"logits": 4.0, "hidden": 1.0}) == ()
    assert warned({"logits": AUTO, "hidden": AUTO}, {"logits": 4.0, "hidden": 0.001}) == ()


def test_terms_that_are_switched_off_and_terms_alone_are_not_named() -> None:
    assert warned({"logits": 1.0, "hidden": 0.0}, {"logits": 4.0, "hidden": 1.0}) == ()
    assert warned({"logits": 1.0, "hidden": ramp(1.0, 0.0)}, {"logits": 4.0, "hidden": 0.001}) == ()
    assert Balance({"logits": 1.0, "hidden": 1.0}).warnings() == ()


def test_one_batch_without_labels_does_not_make_a_dead_term() -> None:
    balance, weight = two(1.0, 1.0)
    for factor in (1.0, 1.0, 0.0):
        now = measured(balance, {"a": weight[0], "b": factor * weight[1]}, weight)
        balance.share(now, balance.weights(0.0))
    assert balance.warnings() == ()


def test_a_single_automatic_term_is_weighed_by_its_share(folder: Path, pools: tuple[Pool, Pool]) -> None:  # noqa: F811
    batch = batch_list(pools, range(1))[0]
    auto, fixed = Lesson(folder, match.logits(weight={"auto": 0.5})), Lesson(folder, match.logits(weight=0.5))
    assert auto.parts is None
    assert torch.equal(auto.gradient(batch), fixed.gradient(batch))
    several = Lesson(folder, match.logits(weight="auto"), match.labels())
    with pytest.raises(ValueError, match="need the running norms of make_parts"):
        replace(several.loss, parts=None)


def test_schedules_of_weights_reach_the_balance() -> None:
    assert value_at(ramp(1.0, 0.0), 1.0) == 0.0
    balance, _ = two(ramp(1.0, 0.0), AUTO)
    assert [balance.weights(progress)[0].item() for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
