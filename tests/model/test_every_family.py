"""What holds of pruning BERT holds of every family: a cut model is the masked one, and all its lives go on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from families import PRUNED, WHOLE, make
from model_families import write_family
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.model.encoders import load_model, model_logits, save_model
from compressor.model.families import FAMILIES
from compressor.model.importance import Scores, activation, fisher, taylor
from compressor.model.manifest import Manifest, read_config
from compressor.model.parts import anatomy, shapes
from compressor.model.states import model_inputs
from compressor.model.surgery import Kept, cut, keep_all, masked

torch.set_num_threads(1)
INPUTS = {
    "input_ids": torch.arange(27).view(3, 9) % 25 + 5,
    "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2]),
    "token_type_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [0] * 3 + [1] * 6]),
}
LABELS = torch.tensor([0, 1, 1])
ALL = tuple(range(64))
CASES = {
    "uneven heads and neurons": PRUNED,
    "a layer": Kept(PRUNED.heads, PRUNED.neurons, (0, 2)),
    "all heads of a layer": Kept(((), (1,), (0, 3)), PRUNED.neurons, (0, 1, 2)),
    "all neurons of a layer": Kept(PRUNED.heads, ((), (3,), ALL), (0, 1, 2)),
    "nothing left of a layer": Kept(((), (2,), (0, 3)), ((), (3,), ()), (0, 1, 2)),
    "the same number of other heads": Kept(((0, 1), (1, 3), (2, 3)), (ALL,) * 3, (0, 1, 2)),
}
EVERY = pytest.mark.parametrize("family", WHOLE)


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor


def rows(chosen: slice) -> Batch:
    return Batch({name: value[chosen] for name, value in INPUTS.items()}, LABELS[chosen])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def masked_logits(model: PreTrainedModel, kept: Kept) -> Tensor:
    with masked(model, kept):
        return model_logits(model, INPUTS)


@EVERY
@pytest.mark.parametrize("name", CASES)
def test_a_cut_model_answers_as_the_masked_one(family: str, name: str):
    model = make(family)
    made = cut(model, CASES[name])
    assert float((masked_logits(model, CASES[name]) - model_logits(made, INPUTS)).abs().max()) < 1e-5
    assert float((model_logits(model, INPUTS) - model_logits(made, INPUTS)).abs().max()) > 1e-3
    assert type(made) is FAMILIES[family].classifier


@EVERY
def test_a_cut_model_answers_as_the_masked_one_in_eager_attention(family: str):
    model = make(family, attention="eager")
    made = cut(model, PRUNED)
    assert made.config._attn_implementation == "eager"
    assert float((masked_logits(model, PRUNED) - model_logits(made, INPUTS)).abs().max()) < 1e-5


@EVERY
@pytest.mark.parametrize("name", ["uneven heads and neurons", "nothing left of a layer", "a layer"])
def test_two_cuts_are_the_one_that_names_what_both_leave(family: str, name: str):
    model, first = make(family), CASES[name]
    sizes = shapes(cut(model, first))
    heads = tuple(tuple(range(1, layer.heads)) for layer in sizes.layers)
    neurons = tuple(tuple(range(0, layer.ffn, 2)) for layer in sizes.layers)
    twice = cut(cut(model, first), Kept(heads, neurons, tuple(range(len(sizes.layers)))))
    left_heads, left_neurons = list(first.heads), list(first.neurons)
    for place, index in enumerate(first.layers):
        left_heads[index] = tuple(first.heads[index][each] for each in heads[place])
        left_neurons[index] = tuple(first.neurons[index][each] for each in neurons[place])
    once = cut(model, Kept(tuple(left_heads), tuple(left_neurons), first.layers))
    assert torch.equal(model_logits(twice, INPUTS), model_logits(once, INPUTS))


@EVERY
def test_what_transformers_can_say_is_a_stock_model(family: str):
    model = make(family)
    kept = keep_all(shapes(model))
    whole = cut(model, kept)
    assert type(whole) is type(model) is FAMILIES[family].stock_classifier
    assert torch.equal(model_logits(whole, INPUTS), model_logits(model, INPUTS))
    assert type(cut(model, Kept(kept.heads, (ALL[10:42],) * 3, (0, 2)))) is type(model)
    uneven = cut(model, Kept(kept.heads, (ALL, ALL[:7], ALL), (0, 1, 2)))
    assert uneven.config.model_type == f"pruned-{family}"
    back = cut(uneven, Kept(kept.heads, (ALL, ALL[:7], ALL), (0, 2)))
    assert type(back) is type(model)
    expected = masked_logits(model, Kept(kept.heads, (ALL,) * 3, (0, 2)))
    assert float((expected - model_logits(back, INPUTS)).abs().max()) < 1e-5


@EVERY
def test_cutting_leaves_the_model_it_was_given(family: str):
    model = make(family)
    before, weights = model_logits(model, INPUTS), {name: each.clone() for name, each in model.state_dict().items()}
    cut(model, PRUNED)
    assert torch.equal(model_logits(model, INPUTS), before)
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())


def test_heads_that_read_anothers_column_of_the_bias_by_distance_fail_the_comparison_with_the_mask():
    model = make("mpnet")
    made = cut(model, PRUNED)
    assert [layer.bias_heads for layer in anatomy(made).layers] == [(0, 2), (1,), (0, 1, 3)]
    made.mpnet.encoder.layer[1].attention.bias_heads = [0]
    assert float((masked_logits(model, PRUNED) - model_logits(made, INPUTS)).abs().max()) > 1e-3


@EVERY
def test_every_weight_of_a_cut_model_trains(family: str):
    model = cut(make(family), CASES["nothing left of a layer"]).train()
    functional.cross_entropy(model(**model_inputs(model, INPUTS)).logits, LABELS).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@EVERY
@pytest.mark.parametrize("criterion", [taylor, fisher, lambda model, batches, _loss: activation(model, batches)])
def test_scores_are_the_mean_over_single_rows(family: str, criterion: Callable[..., Scores]):
    model = make(family)
    every = [criterion(model, [rows(slice(row, row + 1))], cross_entropy) for row in range(3)]
    together = criterion(model, [rows(slice(0, 3))], cross_entropy)
    for name in ("heads", "neurons"):
        for index, found in enumerate(getattr(together, name)):
            expected = torch.stack([getattr(each, name)[index] for each in every]).mean(0)
            assert float(expected.min()) > 0
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    expected = torch.stack([each.layers for each in every]).mean(0)
    torch.testing.assert_close(together.layers, expected, rtol=1e-3, atol=1e-7)


@EVERY
def test_the_score_of_a_part_is_the_slope_of_the_loss_at_what_it_writes(family: str):
    model = make(family, attention="eager").double()
    one = rows(slice(0, 1))
    found = taylor(model, [one], cross_entropy)
    layer = anatomy(model).layers[1]

    def slope(weight: Tensor, columns: slice) -> float:
        """Of the loss as the columns of an output projection grow, by central differences."""
        losses, whole = [], weight[:, columns].clone()
        for factor in (1 + 1e-5, 1 - 1e-5):
            weight[:, columns] = whole * factor
            losses.append(float(cross_entropy(model_logits(model, one.inputs), one.targets)))
        weight[:, columns] = whole
        return abs(losses[0] - losses[1]) / 2e-5

    with torch.no_grad():
        assert slope(layer.attention_output.weight, slice(16, 24)) == pytest.approx(float(found.heads[1][2]), rel=1e-4)
        assert slope(layer.down.weight, slice(5, 6)) == pytest.approx(float(found.neurons[1][5]), rel=1e-4)


@EVERY
def test_a_saved_model_gives_back_its_logits_trains_on_and_is_pruned_again(family: str, tmp_path: Path):
    source = write_family(tmp_path / "source", family)
    kept = Kept(((0, 2, 3), ()), (ALL[::3], (1, 5, 63)), (0, 1))
    folder = save(cut(load_model(source), kept), tmp_path / "pruned", source)
    assert read_config(folder)["auto_map"] == FAMILIES[family].auto_map
    model = load_model(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    functional.cross_entropy(model.train()(**model_inputs(model, INPUTS)).logits, LABELS).backward()
    before = model_logits(model, INPUTS)
    optimizer.step()
    assert float((model_logits(model, INPUTS) - before).abs().max()) > 1e-3
    again = load_model(save(model, tmp_path / "trained", source))
    sizes = shapes(again)
    assert sizes == shapes(model)
    assert torch.equal(model_logits(again, INPUTS), model_logits(model, INPUTS))
    least = Kept(((1,), ()), (tuple(range(9)), ()), (0, 1))
    made = cut(again, least)
    assert float((masked_logits(again, least) - model_logits(made, INPUTS)).abs().max()) < 1e-5
    last = load_model(save(made, tmp_path / "again", source))
    assert [(layer.heads, layer.ffn) for layer in shapes(last).layers] == [(1, 9), (0, 0)]
    assert torch.equal(model_logits(last, INPUTS), model_logits(made, INPUTS))


def save(model: PreTrainedModel, folder: Path, source: Path) -> Path:
    manifest = Manifest(labels=("bad", "good", "odd"), shapes=shapes(model))
    return save_model(model, folder, tokenizer_from=source, manifest=manifest, probe=INPUTS)
