import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compressor.errors import InputError, StageError
from compressor.model import footprint, surgery
from compressor.model.encoders import load_model, model_logits
from compressor.model.parts import anatomy, shapes
from compressor.model.surgery import Kept, cut, keep_all, masked

torch.set_num_threads(1)

INPUTS = {
    "input_ids": torch.arange(27).view(3, 9) + 5,
    "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2]),
}
EVERY_HEAD = (tuple(range(4)),) * 3
UNEVEN = Kept(
    heads=((0, 2, 3), (1,), (0, 1, 2, 3)), neurons=(tuple(range(0, 64, 3)), (1, 5, 63), (7,)), layers=(0, 1, 2)
)
CASES = {
    "uneven heads and neurons": UNEVEN,
    "a layer": Kept(UNEVEN.heads, UNEVEN.neurons, (0, 2)),
    "all heads of a layer": Kept(((), (1,), (0, 3)), UNEVEN.neurons, (0, 1, 2)),
    "all neurons of a layer": Kept(UNEVEN.heads, ((), (3,), tuple(range(64))), (0, 1, 2)),
    "nothing left of a layer": Kept(((), (2,), (0, 3)), ((), (3,), ()), (0, 1, 2)),
    "even neurons": Kept(EVERY_HEAD, (tuple(range(10, 42)),) * 3, (0, 1, 2)),
}


def make_model(layers: int = 3, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64
    )
    model = BertForSequenceClassification(config)
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.15)
    return model.eval()


def difference(model: PreTrainedModel, other: PreTrainedModel) -> float:
    return float((model_logits(model, INPUTS) - model_logits(other, INPUTS)).abs().max())


def masked_difference(model: PreTrainedModel, kept: Kept, made: PreTrainedModel) -> float:
    with masked(model, kept):
        reference = model_logits(model, INPUTS)
    return float((reference - model_logits(made, INPUTS)).abs().max())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cut_model_answers_as_the_masked_one(name: str, attention: str):
    model = make_model()
    model.set_attn_implementation(attention)
    made = cut(model, CASES[name])
    assert masked_difference(model, CASES[name], made) < 1e-5
    assert difference(model, made) > 1e-3
    assert made.config._attn_implementation == attention


def test_an_already_pruned_model_is_cut_like_any_other():
    model = cut(make_model(), CASES["nothing left of a layer"])
    again = Kept(heads=((), (0,), (1,)), neurons=((), (), ()), layers=(0, 1, 2))
    made = cut(model, again)
    assert [(each.heads, each.ffn) for each in shapes(made).layers] == [(0, 0), (1, 0), (1, 0)]
    assert masked_difference(model, again, made) < 1e-5


def test_cutting_nothing_changes_nothing():
    model = make_model()
    made = cut(model, keep_all(shapes(model)))
    assert difference(model, made) == 0.0
    assert type(made) is BertForSequenceClassification
    assert made.state_dict().keys() == model.state_dict().keys()


def test_masking_nothing_changes_nothing():
    model = make_model()
    before = model_logits(model, INPUTS)
    with masked(model, keep_all(shapes(model))):
        assert torch.equal(model_logits(model, INPUTS), before)


def test_cutting_leaves_the_model_it_was_given_and_its_random_numbers():
    model = make_model()
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cut(model, UNEVEN)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [each.heads for each in shapes(model).layers] == [4, 4, 4]


def test_pruned_heads_leave_the_other_heads_unchanged():
    model = make_model()
    made = cut(model, UNEVEN)
    before, after = anatomy(model).layers[0], anatomy(made).layers[0]
    rows = [head * 8 + offset for head in (0, 2, 3) for offset in range(8)]
    for name in ("query", "key", "value"):
        assert torch.equal(getattr(after, name).weight, getattr(before, name).weight[rows])
    assert torch.equal(after.attention_output.weight, before.attention_output.weight[:, rows])


def test_heads_in_the_wrong_order_fail_the_comparison_with_the_mask():
    model = make_model()
    mutant = cut(model, UNEVEN)
    value = anatomy(mutant).layers[0].value
    with torch.no_grad():
        value.weight.copy_(value.weight.view(3, 8, 32).flip(0).reshape(24, 32))
        value.bias.copy_(value.bias.view(3, 8).flip(0).reshape(24))
    assert masked_difference(model, UNEVEN, mutant) > 1e-3


def test_a_stale_head_count_fails_the_comparison_with_the_mask():
    model = make_model()
    mutant = cut(model, UNEVEN)
    mutant.bert.encoder.layer[0].attention.self.attention_head_size = 12
    assert masked_difference(model, UNEVEN, mutant) > 1e-4


