import numpy as np
import pytest
import torch

from compressor.data import mix as mix_words
from compressor.data.batches import UNLABELLED, Pool, bucketed
from compressor.data.encode import Encoded
from compressor.data.mixing import mixed_batches
from compressor.data.settings import Mix
from compressor.errors import InputError
from compressor.settings import ramp
from compressor.train.settings import Train


def pool_of(lengths, *, labels=None, pairs=False, first_id=5):
    ids = [np.arange(first_id, first_id + n) for n in lengths]
    types = [np.ones(n) for n in lengths] if pairs else None
    targets = np.full(len(lengths), UNLABELLED) if labels is None else np.array(labels)
    return Pool(Encoded.of(ids, types), targets.astype(np.int64), pad_id=0)


def random_lengths(count, seed=0):
    return np.random.default_rng(seed).integers(3, 64, count)


def labelled_pool(count, seed=0):
    lengths = random_lengths(count, seed)
    return pool_of(lengths, labels=np.arange(count) % 2)


@pytest.mark.parametrize("limit", [{"batch_tokens": 256}, {"batch_rows": 7}, {}])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_in_one_batch_and_no_batch_exceeds_the_limit(limit, shuffle):
    lengths = random_lengths(999)
    batches = bucketed(lengths, seed=1, epoch=2, shuffle=shuffle, **limit)
    assert sorted(row for batch in batches for row in batch) == list(range(999))
    for batch in batches:
        assert len(batch) <= limit.get("batch_rows", 999)
        if "batch_rows" not in limit:
            assert len(batch) * max(lengths[batch]) <= limit.get("batch_tokens", 1024)


def test_batches_are_the_same_for_a_seed_and_epoch_and_others_for_others():
    lengths = random_lengths(500)
    first = bucketed(lengths, batch_rows=8, seed=1, epoch=0)
    assert first == bucketed(lengths, batch_rows=8, seed=1, epoch=0)
    assert first != bucketed(lengths, batch_rows=8, seed=1, epoch=1)
    assert first != bucketed(lengths, batch_rows=8, seed=2, epoch=0)


def test_rows_of_similar_length_share_a_batch():
    lengths = random_lengths(4000)
    batches = bucketed(lengths, batch_tokens=1024, seed=0)
    padded = sum(len(batch) * max(lengths[batch]) for batch in batches)
    assert lengths.sum() / padded > 0.9


def test_a_row_longer_than_the_limit_stands_alone():
    assert sorted(map(sorted, bucketed([5, 100, 5], batch_tokens=16))) == [[0, 2], [1]]
    assert bucketed([], batch_tokens=16) == []


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("train", [Train(batch_tokens=512), Train(batch_rows=10)])
def test_each_batch_holds_the_unlabelled_share_and_each_epoch_every_labelled_row(ratio, train):
    labelled, pool = labelled_pool(700), pool_of(random_lengths(5000, 1))
    source = mixed_batches(labelled, pool, mix_words.unlabelled(ratio), train, seed=3)
    for epoch in (0, 1):
        plan = source.plan(epoch)
        assert sorted(row for item in plan for row in item.labelled) == list(range(700))
        assert sum(len(item.unlabelled) for item in plan) == round(700 * ratio / (1 - ratio))
        assert source.steps_per_epoch(epoch) == len(plan)
        for item in plan:
            assert abs(len(item.unlabelled) - ratio * len(item)) <= 1 + 1e-6
            lengths = [*labelled.lengths[list(item.labelled)], *pool.lengths[list(item.unlabelled)]]
            assert len(item) <= (train.batch_rows or 700)
            assert train.batch_rows or len(item) * max(lengths) <= 512


def test_the_pool_is_walked_whole_before_any_row_comes_again():
    labelled, pool = labelled_pool(60), pool_of(random_lengths(250, 1))
    source = mixed_batches(labelled, pool, mix_words.unlabelled(0.5), Train(), seed=3)
    drawn = [row for epoch in range(4) for item in source.plan(epoch) for row in item.unlabelled]
    assert len(drawn) == len(set(drawn)) == 240
    steps = sum(source.steps_per_epoch(epoch) for epoch in range(4))
    labelled_used, pool_used = source.rows_used(steps)
    assert labelled_used.tolist() == list(range(60))
    assert sorted(drawn) == pool_used.tolist()
    first = source.plan(0)[0]
    assert [used.tolist() for used in source.rows_used(1)] == [sorted(first.labelled), sorted(first.unlabelled)]
    again = [row for item in source.plan(4) for row in item.unlabelled]
    assert len(set(drawn) | set(again)) == 250
    laps = [row for epoch in range(25) for item in source.plan(epoch) for row in item.unlabelled]
    assert np.bincount(laps, minlength=250).tolist() == [6] * 250
    small = mixed_batches(labelled, pool_of([4, 5, 6]), mix_words.unlabelled(0.5), Train(), seed=3)
    counts = np.bincount([row for item in small.plan(0) for row in item.unlabelled])
    assert counts.tolist() == [20, 20, 20]


