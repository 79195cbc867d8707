from collections import Counter

import numpy as np
import pytest
import torch
from scipy import special

from compressor.data import mix as mix_words
from compressor.data.batches import UNLABELLED, Pool
from compressor.data.drawing import Stream, choose, next_counts, spread, streams_of
from compressor.data.encode import Encoded
from compressor.data.mixing import EPOCHS, mixed_batches
from compressor.data.rows import PoolPart
from compressor.data.settings import Keep, Mix
from compressor.errors import InputError
from compressor.settings import ramp, value_at
from compressor.train.schedules import planned_steps
from compressor.train.settings import Train


def pool_of(count, seed=0, labelled=False):
    lengths = np.random.default_rng(seed).integers(3, 30, count)
    targets = np.arange(count) % 2 if labelled else np.full(count, UNLABELLED)
    return Pool(Encoded.of([np.arange(5, 5 + n) for n in lengths]), targets.astype(np.int64), pad_id=0)


def drawn(source, epoch):
    return [row for item in source.plan(epoch) for row in item.unlabelled]


PARTS = (PoolPart("rest", 300), PoolPart("forum", 50, 0.2), PoolPart("news", 1000, 0.13), PoolPart("more", 650))
SOURCE_OF = np.repeat(np.arange(4), [300, 50, 1000, 650])


def test_shares_of_sources_hold_to_a_row_after_every_epoch():
    source = mixed_batches(
        pool_of(97, labelled=True), pool_of(2000, 1), mix_words.unlabelled(0.6), Train(), seed=1, parts=PARTS
    )
    counts, epochs = np.zeros(4), 12
    for epoch in range(epochs):
        rows = drawn(source, epoch)
        mine = np.bincount(SOURCE_OF[rows], minlength=4)
        assert len(rows) == round(97 * 0.6 / 0.4)
        assert abs(mine[1] - 0.2 * len(rows)) <= 1
        assert abs(mine[2] - 0.13 * len(rows)) <= 1
        counts += mine
        assert abs(counts[1] - 0.2 * counts.sum()) <= 1
        assert abs(counts[2] - 0.13 * counts.sum()) <= 1
    assert counts[0] / counts[3] == pytest.approx(300 / 650, rel=0.15)
    forum = Counter(row for epoch in range(epochs) for row in drawn(source, epoch) if SOURCE_OF[row] == 1)
    assert len(forum) == 50
    assert max(forum.values()) - min(forum.values()) <= 1


def test_each_stretch_of_an_epoch_holds_the_shares():
    source = mixed_batches(
        pool_of(4000, labelled=True), pool_of(2000, 1), mix_words.unlabelled(0.5), Train(), seed=1, parts=PARTS
    )
    plan = source.plan(0)
    for half in (plan[: len(plan) // 2], plan[len(plan) // 2 :]):
        mine = SOURCE_OF[[row for item in half for row in item.unlabelled]]
        assert np.mean(mine == 1) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.9, *[0.1 / 9] * 9], [1.0]])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_counts_never_fall_and_sum_to_the_rows_drawn(shares, step):
    shares = np.array(shares)
    counts = np.zeros(len(shares), dtype=np.int64)
    for total in range(step, 40 * step, step):
        after = next_counts(counts, total, shares)
        assert after.sum() == total
        assert (after >= counts).all()
        assert np.abs(after - shares * total).max() <= (1 if step > 1 else 2)
        counts = after


def test_without_shares_the_sources_change_nothing():
    parts = (PoolPart("a", 900), PoolPart("b", 1100))
    made = [
        mixed_batches(
            pool_of(90, labelled=True), pool_of(2000, 1), mix_words.unlabelled(0.6), Train(), seed=1, parts=each
        )
        for each in ((), parts)
    ]
    assert [made[0].plan(epoch) for epoch in range(3)] == [made[1].plan(epoch) for epoch in range(3)]


def test_the_labelled_rows_of_an_epoch_do_not_depend_on_the_pool():
    labelled = pool_of(90, labelled=True)
    sources = [
        mixed_batches(labelled, pool_of(2000, 1), mix_words.unlabelled(ratio), Train(batch_rows=8), seed=1, parts=parts)
        for ratio, parts in ((0.3, ()), (0.3, PARTS), (ramp(0.0, 0.8), ()))
    ]
    for source in sources:
        for epoch in (0, 1):
            assert sorted(row for item in source.plan(epoch) for row in item.labelled) == list(range(90))