def test_torch_pruning_makes_the_cuts(monkeypatch: pytest.MonkeyPatch):
    cuts: list[int] = []
    group = surgery.torch_pruning.dependency.Group
    prune = group.prune

    def counted(self, *args, **named):
        cuts.append(len(self))
        return prune(self, *args, **named)

    monkeypatch.setattr(group, "prune", counted)
    cut(make_model(), UNEVEN)
    assert len(cuts) == 5  # heads of two layers, neurons of three
    monkeypatch.setattr(group, "prune", lambda self: None)
    with pytest.raises(RuntimeError, match="size mismatch"):
        cut(make_model(), UNEVEN)


def test_a_group_that_couples_something_else_is_refused(monkeypatch: pytest.MonkeyPatch):
    graph = surgery.torch_pruning.DependencyGraph
    whole = graph.get_pruning_group

    def partial(self, *args):
        group = whole(self, *args)
        group._group.pop()
        return group

    monkeypatch.setattr(graph, "get_pruning_group", partial)
    with pytest.raises(StageError, match="torch-pruning couples 3 parts where 4 belong together"):
        cut(make_model(), UNEVEN)


def test_even_shapes_give_a_stock_model_and_uneven_ones_ours():
    model = make_model()
    assert type(cut(model, CASES["even neurons"])) is BertForSequenceClassification
    layers = keep_all(shapes(model))
    assert type(cut(model, Kept(layers.heads, layers.neurons, (1,)))) is BertForSequenceClassification
    assert cut(model, UNEVEN).config.model_type == "pruned-bert"


def test_a_cut_model_trains():
    model = cut(make_model(), CASES["nothing left of a layer"]).train()
    model(**INPUTS).logits.square().sum().backward()
    lost = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert lost == []


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        (Kept(UNEVEN.heads[:2], UNEVEN.neurons, (0,)), "heads and neurons of 3 layers (got 2 and 3)"),
        (Kept(UNEVEN.heads, UNEVEN.neurons, ()), "at least one"),
        (Kept(((0, 4), (1,), (2,)), UNEVEN.neurons, (0,)), "heads of layer 0 must be ascending numbers from 0 to 3"),
        (Kept(((2, 1), (1,), (2,)), UNEVEN.neurons, (0,)), "ascending"),
    ],
)
def test_parts_that_are_not_there_are_refused(kept: Kept, text: str):
    with pytest.raises(InputError) as error:
        cut(make_model(), kept)
    assert text in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_footprint_of_the_shapes_is_that_of_the_model(name: str):
    model = make_model()
    made = cut(model, CASES[name])
    sizes = surgery.kept_shapes(shapes(model), CASES[name])
    assert shapes(made) == sizes
    inside = sum(footprint.layer_parameters(layer, 32) for layer in sizes.layers)
    parts = anatomy(made)
    ends = [*parts.tables, parts.embedding_norm, parts.pooler, parts.classifier]
    outside = sum(weight.numel() for part in ends for weight in part.parameters())
    assert inside + outside == footprint.parameters(made)
    linears = sum(linear.weight.numel() for layer in parts.layers for linear in layer.linears)
    products = sum(2 * layer.heads * layer.head_size for layer in sizes.layers)
    assert footprint.macs(sizes, tokens=7) == 7 * linears + 49 * products


@pytest.mark.registry
def test_real_minilm_cut_with_uneven_heads_answers_as_the_masked_one_on_real_rows(minilm: Path):
    from tiny import MOVIES

    from compressor.data.encode import collate, open_encoder
    from compressor.data.rows import open_data

    bins = {"negative": "< -0.5", "positive": "> 0.5"}
    data = open_data({"train": MOVIES, "label": {"column": "rating", "bins": bins}})
    encoder = open_encoder(minilm, 64)
    encoded = encoder.encode(data.train.texts[:16])
    inputs = {name: torch.from_numpy(value) for name, value in collate(encoded, range(16), encoder.pad_id).items()}
    torch.manual_seed(3)
    model = load_model(minilm, labels=["negative", "positive"])
    draw = torch.Generator().manual_seed(5)

    def some(count: int, total: int) -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(total, generator=draw)[:count].tolist()))

    kept = Kept(
        heads=tuple(some(count, 12) for count in (12, 3, 5, 7, 1, 11)),
        neurons=tuple(some(count, 1536) for count in (1536, 300, 501, 77, 1000, 3)),
        layers=(0, 1, 2, 4, 5),
    )
    with masked(model, kept):
        reference = model_logits(model, inputs)
    made = cut(model, kept)
    assert float((model_logits(made, inputs) - reference).abs().max()) < 1e-5
    narrow = replace(kept, hidden=some(264, 384))
    with masked(model, narrow):
        narrower = model_logits(model, inputs)
    assert float((model_logits(cut(model, narrow), inputs) - narrower).abs().max()) < 1e-5
    assert float((narrower - reference).abs().max()) > 1e-3
    value = anatomy(made).layers[1].value
    with torch.no_grad():
        value.weight.copy_(value.weight.view(3, 32, 384).flip(0).reshape(96, 384))
    assert float((model_logits(made, inputs) - reference).abs().max()) > 1e-5
