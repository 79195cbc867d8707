from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from compressor.data.augment import MIXUP_BETA, Views, mixed_up, view_batch
from compressor.data.batches import UNLABELLED, Pool
from compressor.data.encode import Encoded, open_encoder
from compressor.data.encoded import Tokens
from compressor.data.mixing import mixed_batches
from compressor.data.settings import Augment, Mix, Unlabelled
from compressor.errors import InputError
from compressor.train.settings import Train

PAD, CLS, SEP, MASK = 0, 2, 3, 4
FIRST = 10
"""Ids from here on are words."""
PIECES = np.arange(1000) % 3 == 2
"""Every third id goes on with a word."""


def views(seed=1, **shares):
    return Views(Augment(**shares), MASK, (PAD, CLS, SEP), seed)


def single(length, start=FIRST):
    return [CLS, *range(start, start + length), SEP]


def pool_of(rows, types=None, first_target=0):
    targets = (np.arange(len(rows)) + first_target) % 2 if first_target is not None else np.full(len(rows), UNLABELLED)
    return Pool(Encoded.of(rows, types), targets.astype(np.int64), PAD)


def singles(count, seed=0, longest=40):
    return [single(n) for n in np.random.default_rng(seed).integers(1, longest, count)]


def pairs(count, seed=0):
    lengths = np.random.default_rng(seed).integers(1, 20, (count, 2)).tolist()
    rows = [[*single(a), *range(500, 500 + b), SEP] for a, b in lengths]
    types = [[0] * (a + 2) + [1] * (b + 1) for a, b in lengths]
    return rows, types


def seen(rows, shown, view=0, pool=0, types=None):
    """Each row in a view, one at a time."""
    made = []
    for place, row in enumerate(rows):
        segments = None if types is None else np.array(types[place], dtype=np.uint8)
        ids, segments = shown.apply(np.array(row, dtype=np.int32), segments, pool=pool, row=place, view=view)
        made.append(ids.tolist() if types is None else (ids.tolist(), segments.tolist()))
    return made


def test_masking_changes_the_share_of_ordinary_tokens_and_no_other():
    rows = singles(400)
    made = seen(rows, views(mask=0.3))
    pairs_of_ids = [(a, b) for old, new in zip(rows, made, strict=True) for a, b in zip(old, new, strict=True)]
    assert {b for a, b in pairs_of_ids if a != b} == {MASK}
    assert all(a == b for a, b in pairs_of_ids if a in (CLS, SEP))
    ordinary = [a != b for a, b in pairs_of_ids if a >= FIRST]
    assert stats.binomtest(sum(ordinary), len(ordinary), 0.3).pvalue > 0.001
    assert all(set(row[1:-1]) == {MASK} for row in seen(rows, views(mask=1.0)))


def test_deletion_leaves_the_others_in_order_and_at_least_one():
    rows = singles(400)
    made = seen(rows, views(delete=0.3))
    assert all(row[0] == CLS and row[-1] == SEP and row == [*sorted(row[:-1]), SEP] for row in made)
    assert all(set(new) <= set(old) for old, new in zip(rows, made, strict=True))
    long = [(len(old) - 2, len(new) - 2) for old, new in zip(rows, made, strict=True) if len(old) > 20]
    kept, total = sum(new for _, new in long), sum(old for old, _ in long)
    assert stats.binomtest(kept, total, 0.7).pvalue > 0.001
    assert all(len(row) >= 3 for row in seen(rows, views(delete=0.99)))
    assert Counter(len(row) for row in seen(rows, views(delete=0.99999)))[3] == len(rows)


def test_an_ngram_is_a_run_of_one_to_five_words_with_all_their_pieces():
    rows = [single(30)] * 600
    shown = replace(views(ngram=1.0), continues=PIECES)
    counts, starts = Counter(), Counter()
    words = []
    for token in range(FIRST, FIRST + 30):
        if PIECES[token] and words:
            words[-1].append(token)
        else:
            words.append([token])
    for row in seen(rows, shown):
        run = row[1:-1]
        assert run == list(range(run[0], run[-1] + 1))
        inside = [word for word in words if word[0] in run]
        assert [token for word in inside for token in word] == run
        counts[len(inside)] += 1
        starts[run[0]] += 1
    assert set(counts) == {1, 2, 3, 4, 5}
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    assert len(starts) > 15


