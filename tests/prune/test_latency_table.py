"""Tables of layers' times from made-up clocks: what is recovered, and what is kept."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from layer_clock import milliseconds

from compressor.model.manifest import LayerShape, Shapes
from compressor.prune import latency_table as tables
from compressor.prune.latency_table import LatencyTable, Place, design, fitted, kept_table, key_of, read_table

WIDE = Shapes(hidden=384, layers=(LayerShape(12, 32, 1536),) * 6, vocabulary=100)
KEY = key_of(WIDE, Place(), [4, 8, 9], activation="gelu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path / "cache"))


def times(key: tables.TableKey, of: Callable[[int, int, int], float], *, noise: float = 0.0) -> list[dict]:
    """Five rounds of every lot of a design, each round with a speed of its own, each time with noise of its own."""
    draw = random.Random(0)
    speeds = [1.0, 1.3, 0.9, 1.1, 1.0]
    return [
        {model: [of(*model) * speed * (1 + draw.uniform(-noise, noise)) for speed in speeds] for model in lot}
        for lot in design(key).lots()
    ]


def narrow_key(heads: int, ffn: int) -> tables.TableKey:
    return key_of(Shapes(32, (LayerShape(heads, 8, ffn),) * 2, 100), Place(), [4], activation="gelu")


def alike(depth: int, heads: int, ffn: int) -> float:
    return milliseconds([LayerShape(heads, 32, ffn)] * depth)


def test_a_design_is_of_a_dozen_models_and_holds_the_whole_and_half_of_it():
    plan = design(KEY)
    assert plan.models[0] == (6, 12, 1536)
    assert {(3, 12, 1536), (6, 0, 0)} <= set(plan.models)
    assert len(plan.models) + len(plan.odd) <= 16
    assert all(neurons % 64 == 0 for _, _, neurons in plan.models)


@pytest.mark.parametrize("key", [KEY, narrow_key(4, 64), narrow_key(0, 0)])
def test_lots_hold_every_model_once_beside_the_first_and_the_odd_ones_with_what_they_are_held_to(key: tables.TableKey):
    plan = design(key)
    lots = plan.lots()
    assert {lot[0] for lot in lots} == {plan.models[0]}
    assert max(map(len, lots)) <= 5
    others = [model for lot in lots for model in lot[1:]]
    assert sorted(others) == sorted({*plan.models[1:], *plan.odd})
    if plan.odd:
        assert {plan.beside, *plan.odd} <= set(lots[0])


def test_a_lot_that_is_timed_in_a_slower_hour_changes_no_share():
    lots = times(KEY, alike)
    slower = [lots[0], *({model: [2 * ms for ms in rounds] for model, rounds in lot.items()} for lot in lots[1:])]
    first, second = (fitted(KEY, each, {}) for each in (lots, slower))
    assert second.points[0].ms > first.points[0].ms
    shares = [[point.ms / found.points[0].ms for point in found.points] for found in (first, second)]
    assert shares[0] == pytest.approx(shares[1])
    assert second.misfit == pytest.approx(first.misfit, abs=1e-9)


@pytest.mark.parametrize(("heads", "ffn"), [(4, 0), (4, 1), (4, 2), (0, 64), (1, 1), (0, 1), (0, 0)])
def test_a_model_of_hardly_any_parts_has_a_table(heads: int, ffn: int):
    key = narrow_key(heads, ffn)
    found = fitted(key, times(key, alike), {})
    layers = [LayerShape(heads, 8, ffn)] * 2
    assert found.total(layers) == pytest.approx(milliseconds(layers), abs=1e-3)
    assert tables.made_up(key).total(layers) >= tables.SMOKE_REST


def test_parts_that_add_up_are_told_apart_whatever_the_speed_of_a_round():
    found = fitted(KEY, times(KEY, alike), {})
    for heads in found.heads:
        for neurons in found.neurons:
            layers = [LayerShape(heads, 32, neurons)] * 6
            assert found.total(layers) == pytest.approx(milliseconds(layers), abs=1e-3)
    mixed = [LayerShape(0, 32, 384), LayerShape(12, 32, 0), LayerShape(4, 32, 1152), LayerShape(8, 32, 192)]
    assert found.total(mixed) == pytest.approx(milliseconds(mixed), abs=1e-3)
    assert found.rest_ms == pytest.approx(0.4, abs=1e-3)


def test_a_prediction_is_the_rest_and_the_sum_of_the_halves_of_each_layer():
    found = fitted(KEY, times(KEY, alike, noise=0.05), {})
    layers = [LayerShape(3, 32, 500), LayerShape(7, 32, 1000), LayerShape(12, 32, 64)]
    parts = [found.attention(each.heads) + found.feed_forward(each.ffn) for each in layers]
    assert found.total(layers) == pytest.approx(found.rest_ms + sum(parts), abs=1e-4)
    assert found.total(layers) == found.total(layers[::-1])


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.4])
def test_more_parts_never_take_less_time(noise: float):
    found = fitted(KEY, times(KEY, alike, noise=noise), {})
    heads = [found.attention(count) for count in range(13)]
    neurons = [found.feed_forward(count) for count in range(0, 1537, 16)]
    assert heads == sorted(heads)
    assert neurons == sorted(neurons)
    assert neurons[0] == 0.0
    assert min(heads) >= 0.0


def test_halves_that_do_not_add_up_show_in_the_misfit():
    def together(depth: int, heads: int, ffn: int) -> float:
        return alike(depth, heads, ffn) + depth * 0.1 * (heads / 12) * (ffn / 1536)

    assert fitted(KEY, times(KEY, alike), {}).misfit < 1e-6
    assert fitted(KEY, times(KEY, together), {}).misfit > 0.005


@pytest.mark.parametrize(("block", "step"), [(1, 1), (16, 16), (64, 64)])
def test_sizes_are_rounded_to_what_the_clock_shows_to_pay(block: int, step: int):
    def stepped(depth: int, heads: int, ffn: int) -> float:
        """An odd count costs as much as the next whole block, and a tenth for not being one."""
        odd = 1.1 if ffn % block else 1.0
        return odd * milliseconds([LayerShape(heads, 32, -(-ffn // block) * block)] * depth)

    found = fitted(KEY, times(KEY, stepped), {})
    assert found.step == step
    narrow = narrow_key(4, 64)
    assert fitted(narrow, times(narrow, stepped), {}).step == 1


def test_a_size_that_is_slower_by_less_than_it_is_worth_is_kept():
    found = fitted(KEY, times(KEY, lambda *model: alike(*model) * (1.005 if model[2] % 64 else 1.0)), {})
    assert found.step == 1


def counting(made: list[int]) -> Callable[[], LatencyTable]:
    def measure() -> LatencyTable:
        made.append(1)
        return fitted(KEY, times(KEY, alike, noise=0.01), {"measured": "today", "rounds": 5})

    return measure


def test_a_table_is_measured_once_and_read_again_unchanged(tmp_path: Path):
    made: list[int] = []
    first = kept_table(KEY, tmp_path / "one.json", counting(made))
    again = kept_table(KEY, tmp_path / "two.json", counting(made))
    assert made == [1]
    assert again == first
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_run_that_goes_on_keeps_the_table_it_began_with(tmp_path: Path):
    made: list[int] = []
    first = kept_table(KEY, tmp_path / "own.json", counting(made))
    tables.write_table(tables.table_path(KEY), replace(first, rest_ms=99.0))
    assert kept_table(KEY, tmp_path / "own.json", counting(made)) == first


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "another"},
        {"threads": 7},
        {"engine": "torch"},
        {"precision": "int8"},
        {"hidden": 768},
        {"lengths": "other"},
        {"versions": {"onnxruntime": "0"}},
        {"layers": 12},
        {"activation": "relu"},
    ],
)
def test_a_table_of_another_place_width_or_mix_of_lengths_is_measured_anew(tmp_path: Path, change: dict):
    made: list[int] = []
    kept_table(KEY, tmp_path / "own.json", counting(made))
    other = replace(KEY, **change)
    assert read_table(tmp_path / "own.json", other) is None
    kept_table(other, tmp_path / "own.json", lambda: replace(counting(made)(), key=other))
    assert made == [1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', "null"])
def test_a_torn_table_is_measured_anew(tmp_path: Path, text: str):
    path = tmp_path / "own.json"
    path.write_text(text)
    assert read_table(path, KEY) is None


def test_the_order_of_the_rows_is_no_other_mix_of_lengths():
    assert key_of(WIDE, Place(), [9, 4, 8], activation="gelu") == KEY
    assert key_of(WIDE, Place(), [9, 4, 7], activation="gelu") != KEY