def test_the_teachers_classes_are_drawn_equally_often_and_rare_ones_come_again():
    classes = np.random.default_rng(0).choice([0, 1, 2, -1], 2000, p=[0.8, 0.15, 0.01, 0.04])
    mix = mix_words.unlabelled(0.5, keep={"balance": True})
    source = mixed_batches(pool_of(600, labelled=True), pool_of(2000, 1), mix, Train(), seed=1, row_classes=classes)
    rows = drawn(source, 0)
    assert np.bincount(classes[rows], minlength=3).tolist() == [200, 200, 200]
    rare = Counter(row for row in rows if classes[row] == 2)
    assert set(rare) == set(np.flatnonzero(classes == 2).tolist())
    assert max(rare.values()) - min(rare.values()) <= 1
    kept = np.flatnonzero(np.arange(2000) % 2 == 0)
    both = mixed_batches(
        pool_of(600, labelled=True),
        pool_of(2000, 1),
        mix,
        Train(),
        seed=1,
        row_classes=classes,
        keep_rows=kept,
        parts=PARTS,
    )
    rows = np.array(drawn(both, 0))
    assert set(rows % 2) == {0}
    assert abs(np.mean(SOURCE_OF[rows] == 1) - 0.2) < 0.01
    assert stats_of(classes[rows[SOURCE_OF[rows] == 2]]) <= 1


def stats_of(classes):
    """Largest difference of the counts of the classes that are there."""
    counts = np.unique(classes, return_counts=True)[1]
    return counts.max() - counts.min()


@pytest.mark.parametrize("train", [Train(epochs=4, batch_rows=8), Train(steps=300, batch_rows=8), Train(batch_rows=8)])
def test_a_ratio_that_changes_follows_its_schedule(train):
    ratio = ramp(0.0, 0.75, over=0.8)

    def source():
        return mixed_batches(pool_of(400, labelled=True), pool_of(3000, 1), mix_words.unlabelled(ratio), train, seed=2)

    made = source()
    total = planned_steps(train, made.steps_per_epoch)
    plan = [item for epoch in range(30) for item in made.plan(epoch)][:total]
    for start in range(0, total - 40, 40):
        part = plan[start : start + 40]
        share = sum(len(item.unlabelled) for item in part) / sum(map(len, part))
        assert share == pytest.approx(value_at(ratio, (start + 20) / total), abs=0.06)
    assert sum(len(item.unlabelled) for item in plan[-40:]) / sum(map(len, plan[-40:])) == pytest.approx(0.75, abs=0.02)
    assert not any(item.unlabelled for item in plan[:3])
    one, other = source(), source()
    assert [one.plan(epoch) for epoch in range(3)] == [other.plan(epoch) for epoch in (2, 1, 0)][::-1]
    used = source().rows_used(total)
    assert used[1].tolist() == sorted({row for item in plan for row in item.unlabelled})
    all_drawn = [row for item in plan for row in item.unlabelled]
    assert len(set(all_drawn)) == min(len(all_drawn), 3000)


def test_a_training_without_a_length_has_the_epochs_that_the_loop_gives_it():
    assert planned_steps(Train(), lambda _epoch: 100) == 100 * EPOCHS


def test_confidence_weight_and_class_come_from_the_teachers_probabilities():
    logits = np.random.default_rng(0).normal(0, 2, (500, 3)).astype(np.float32)
    logits[[3, 77]] = np.nan
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    sure = np.flatnonzero(probabilities.max(axis=1) >= 0.7)
    chosen = choose(logits, Keep(confidence=0.7, weigh=True, balance=True))
    assert chosen.rows.tolist() == sure.tolist()
    wanted = probabilities[sure].max(axis=1)
    np.testing.assert_allclose(chosen.factors[sure], wanted / wanted.mean(), rtol=1e-5)
    assert chosen.factors.dtype == np.float32
    assert np.isfinite(chosen.factors).all()
    assert chosen.classes[sure].tolist() == logits[sure].argmax(axis=1).tolist()
    assert chosen.classes[[3, 77]].tolist() == [-1, -1]
    plain = choose(logits, Keep())
    assert (len(plain.rows), plain.classes, plain.factors) == (500, None, None)
    assert set(range(500)) - set(choose(logits, Keep(weigh=True)).rows.tolist()) == {3, 77}
    assert choose(logits, Keep(confidence=1.0, weigh=True)).rows.size == 0


