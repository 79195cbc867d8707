"""What the log says that a cut took, and what the next one would have."""

from pathlib import Path

import pytest
import torch
from tiny import write_reviews

from compressor.data.rows import open_data
from compressor.model.footprint import macs
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.surgery import Kept, kept_shapes
from compressor.prune.next_cut import next_taken, scores_of, taken
from compressor.prune.pruner import Pruner
from compressor.prune.schedule import Choice, choose, floor, prices_for
from compressor.report.why import why
from compressor.stage import Decision, Outcome

SIZES = Shapes(hidden=32, layers=(LayerShape(4, 8, 64),) * 3, vocabulary=50)
BOTH = frozenset({"heads", "ffn"})
PRICES = prices_for("macs", SIZES, parameters=0)


def scores(seed: int = 0) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    heads = tuple(torch.rand(4, generator=draw, dtype=torch.float64) * 24 for _ in range(3))
    neurons = tuple(torch.rand(64, generator=draw, dtype=torch.float64) for _ in range(3))
    return Scores(heads, neurons, torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))


def chosen(budget: int, remove: frozenset = BOTH) -> Choice:
    return choose(SIZES, scores(), remove=remove, prices=PRICES, budget=budget, loss_with=lambda _kept: 0.0)


@pytest.mark.parametrize(("first", "second"), [(0.8, 0.5), (0.5, 0.3), (0.95, 0.9)])
def test_a_cut_and_the_next_one_take_what_both_would_at_once(first: float, second: float):
    before, after = chosen(int(first * macs(SIZES))), chosen(int(second * macs(SIZES)))
    now = taken(SIZES, before.kept, PRICES, score=before.lost)
    left = macs(kept_shapes(SIZES, before.kept))
    further = next_taken(SIZES, before.kept, scores(), PRICES, remove=BOTH, amount=left - int(second * macs(SIZES)))
    both = taken(SIZES, after.kept, PRICES, score=after.lost)
    assert further is not None
    assert now.amount == macs(SIZES) - left
    assert (now.heads + further.heads, now.ffn + further.ffn, now.layers) == (both.heads, both.ffn, 0)
    assert now.amount + further.amount == both.amount
    assert now.score + further.score == pytest.approx(both.score)
    assert further.score / further.amount >= now.score / now.amount


def test_at_the_floor_nothing_more_may_go_and_near_it_as_much_as_there_is():
    least = floor(SIZES, PRICES, BOTH)
    bottom = chosen(least).kept
    assert next_taken(SIZES, bottom, scores(), PRICES, remove=BOTH, amount=1) is None
    near = chosen(least + 3 * PRICES.neuron()).kept
    found = next_taken(SIZES, near, scores(), PRICES, remove=BOTH, amount=10**9)
    assert found is not None
    assert found.amount == macs(kept_shapes(SIZES, near)) - least


def test_where_whole_layers_alone_go_the_next_is_the_least_that_is_left():
    only = frozenset({"layers"})
    first = chosen(macs(SIZES) * 7 // 10, only)
    assert first.kept.layers == (0, 2)
    found = next_taken(SIZES, first.kept, scores(), PRICES, remove=only, amount=1)
    assert found is not None
    assert (found.layers, found.heads, found.ffn, found.score) == (1, 4, 64, 2.0)
    last = chosen(macs(SIZES) // 3, only)
    assert next_taken(SIZES, last.kept, scores(), PRICES, remove=only, amount=1) is None


def test_scores_of_a_cut_model_are_those_of_its_parts():
    given = scores()
    found = scores_of(given, Kept(((0, 2), (), (1,)), ((5,), (0,), ()), (0, 2)))
    assert [each.tolist() for each in found.heads] == [given.heads[0][[0, 2]].tolist(), [float(given.heads[2][1])]]
    assert [len(each) for each in found.neurons] == [1, 0]
    assert found.layers.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("layers", [{}, {"layers": "taylor"}])
def test_each_cut_says_what_it_took_and_what_the_next_would(tmp_path: Path, tiny_classifier: Path, layers: dict):
    write_reviews(tmp_path)
    data = {"train": "reviews.csv", "text": "review", "label": "stars", "max_tokens": 32}
    said: list[Decision] = []
    remove = {"heads": "fisher", "ffn": "fisher", **layers}
    pruner = Pruner(
        tiny_classifier,
        data=open_data(data, base=tmp_path),
        remove=remove,
        until={"macs": "0.5x"},
        steps=2,
        decide=said.append,
    )
    pruner.fit(tmp_path / "pruned", accept=lambda _folder: Outcome("pass", True, "", {}))
    first, second = [decision for decision in said if decision.kind == "cut"]
    start = macs(Shapes(32, (LayerShape(4, 8, 64),) * 2, 24))
    assert start - first.cost["this cut"]["macs"] == first.chosen["macs"]
    assert first.chosen["macs"] - second.cost["this cut"]["macs"] == second.chosen["macs"]
    assert all(cut.cost["next cut"]["macs"] > 0 for cut in (first, second))
    printed = why("slim", [vars(decision) for decision in said])
    (line,) = [line for line in printed.splitlines() if line.split()[:2] == ["next", "cut"]][:1]
    assert str(first.cost["next cut"]["macs"]) in line.replace(",", "")


def test_a_refused_cut_is_told_with_its_score_beside_that_of_the_last_good_one(tmp_path: Path, tiny_classifier: Path):
    write_reviews(tmp_path)
    data = {"train": "reviews.csv", "text": "review", "label": "stars", "max_tokens": 32}
    said: list[Decision] = []
    judged: list[Path] = []

    def accept(folder: Path) -> Outcome:
        judged.append(folder)
        verdict = len(judged) < 2
        return Outcome("pass" if verdict else "fail", verdict, "too low", {"accuracy": (0.1, 0.0, 0.2)})

    pruner = Pruner(
        tiny_classifier,
        data=open_data(data, base=tmp_path),
        remove={"heads": "taylor", "ffn": "taylor"},
        until={"macs": "0.3x"},
        steps=2,
        decide=said.append,
    )
    pruner.fit(tmp_path / "pruned", accept=accept)
    cuts = [decision for decision in said if decision.kind == "cut"]
    (back,) = [decision for decision in said if decision.kind == "backtrack"]
    assert back.chosen["score"] == cuts[0].cost["this cut"]["score"]
    assert back.candidates["score"] == cuts[1].cost["this cut"]["score"]
