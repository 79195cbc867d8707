"""The attention or the feed-forward half of a layer goes as one."""

import json
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_bert

from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.footprint import head_macs, macs, neuron_macs, parameters
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut, keep_all, kept_shapes, masked
from compressor.prune.latency_table import LatencyTable, Place, key_of
from compressor.prune.next_cut import next_taken
from compressor.prune.pruner import Pruner
from compressor.prune.schedule import Choice, choose, floor, prices_for
from compressor.prune.scoring import draw_sample, row_inputs
from compressor.prune.search import choose_by_time, least_time
from compressor.prune.settings import Remove
from compressor.stage import Decision, Outcome

torch.set_num_threads(1)
SIZES = Shapes(hidden=32, layers=(LayerShape(4, 8, 64),) * 3, vocabulary=50)
PRICES = prices_for("macs", SIZES, parameters=0)
ATTENTION, FEED_FORWARD = 4 * head_macs(8, 32), 64 * neuron_macs(32)
ALONE, WITH_PARTS = frozenset({"halves"}), frozenset({"heads", "ffn", "halves"})
EVERY_HEAD, EVERY_NEURON = tuple(range(4)), tuple(range(64))


def scores(halves: list[list[float]], *, layer: float = 1e9, unit: float = 1.0) -> Scores:
    return Scores(
        heads=(torch.full((4,), unit * 240, dtype=torch.float64),) * 3,
        neurons=(torch.full((64,), unit, dtype=torch.float64),) * 3,
        layers=torch.full((3,), layer, dtype=torch.float64),
        halves=torch.tensor(halves, dtype=torch.float64),
    )


def never(kept: Kept) -> float:
    raise AssertionError("nothing has to be compared")


def verdicts(choice: Choice) -> dict[tuple[int, str], bool]:
    return {(each.layer, each.part): each.removed for each in choice.layers}


