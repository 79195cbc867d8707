from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, WHOLE, make
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AlbertConfig, AlbertForSequenceClassification

from compressor.errors import InputError
from compressor.model.encoders import model_logits
from compressor.model.families import FAMILIES as KNOWN
from compressor.model.parts import shapes, stack
from compressor.model.states import (
    attention_bias,
    continue_layers,
    forward,
    head_states,
    model_inputs,
    record_heads,
    record_hidden,
    set_dropout,
)
from compressor.model.surgery import Kept, cut

torch.set_num_threads(1)
IDS = torch.tensor([[2, 16, 29, 13, 40, 3], [2, 7, 51, 3, 1, 1], [2, 9, 3, 1, 1, 1]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
TEACHERS = pytest.mark.parametrize("family", list(FAMILIES))


@dataclass(frozen=True)
class Rows:
    inputs: dict[str, Tensor]
    partner: Tensor | None = None
    kept: Tensor | None = None


def recorded(model: Any, *, attentions: bool = False) -> Any:
    """What transformers itself reports."""
    with torch.no_grad():
        return model(**model_inputs(model, INPUTS), output_hidden_states=True, output_attentions=attentions)


def test_the_table_of_families_names_those_tested_here():
    assert set(KNOWN) == set(WHOLE)


@TEACHERS
def test_recorded_layers_are_those_transformers_reports(family: str):
    model = make(family)
    with record_hidden(model, layers=[0, 1, 2, 3]) as states, torch.no_grad():
        logits = forward(model, Rows(INPUTS))
    expected = recorded(model)
    assert torch.equal(logits, expected.logits)
    assert sorted(states) == [0, 1, 2, 3]
    for layer, state in states.items():
        assert torch.equal(state, expected.hidden_states[layer])


@TEACHERS
def test_shapes_are_read_from_the_modules(family: str):
    layers = shapes(make(family)).layers
    assert [layer.heads for layer in layers] == ([2, 1, 3] if family.startswith("pruned-") else [4, 4, 4])
    assert [layer.ffn for layer in layers] == ([10, 64, 2] if family.startswith("pruned-") else [64, 64, 64])
    assert {layer.head_size for layer in layers} == {8}
    assert shapes(make(family)).hidden == 32


@TEACHERS
def test_attention_made_of_recorded_heads_is_what_transformers_reports(family: str):
    model = make(family, attention="eager")
    with record_heads(model, [1, 2, 3]) as heads, torch.no_grad():
        forward(model, Rows(INPUTS))
    expected = recorded(model, attentions=True).attentions
    for layer, (query, key, _) in heads.items():
        bias = attention_bias(model, 6, layer=layer)
        assert (bias is not None) == family.endswith("mpnet")
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5
        scores = scores if bias is None else scores + bias
        found = scores.masked_fill(MASK[:, None, None] == 0, -torch.inf).softmax(-1)
        torch.testing.assert_close(found, expected[layer - 1], atol=1e-6, rtol=1e-5)


@TEACHERS
def test_heads_recorded_in_a_pass_are_those_made_of_the_layer_before(family: str):
    model = make(family)
    with record_heads(model, [1, 3]) as heads, record_hidden(model, layers=[0, 2]) as states, torch.no_grad():
        forward(model, Rows(INPUTS))
    for layer, found in heads.items():
        again = head_states(model, layer, states[layer - 1])
        assert found[0].shape == (3, 6, shapes(model).layers[layer - 1].heads, 8)
        for one, other in zip(found, again, strict=True):
            assert torch.equal(one, other)


def test_recorded_heads_carry_gradients_to_the_projections_alone():
    model = make("bert")
    with record_heads(model, [2]) as heads:
        forward(model, Rows(INPUTS))
    heads[2][1].square().sum().backward()
    parts = stack(model).layers
    assert parts[1].key is not None
    assert parts[1].query is not None
    assert parts[2].key is not None
    assert parts[1].key.weight.grad is not None
    assert parts[0].up is not None
    assert parts[0].up.weight.grad is not None
    assert parts[1].query.weight.grad is None
    assert parts[2].key.weight.grad is None


@TEACHERS
@pytest.mark.parametrize("start", [0, 1, 2])
def test_layers_continued_from_a_state_are_those_of_the_whole_pass(family: str, start: int):
    model = make(family)
    with record_hidden(model, layers=[0, 1, 2, 3]) as states, torch.no_grad():
        forward(model, Rows(INPUTS))
    wanted = list(range(start, 4))
    with torch.no_grad():
        found = continue_layers(model, states[start], MASK, start=start, layers=wanted)
    assert list(found) == wanted
    for layer in wanted:
        assert torch.allclose(found[layer][MASK > 0], states[layer][MASK > 0], atol=1e-5)


def test_layers_continue_from_states_of_half_precision_in_full_precision():
    model = make("bert")
    with record_hidden(model, layers=[1, 3]) as states, torch.no_grad():
        forward(model, Rows(INPUTS))
    with torch.no_grad():
        found = continue_layers(model, states[1].half(), MASK, start=1, layers=[3])[3]
    assert found.dtype == torch.float32
    assert head_states(model, 2, states[1].half())[0].dtype == torch.float32
    assert torch.allclose(found[MASK > 0], states[3][MASK > 0], atol=1e-2)


def test_layers_that_do_not_follow_the_start_are_refused():
    model, state = make("bert"), torch.zeros(3, 6, 32)
    with pytest.raises(InputError, match="layer 1 does not follow layer 2 of a model of 3 layers"):
        continue_layers(model, state, MASK, start=2, layers=[3, 1])
    with pytest.raises(InputError, match="layer 4 does not follow layer 2"):
        continue_layers(model, state, MASK, start=2, layers=[4])


def test_a_layer_without_attention_has_no_heads():
    every = tuple(tuple(range(4)) for _ in range(3)), tuple(tuple(range(64)) for _ in range(3))
    model = cut(make("bert"), Kept(((0, 1, 2, 3), (), (0, 1, 2, 3)), every[1], (0, 1, 2)))
    with pytest.raises(InputError, match="layer 2 has no attention: all its heads were pruned; pair another layer"):
        head_states(model, 2, torch.zeros(3, 6, 32))
    with pytest.raises(InputError, match="layer 2 has no attention"), record_heads(model, [1, 2]):
        pass
    with pytest.raises(InputError, match="no layer 0 with attention: the model has layers 1 to 3"):
        head_states(model, 0, torch.zeros(3, 6, 32))
    with torch.no_grad():
        assert continue_layers(model, torch.zeros(3, 6, 32), MASK, start=1, layers=[3])[3].shape == (3, 6, 32)


def test_an_encoder_of_unknown_parts_is_refused_by_name():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "embedding_size": 16}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=60, **sizes))
    with pytest.raises(InputError, match=r"hidden states of models of type 'albert'.*known are bert, .*logits alone"):
        stack(model)


