import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_reviews, write_tiny_bert

from compressor.data.augment import Views, view_batch
from compressor.data.batches import Batch, Pool
from compressor.data.encode import open_encoder
from compressor.data.mixing import MixedBatches, mixed_batches
from compressor.data.rows import Rows
from compressor.data.settings import Augment, Mix, Unlabelled
from compressor.distill import teacher_pass
from compressor.distill.cache_plan import cache_plan, layer_bytes
from compressor.distill.settings import Cache
from compressor.distill.state_codes import Channels, decode_int8, encode_int8
from compressor.distill.teacher_cache import CachedTeacher, live_teacher, open_cache, pool_logits
from compressor.distill.together import Teachers, teachers_of
from compressor.errors import InputError, StageError
from compressor.model.encoders import load_model
from compressor.stage import Decision
from compressor.train.settings import Train

LAYERS = (0, 2, 4)


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
def teachers(folder: Path) -> Teachers:
    return teachers_of(load_model(folder), digest="one")


def everything(pools: tuple[Pool, ...]) -> list[np.ndarray]:
    return [np.arange(len(pool)) for pool in pools]


def mixed(pools: tuple[Pool, Pool]) -> MixedBatches:
    return mixed_batches(*pools, Mix(unlabelled=Unlabelled(ratio=0.4)), Train(batch_rows=7), seed=1)


def opened(
    teachers: Teachers, pools: tuple[Pool, ...], folder: Path, *, layers: tuple[int, ...] = LAYERS,
    cache: Cache | None = None, used: list[np.ndarray] | None = None, **options: object,
) -> CachedTeacher:  # fmt: skip
    found = open_cache(
        teachers, pools, everything(pools) if used is None else used, layers=layers, folder=folder,
        cache=Cache() if cache is None else cache, **options,
    )  # fmt: skip
    assert isinstance(found, CachedTeacher)
    return found


class Passes:
    """A progress that counts the rows computed in each pass, and can stop one."""

    def __init__(self, stop: int | None = None) -> None:
        self.rows: list[int] = []
        self.said: list[str] = []
        self.calls, self.stop = 0, stop

    def __call__(self, what: str, done: int, total: int | None) -> None:
        self.said.append(what)
        if what == "teacher's answers":
            self.calls += 1
            if done == total:
                self.rows.append(done)
            if self.calls == self.stop:
                raise KeyboardInterrupt


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_pass, "PASS_TOKENS", 64)


def test_the_teacher_answers_the_same_twice_even_if_it_was_left_in_train_mode(
    teachers: Teachers, pools: tuple[Pool, Pool]
) -> None:
    model, live = teachers.encoder_teacher, teachers.live(LAYERS)
    assert model is not None
    assert model.config.hidden_dropout_prob > 0
    batch = pools[0].batch(range(10))
    model.train()
    one = live.answers(batch, hidden=True)
    model.train()
    two = live.answers(batch, hidden=True)
    assert torch.equal(one.logits, two.logits)
    assert all(torch.equal(one.hidden[layer], two.hidden[layer]) for layer in LAYERS)
    assert not one.logits.requires_grad
    assert not one.logits.is_inference()


