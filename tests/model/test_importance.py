import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compressor.errors import InputError
from compressor.model.gates import channels_gated, gated
from compressor.model.importance import (
    CRITERIA,
    Scores,
    activation,
    channel_norms,
    channel_taylor,
    fisher,
    magnitude,
    normalised,
    randomly,
    taylor,
)
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, cut
from compressor.prune.settings import Criterion

torch.set_num_threads(1)
ROWS = 32
LENGTHS = [3 + index % 7 for index in range(ROWS)]
IDS = [[(7 * row + 3 * place) % 60 + 2 for place in range(length)] for row, length in enumerate(LENGTHS)]
LABELS = torch.tensor([row % 3 % 2 for row in range(ROWS)])


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor


def make_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertForSequenceClassification(config)
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.15)
    return model.eval()


def make_batch(rows: Sequence[int], padding: int = 0) -> Batch:
    longest = max(LENGTHS[row] for row in rows) + padding
    ids = torch.tensor([IDS[row] + [0] * (longest - LENGTHS[row]) for row in rows])
    mask = torch.tensor([[1] * LENGTHS[row] + [0] * (longest - LENGTHS[row]) for row in rows])
    return Batch({"input_ids": ids, "attention_mask": mask}, LABELS[list(rows)])


def batches(size: int, padding: int = 0) -> list[Batch]:
    return [make_batch(range(start, min(start + size, ROWS)), padding) for start in range(0, ROWS, size)]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


@contextlib.contextmanager
def overheard(model: PreTrainedModel) -> Iterator[dict[tuple[int, str], Tensor]]:
    """What the output projections read and what each layer reads and writes, by (layer, which), gradients kept."""
    found: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str], value: Tensor) -> None:
        found[key] = value
        if value.requires_grad:
            value.retain_grad()

    hooks = []
    for index, layer in enumerate(model.bert.encoder.layer):
        for name, part in (("context", layer.attention.output.dense), ("neurons", layer.output.dense)):
            hooks.append(part.register_forward_pre_hook(lambda _m, x, key=(index, name): keep(key, x[0])))
        hooks.append(layer.register_forward_pre_hook(lambda _m, x, key=(index, "read"): keep(key, x[0])))
        hooks.append(layer.register_forward_hook(lambda _m, _x, y, key=(index, "wrote"): keep(key, y)))
    yield found
    for hook in hooks:
        hook.remove()


def plain_slopes(model: PreTrainedModel, row: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Of one row alone, without gates: what is read or written times the loss's gradient at it, summed over tokens."""
    batch = make_batch([row])
    with overheard(model) as found:
        cross_entropy(model(**batch.inputs).logits, batch.targets).backward()
    products = {key: (value * value.grad)[0].detach() for key, value in found.items() if value.grad is not None}
    layers = range(len(model.bert.encoder.layer))
    changes = [(found[i, "wrote"] - found[i, "read"]) * found[i, "wrote"].grad for i in layers]
    heads = [products[index, "context"].unflatten(1, (4, 8)).sum((0, 2)) for index in layers]
    return (
        heads,
        [products[i, "neurons"].sum(0) for i in layers],
        torch.stack([each.sum().detach() for each in changes]),
    )


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 9), (32, 0)])
@pytest.mark.parametrize(("criterion", "of_slope"), [(taylor, torch.abs), (fisher, torch.square)])
def test_a_gradient_score_is_the_mean_over_single_rows_at_any_batch_size_and_padding(
    criterion: Any, of_slope: Any, size: int, padding: int
):
    model = make_model()
    found = criterion(model, batches(size, padding), cross_entropy)
    every = [plain_slopes(model, row) for row in range(ROWS)]
    for index in range(2):
        for mine, theirs in (
            (found.heads[index], [heads[index] for heads, _, _ in every]),
            (found.neurons[index], [neurons[index] for _, neurons, _ in every]),
            (found.layers[index], [layers[index] for _, _, layers in every]),
            (found.halves[index, 0], [heads[index].sum() for heads, _, _ in every]),
            (found.halves[index, 1], [neurons[index].sum() for _, neurons, _ in every]),
        ):
            expected = of_slope(torch.stack(theirs).double()).mean(0)
            assert float(expected.min()) > 0
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 9), (32, 0)])
def test_activation_is_the_mean_over_single_rows_and_true_tokens_of_the_squared_norm_of_what_is_written(
    size: int, padding: int
):
    model = make_model()
    found = activation(model, batches(size, padding))
    heads, neurons, layers, halves = torch.zeros(2, 4), torch.zeros(2, 64), torch.zeros(2), torch.zeros(2, 2)
    for row in range(ROWS):
        with torch.no_grad(), overheard(model) as heard:
            model(**make_batch([row]).inputs)
        for index, layer in enumerate(model.bert.encoder.layer):
            outputs = layer.attention.output.dense.weight.detach(), layer.output.dense.weight.detach()
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                written = heard[index, "context"][0][:, part] @ outputs[0][:, part].T
                heads[index, head] += written.square().sum(1).mean() / ROWS
            for neuron in range(64):
                written = torch.outer(heard[index, "neurons"][0][:, neuron], outputs[1][:, neuron])
                neurons[index, neuron] += written.square().sum(1).mean() / ROWS
            for half, name in enumerate(("context", "neurons")):
                halves[index, half] += (heard[index, name][0] @ outputs[half].T).square().sum(1).mean() / ROWS
            change = heard[index, "wrote"][0] - heard[index, "read"][0]
            layers[index] += change.square().sum(1).mean() / ROWS
    for mine, theirs in (
        (torch.stack(found.heads), heads),
        (torch.stack(found.neurons), neurons),
        (found.layers, layers),
        (found.halves, halves),
    ):
        torch.testing.assert_close(mine, theirs.double(), rtol=1e-4, atol=1e-7)