@pytest.mark.parametrize(("family", "takes"), [("bert", True), ("roberta", False), ("mpnet", False), ("electra", True)])
def test_segments_reach_only_a_model_that_knows_two(family: str, takes: bool):
    assert ("token_type_ids" in model_inputs(make(family), INPUTS)) == takes
    assert {"input_ids", "attention_mask"} <= set(model_inputs(make(family), INPUTS))


@TEACHERS
def test_rows_that_keep_all_of_themselves_are_not_mixed(family: str):
    model = make(family)
    rows = Rows(INPUTS, torch.tensor([1, 2, 0]), torch.ones(3))
    assert torch.allclose(forward(model, rows), forward(model, Rows(INPUTS)), atol=1e-6)


@TEACHERS
def test_mixed_rows_are_answered_from_mixed_word_embeddings(family: str):
    model = make(family)
    full = torch.ones_like(MASK)
    inputs = {**INPUTS, "attention_mask": full, "input_ids": IDS.where(MASK > 0, torch.tensor(30))}
    mixed = forward(model, Rows(inputs, torch.tensor([2, 0, 0]), torch.tensor([0.7, 1.0, 0.5])))
    words = model.get_input_embeddings()(inputs["input_ids"])
    by_hand = torch.stack([0.7 * words[0] + 0.3 * words[2], words[1], 0.5 * words[2] + 0.5 * words[0]])
    assert torch.allclose(mixed, model(inputs_embeds=by_hand, attention_mask=full).logits, atol=1e-6)
    assert not torch.allclose(mixed[0], forward(model, Rows(inputs))[0], atol=1e-3)


def test_mixing_sends_gradients_to_the_words_of_both_rows():
    model = make("bert")
    forward(model, Rows(INPUTS, torch.tensor([1, 1, 2]), torch.tensor([0.5, 1.0, 1.0])))[0].sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert set(gradient.abs().sum(1).nonzero()[:, 0].tolist()) == set(IDS[:2].flatten().tolist())


def test_a_model_wrapped_for_several_processes_is_run_and_read_like_itself(tmp_path: Path):
    mixed = Rows(INPUTS, torch.tensor([1, 0, 2]), torch.tensor([0.6, 0.9, 1.0]))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        plain, wrapped = make("bert"), DistributedDataParallel(make("bert"))
        for rows in (Rows(INPUTS), mixed):
            with record_hidden(wrapped, layers=[2]) as states, record_heads(wrapped, [1]) as heads:
                forward(wrapped, rows).square().sum().backward()
            forward(plain, rows).square().sum().backward()
            assert states[2].shape == (3, 6, 32)
            assert heads[1][0].shape == (3, 6, 4, 8)
    finally:
        distributed.destroy_process_group()
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


@TEACHERS
def test_set_dropout_reaches_every_dropout_and_leaves_the_config(family: str):
    model = make(family)
    before = model.config.to_dict()
    set_dropout(model, 0.0)
    still = forward(model.train(), Rows(INPUTS))
    assert torch.equal(still, model_logits(model, INPUTS))
    set_dropout(model, 0.3)
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.3}
    assert not torch.allclose(forward(model, Rows(INPUTS)), still, atol=1e-4)
    assert model.config.to_dict() == before