def test_a_share_of_the_rows_is_cut_to_ngrams_and_the_others_stay_whole():
    rows = [single(30)] * 1000
    whole = [row == single(30) for row in seen(rows, views(ngram=0.4))]
    assert stats.binomtest(len(whole) - sum(whole), len(whole), 0.4).pvalue > 0.001
    assert seen([single(1), [CLS, SEP], []], views(ngram=1.0, delete=0.9)) == [single(1), [CLS, SEP], []]


@pytest.mark.parametrize("shares", [{"delete": 0.95}, {"ngram": 1.0}, {"ngram": 1.0, "delete": 0.9, "mask": 0.5}])
def test_both_segments_of_a_pair_keep_a_token_and_their_numbers(shares):
    rows, types = pairs(300)
    for (ids, segments), old in zip(seen(rows, views(**shares), types=types), rows, strict=True):
        assert ids[0] == CLS
        assert ids.count(SEP) == 2
        between = ids.index(SEP)
        assert segments == [0] * (between + 1) + [1] * (len(ids) - between - 1)
        assert between > 1
        assert len(ids) - between > 2
        assert all(token in old or token == MASK for token in ids)


@pytest.mark.parametrize(
    "shares", [{"mask": 0.3}, {"delete": 0.3}, {"ngram": 0.5}, {"mask": 0.2, "delete": 0.1, "ngram": 0.2}]
)
def test_a_view_depends_on_the_row_alone_and_not_on_its_batch(shares):
    rows, types = pairs(60)
    pool, shown = pool_of(rows, types), views(**shares)
    alone = seen(rows, shown, view=3, types=types)
    for order in (range(60), reversed(range(60)), [7, 7, 30]):
        order = list(order)
        batch = view_batch(pool, order, shown, 0, 3)
        for place, row in enumerate(order):
            length = int(batch.inputs["attention_mask"][place].sum())
            assert batch.inputs["input_ids"][place, :length].tolist() == alone[row][0]
            assert batch.inputs["token_type_ids"][place, :length].tolist() == alone[row][1]
            assert set(batch.inputs["input_ids"][place, length:].tolist()) <= {PAD}
        assert batch.rows.tolist() == order
        assert batch.view == 3


def test_views_pools_rows_and_seeds_draw_independently():
    rows = [single(200)] * 2
    one = seen(rows, views(mask=0.5))[0]
    others = [
        seen(rows, views(mask=0.5))[1],
        seen(rows, views(mask=0.5), view=1)[0],
        seen(rows, views(mask=0.5), pool=1)[0],
        seen(rows, views(mask=0.5, seed=2))[0],
    ]
    for other in others:
        table = Counter((a == MASK, b == MASK) for a, b in zip(one[1:-1], other[1:-1], strict=True))
        counts = [[table[x, y] for y in (False, True)] for x in (False, True)]
        assert stats.chi2_contingency(counts).pvalue > 0.001
    assert one == seen(rows, views(mask=0.5))[0]


