"""Hidden channels go everywhere at once, in every family, and what each matters is the slope of that very masking."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from families import PRUNED, WHOLE, make
from torch import Tensor
from torch.nn import functional
from transformers import BertForSequenceClassification, PreTrainedModel

from compressor.errors import InputError, StageError
from compressor.model import surgery
from compressor.model.encoders import model_logits
from compressor.model.footprint import macs, parameters
from compressor.model.gates import hidden_gated
from compressor.model.parts import anatomy, shapes
from compressor.model.states import model_inputs
from compressor.model.surgery import Kept, cut, keep_all, masked
from compressor.model.width import HIDDEN_CRITERIA, hidden_activation, hidden_norms, hidden_slopes, parameters_at

torch.set_num_threads(1)
INPUTS = {
    "input_ids": torch.arange(27).view(3, 9) % 25 + 5,
    "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2]),
    "token_type_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [0] * 3 + [1] * 6]),
}
EVERY = pytest.mark.parametrize("family", WHOLE)
SOME = (0, 1, 3, 4, 7, 8, 9, 12, 15, 17, 18, 19, 20, 22, 23, 25, 26, 28, 30, 31)
HEADS, NEURONS = (tuple(range(4)),) * 3, (tuple(range(64)),) * 3
CASES = {
    "width alone": Kept(HEADS, NEURONS, (0, 1, 2), SOME),
    "no multiple of the heads' width": Kept(HEADS, NEURONS, (0, 1, 2), SOME[:11]),
    "with heads, neurons and a layer": Kept(PRUNED.heads, PRUNED.neurons, (0, 2), SOME),
    "with an empty layer": Kept(((), (2,), (0, 3)), ((), (3,), ()), (0, 1, 2), SOME),
}
ROWS = 32
LENGTHS = [3 + index % 7 for index in range(ROWS)]


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor


def batch_of(rows: Sequence[int], padding: int = 0) -> Batch:
    longest = max(LENGTHS[row] for row in rows) + padding
    ids = [[(7 * row + 3 * place) % 50 + 5 for place in range(LENGTHS[row])] for row in rows]
    padded = torch.tensor([each + [1] * (longest - len(each)) for each in ids])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids])
    labels = torch.tensor([row % 3 % 2 for row in rows])
    return Batch({"input_ids": padded, "attention_mask": mask}, labels)


def batches(size: int, padding: int = 0) -> list[Batch]:
    return [batch_of(range(start, min(start + size, ROWS)), padding) for start in range(0, ROWS, size)]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def difference(model: PreTrainedModel, kept: Kept, made: PreTrainedModel) -> float:
    with masked(model, kept):
        reference = model_logits(model, INPUTS)
    return float((model_logits(made, INPUTS) - reference).abs().max())


@EVERY
@pytest.mark.parametrize("name", CASES)
def test_a_narrower_model_answers_as_the_one_whose_norms_run_over_the_kept_channels(family: str, name: str):
    model = make(family)
    made = cut(model, CASES[name])
    assert difference(model, CASES[name], made) < 1e-5
    assert float((model_logits(made, INPUTS) - model_logits(model, INPUTS)).abs().max()) > 1e-3
    assert shapes(made) == surgery.kept_shapes(shapes(model), CASES[name])
    sizes, hidden = shapes(made), len(CASES[name].hidden)
    assert anatomy(made).classifier.in_features == anatomy(made).pooler.out_features == hidden == sizes.hidden
    assert [layer.head_size for layer in sizes.layers] == [8] * len(sizes.layers)
    assert made.config.hidden_size == hidden


def test_the_narrower_model_is_ours_unless_transformers_can_say_its_shapes():
    model = make("bert")
    assert cut(model, CASES["width alone"]).config.model_type == "pruned-bert"
    three = Kept(((0, 1, 3),) * 3, NEURONS, (0, 1, 2), tuple(range(4, 28)))
    made = cut(model, three)
    assert type(made) is BertForSequenceClassification
    assert difference(model, three, made) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_with_empty_halves_loses_channels_like_any_other(attention: str):
    model = cut(make("bert", attention=attention), Kept(((), (2,), (0, 3)), ((), (3,), ()), (0, 1, 2)))
    kept = replace(keep_all(shapes(model)), hidden=SOME)
    made = cut(model, kept)
    assert difference(model, kept, made) < 1e-5
    assert made.config._attn_implementation == attention


@EVERY
def test_two_cuts_of_the_width_are_the_one_that_names_what_both_leave(family: str):
    model = make(family)
    once = cut(cut(model, CASES["width alone"]), Kept(HEADS, NEURONS, (0, 1, 2), tuple(range(1, 14))))
    both = cut(model, Kept(HEADS, NEURONS, (0, 1, 2), SOME[1:14]))
    assert all(torch.equal(value, both.state_dict()[name]) for name, value in once.state_dict().items())


@EVERY
def test_keeping_every_channel_by_name_changes_nothing(family: str):
    model = make(family)
    kept = replace(keep_all(shapes(model)), hidden=tuple(range(32)))
    made = cut(model, kept)
    assert torch.equal(model_logits(made, INPUTS), model_logits(model, INPUTS))
    assert difference(model, kept, model) < 1e-5
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())


@EVERY
def test_parameters_and_macs_of_a_width_are_those_of_the_cut_model(family: str):
    model = make(family)
    for name in ("width alone", "no multiple of the heads' width"):
        made = cut(model, CASES[name])
        assert parameters(made) == parameters_at(model, len(CASES[name].hidden)) < parameters(model)
        assert macs(shapes(made)) < macs(shapes(model))
    assert parameters_at(model, 32) == parameters(model)
    empty = cut(model, CASES["with an empty layer"])
    assert parameters_at(empty, 20) == parameters(empty)


@EVERY
def test_every_weight_of_a_narrower_model_trains(family: str):
    model = cut(make(family), CASES["with an empty layer"]).train()
    model(**model_inputs(model, INPUTS)).logits.square().sum().backward()
    relative = [name for name, _ in model.named_parameters() if "relative" in name]
    lost = [name for name, weight in model.named_parameters() if weight.grad is None and name not in relative]
    assert lost == []


def test_torch_pruning_makes_the_cuts_and_a_group_that_couples_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    cuts: list[int] = []
    group = surgery.torch_pruning.dependency.Group
    prune = group.prune
    monkeypatch.setattr(group, "prune", lambda self: cuts.append(len(self)) or prune(self))
    cut(make("bert"), CASES["width alone"])
    assert len(cuts) == 2  # the stream, and what the pooler writes
    graph = surgery.torch_pruning.DependencyGraph
    whole = graph.get_pruning_group

    def partial(self, *args):
        found = whole(self, *args)
        linears = [each for each in found._group if isinstance(each[0].target.module, torch.nn.LayerNorm)]
        found._group.remove(linears[0])
        return found

    monkeypatch.setattr(graph, "get_pruning_group", partial)
    with pytest.raises(StageError, match=r"couples \d+ parts where \d+ belong together"):
        cut(make("bert"), CASES["width alone"])


@pytest.mark.parametrize(
    ("hidden", "text"),
    [
        ((), "kept names no hidden channel; a model keeps at least one"),
        ((3, 2), "kept hidden channels must be ascending numbers from 0 to 31 (got [3, 2])"),
        ((0, 32), "from 0 to 31"),
    ],
)
def test_channels_that_are_not_there_are_refused(hidden: tuple[int, ...], text: str):
    with pytest.raises(InputError) as error:
        cut(make("bert"), Kept(HEADS, NEURONS, (0, 1, 2), hidden))
    assert text in str(error.value)


def test_a_width_that_would_make_transformers_drop_a_projection_is_refused():
    with pytest.raises(InputError, match="16 hidden channels, as many as the embeddings have"):
        cut(make("electra"), Kept(HEADS, NEURONS, (0, 1, 2), SOME[:16]))


def plain_slopes(model: PreTrainedModel, row: int) -> Tensor:
    """Of one row alone: d loss / d gate at the masking that `masked` does."""
    gate = torch.ones(32, requires_grad=True)
    batch = batch_of([row])
    with hidden_gated(model, gate):
        cross_entropy(model(**batch.inputs).logits, batch.targets).sum().backward()
    return gate.grad


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 9), (32, 0)])
@pytest.mark.parametrize("of_slope", [torch.abs, torch.square])
def test_a_gradient_score_is_the_mean_over_single_rows_at_any_batch_size_and_padding(
    of_slope: Callable[[Tensor], Tensor], size: int, padding: int
):
    model = make("bert")
    found = hidden_slopes(model, batches(size, padding), cross_entropy, of_slope)
    expected = of_slope(torch.stack([plain_slopes(model, row) for row in range(ROWS)]).double()).mean(0)
    assert float(expected.min()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert not any(weight.grad is not None and weight.grad.isnan().any() for weight in model.parameters())


@EVERY
def test_the_slope_of_a_channel_is_the_change_of_the_loss_as_it_counts_less_and_less(family: str):
    model = make(family).double()
    batch = batch_of([3])

    def loss(channel: int, gate: float) -> float:
        gates = torch.ones(32, dtype=torch.float64)
        gates[channel] = gate
        with hidden_gated(model, gates), torch.no_grad():
            return float(cross_entropy(model(**batch.inputs).logits, batch.targets))

    gates = torch.ones(1, 32, dtype=torch.float64, requires_grad=True)
    with hidden_gated(model, gates):
        cross_entropy(model(**batch.inputs).logits, batch.targets).sum().backward()
    for channel in (0, 13, 31):
        measured = (loss(channel, 1 + 1e-4) - loss(channel, 1 - 1e-4)) / 2e-4
        assert float(gates.grad[0, channel]) == pytest.approx(measured, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 9), (32, 0)])
def test_activation_is_the_mean_square_of_a_channel_over_rows_and_true_tokens(size: int, padding: int):
    model = make("bert")
    expected = torch.zeros(32, dtype=torch.float64)
    for row in range(ROWS):
        with torch.no_grad():
            states = model(**batch_of([row]).inputs, output_hidden_states=True).hidden_states
        expected += sum(state[0].double().square().mean(0) for state in states) / ROWS
    torch.testing.assert_close(hidden_activation(model, batches(size, padding)), expected, rtol=1e-4, atol=1e-7)


def test_magnitude_is_the_squared_norm_of_what_would_go():
    model, channel = make("bert"), 5
    weights = model.state_dict()
    expected = 0.0
    for name, weight in weights.items():
        if "embeddings" in name and weight.dim() == 2:
            expected += float(weight[:, channel].square().mean())
        elif name.endswith("output.dense.weight"):
            expected += float(weight[channel].square().sum())
        elif "pooler" in name and weight.dim() == 2:
            expected += float(weight[channel].square().sum() + weight[:, channel].square().sum())
        elif weight.dim() == 2:
            expected += float(weight[:, channel].square().sum())
    assert float(hidden_norms(model)[channel]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", HIDDEN_CRITERIA)
def test_every_criterion_scores_every_channel_of_every_family_and_leaves_the_model(name: str):
    for family in WHOLE:
        for model in (make(family), cut(make(family), CASES["with an empty layer"])):
            before = {each: value.clone() for each, value in model.state_dict().items()}
            found = HIDDEN_CRITERIA[name](model, batches(8), cross_entropy, 3)
            assert found.shape == (shapes(model).hidden,)
            assert found.dtype == torch.float64
            assert bool((found >= 0).all())
            assert float(found.max()) > 0
            assert all(torch.equal(before[each], value) for each, value in model.state_dict().items())


def test_scores_without_rows_are_refused():
    for name in ("taylor", "fisher", "activation"):
        with pytest.raises(InputError, match="needs rows"):
            HIDDEN_CRITERIA[name](make("bert"), [], cross_entropy, 0)
