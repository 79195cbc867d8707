"""The search for shapes: beside brute force, beside the greedy choice, and what it may never do."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.surgery import Kept, keep_all, kept_shapes
from compressor.prune.latency_table import LatencyTable, Place, key_of
from compressor.prune.next_cut import scores_of
from compressor.prune.schedule import choose, prices_for
from compressor.prune.search import BINS, LayerOptions, Option, best_counts, choose_by_time, least_time

SIZES = Shapes(hidden=32, layers=(LayerShape(4, 8, 16),) * 3, vocabulary=50)
BOTH, ALL = frozenset({"heads", "ffn"}), frozenset({"heads", "ffn", "layers"})


def table(*, step: int = 1, sizes: Shapes = SIZES) -> LatencyTable:
    """A table that is not straight: the first head and the first neurons cost most."""
    return LatencyTable(
        key=key_of(sizes, Place(), [5, 9], activation="gelu"),
        rest_ms=0.5,
        heads=(0, 1, 4),
        attention_ms=(0.1, 0.5, 1.1),
        neurons=(0, 4, 16),
        ffn_ms=(0.0, 0.4, 1.0),
        step=step,
    )


def scores(seed: int = 0, sizes: Shapes = SIZES, layer: float = 1e9) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    heads = tuple(torch.rand(each.heads, generator=draw, dtype=torch.float64) * 4 for each in sizes.layers)
    neurons = tuple(torch.rand(each.ffn, generator=draw, dtype=torch.float64) for each in sizes.layers)
    return Scores(heads, neurons, torch.full((len(sizes.layers),), layer, dtype=torch.float64))


def never(kept: Kept) -> float:
    raise AssertionError("losses are measured only where layers may go")


def importance(given: Scores, kept: Kept) -> float:
    return sum(
        float(given.heads[layer][list(kept.heads[layer])].sum())
        + float(given.neurons[layer][list(kept.neurons[layer])].sum())
        for layer in kept.layers
    )


def drawn_layers(draw: random.Random) -> list[LayerOptions]:
    """Three layers of a few options whose costs are whole numbers, so that bins of one lose nothing."""

    def options(most: int) -> tuple[Option, ...]:
        return tuple(Option(count, draw.random() * count, float(draw.randint(0, 6) + count)) for count in range(most))

    return [LayerOptions(options(4), options(5)) for _ in range(3)]


def brute_force(layers: list[LayerOptions], budget: float) -> float | None:
    """The greatest importance of all combinations that cost at most `budget`."""
    found: list[float] = []
    per_layer = [
        [(one.cost + other.cost, one.importance + other.importance) for one in layer.heads for other in layer.neurons]
        for layer in layers
    ]
    for chosen in itertools.product(*per_layer):
        if sum(cost for cost, _ in chosen) <= budget:
            found.append(sum(value for _, value in chosen))
    return max(found, default=None)


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_what_brute_force_finds(seed: int):
    draw = random.Random(seed)
    layers = drawn_layers(draw)
    for budget in (0, 5, 11, 17, 29, 60):
        least = sum(layer.least for layer in layers)
        counts = best_counts(layers, budget=budget, bins=max(1, int(budget - least)))
        wanted = brute_force(layers, budget)
        assert (counts is None) == (wanted is None)
        if counts is None:
            continue
        cost = value = 0.0
        for layer, chosen in zip(layers, counts, strict=True):
            head = next(each for each in layer.heads if each.count == chosen[0])
            neuron = next(each for each in layer.neurons if each.count == chosen[1])
            cost, value = cost + head.cost + neuron.cost, value + head.importance + neuron.importance
        assert cost <= budget
        assert value == pytest.approx(wanted)


@pytest.mark.parametrize("remove", [BOTH, frozenset({"heads"}), frozenset({"ffn"})])
def test_the_time_that_may_remain_is_never_exceeded_and_hardly_missed(remove: frozenset):
    found = table()
    full, least = found.total(SIZES.layers), least_time(SIZES, found, remove)
    for share in (0.35, 0.5, 0.77, 0.95):
        budget = max(round(share * full, 4), least)
        choice = choose_by_time(SIZES, scores(2), remove=remove, table=found, budget=budget, loss_with=never)
        left = found.total(kept_shapes(SIZES, choice.kept).layers)
        assert left <= budget
        assert budget - left < 0.2 + 1e-6 or left == full  # less than the dearest head


def test_at_the_floor_every_layer_keeps_a_head_and_a_neuron():
    found = table()
    floor = least_time(SIZES, found, BOTH)
    assert floor == pytest.approx(0.5 + 3 * (0.5 + 0.1), abs=1e-4)
    choice = choose_by_time(SIZES, scores(), remove=BOTH, table=found, budget=floor, loss_with=never)
    assert [len(each) for each in (*choice.kept.heads, *choice.kept.neurons)] == [1] * 6
    assert choice.layers == ()


def test_in_each_layer_the_parts_of_least_score_go():
    given, found = scores(4), table()
    choice = choose_by_time(SIZES, given, remove=BOTH, table=found, budget=4.0, loss_with=never)
    lost = 0.0
    for layer in range(3):
        for values, kept in ((given.heads[layer], choice.kept.heads[layer]),
                             (given.neurons[layer], choice.kept.neurons[layer])):  # fmt: skip
            gone = sorted(set(range(len(values))) - set(kept))
            lost += float(values[gone].sum())
            assert max([float(values[each]) for each in gone], default=0.0) <= min(float(values[each]) for each in kept)
    assert choice.lost == pytest.approx(lost)
    assert lost > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_it_keeps_no_less_importance_than_the_greedy_choice_where_prices_are_straight(seed: int, share: float):
    prices = prices_for("parameters", SIZES, parameters=0)
    head, neuron = prices.head(SIZES.layers[0]) / 1e4, prices.neuron() / 1e4
    straight = replace(
        table(), rest_ms=0.0, heads=(0, 4), attention_ms=(0.0, 4 * head), neurons=(0, 16), ffn_ms=(0.0, 16 * neuron)
    )
    given = scores(seed)
    units = 3 * (4 * prices.head(SIZES.layers[0]) + 16 * prices.neuron())
    budget = int(share * units)
    inside = replace(prices, fixed=-3 * prices.layer(LayerShape(0, 8, 0)))
    less = int(budget * (1 - 6 / BINS))  # six choices, each rounded up to a bin
    greedy = choose(SIZES, given, remove=BOTH, prices=inside, budget=less, loss_with=never)
    found = choose_by_time(SIZES, given, remove=BOTH, table=straight, budget=budget / 1e4, loss_with=never)
    assert importance(given, found.kept) >= importance(given, greedy.kept) - 1e-9


def test_a_straight_table_for_one_kind_gives_the_greedy_choice():
    straight = replace(table(), attention_ms=(0.0, 1.0, 4.0))
    given, only = scores(7), frozenset({"heads"})
    prices = prices_for("heads", SIZES, parameters=0)
    greedy = choose(SIZES, given, remove=only, prices=prices, budget=7, loss_with=never)
    # 3.5 ms besides the heads, and a head takes whole bins of the rest
    found = choose_by_time(SIZES, given, remove=only, table=straight, budget=3.5 + 7.0, loss_with=never)
    assert sum(map(len, found.kept.heads)) == 7
    every = [(float(score), layer, head) for layer in range(3) for head, score in enumerate(given.heads[layer])]
    best = [(layer, max(range(4), key=lambda head: float(given.heads[layer][head]))) for layer in range(3)]
    rest = [(layer, head) for _, layer, head in sorted(every, reverse=True) if (layer, head) not in best]
    kept = {(layer, head) for layer in range(3) for head in found.kept.heads[layer]}
    assert kept == {*best, *rest[:4]}
    assert found.kept == greedy.kept


def test_neurons_are_kept_in_whole_steps_or_not_cut_at_all():
    sizes = Shapes(32, (LayerShape(4, 8, 14),) * 3, 50)
    budgets = [3.3, 3.9, 4.6, 5.4]
    counts = set[int]()
    for budget in budgets:
        choice = choose_by_time(
            sizes, scores(1, sizes), remove=BOTH, table=table(step=4), budget=budget, loss_with=never
        )
        counts |= {len(each) for each in choice.kept.neurons}
    assert counts <= {4, 8, 12, 14}
    assert len(counts) > 1


def test_a_whole_layer_goes_where_the_measured_loss_falls_and_the_verdict_says_so():
    given = replace_layers(scores(3), [5.0, 0.1, 4.0])
    seen: list[tuple[int, ...]] = []

    def loss_with(kept: Kept) -> float:
        seen.append(kept.layers)
        return {(0, 1, 2): 0.6, (0, 2): 0.4}.get(kept.layers, 0.9)

    choice = choose_by_time(SIZES, given, remove=ALL, table=table(), budget=5.5, last=1.0, loss_with=loss_with)
    assert choice.kept.layers == (0, 2)
    assert seen[:2] == [(0, 1, 2), (0, 2)]
    verdicts = {verdict.layer: verdict for verdict in choice.layers}
    assert verdicts[1].removed
    assert "the loss without it, 0.4, is below 0.6 with it in the same time" in verdicts[1].because
    assert not verdicts[2].removed
    assert "0.9, is not below 0.4" in verdicts[2].because
    assert "layers of less score per millisecond stay" in verdicts[0].because


def replace_layers(given: Scores, layers: list[float]) -> Scores:
    return Scores(given.heads, given.neurons, torch.tensor(layers, dtype=torch.float64))


def test_a_layer_that_saves_more_than_the_last_step_may_take_stays():
    choice = choose_by_time(
        SIZES,
        replace_layers(scores(3), [5.0, 1.0, 4.0]),
        remove=ALL,
        table=table(),
        budget=6.2,
        last=6.0,
        loss_with=lambda kept: len(kept.layers),
    )
    assert choice.kept.layers == (0, 1, 2)
    stay = "layers of less score per millisecond stay"
    assert [each.because for each in choice.layers] == [stay, "it is more than remains to be removed", stay]


def test_layers_alone_go_until_the_time_is_reached_and_one_stays():
    only, found = frozenset({"layers"}), table()
    given = replace_layers(scores(), [3.0, 1.0, 2.0])
    assert least_time(SIZES, found, only) == pytest.approx(0.5 + 2.1)
    for budget, left in ((4.8, (0, 2)), (2.7, (0,))):
        choice = choose_by_time(SIZES, given, remove=only, table=found, budget=budget, loss_with=lambda kept: 1.0)
        assert choice.kept.layers == left
        assert [len(choice.kept.heads[layer]) for layer in left] == [4] * len(left)


UNEVEN = [
    (frozenset({"heads", "layers"}), (LayerShape(0, 8, 16), LayerShape(4, 8, 4))),
    (frozenset({"ffn", "layers"}), (LayerShape(4, 8, 0), LayerShape(1, 8, 16))),
    (frozenset({"layers"}), (LayerShape(4, 8, 16), LayerShape(1, 8, 4))),
    (ALL, (LayerShape(4, 8, 16), LayerShape(0, 8, 0))),
]
"""Kinds with layers of which that of less score alone reaches the floor."""


@pytest.mark.parametrize(("remove", "layers"), UNEVEN)
def test_the_floor_is_reached_by_the_layer_that_can_be_cut_furthest(remove: frozenset, layers: tuple[LayerShape, ...]):
    sizes = Shapes(32, layers, 50)
    found, given = table(sizes=sizes), replace_layers(scores(sizes=sizes), [5.0, 1.0])
    floor = least_time(sizes, found, remove)
    choice = choose_by_time(sizes, given, remove=remove, table=found, budget=floor, loss_with=lambda kept: 1.0)
    assert found.total(kept_shapes(sizes, choice.kept).layers) <= floor
    (alone,) = choice.kept.layers
    assert [each.because for each in choice.layers if each.layer == alone] == ["it alone reaches the target"]


@pytest.mark.parametrize(("remove", "layers"), UNEVEN)
def test_a_first_step_leaves_what_the_last_one_needs(remove: frozenset, layers: tuple[LayerShape, ...]):
    sizes = Shapes(32, layers, 50)
    found, given = table(sizes=sizes), replace_layers(scores(sizes=sizes), [5.0, 1.0])
    floor = least_time(sizes, found, remove)
    for budget in (2.2, 1.7, floor):
        choice = choose_by_time(
            sizes, given, remove=remove, table=found, budget=budget, last=floor, loss_with=lambda kept: len(kept.layers)
        )
        sizes, given = kept_shapes(sizes, choice.kept), scores_of(given, choice.kept)
        assert found.total(sizes.layers) <= budget


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("remove", [BOTH, ALL, frozenset({"heads"}), frozenset({"ffn"})])
def test_a_time_that_the_model_already_takes_keeps_all_of_it(remove: frozenset, seed: int):
    draw = random.Random(seed)
    sizes = Shapes(32, tuple(LayerShape(draw.randint(1, 4), 8, draw.randint(1, 16)) for _ in range(7)), 50)
    found = table(sizes=sizes)
    for spare in (0.0, 0.01, 3.0):
        budget = round(found.total(sizes.layers) + spare, 4)
        choice = choose_by_time(
            sizes, scores(seed, sizes), remove=remove, table=found, budget=budget, loss_with=lambda kept: 1.0
        )
        assert choice.kept == keep_all(sizes)
        assert choice.lost == 0.0


def test_a_layer_goes_only_after_the_loss_without_it_was_measured():
    seen: list[tuple[int, ...]] = []
    given = replace_layers(scores(3), [5.0, 0.1, 4.0])
    given.heads[1].mul_(1e-6)
    given.neurons[1].mul_(1e-6)

    def loss_with(kept: Kept) -> float:
        seen.append(kept.layers)
        return 3.0 - len(kept.layers)  # falls with every layer that stays

    choice = choose_by_time(SIZES, given, remove=ALL, table=table(), budget=3.0, last=1.0, loss_with=loss_with)
    assert seen == [(0, 1, 2), (0, 2)]
    assert choice.kept.layers == (0, 1, 2)


def test_the_floor_with_layers_is_one_that_has_neither_heads_nor_neurons():
    found = table()
    floor = least_time(SIZES, found, ALL)
    assert floor == pytest.approx(0.6)
    choice = choose_by_time(SIZES, scores(), remove=ALL, table=found, budget=floor, loss_with=lambda kept: 1.0)
    assert len(choice.kept.layers) == 1
    assert found.total(kept_shapes(SIZES, choice.kept).layers) <= floor