def test_an_epoch_shows_one_of_the_kept_views_or_a_new_one():
    kept, new = views(mask=0.1, views=3), views(mask=0.1)
    assert [kept.view_of(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [new.view_of(epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]
    assert [views(mixup=0.5).view_of(epoch) for epoch in range(3)] == [0, 0, 0]


def test_training_shows_the_views_that_are_computed_beforehand():
    labelled, pool = pool_of(singles(50)), pool_of(singles(90, seed=1), first_target=None)
    shown = views(mask=0.2, delete=0.2, views=2)
    mix = Mix(unlabelled=Unlabelled(ratio=0.5), augment=shown.augment)
    source = mixed_batches(labelled, pool, mix, Train(batch_rows=8), seed=0, views=shown)
    for epoch in (0, 1, 2):
        for item in source.plan(epoch):
            batch = source.make(item)
            assert (batch.view, batch.epoch) == (epoch % 2, epoch)
            stored = [
                view_batch(own, [row], shown, number, epoch % 2).inputs["input_ids"][0].tolist()
                for number, own, rows in ((0, labelled, item.labelled), (1, pool, item.unlabelled))
                for row in rows
            ]
            real = batch.inputs["attention_mask"].bool()
            assert [ids[m].tolist() for ids, m in zip(batch.inputs["input_ids"], real, strict=True)] == stored
            assert torch.equal(
                batch.targets[~batch.unlabelled], torch.tensor(labelled.targets)[batch.rows[~batch.unlabelled]]
            )


def test_without_changes_a_view_is_the_row():
    pool = pool_of(singles(20))
    plain = pool.batch(range(20))
    for shown in (None, views(), views(mixup=0.5)):
        batch = view_batch(pool, range(20), shown, 0, 5)
        assert all(torch.equal(batch.inputs[name], plain.inputs[name]) for name in plain.inputs)
    tokens = pool.encoded.take(range(20))
    assert views().changed(tokens, np.zeros(20), np.arange(20), 0) is tokens
    nothing = Tokens(np.zeros(0, dtype=np.int32), None, np.zeros(0, dtype=np.int64))
    assert views(mask=0.5).changed(nothing, np.zeros(0), np.zeros(0), 0) is nothing


def test_mixup_draws_partners_and_shares_of_at_least_half():
    batch = pool_of(singles(2000)).batch(range(2000))
    mixed = mixed_up(batch, 0.4, seed=[1, 2, 3])
    places = torch.arange(2000)
    changed = mixed.partner != places
    assert stats.binomtest(int(changed.sum()), 2000, 0.4).pvalue > 0.001
    assert set(mixed.kept[~changed].tolist()) == {1.0}
    assert mixed.kept.min() >= 0.5
    folded = np.random.default_rng(0).beta(MIXUP_BETA, MIXUP_BETA, 5000)
    assert stats.ks_2samp(mixed.kept[changed], np.maximum(folded, 1 - folded)).pvalue > 0.001
    assert set(mixed.targets[changed].tolist()) == {UNLABELLED}
    assert torch.equal(mixed.targets[~changed], batch.targets[~changed])
    own, other = batch.inputs["attention_mask"], batch.inputs["attention_mask"][mixed.partner]
    assert torch.equal(mixed.inputs["attention_mask"], ((own + other) > 0).long())
    assert torch.equal(mixed.inputs["input_ids"], batch.inputs["input_ids"])
    assert (mixed.kept.dtype, mixed.partner.dtype) == (torch.float32, torch.int64)


def test_mixup_depends_on_seed_epoch_and_place_alone_and_spares_a_row_without_company():
    labelled = pool_of(singles(40))
    mix = Mix(augment=Augment(mixup=0.5))

    def batches(epoch, seed=0):
        source = mixed_batches(
            labelled, None, mix, Train(batch_rows=8), seed=seed, views=Views(mix.augment, None, (), seed)
        )
        return [source.make(item).kept.tolist() for item in source.plan(epoch)]

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)
    assert batches(0) != batches(0, seed=1)
    assert len({tuple(kept) for kept in batches(0)}) == 5
    alone = mixed_up(labelled.batch([3]), 1.0, seed=[0])
    assert (alone.kept.tolist(), alone.partner.tolist(), alone.targets.tolist()) == ([1.0], [0], [1])


def test_a_tokenizer_says_which_tokens_never_change_and_which_go_on_with_a_word(tiny_bert):
    encoder = open_encoder(tiny_bert, 32)
    shown = Views.of(Augment(ngram=1.0), encoder, seed=0)
    assert set(shown.special_ids) == {0, 2, 3}
    assert not shown.continues.any()
    vocabulary = {token: number for number, token in enumerate(["good", "##s", "##", "Ġbad", "▁bad"])}

    class Spelled:
        def get_vocab(self, with_added_tokens):
            return vocabulary

    wordpiece = replace(encoder, tokenizer=Spelled(), special_ids=())
    assert wordpiece.continues().tolist() == [False, True, False, False, False]
    vocabulary = {"<s>": 0, "good": 1, "Ġbad": 2}
    assert replace(wordpiece, special_ids=(0,)).continues().tolist() == [False, True, False]
    vocabulary = {"good": 0, "bad": 1}
    assert not wordpiece.continues().any()


def test_masking_without_a_mask_token_is_refused():
    with pytest.raises(
        InputError, match=r"^mix\.augment\.mask needs a mask token, which the vocabulary lacks; leave it"
    ):
        Views(Augment(mask=0.1), None, (), 0)
    Views(Augment(delete=0.1), None, (), 0)


def test_batches_of_changed_rows_need_their_views():
    with pytest.raises(ValueError, match=r"needs views=Views\.of"):
        mixed_batches(pool_of(singles(4)), None, Mix(augment=Augment(mask=0.1)), Train(), seed=0)