def test_a_plan_is_a_function_of_its_epoch_alone():
    def source():
        return mixed_batches(
            labelled_pool(90), pool_of(random_lengths(80, 1)), mix_words.unlabelled(0.6), Train(), seed=3
        )

    one, other = source(), source()
    forwards = [one.plan(epoch) for epoch in range(3)]
    backwards = [other.plan(epoch) for epoch in (2, 1, 0)]
    assert forwards == backwards[::-1]
    assert forwards[0] != forwards[1]


def test_rows_of_similar_length_share_a_mixed_batch():
    labelled, pool = labelled_pool(4000), pool_of(random_lengths(9000, 1))
    source = mixed_batches(labelled, pool, mix_words.unlabelled(0.7), Train(batch_tokens=1024), seed=0)
    masks = [source.make(item).inputs["attention_mask"] for item in source.plan(0)[:200]]
    assert sum(m.sum() for m in masks) / sum(m.numel() for m in masks) > 0.9


def test_only_kept_rows_are_drawn_and_none_without_a_pool():
    labelled, pool = labelled_pool(60), pool_of(random_lengths(250, 1))
    kept = np.array([200, 3, 17])
    source = mixed_batches(labelled, pool, mix_words.unlabelled(0.5), Train(), seed=3, keep_rows=kept)
    assert {row for item in source.plan(0) for row in item.unlabelled} == {3, 17, 200}
    for alone in (
        mixed_batches(labelled, None, mix_words.unlabelled(0.5), Train(), seed=3),
        mixed_batches(labelled, pool, Mix(unlabelled=None), Train(), seed=3),
        mixed_batches(
            labelled, pool, mix_words.unlabelled(0.5), Train(), seed=3, keep_rows=np.zeros(0, dtype=np.int64)
        ),
    ):
        plan = alone.plan(0)
        assert sorted(row for item in plan for row in item.labelled) == list(range(60))
        assert not any(item.unlabelled for item in plan)
        assert alone.rows_used(len(plan))[1].size == 0


def test_a_batch_says_which_rows_it_holds_and_which_have_labels():
    labelled = pool_of([3, 4], labels=[1, UNLABELLED])
    source = mixed_batches(
        labelled, pool_of([6, 5], pairs=True), mix_words.unlabelled(0.5), Train(batch_rows=4), seed=0
    )
    (item,) = source.plan(0)
    batch = source.make(item)
    assert batch.inputs["input_ids"].shape == (4, 6)
    assert batch.unlabelled.tolist() == [False, False, True, True]
    assert batch.rows.tolist() == [*item.labelled, *item.unlabelled]
    assert batch.targets.tolist() == [1 if row == 0 else -100 for row in item.labelled] + [-100, -100]
    assert batch.inputs["attention_mask"].sum(1).tolist() == [3 + row for row in item.labelled] + [
        6 - row for row in item.unlabelled
    ]
    assert batch.inputs["token_type_ids"].sum(1).tolist() == [0, 0] + [6 - row for row in item.unlabelled]
    assert {t.dtype for t in (*batch.inputs.values(), batch.targets, batch.rows)} == {torch.int64}
    assert len(batch.to("cpu")) == 4


def test_each_row_of_a_batch_keeps_its_own_target():
    labelled = pool_of(random_lengths(200), labels=np.arange(200))
    source = mixed_batches(labelled, pool_of(random_lengths(300, 1)), mix_words.unlabelled(0.5), Train(), seed=0)
    for batch in map(source.make, source.plan(0)):
        assert torch.equal(batch.targets[~batch.unlabelled], batch.rows[~batch.unlabelled])
        assert set(batch.targets[batch.unlabelled].tolist()) == {UNLABELLED}


def test_training_without_labelled_rows_is_refused():
    with pytest.raises(InputError, match="training needs labelled rows"):
        mixed_batches(pool_of([]), None, Mix(), Train(), seed=0)


def test_a_pool_gives_every_row_once_for_scoring():
    pool = labelled_pool(300)
    batches = list(pool.in_order(batch_tokens=512))
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(300))
    assert all(batch.targets.tolist() == [row % 2 for row in batch.rows.tolist()] for batch in batches)


def test_mix_words_are_those_of_the_recipe():
    said = mix_words.unlabelled(0.7, weight=ramp(0, 1), keep={"confidence": 0.8}, augment={"mask": 0.1})
    assert said == Mix.model_validate(
        {
            "unlabelled": {"ratio": 0.7, "weight": {"from": 0.0, "to": 1.0}, "keep": {"confidence": 0.8}},
            "augment": {"mask": 0.1},
        }
    )