def test_halves_alone_go_in_the_order_of_score_per_mac_until_the_target_is_reached():
    given = scores([[1.0, 9.0], [8.0, 0.5], [7.0, 3.0]])
    choice = choose(SIZES, given, remove=ALONE, prices=PRICES, budget=macs(SIZES) * 7 // 10, loss_with=never)
    assert choice.kept == Kept(((), EVERY_HEAD, EVERY_HEAD), (EVERY_NEURON, (), EVERY_NEURON), (0, 1, 2))
    assert choice.lost == 1.5
    assert macs(kept_shapes(SIZES, choice.kept)) == macs(SIZES) - ATTENTION - FEED_FORWARD
    assert [part for part, removed in verdicts(choice).items() if removed] == [(0, "attention"), (1, "feed-forward")]
    assert len(choice.layers) == 6
    assert "the target of this step is reached without it" in choice.layers[1].because


def test_one_half_stays_where_nothing_smaller_may_go():
    given = scores([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    least = floor(SIZES, PRICES, ALONE)
    assert least == max(ATTENTION, FEED_FORWARD)
    choice = choose(SIZES, given, remove=ALONE, prices=PRICES, budget=least, loss_with=never)
    assert macs(kept_shapes(SIZES, choice.kept)) in (ATTENTION, FEED_FORWARD)
    assert floor(SIZES, PRICES, WITH_PARTS) == 0
    assert floor(SIZES, PRICES, frozenset({"heads", "halves"})) == 0
    assert floor(SIZES, PRICES, frozenset({"layers", "halves"})) == least


def test_a_half_goes_where_the_measured_loss_is_below_that_without_the_same_in_heads_and_neurons():
    given = scores([[0.1, 9e9], [0.2, 9e9], [9e9, 9e9]])

    def loss_with(kept: Kept) -> float:
        if kept.heads[1] == ():
            return 0.6
        return 0.4 if kept.neurons == (EVERY_NEURON,) * 3 else 0.5

    choice = choose(
        SIZES, given, remove=WITH_PARTS, prices=PRICES, budget=macs(SIZES) // 2, last=macs(SIZES) // 3,
        loss_with=loss_with,
    )  # fmt: skip
    found = {(each.layer, each.part): each for each in choice.layers}
    assert found[0, "attention"].removed
    assert "the loss without it, 0.4, is below 0.5 without the same" in found[0, "attention"].because
    assert not found[1, "attention"].removed
    assert (found[1, "attention"].loss, found[1, "attention"].units_loss) == (0.6, 0.5)
    assert choice.kept.heads[0] == ()


def test_a_half_that_is_more_than_remains_to_be_removed_stays():
    given = scores([[0.1, 0.1]] * 3)
    budget = macs(SIZES) - neuron_macs(32)
    choice = choose(SIZES, given, remove=WITH_PARTS, prices=PRICES, budget=budget, loss_with=never)
    assert not any(verdicts(choice).values())
    assert "it is more than remains to be removed" in choice.layers[0].because
    assert sum(map(len, choice.kept.neurons)) == 3 * 64 - 1


def test_a_half_goes_where_heads_alone_do_not_reach_the_target():
    given = scores([[9e9, 3.0], [9e9, 2.0], [9e9, 1.0]])
    remove, budget = frozenset({"heads", "halves"}), FEED_FORWARD
    loss_with = lambda kept: float(sum(each == () for each in kept.neurons))  # noqa: E731
    choice = choose(SIZES, given, remove=remove, prices=PRICES, budget=budget, loss_with=loss_with)
    assert macs(kept_shapes(SIZES, choice.kept)) <= budget
    reasons = {each.because for each in choice.layers if each.removed}
    assert any("alone do not reach the target" in why or "cannot be had" in why for why in reasons)


def test_a_layer_that_goes_takes_its_halves_and_one_verdict_with_it():
    given = scores([[9.0, 9.0], [0.1, 5.0], [9.0, 9.0]], layer=1e9)
    cheap = Scores(given.heads, given.neurons, torch.tensor([1e9, 1.0, 1e9], dtype=torch.float64), given.halves)
    remove = frozenset({"layers", "halves"})
    choice = choose(SIZES, cheap, remove=remove, prices=PRICES, budget=macs(SIZES) * 2 // 3, loss_with=never)
    assert choice.kept.layers == (0, 2)
    assert [(each.layer, each.part) for each in choice.layers if each.layer == 1] == [(1, "whole")]
    assert choice.lost == 1.0


def test_where_a_half_would_do_a_whole_layer_stays():
    given = scores([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], layer=0.001)
    remove = frozenset({"layers", "halves"})
    budget = macs(SIZES) - ATTENTION
    choice = choose(SIZES, given, remove=remove, prices=PRICES, budget=budget, loss_with=never)
    assert choice.kept.layers == (0, 1, 2)
    assert macs(kept_shapes(SIZES, choice.kept)) == budget


def test_the_next_cut_of_halves_is_the_least_that_is_left_until_the_last():
    given = scores([[1.0, 9.0], [8.0, 0.5], [7.0, 3.0]])
    kept = choose(SIZES, given, remove=ALONE, prices=PRICES, budget=macs(SIZES) * 7 // 10, loss_with=never).kept
    found = next_taken(SIZES, kept, given, PRICES, remove=ALONE, amount=1)
    assert found is not None
    assert (found.heads, found.ffn, found.layers, found.score) == (0, 64, 0, 3.0)
    last = Kept((EVERY_HEAD, (), ()), ((), (), ()), (0, 1, 2))
    assert next_taken(SIZES, last, given, PRICES, remove=ALONE, amount=1) is None


def table() -> LatencyTable:
    return LatencyTable(
        key=key_of(SIZES, Place(), [5, 9], activation="gelu"),
        rest_ms=0.5,
        heads=(0, 1, 4),
        attention_ms=(0.1, 0.5, 1.1),
        neurons=(0, 4, 64),
        ffn_ms=(0.0, 0.4, 1.0),
    )


def test_the_search_by_time_leaves_out_the_halves_of_least_score():
    given = scores([[1.0, 9.0], [8.0, 0.5], [7.0, 3.0]])
    full = table().total(SIZES.layers)
    choice = choose_by_time(SIZES, given, remove=ALONE, table=table(), budget=full - 2.0, loss_with=never)
    assert choice.kept == Kept(((), EVERY_HEAD, EVERY_HEAD), (EVERY_NEURON, (), EVERY_NEURON), (0, 1, 2))
    assert choice.lost == 1.5
    assert [part for part, removed in verdicts(choice).items() if removed] == [(0, "attention"), (1, "feed-forward")]
    assert all("most score is kept with" in each.because for each in choice.layers)
    assert least_time(SIZES, table(), ALONE) == pytest.approx(0.5 + 3 * 0.1)


def test_heads_beside_halves_may_all_go_and_neurons_go_together():
    given = scores([[1.0, 90.0], [8.0, 0.5], [7.0, 90.0]], unit=1e-3)
    remove = frozenset({"heads", "halves"})
    budget = table().total(SIZES.layers) - 1.5
    choice = choose_by_time(SIZES, given, remove=remove, table=table(), budget=budget, loss_with=never)
    assert table().total(kept_shapes(SIZES, choice.kept).layers) <= budget
    assert [len(each) for each in choice.kept.neurons] == [64, 0, 64]


def halves_of(folder: Path) -> list[tuple[bool, bool]]:
    return [(each.heads > 0, each.ffn > 0) for each in shapes(load_model(folder)).layers]


def test_pruned_halves_answer_as_the_masked_model_on_real_rows(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    said: list[Decision] = []
    settings = {"data": rows, "remove": {"halves": "taylor"}, "until": {"macs": "0.7x"}, "decide": said.append}
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "pruned")
    whole, small = load_model(tiny_classifier), load_model(out)
    left = said[-1].chosen["layers"]
    every = keep_all(shapes(whole))
    neurons = tuple(every.neurons[each["layer"]] if each["ffn"] else () for each in left)
    kept = Kept(tuple(tuple(each["heads"]) for each in left), neurons, every.layers)
    sample = draw_sample(rows, tiny_classifier, teacher=None, remove=Remove(halves="taylor"), seed=1, smoke=True)
    inputs = row_inputs(sample.encoded, sample.order, sample.pad_id)
    with masked(whole, kept):
        reference = model_logits(whole, inputs)
    assert float((model_logits(small, inputs) - reference).abs().max()) < 1e-5
    assert all(each.heads in (0, 4) and each.ffn in (0, 64) for each in shapes(small).layers)
    assert parameters(small) < parameters(whole)
    told = [each for each in said if each.kind == "layer"]
    assert {each.chosen["part"] for each in told} == {"attention", "feed-forward"}
    gone = sorted((each.chosen["layer"], each.chosen["part"]) for each in told if each.chosen["removed"])
    assert gone == sorted(
        (index, part)
        for index, there in enumerate(halves_of(out))
        for part, stays in zip(("attention", "feed-forward"), there, strict=True)
        if not stays
    )


def test_halves_go_in_steps_with_recovery_and_an_interrupted_run_ends_the_same(tmp_path: Path, rows: DataSets):
    model = write_tiny_bert(tmp_path / "deep", layers=4, labels=("bad", "good"))
    recover = {"train": {"steps": 4, "learning_rate": 1e-3}}
    settings = {
        "data": rows, "remove": {"halves": "fisher"}, "until": {"macs": "0.4x"}, "steps": 2, "recover": recover
    }  # fmt: skip
    whole = Pruner(model, **settings).fit(tmp_path / "whole")
    assert macs(shapes(load_model(whole))) <= 0.4 * macs(shapes(load_model(model)))

    def stop(decision: Decision) -> None:
        if decision.kind == "cut" and decision.chosen["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(model, **settings, decide=stop).fit(tmp_path / "stopped")
    out = Pruner(model, **settings).fit(tmp_path / "stopped")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    again = Pruner(out, data=rows, remove={"heads": "taylor", "halves": "taylor"}, until={"macs": "0.6x"})
    left = load_model(again.fit(tmp_path / "again"))
    assert macs(shapes(left)) <= 0.6 * macs(shapes(load_model(out)))


def test_a_gate_keeps_the_halves_of_the_last_step_that_passed(tmp_path: Path, rows: DataSets):
    model = write_tiny_bert(tmp_path / "deep", layers=4, labels=("bad", "good"))
    said, judged = list[Decision](), list[Path]()

    def accept(folder: Path) -> Outcome:
        judged.append(folder)
        return Outcome("pass", len(judged) < 2, "accuracy fell", {"accuracy": (0.09, 0.05, 0.13)})

    settings = {"data": rows, "remove": {"halves": "magnitude"}, "until": {"macs": "0.2x"}, "steps": 2}
    out = Pruner(model, **settings, decide=said.append).fit(tmp_path / "pruned", accept=accept)
    (back,) = [decision for decision in said if decision.kind == "backtrack"]
    assert macs(shapes(load_model(out))) == back.chosen["macs"] > back.candidates["macs"]
    json.dumps([vars(decision) for decision in said], allow_nan=False)


def test_a_share_that_leaves_a_layer_without_a_head_is_refused_unless_halves_may_go(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    until = {"heads": "0.2x"}
    pruner = Pruner(tiny_classifier, data=rows, remove={"heads": "magnitude"}, until=until)
    with pytest.raises(InputError, match=r"below the floor: removing heads leaves at least 2 of 8"):
        pruner.fit(tmp_path / "refused")
    remove = {"heads": "magnitude", "halves": "magnitude"}
    out = Pruner(tiny_classifier, data=rows, remove=remove, until=until).fit(tmp_path / "pruned")
    assert sum(each.heads for each in shapes(load_model(out)).layers) == 1


def test_a_smoke_run_prunes_halves_by_a_made_up_table(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    settings = {"data": rows, "remove": {"halves": "taylor"}, "until": {"latency": "0.7x"}, "smoke": True}
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "pruned")
    assert parameters(load_model(out)) < parameters(load_model(tiny_classifier))


def test_an_empty_half_in_the_middle_is_cut_around():
    torch.manual_seed(0)
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    model = BertForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.arange(18).view(2, 9) + 5, "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    every = keep_all(shapes(model))
    kept = Kept((EVERY_HEAD, (), EVERY_HEAD), (EVERY_NEURON, EVERY_NEURON, ()), every.layers)
    made = cut(model, kept)
    with masked(model, kept):
        reference = model_logits(model, inputs)
    assert float((model_logits(made, inputs) - reference).abs().max()) < 1e-5
