from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_reviews, write_tiny_bert

from compressor.data.batches import Pool
from compressor.data.encode import open_encoder
from compressor.data.mixing import BatchPlan, MixedBatches, mixed_batches
from compressor.data.rows import Rows
from compressor.data.settings import Mix, Unlabelled
from compressor.distill.teacher_cache import CachedTeacher, LiveTeacher, cache_size, open_cache
from compressor.model.encoders import load_model
from compressor.stage import silent
from compressor.train.settings import Train


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


@pytest.fixture
def live(folder: Path) -> LiveTeacher:
    return LiveTeacher(load_model(folder), (0, 2, 4))


def everything(pools: tuple[Pool, Pool]) -> list[np.ndarray]:
    return [np.arange(len(pool)) for pool in pools]


def mixed(pools: tuple[Pool, Pool]) -> MixedBatches:
    return mixed_batches(*pools, Mix(unlabelled=Unlabelled(ratio=0.4)), Train(batch_rows=7), seed=1)


def opened(
    live: LiveTeacher, pools: tuple[Pool, Pool], folder: Path, *, budget: int = 10**9, key: str = "k",
    progress: Callable[[str, int, int | None], None] = silent,
) -> CachedTeacher:  # fmt: skip
    return open_cache(live, pools, everything(pools), folder=folder, budget=budget, key=key, progress=progress)


def test_the_teacher_answers_the_same_twice_even_if_it_was_left_in_train_mode(
    live: LiveTeacher, pools: tuple[Pool, Pool]
) -> None:
    assert live.model.config.hidden_dropout_prob > 0
    batch = pools[0].batch(range(10))
    live.model.train()
    one = live.answers(batch, hidden=True)
    live.model.train()
    two = live.answers(batch, hidden=True)
    assert torch.equal(one.logits, two.logits)
    assert all(torch.equal(one.hidden[layer], two.hidden[layer]) for layer in (0, 2, 4))
    assert not one.logits.requires_grad


def test_live_answers_are_fp32_inside_a_students_bf16(live: LiveTeacher, pools: tuple[Pool, Pool]) -> None:
    batch = pools[0].batch(range(10))
    outside = live.answers(batch, hidden=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = live.answers(batch, hidden=True)
    assert torch.equal(inside.logits, outside.logits)
    assert all(torch.equal(inside.hidden[layer], outside.hidden[layer]) for layer in (0, 2, 4))


def test_cached_answers_equal_live_ones(live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    cached, source = opened(live, pools, tmp_path / "cache"), mixed(pools)
    seen = 0
    for plan in source.plan(0):
        batch = source.make(plan)
        ours, theirs = cached.answers(batch, hidden=True), live.answers(batch, hidden=True)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
        valid = batch.inputs["attention_mask"].bool()
        for layer in (0, 2, 4):
            torch.testing.assert_close(
                ours.hidden[layer][valid].float(), theirs.hidden[layer][valid], atol=2e-3, rtol=1e-3
            )
        seen += int(batch.unlabelled.sum())
    assert seen > 5


def test_cached_answers_belong_to_the_rows_themselves(
    live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    cached = opened(live, pools, tmp_path / "cache")
    for pool, unlabelled in zip(pools, (False, True), strict=True):
        for row in range(0, len(pool), 6):
            alone = pool.batch([row], unlabelled=unlabelled)
            theirs = live.answers(alone, hidden=True)
            ours = cached.answers(alone, hidden=True)
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
            torch.testing.assert_close(ours.hidden[2].float(), theirs.hidden[2], atol=2e-3, rtol=1e-3)


def test_a_complete_cache_is_used_again_and_another_key_makes_it_anew(
    live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes: list[int] = []

    def progress(_what: str, done: int, total: int | None) -> None:
        if done == total:
            passes.append(done)

    first = opened(live, pools, tmp_path / "cache", progress=progress)
    again = opened(live, pools, tmp_path / "cache", progress=progress)
    assert passes == [60]
    assert torch.equal(first.logits, again.logits)
    opened(live, pools, tmp_path / "cache", key="other", progress=progress)
    opened(replace(live, layers=(4,)), pools, tmp_path / "cache", key="other", progress=progress)
    assert passes == [60, 60, 60]


def test_a_cache_interrupted_half_way_is_made_anew(live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    def stop(_what: str, _done: int, _total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(live, pools, tmp_path / "cache", progress=stop)
    cached = opened(live, pools, tmp_path / "cache")
    assert torch.isfinite(cached.logits).all()


def test_hidden_states_over_the_budget_are_computed_live_and_logits_still_cached(
    live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    tokens = int(sum(pool.lengths.sum() for pool in pools))
    need = cache_size(rows=60, tokens=tokens, classes=2, layers=3, hidden=32)
    assert opened(live, pools, tmp_path / "a", budget=need.logits + need.hidden).states is not None
    over = opened(live, pools, tmp_path / "b", budget=need.logits + need.hidden - 1)
    assert over.states is None
    assert sum(path.stat().st_size for path in (tmp_path / "b").iterdir()) < 5_000
    batch = pools[0].batch([3, 1])
    assert torch.equal(over.answers(batch, hidden=True).hidden[2], live.answers(batch, hidden=True).hidden[2])
    assert over.answers(batch, hidden=False).hidden == {}


def test_only_rows_that_will_be_used_are_computed(live: LiveTeacher, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    used = [np.arange(35), np.array([2, 5])]
    cached = open_cache(live, pools, used, folder=tmp_path / "cache", budget=10**9, key="k", progress=silent)
    assert torch.isfinite(cached.logits).all(1).nonzero().flatten().tolist() == [*range(35), 37, 40]
    batch = mixed(pools).make(BatchPlan((0, 3), (5,)))
    torch.testing.assert_close(
        cached.answers(batch, hidden=True).hidden[4][2, :4].float(), live.answers(batch, hidden=True).hidden[4][2, :4],
        atol=2e-3, rtol=1e-3,
    )  # fmt: skip
