import itertools
import math

import pytest
import torch

from compressor.model.footprint import macs
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.surgery import Kept, kept_shapes
from compressor.prune.schedule import choose, floor, kept_share, prices_for

SIZES = Shapes(hidden=32, layers=(LayerShape(4, 8, 64),) * 3, vocabulary=50)
BOTH = frozenset({"heads", "ffn"})
ALL = frozenset({"heads", "ffn", "layers"})


def never(kept: Kept) -> float:
    raise AssertionError("losses are measured only where layers may go")


def loss_of_layers(losses: dict[tuple[int, ...], float], *, units: float):
    """A measured loss that depends on which layers stay; `units` where all do."""
    return lambda kept: losses.get(kept.layers, 9.0) if len(kept.layers) < 3 else units


def scores(seed: int = 0, layer: float = 1e9) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    heads = tuple(torch.rand(4, generator=draw, dtype=torch.float64) * 24 for _ in range(3))
    neurons = tuple(torch.rand(64, generator=draw, dtype=torch.float64) for _ in range(3))
    return Scores(heads, neurons, torch.full((3,), layer, dtype=torch.float64))


def test_the_first_step_cuts_most_and_the_last_reaches_the_target():
    shares = [kept_share(0.4, step=step, steps=5) for step in range(6)]
    falls = [before - after for before, after in itertools.pairwise(shares)]
    assert shares[0] == 1.0
    assert shares[-1] == pytest.approx(0.4)
    assert falls == sorted(falls, reverse=True)


@pytest.mark.parametrize("quantity", ["macs", "parameters", "heads", "ffn"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_what_stays_is_under_the_target_by_less_than_one_part(quantity: str, share: float):
    remove = {"heads": frozenset({"heads"}), "ffn": frozenset({"ffn"})}.get(quantity, BOTH)
    prices = prices_for(quantity, SIZES, parameters=60_000)
    budget = math.floor(share * prices.total(SIZES.layers))
    budget = max(budget, floor(SIZES, prices, remove))
    choice = choose(SIZES, scores(), remove=remove, prices=prices, budget=budget, loss_with=never)
    left = prices.total(kept_shapes(SIZES, choice.kept).layers)
    assert budget - max(prices.head(SIZES.layers[0]), prices.neuron()) < left <= budget


def test_what_goes_scores_less_per_mac_than_what_stays():
    prices = prices_for("macs", SIZES, parameters=0)
    given = scores(3)
    choice = choose(SIZES, given, remove=BOTH, prices=prices, budget=macs(SIZES) // 2, loss_with=never)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for layer in range(3):
        for head in range(4):
            rate = float(given.heads[layer][head]) / prices.head(SIZES.layers[0])
            rates[head in choice.kept.heads[layer]].append(rate)
        for neuron in range(64):
            rates[neuron in choice.kept.neurons[layer]].append(float(given.neurons[layer][neuron]) / prices.neuron())
    assert rates[False]
    assert max(rates[False]) <= min(rates[True])
    assert choice.layers == ()


def test_every_layer_keeps_a_head_and_a_neuron_at_the_floor():
    prices = prices_for("macs", SIZES, parameters=0)
    choice = choose(SIZES, scores(), remove=BOTH, prices=prices, budget=floor(SIZES, prices, BOTH), loss_with=never)
    assert [len(each) for each in choice.kept.heads] == [1, 1, 1]
    assert [len(each) for each in choice.kept.neurons] == [1, 1, 1]


def test_kinds_that_may_not_go_stay_whole():
    prices = prices_for("macs", SIZES, parameters=0)
    only = frozenset({"ffn"})
    choice = choose(SIZES, scores(), remove=only, prices=prices, budget=macs(SIZES) * 3 // 4, loss_with=never)
    assert choice.kept.heads == (tuple(range(4)),) * 3
    assert sum(map(len, choice.kept.neurons)) < 192


def test_a_layer_goes_where_it_costs_less_than_the_same_in_heads_and_neurons():
    prices = prices_for("macs", SIZES, parameters=0)
    given = scores()
    cheap = Scores(given.heads, given.neurons, torch.tensor([1e9, 0.5, 1e9], dtype=torch.float64))
    loss_with = loss_of_layers({(0, 2): 0.4}, units=0.5)
    choice = choose(SIZES, cheap, remove=ALL, prices=prices, budget=macs(SIZES) * 6 // 10, loss_with=loss_with)
    assert choice.kept.layers == (0, 2)
    verdicts = {verdict.layer: verdict for verdict in choice.layers}
    assert sorted(verdicts) == [0, 1, 2]
    assert verdicts[1].removed
    assert "the loss without it, 0.4, is below 0.5 without the same in heads" in verdicts[1].because
    assert "more than remains" in verdicts[0].because


def test_a_dear_layer_stays_and_the_verdict_says_why():
    prices = prices_for("macs", SIZES, parameters=0)
    loss_with = loss_of_layers({}, units=0.5)
    choice = choose(SIZES, scores(), remove=ALL, prices=prices, budget=macs(SIZES) // 2, loss_with=loss_with)
    assert choice.kept.layers == (0, 1, 2)
    assert all("9, is not below 0.5" in verdict.because for verdict in choice.layers)


def test_layers_alone_reach_the_target_and_leave_one():
    prices = prices_for("macs", SIZES, parameters=0)
    only = frozenset({"layers"})
    given = scores()
    ranked = Scores(given.heads, given.neurons, torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    for budget, left in ((macs(SIZES) * 7 // 10, (0, 2)), (macs(SIZES) // 3, (0,))):
        choice = choose(SIZES, ranked, remove=only, prices=prices, budget=budget, loss_with=never)
        assert choice.kept.layers == left
    assert floor(SIZES, prices, only) == macs(SIZES) // 3