def test_live_answers_are_fp32_inside_a_students_bf16(teachers: Teachers, pools: tuple[Pool, Pool]) -> None:
    batch, live = pools[0].batch(range(10)), teachers.live(LAYERS)
    outside = live.answers(batch, hidden=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = live.answers(batch, hidden=True)
    assert torch.equal(inside.logits, outside.logits)
    assert all(torch.equal(inside.hidden[layer], outside.hidden[layer]) for layer in LAYERS)


def own(batch: Batch, states: torch.Tensor) -> torch.Tensor:
    return states[batch.inputs["attention_mask"].bool()]


def lost(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("states", "allowed"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_cached_answers_equal_live_ones(
    states: str, allowed: float, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    cached, source = opened(teachers, pools, tmp_path, cache=Cache(states=states)), mixed(pools)
    live, seen = teachers.live(LAYERS), 0
    for plan in source.plan(0):
        batch = source.make(plan)
        ours, theirs = cached.answers(batch, hidden=True), live.answers(batch, hidden=True)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
        for layer in LAYERS:
            assert ours.hidden[layer].dtype == torch.float32
            assert bool(ours.hidden[layer].isfinite().all())
            assert lost(own(batch, ours.hidden[layer]), own(batch, theirs.hidden[layer])) < allowed
        seen += int(batch.unlabelled.sum())
    assert seen > 5


def test_layers_that_are_asked_for_alone_come_alone(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    batch, cached = pools[0].batch([3, 1]), opened(teachers, pools, tmp_path)
    for teacher in (cached, teachers.live(LAYERS)):
        assert teacher.answers(batch, hidden=False).hidden == {}
        assert list(teacher.answers(batch, hidden=[4]).hidden) == [4]
        with pytest.raises(KeyError, match="layer 3 is not among those"):
            teacher.answers(batch, hidden=[3])


def test_a_complete_cache_is_used_again_and_another_teacher_makes_it_anew(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes = Passes()
    first = opened(teachers, pools, tmp_path, progress=passes)
    again = opened(teachers, pools, tmp_path, progress=passes)
    fewer = opened(teachers, pools, tmp_path, layers=(2,), progress=passes)
    assert passes.rows == [60]
    assert np.array_equal(first.logits, again.logits)
    assert fewer.plan.cached == (2,)
    opened(replace(teachers, digest="two"), pools, tmp_path, progress=passes)
    opened(teachers, pools, tmp_path, layers=(1,), progress=passes)
    opened(teachers, pools, tmp_path, layers=(1,), cache=Cache(precision="fp32"), progress=passes)
    opened(teachers, (pools[0],), tmp_path, layers=(1,), cache=Cache(precision="fp32"), progress=passes)
    assert passes.rows == [60, 60, 60, 60, 35]


def test_a_narrower_need_leaves_a_wider_cache_as_it_is(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes, few = Passes(), [np.arange(35), np.array([2, 5])]
    opened(teachers, pools, tmp_path, used=few, progress=passes)
    opened(teachers, pools, tmp_path, layers=(), progress=passes)  # more rows, no layers
    whole = opened(teachers, pools, tmp_path, progress=passes)
    assert passes.rows == [37, 23]
    assert whole.plan.cached == LAYERS


def test_a_cache_that_lacks_something_is_widened_and_serves_both(
    folder: Path, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    views = Views.of(Augment(views=2, mask=0.3), open_encoder(folder, 32), seed=3)
    passes, few = Passes(), [np.arange(35), np.array([2, 5])]
    needs = [((0, 2), None, 1), ((4,), few, 2), ((0, 2), None, 1), ((0, 4), few, 2)]
    for layers, used, count in needs:
        found = opened(
            teachers, pools, tmp_path, layers=layers, used=used, views=views, view_count=count, progress=passes
        )
        assert found.plan.cached == layers
    assert passes.rows == [60, 120]
    batch, live = view_batch(pools[0], [4, 9], views, 0, 1), teachers.live((0, 4))
    ours, theirs = found.answers(batch, hidden=True), live.answers(batch, hidden=True)
    assert lost(own(batch, ours.hidden[4]), own(batch, theirs.hidden[4])) < 1e-3


def test_a_cache_gives_way_where_the_budget_does_not_hold_both(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    tokens = int(sum(pool.lengths.sum() for pool in pools))
    one = cache_plan(rows=60, tokens=tokens, classes=2, layers=(2,), hidden=32, cache=Cache(states="fp16")).bytes
    tight, passes = Cache(states="fp16", budget=f"{one / 1e3:.3f}kB"), Passes()
    for layer in (2, 4):
        assert opened(teachers, pools, tmp_path, layers=(layer,), cache=tight, progress=passes).plan.cached == (layer,)
    assert passes.rows == [60, 60]
    opened(teachers, pools, tmp_path, layers=(), cache=tight, progress=passes)
    assert passes.rows == [60, 60]


@pytest.mark.usefixtures("small_batches")
def test_rows_that_are_added_are_computed_alone(teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    passes = Passes()
    few = opened(teachers, pools, tmp_path, used=[np.arange(35), np.array([2, 5])], progress=passes)
    assert np.isfinite(few.logits[0]).all(1).nonzero()[0].tolist() == [*range(35), 37, 40]
    with pytest.raises(StageError, match="row 38 was not computed before training"):
        few.answers(pools[1].batch([3], unlabelled=True), hidden=False)
    more = opened(teachers, pools, tmp_path, progress=passes)
    assert passes.rows == [37, 23]
    batch = pools[1].batch([3, 2], unlabelled=True)
    ours, theirs = more.answers(batch, hidden=True), teachers.live(LAYERS).answers(batch, hidden=True)
    assert lost(own(batch, ours.hidden[2]), own(batch, theirs.hidden[2])) < 1e-3


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("kill", [False, True])
def test_a_pass_that_was_stopped_goes_on_where_it_was(
    kill: bool, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_pass, "COMMIT_SECONDS", 0.0)
    if kill:  # nothing is written at the end, and what came after the last commit is there in part
        monkeypatch.setattr("compressor.distill.cache_files.CacheWriter.close", lambda _writer: None)
    with pytest.raises(KeyboardInterrupt):
        opened(teachers, pools, tmp_path / "a", progress=Passes(stop=4))
    monkeypatch.undo()
    monkeypatch.setattr(teacher_pass, "PASS_TOKENS", 64)
    with (tmp_path / "a" / "hidden-2.bin").open("ab") as handle:
        handle.write(b"half a row")
    passes = Passes()
    resumed = opened(teachers, pools, tmp_path / "a", progress=passes)
    assert 0 < passes.rows[0] < 60
    whole = opened(teachers, pools, tmp_path / "b")
    assert np.array_equal(resumed.logits, whole.logits)
    for row in (0, 17, 34):
        batch = pools[0].batch([row])
        ours, theirs = (each.answers(batch, hidden=True).hidden for each in (resumed, whole))
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in LAYERS)


@pytest.mark.parametrize("name", ["logits.npy", "hidden-2.bin", "offsets.npy", "scales-4.f32", "channels-0.npy"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_damaged_files_are_told_and_made_anew(
    name: str, harm: str, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    form = Cache(states="int8")
    first, passes = opened(teachers, pools, tmp_path, cache=form), Passes()
    logits = np.array(first.logits)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-3] ^= 0x40
    if harm == "gone":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(raw if harm == "changed" else raw[:-8])
    again = opened(teachers, pools, tmp_path, cache=form, progress=passes)
    assert passes.said[0] == f"teacher's answers on disk are damaged, computing them anew ({name})"
    assert passes.rows == [60]
    assert np.array_equal(again.logits, logits)


def test_a_note_that_cannot_be_read_is_no_cache(teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    opened(teachers, pools, tmp_path)
    (tmp_path / "cache.json").write_text("{")
    passes = Passes()
    opened(teachers, pools, tmp_path, progress=passes)
    assert passes.rows == [60]


def test_layers_over_the_budget_are_computed_from_the_last_one_that_fits(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    tokens = int(sum(pool.lengths.sum() for pool in pools))
    need = cache_plan(rows=60, tokens=tokens, classes=2, layers=LAYERS, hidden=32, cache=Cache(states="int8"))
    assert need.live == ()
    told: list[Decision] = []
    tight = Cache(budget=f"{(need.bytes - 1) / 1e3:.3f}kB", states="int8")
    over = opened(teachers, pools, tmp_path, cache=tight, decide=told.append)
    assert (over.plan.cached, over.plan.live) == ((0, 2), (4,))
    assert told[-1].because.endswith("computed at every step: layer 4")
    assert sum(path.stat().st_size for path in tmp_path.glob("hidden-*")) == tokens * 2 * 32
    batch, live = pools[0].batch([3, 1, 20]), teachers.live(LAYERS)
    theirs = live.answers(batch, hidden=True).hidden[4]
    assert lost(own(batch, over.answers(batch, hidden=True).hidden[4]), own(batch, theirs)) < 2e-2
    assert lost(own(batch, over.answers(batch, hidden=[4]).hidden[4]), own(batch, theirs)) < 2e-2


def test_without_room_for_any_layer_the_whole_pass_is_live_and_logits_are_still_cached(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    over = opened(teachers, pools, tmp_path, cache=Cache(budget="1kB"))
    assert over.plan.live == LAYERS
    assert not list(tmp_path.glob("hidden-*"))
    batch, live = pools[0].batch([3, 1]), teachers.live(LAYERS)
    ours, theirs = over.answers(batch, hidden=True), live.answers(batch, hidden=True)
    assert all(torch.equal(ours.hidden[layer], theirs.hidden[layer]) for layer in LAYERS)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", [{"mask": 0.3}, {"delete": 0.3}, {"ngram": 0.8}])
def test_stored_views_are_what_the_teacher_says_of_the_changed_row(
    change: dict[str, float], folder: Path, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    views = Views.of(Augment(views=2, **change), open_encoder(folder, 32), seed=3)
    cached, live = opened(teachers, pools, tmp_path, views=views, view_count=2), teachers.live(LAYERS)
    assert cached.logits.shape == (2, 60, 2)
    assert not np.allclose(cached.logits[0], cached.logits[1])
    for number, unlabelled in enumerate((False, True)):
        for view in (0, 1):
            batch = view_batch(pools[number], [4, 9, 12], views, number, view)
            assert bool(batch.unlabelled.all()) is unlabelled
            ours, theirs = cached.answers(batch, hidden=True), live.answers(batch, hidden=True)
            torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
            assert lost(own(batch, ours.hidden[4]), own(batch, theirs.hidden[4])) < 1e-3


def test_views_of_another_seed_are_other_answers(
    folder: Path, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes = Passes()
    for seed in (3, 3, 4):
        views = Views.of(Augment(views=2, mask=0.3), open_encoder(folder, 32), seed=seed)
        opened(teachers, pools, tmp_path, views=views, view_count=2, progress=passes)
    assert passes.rows == [120, 120]


@pytest.mark.parametrize("change", [{"mask": 0.1}, {"mixup": 0.5}])
def test_rows_that_never_come_back_are_not_cached(
    change: dict[str, float], folder: Path, teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    views = Views.of(Augment(**change), open_encoder(folder, 32), seed=3)
    with pytest.raises(InputError, match="never come back, so their answers are not kept"):
        opened(teachers, pools, tmp_path, views=views)


def test_a_pool_that_was_answered_to_choose_rows_is_not_answered_again(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes = Passes()
    logits = pool_logits(teachers, pools, 1, layers=LAYERS, folder=tmp_path, cache=Cache(), progress=passes)
    live = teachers.live(()).answers(pools[1].batch(range(25), unlabelled=True), hidden=False).logits
    assert np.allclose(logits, live, atol=1e-6)
    opened(teachers, pools, tmp_path, used=[np.arange(35), np.array([2, 5])], progress=passes)
    assert passes.rows == [25, 35]


def test_logits_alone_are_kept_of_a_pool_whose_states_do_not_fit(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes, small = Passes(), Cache(budget="40kB")
    used = [np.arange(10), np.array([2, 5])]
    for _ in range(2):  # a rerun finds both
        pool_logits(teachers, pools, 1, layers=LAYERS, folder=tmp_path, cache=small, progress=passes)
        taught = opened(teachers, pools, tmp_path, used=used, cache=small, progress=passes)
    assert taught.plan.cached == LAYERS
    assert passes.rows == [25, 12]


def test_logits_alone_are_kept_of_a_pool_while_the_layers_are_not_known(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    passes = Passes()
    for _ in range(2):
        pool_logits(teachers, pools, 1, layers=None, folder=tmp_path, cache=Cache(), progress=passes)
        assert not (tmp_path / "hidden-2.bin").exists() or passes.rows == [25, 60]
        opened(teachers, pools, tmp_path, progress=passes)
    assert passes.rows == [25, 60]
    assert not list((tmp_path / "confidence").glob("hidden-*"))


def test_bf16_is_taken_where_it_agrees_and_the_agreement_is_told(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_pass, "native_bf16", lambda _name: True)
    told: list[Decision] = []
    opened(teachers, pools, tmp_path / "a", layers=(2,), decide=told.append)
    assert told[0].chosen == "bf16"
    assert "bf16 and fp32 decide alike in 100.0%" in told[0].because
    note = json.loads((tmp_path / "a" / "cache.json").read_text())
    assert note["contents"]["precision"] == "bf16"
    monkeypatch.setattr(teacher_pass, "STATES_AGREE", 1e-5)
    opened(teachers, pools, tmp_path / "b", layers=(2,), decide=told.append)
    assert told[2].chosen == "fp32"
    monkeypatch.setattr(teacher_pass, "native_bf16", lambda _name: False)
    opened(teachers, pools, tmp_path / "c", decide=told.append)
    assert [decision.kind for decision in told[4:]] == ["cache"]  # nothing to choose from
    assert json.loads((tmp_path / "c" / "cache.json").read_text())["contents"]["precision"] == "fp32"


def test_each_precision_is_what_it_says(teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    batch = pools[0].batch(range(10))
    theirs = teachers.live(()).answers(batch, hidden=False).logits
    full, half = (opened(teachers, pools, tmp_path / form, cache=Cache(precision=form)) for form in ("fp32", "bf16"))
    torch.testing.assert_close(full.answers(batch, hidden=False).logits, theirs, atol=1e-6, rtol=0)
    apart = (half.answers(batch, hidden=False).logits - theirs).abs().max()
    assert 1e-5 < float(apart) < 0.1


def test_layers_beside_the_cache_are_computed_in_its_precision(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    tokens = int(sum(pool.lengths.sum() for pool in pools))
    plan = cache_plan(rows=60, tokens=tokens, classes=2, layers=(0, 2), hidden=32, cache=Cache(states="fp16"))
    seen: list[torch.dtype] = []
    assert teachers.encoder_teacher is not None
    dense = teachers.encoder_teacher.bert.encoder.layer[3].output.dense
    dense.register_forward_hook(lambda _module, _given, output: seen.append(output.dtype))
    batch = pools[0].batch([3, 1])
    for form in ("fp32", "bf16"):
        for budget in ("1kB", f"{plan.bytes / 1e3:.3f}kB"):  # all layers are live, or the last one alone
            cache = Cache(states="fp16", precision=form, budget=budget)
            cached = opened(teachers, pools, tmp_path / f"{form}-{budget}", cache=cache)
            assert cached.plan.live in (LAYERS, (4,))
            seen.clear()
            assert cached.answers(batch, hidden=[4]).hidden[4].dtype == torch.float32
            assert seen == [torch.float32 if form == "fp32" else torch.bfloat16]


def test_a_live_teacher_answers_in_the_precision_of_a_pass(
    teachers: Teachers, pools: tuple[Pool, Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, told = pools[0].batch(range(10)), list[Decision]()

    def logits(precision: str) -> torch.Tensor:
        cache = Cache(precision=precision)
        found = live_teacher(
            teachers, (2,), cache=cache, pools=pools, used=everything(pools), decide=told.append
        ).answers(batch, hidden=True)
        assert list(found.hidden) == [2]
        return found.logits

    full, half = (teachers.live((), precision=each).answers(batch, hidden=False).logits for each in ("fp32", "bf16"))
    assert not torch.equal(full, half)
    assert torch.equal(logits("fp32"), full)
    assert torch.equal(logits("bf16"), half)
    assert told == []
    for native, agree, wanted in ((False, 0.01, full), (True, 0.01, half), (True, 1e-9, full)):
        monkeypatch.setattr(teacher_pass, "native_bf16", lambda _name, native=native: native)
        monkeypatch.setattr(teacher_pass, "STATES_AGREE", agree)
        assert torch.equal(logits("auto"), wanted)
    assert [decision.chosen for decision in told] == ["bf16", "fp32"]


def test_an_answer_that_is_not_finite_stops_with_the_pool_and_the_row(
    folder: Path, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    model = load_model(folder)
    encoder = open_encoder(folder, 32)
    word = encoder.tokenizer.token_to_id("gripping")
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = torch.nan
    texts = ("the film is dull", "a gripping story")
    rows = Rows(texts, (None, None))
    teachers = replace(teachers_of(model), pools=(rows, rows))
    with pytest.raises(StageError, match=r"row 1 \(from 0\) of data.unlabelled, 'a gripping story', with numbers"):
        opened(teachers, (Pool.of(Rows(texts[:1], (0,)), encoder), Pool.of(rows, encoder)), tmp_path)


def test_int8_follows_its_formula() -> None:
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 16) + 2
    channels = Channels.of(states)
    codes, scales = encode_int8(states, channels)
    again = decode_int8(torch.from_numpy(codes), torch.from_numpy(scales), channels).numpy()
    for token in range(50):
        for channel in range(16):
            share = codes[token, channel] / 127
            value = np.sign(share) * share**2 * scales[token]
            assert again[token, channel] == pytest.approx(
                value * channels.scale[channel] + channels.offset[channel], rel=1e-5, abs=1e-6
            )
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == 127


def test_a_channel_that_the_probe_saw_no_spread_of_does_not_spoil_the_others() -> None:
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    probe = states.clone()
    probe[:, 3] = 0.0
    codes, scales = encode_int8(states, Channels.of(probe))
    again = decode_int8(torch.from_numpy(codes), torch.from_numpy(scales), Channels.of(probe))
    assert lost(again, states) < 0.05


def test_states_too_large_for_fp16_are_refused_with_the_way_out(
    teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    model = teachers.encoder_teacher
    assert model is not None
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.fill_(1e6)
    with pytest.raises(StageError, match=r"states of teacher layer 2 exceed what fp16 holds .* set cache.states: int8"):
        opened(teachers, pools, tmp_path, layers=(2,), cache=Cache(states="fp16"))


PLAN = {"rows": 100, "tokens": 2000, "classes": 2, "layers": (2, 4, 6), "hidden": 64}
FP16, INT8, LOGITS = 2000 * 64 * 2, 2000 * 68 + 64 * 8, 100 * 16


@pytest.mark.parametrize(
    ("states", "budget", "form", "cached"),
    [
        ("auto", LOGITS + 3 * FP16, "fp16", 3),
        ("auto", LOGITS + 3 * FP16 - 1, "int8", 3),
        ("auto", LOGITS + 3 * INT8 - 1, "int8", 2),
        ("auto", LOGITS + INT8 - 1, "int8", 0),
        ("auto", 0, "int8", 0),
        ("fp16", LOGITS + 3 * FP16 - 1, "fp16", 2),
        ("int8", LOGITS + 3 * FP16, "int8", 3),
    ],
)
def test_the_plan_gives_up_precision_before_layers_and_last_layers_first(
    states: str, budget: int, form: str, cached: int
) -> None:
    plan = cache_plan(**PLAN, cache=Cache(states=states, budget=f"{budget / 1e9:.9f}GB"))
    assert (plan.states, plan.cached, plan.live) == (form, (2, 4, 6)[:cached], (2, 4, 6)[cached:])
    assert plan.bytes == LOGITS + cached * (FP16 if form == "fp16" else INT8)
    assert layer_bytes("int8", tokens=2000, hidden=64) == INT8


def test_the_plan_is_what_the_files_take(teachers: Teachers, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    for states in ("fp16", "int8"):
        cached = opened(teachers, pools, tmp_path / states, cache=Cache(states=states))
        files = [path for path in (tmp_path / states).iterdir() if path.name != "cache.json"]
        headers = 128 * sum(path.suffix == ".npy" for path in files)
        assert sum(os.path.getsize(path) for path in files) - headers == cached.plan.bytes


def test_views_multiply_what_is_kept() -> None:
    one, two = (cache_plan(**PLAN, cache=Cache(states="fp16"), views=views) for views in (1, 2))
    assert two.bytes == 2 * one.bytes


@pytest.mark.registry
@pytest.mark.parametrize(("states", "allowed"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_real_states_lose_no_more_than_they_may(states: str, allowed: float, minilm: Path, tmp_path: Path) -> None:
    teachers = teachers_of(load_model(minilm, labels=("bad", "good")))
    texts = Path(__file__).read_text(encoding="utf-8").splitlines()
    rows = Rows(tuple(text for text in texts if len(text) > 20)[:250], (None,) * 250)
    pool = Pool.of(Rows(rows.texts, rows.labels[: len(rows.texts)]), open_encoder(minilm, 64))
    layers = (0, 2, 4, 6)
    cached = opened(teachers, (pool,), tmp_path, layers=layers, cache=Cache(states=states, precision="fp32"))
    live = teachers.live(layers)
    apart = dict.fromkeys(layers, 0.0)
    whole = dict.fromkeys(layers, 0.0)
    for batch in pool.in_order(batch_tokens=2048):
        ours, theirs = cached.answers(batch, hidden=True), live.answers(batch, hidden=True)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
        for layer in layers:
            found, wanted = own(batch, ours.hidden[layer]), own(batch, theirs.hidden[layer])
            apart[layer] += float((found - wanted).square().sum())
            whole[layer] += float(wanted.square().sum())
    assert max((apart[layer] / whole[layer]) ** 0.5 for layer in layers) <= allowed