def test_measuring_leaves_the_model_as_it_was():
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for score in (lambda: fisher(model, batches(8), cross_entropy), lambda: activation(model, batches(8))):
        score()
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
        assert all(weight.grad is None for weight in model.parameters())


def test_the_absolute_value_of_a_batch_would_rank_otherwise():
    model = make_model()
    sizes = shapes(model).layers
    gates = [torch.ones(each.heads, requires_grad=True) for each in sizes]
    ones = [torch.ones(each.ffn) for each in sizes]
    (batch,) = batches(32)
    with gated(model, heads=gates, neurons=ones, layers=[torch.ones(())] * 2):
        cross_entropy(model(**batch.inputs).logits, batch.targets).mean().backward()
    exact = taylor(model, [batch], cross_entropy)
    assert all(bool((gate.grad.abs() < score).all()) for gate, score in zip(gates, exact.heads, strict=True))


@pytest.mark.parametrize("name", ["taylor", "fisher", "surgeon", "activation"])
def test_a_part_that_writes_nothing_scores_zero_and_no_other_does(name: str):
    model = make_model()
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.output.dense.weight[:, 8:16] = 0
        model.bert.encoder.layer[1].output.dense.weight[:, 5] = 0
    found = CRITERIA[name](model, batches(8), cross_entropy, 0)
    assert [index for index, score in enumerate(torch.cat(found.heads)) if score == 0] == [1]
    assert [index for index, score in enumerate(torch.cat(found.neurons)) if score == 0] == [64 + 5]


def test_a_part_without_weights_has_no_magnitude():
    model = make_model()
    with torch.no_grad():
        attention, up = model.bert.encoder.layer[0].attention, model.bert.encoder.layer[1].intermediate.dense
        attention.output.dense.weight[:, 8:16] = 0
        for part in (attention.self.query, attention.self.key, attention.self.value):
            part.weight[8:16] = 0
        up.weight[5] = 0
        model.bert.encoder.layer[1].output.dense.weight[:, 5] = 0
    found = magnitude(model)
    assert [index for index, score in enumerate(torch.cat(found.heads)) if score == 0] == [1]
    assert [index for index, score in enumerate(torch.cat(found.neurons)) if score == 0] == [64 + 5]


def test_normalised_scores_of_a_layer_have_norm_one_and_keep_their_order():
    plain = fisher(make_model(), batches(8), cross_entropy)
    found = normalised(plain)
    for before, after in zip((*plain.heads, *plain.neurons), (*found.heads, *found.neurons), strict=True):
        assert float(after.square().sum()) == pytest.approx(1.0)
        torch.testing.assert_close(after / after[0], before / before[0])
    assert float(found.layers.norm()) == pytest.approx(1.0)
    assert float(found.halves.norm()) == pytest.approx(1.0)


def test_normalising_scores_of_zero_or_of_an_empty_layer_leaves_them():
    zero = Scores((torch.zeros(4), torch.zeros(0)), (torch.zeros(0), torch.zeros(3)), torch.zeros(2))
    found = normalised(zero)
    for before, after in zip((*zero.heads, *zero.neurons), (*found.heads, *found.neurons), strict=True):
        assert torch.equal(after, before)