def test_a_batch_holds_the_factor_of_each_unlabelled_row_and_one_for_labelled_ones():
    factors = np.linspace(0.5, 1.5, 300).astype(np.float32)
    mix = mix_words.unlabelled(0.5, keep={"weigh": True})
    source = mixed_batches(pool_of(60, labelled=True), pool_of(300, 1), mix, Train(), seed=1, row_factors=factors)
    for batch in map(source.make, source.plan(0)):
        assert batch.weights.dtype == torch.float32
        assert batch.weights[~batch.unlabelled].tolist() == [1.0] * int((~batch.unlabelled).sum())
        assert batch.weights[batch.unlabelled].tolist() == factors[batch.rows[batch.unlabelled]].tolist()
    plain = mixed_batches(pool_of(60, labelled=True), pool_of(300, 1), mix_words.unlabelled(0.5), Train(), seed=1)
    assert plain.make(plain.plan(0)[0]).weights is None


def test_settings_that_need_the_teachers_answers_are_not_dropped():
    for name, value in (("confidence", 0.5), ("weigh", True), ("balance", True)):
        mix = mix_words.unlabelled(0.5, keep={name: value})
        with pytest.raises(ValueError, match=rf"mix\.unlabelled\.keep\.{name} needs what drawing\.choose makes"):
            mixed_batches(pool_of(6, labelled=True), pool_of(30), mix, Train(), seed=1)
        mixed_batches(pool_of(6, labelled=True), None, mix, Train(), seed=1)


def test_a_source_with_a_share_but_no_row_left_is_named():
    keep = np.arange(300)
    with pytest.raises(
        InputError, match=r"^data\.unlabelled: forum has share 0\.2, but none of its rows may be drawn; lower"
    ):
        streams_of(keep, PARTS, None, rows=2000)
    with pytest.raises(ValueError, match="the sources hold 2000 rows, the pool 5"):
        streams_of(np.arange(5), PARTS, None, rows=5)
    assert streams_of(np.zeros(0, dtype=np.int64), PARTS, None, rows=2000) == []


def test_shares_that_sum_to_one_leave_the_rest_undrawn():
    parts = (PoolPart("rest", 10), PoolPart("a", 10, 0.333333), PoolPart("b", 10, 0.666667))
    streams = streams_of(np.arange(30), parts, None, rows=30)
    assert [stream.rows.min() for stream in streams] == [10, 20]
    assert sum(stream.share for stream in streams) == pytest.approx(1.0, abs=1e-12)


def test_a_walk_is_made_of_whole_permutations():
    stream = Stream(np.arange(100, 110), 1.0)
    whole = stream.walk(0, 30, seed=1, number=1)
    assert [sorted(whole[start : start + 10].tolist()) for start in (0, 10, 20)] == [list(range(100, 110))] * 3
    assert stream.walk(7, 23, seed=1, number=1).tolist() == whole[7:23].tolist()
    assert stream.walk(5, 5, seed=1, number=1).size == 0


def test_a_spread_is_even():
    made = spread([np.zeros(70, dtype=np.int64), np.ones(30, dtype=np.int64)])
    for stop in range(1, 101):
        assert abs(made[:stop].sum() - 0.3 * stop) <= 1


def test_no_unlabelled_rows_are_drawn_at_ratio_zero():
    source = mixed_batches(pool_of(20, labelled=True), pool_of(30), mix_words.unlabelled(0.0), Train(), seed=0)
    assert drawn(source, 0) == []
    assert mix_words.unlabelled(ramp(0, 0.5)) == Mix.model_validate({"unlabelled": {"ratio": {"from": 0.0, "to": 0.5}}})