def test_magnitude_is_the_squared_norm_of_what_would_go():
    model = make_model()
    layer = model.bert.encoder.layer[1]
    weights = torch.cat([layer.intermediate.dense.weight[5], layer.output.dense.weight[:, 5]]).detach()
    assert float(magnitude(model).neurons[1][5]) == pytest.approx(float(weights.square().sum()), rel=1e-5)
    rows = slice(16, 24)
    inner = layer.attention.self
    parts = [inner.query.weight[rows], inner.key.weight[rows], inner.value.weight[rows]]
    parts.append(layer.attention.output.dense.weight[:, rows])
    expected = sum(float(part.detach().square().sum()) for part in parts)
    assert float(magnitude(model).heads[1][2]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", get_args(Criterion))
def test_a_half_that_writes_nothing_but_its_bias_scores_zero_by_what_it_does(name: str):
    model = make_model()
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.output.dense.weight.zero_()
        model.bert.encoder.layer[1].output.dense.weight.zero_()
    halves = CRITERIA[name](model, batches(8), cross_entropy, 0).halves
    by_weights = name in ("magnitude", "random")
    assert (halves > 0).tolist() == [[by_weights, True], [True, by_weights]]


def test_the_magnitude_of_a_half_is_that_of_its_parts_together():
    found = magnitude(make_model())
    torch.testing.assert_close(found.halves[:, 0], torch.stack(found.heads).sum(1))
    torch.testing.assert_close(found.halves.sum(1), found.layers)


def test_random_scores_follow_the_seed_and_not_torchs_own_numbers():
    model = make_model()
    state = torch.get_rng_state()
    assert torch.equal(randomly(model, seed=1).heads[0], randomly(model, seed=1).heads[0])
    assert not torch.equal(randomly(model, seed=1).heads[0], randomly(model, seed=2).heads[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_without_heads_or_neurons_have_empty_scores():
    model = cut(make_model(), Kept(((), (0, 1)), ((0, 1, 2), ()), (0, 1)))
    for name in CRITERIA:
        scores = CRITERIA[name](model, batches(8), cross_entropy, 0)
        assert [len(each) for each in scores.heads] == [0, 2]
        assert [len(each) for each in scores.neurons] == [3, 0]
        assert scores.layers.shape == (2,)
        assert (scores.halves == 0).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("name", ["taylor", "fisher", "surgeon", "activation"])
def test_no_rows_are_refused(name: str):
    with pytest.raises(InputError, match="needs rows"):
        CRITERIA[name](make_model(), [], cross_entropy, 0)


def test_the_table_of_criteria_holds_what_a_recipe_may_say():
    assert set(CRITERIA) == set(get_args(Criterion))


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 0), (32, 3)])
def test_channel_scores_are_the_mean_absolute_gate_gradient_at_any_batch_size_and_padding(size: int, padding: int):
    model = make_model()
    found = channel_taylor(model, batches(size, padding), cross_entropy)
    sums = [torch.zeros(32), *(torch.zeros(32) for _ in range(4)), *(torch.zeros(64) for _ in range(2))]
    for row in range(ROWS):
        batch = make_batch([row])
        gates = [torch.ones_like(part, requires_grad=True) for part in sums]
        with channels_gated(model, hidden=gates[0], queries=gates[1:3], values=gates[3:5], neurons=gates[5:]):
            cross_entropy(model(**batch.inputs).logits, batch.targets).backward()
        sums = [total + gate.grad.abs() / ROWS for total, gate in zip(sums, gates, strict=True)]
    for mine, theirs in zip((found.hidden, *found.queries, *found.values, *found.neurons), sums, strict=True):
        assert float(theirs.max()) > 0
        torch.testing.assert_close(mine, theirs.double(), rtol=1e-3, atol=1e-7)


def test_channel_gates_at_one_change_nothing_and_a_closed_one_silences_its_channel_everywhere():
    model, batch = make_model(), make_batch(range(4))
    inner = [torch.ones(32)] * 2
    closed = torch.ones(32)
    closed[5] = 0
    with torch.no_grad():
        plain = model(**batch.inputs, output_hidden_states=True)
        with channels_gated(model, hidden=torch.ones(32), queries=inner, values=inner, neurons=[torch.ones(64)] * 2):
            assert torch.equal(model(**batch.inputs).logits, plain.logits)
        with channels_gated(model, hidden=closed, queries=inner, values=inner, neurons=[torch.ones(64)] * 2):
            states = model(**batch.inputs, output_hidden_states=True).hidden_states
        assert torch.equal(model(**batch.inputs).logits, plain.logits)
    assert all(float(state[..., 5].abs().max()) == 0 for state in states)
    assert float(plain.hidden_states[1][..., 5].abs().max()) > 0


def test_channel_norms_are_sums_of_squares_of_the_chosen_layers():
    model = make_model()
    found, weights = (
        channel_norms(model, [1]),
        {name: part.double().numpy() for name, part in model.state_dict().items()},
    )
    words = "bert.embeddings.{}_embeddings.weight"
    hidden = sum((weights[words.format(name)] ** 2).mean(0) for name in ("word", "position", "token_type"))
    layer = "bert.encoder.layer.1.{}.dense.weight"
    hidden = hidden + sum((weights[layer.format(name)] ** 2).sum(1) for name in ("attention.output", "output"))
    torch.testing.assert_close(found.hidden, torch.from_numpy(hidden))
    query, key = (weights[f"bert.encoder.layer.1.attention.self.{name}.weight"] for name in ("query", "key"))
    torch.testing.assert_close(found.queries[1], torch.from_numpy((query**2).sum(1) * (key**2).sum(1)))


def test_channels_of_a_model_with_an_empty_layer_are_not_scored():
    model = cut(make_model(), Kept(((0, 1, 2, 3), ()), (tuple(range(64)),) * 2, (0, 1)))
    for score in (lambda: channel_norms(model, [0]), lambda: channel_taylor(model, batches(4), cross_entropy)):
        with pytest.raises(InputError, match="where all heads or neurons of a layer were pruned"):
            score()
