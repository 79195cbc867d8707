"""Fitting a cut model's layers to the uncut one's by least squares: laws, and numpy as the reference."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from families import WHOLE, make
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import load_model, model_logits
from compressor.model.parts import anatomy, shapes
from compressor.model.reconstruct import Fitted, reconstruct
from compressor.model.surgery import Kept, cut, keep_all

EVERY = tuple(range(64))
UNEVEN = Kept(heads=((0, 2), (1,), (0, 1, 3)), neurons=(tuple(range(10)), EVERY, (5, 6, 7)), layers=(0, 1, 2))
EXACT = 1e-12
"""A damping that leaves plain least squares."""


def batches(rows: Sequence[int], size: int, *, longest: int | None = None, seed: int = 3) -> list[dict[str, Tensor]]:
    """These of 96 made-up rows of 3 to 24 tokens, in batches padded to the longest row, or to `longest` tokens."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, 25, size=96)
    ids = [torch.tensor(draw.integers(5, 60, size=length)) for length in lengths]
    made = []
    for start in range(0, len(rows), size):
        taken = [ids[row] for row in rows[start : start + size]]
        width = longest or max(map(len, taken))
        padded = torch.stack([torch.nn.functional.pad(each, (0, width - len(each)), value=1) for each in taken])
        mask = torch.stack([(torch.arange(width) < len(each)).long() for each in taken])
        made.append({"input_ids": padded, "attention_mask": mask})
    return made


ROWS = batches(range(96), 16)


def seen(model: PreTrainedModel, given: Sequence[Mapping[str, Tensor]]) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """By layer and half: what the output projection and the norm read, (tokens, ..), in passes of the whole model."""
    found: dict[tuple[int, str], tuple[list[Tensor], list[Tensor]]] = {}
    hooks, masks = [], list[Tensor]()

    def keep(place: tuple[int, str], which: int):
        found.setdefault(place, ([], []))
        return lambda _part, args: found[place][which].append(args[0][masks[-1]])

    for index, layer in enumerate(anatomy(model).layers):
        for half, projection, norm in (
            ("attention", layer.attention_output, layer.attention_norm),
            ("feed-forward", layer.down, layer.norm),
        ):
            hooks.append(projection.register_forward_pre_hook(keep((index, half), 0)))
            hooks.append(norm.register_forward_pre_hook(keep((index, half), 1)))
    for batch in given:
        masks.append(batch["attention_mask"].bool())
        model_logits(model, batch)
    for hook in hooks:
        hook.remove()
    return {place: (torch.cat(inputs), torch.cat(sums)) for place, (inputs, sums) in found.items()}


@pytest.mark.parametrize("family", WHOLE)
def test_each_projection_is_what_numpys_least_squares_gives_for_what_it_reads(family: str):
    uncut = make(family)
    model = cut(uncut, UNEVEN)
    fitted = reconstruct(model, uncut, UNEVEN.layers, ROWS, damping=EXACT)
    wanted, after = seen(uncut, ROWS), seen(model, ROWS)
    layers = anatomy(model).layers
    for each in fitted:
        layer = layers[each.layer]
        projection = layer.attention_output if each.half == "attention" else layer.down
        inputs, sums = (value.double().numpy() for value in after[each.layer, each.half])
        target = wanted[each.layer, each.half][1].double().numpy()
        wide = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        written = wide @ torch.cat([projection.weight, projection.bias[:, None]], 1).detach().double().numpy().T
        residual = sums - written
        best, *_ = np.linalg.lstsq(wide, target - residual, rcond=None)
        scale = np.linalg.norm(target)
        assert np.linalg.norm(wide @ best - written) < 1e-4 * scale
        assert np.linalg.norm(target - sums) / scale == pytest.approx(each.after, rel=1e-3, abs=1e-5)


def test_damping_is_the_share_of_the_mean_variance_that_a_weights_change_is_charged():
    uncut = make("bert")
    kept = Kept(((0, 1), (0, 1, 2, 3), (0, 1, 2, 3)), (EVERY,) * 3, (0, 1, 2))
    plain, model = cut(uncut, kept), cut(uncut, kept)
    reconstruct(model, uncut, kept.layers, ROWS, damping=0.5)
    inputs, sums = (value.double().numpy() for value in seen(plain, ROWS)[0, "attention"])
    missing = seen(uncut, ROWS)[0, "attention"][1].double().numpy() - sums
    centred, rest = inputs - inputs.mean(0), missing - missing.mean(0)
    gram = centred.T @ centred
    charged = gram + 0.5 * np.diag(gram).mean() * np.eye(len(gram))
    change = np.linalg.solve(charged, centred.T @ rest).T
    before, after = (anatomy(each).layers[0].attention_output for each in (plain, model))
    np.testing.assert_allclose((after.weight - before.weight).detach().numpy(), change, atol=1e-5)
    shift = missing.mean(0) - change @ inputs.mean(0)
    np.testing.assert_allclose((after.bias - before.bias).detach().numpy(), shift, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet", "pruned-bert", "pruned-mpnet"])
def test_where_nothing_was_cut_nothing_changes(family: str):
    uncut = make(family)
    model = cut(uncut, keep_all(shapes(uncut)))
    found = reconstruct(model, uncut, range(3), ROWS)
    assert max(each.before for each in found) < 1e-6
    for one, other in zip(model.parameters(), uncut.parameters(), strict=True):
        assert float((one - other).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("damping", [EXACT, 1e-3, 10.0])
def test_no_error_on_the_sample_grows_and_the_uncut_model_stays_as_it_was(damping: float):
    uncut = make("bert")
    model, untouched = cut(uncut, UNEVEN), copy.deepcopy(uncut)
    uncut.train()
    found = reconstruct(model, uncut, UNEVEN.layers, ROWS, damping=damping)
    assert [(each.layer, each.half) for each in found] == [
        (layer, half) for layer in range(3) for half in ("attention", "feed-forward")
    ]
    assert all(each.after <= each.before for each in found)
    assert sum(each.after < 0.9 * each.before for each in found) >= 3 or damping == 10.0
    assert uncut.training
    assert not model.training
    assert all(torch.equal(one, two) for one, two in zip(uncut.parameters(), untouched.parameters(), strict=True))


def answers(given: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, list[Fitted]]:
    """Logits of a model that was fitted on these batches, and the errors."""
    uncut = make("bert")
    model = cut(uncut, UNEVEN)
    found = reconstruct(model, uncut, UNEVEN.layers, given)
    return torch.cat([model_logits(model, batch) for batch in ROWS]), found


def test_batch_size_order_of_rows_and_padding_change_nothing():
    logits, errors = answers(ROWS)
    order = np.random.default_rng(0).permutation(96).tolist()
    for given in (batches(range(96), 7), batches(order, 16), batches(range(96), 16, longest=37)):
        others, found = answers(given)
        assert float((others - logits).norm() / logits.norm()) < 1e-4
        for one, other in zip(errors, found, strict=True):
            assert (other.before, other.after) == pytest.approx((one.before, one.after), rel=1e-4, abs=1e-6)


def test_the_model_is_restored_where_each_neuron_and_head_that_went_had_a_double():
    uncut = make("bert")
    with torch.no_grad():
        for layer in anatomy(uncut).layers:
            layer.up.weight[1::2], layer.up.bias[1::2] = layer.up.weight[::2].clone(), layer.up.bias[::2].clone()
            for part in (layer.query, layer.key, layer.value):
                part.weight[8:16], part.bias[8:16] = part.weight[:8].clone(), part.bias[:8].clone()
    kept = Kept(((0, 2, 3),) * 3, (EVERY[::2],) * 3, (0, 1, 2))
    model = cut(uncut, kept)
    found = reconstruct(model, uncut, kept.layers, ROWS, damping=1e-9)
    assert max(each.before for each in found) > 0.05
    assert max(each.after for each in found) < 1e-5
    for batch in ROWS:
        assert torch.allclose(model_logits(model, batch), model_logits(uncut, batch), atol=1e-4)


def test_of_a_half_that_is_gone_the_bias_is_fitted_to_the_mean_of_what_is_missing():
    uncut = make("bert")
    kept = Kept(((), (0, 1, 2, 3), ()), (EVERY, (), ()), (0, 1, 2))
    plain, model = cut(uncut, kept), cut(uncut, kept)
    found = reconstruct(model, uncut, kept.layers, ROWS)
    missing = seen(uncut, ROWS)[0, "attention"][1] - seen(plain, ROWS)[0, "attention"][1]
    before, after = (anatomy(each).layers[0].attention_output.bias for each in (plain, model))
    assert torch.allclose(after - before, missing.mean(0), atol=1e-5)
    assert all(each.after < each.before for each in found)


def test_a_layer_after_one_that_is_gone_is_fitted_to_the_layer_it_is_made_from():
    uncut = make("bert")
    kept = Kept(((0, 1, 2, 3),) * 3, (EVERY,) * 3, (0, 2))
    plain, model = cut(uncut, kept), cut(uncut, kept)
    found = reconstruct(model, uncut, kept.layers, ROWS, damping=EXACT)
    assert [each.layer for each in found] == [0, 0, 1, 1]
    assert found[1].before < 1e-6
    wanted = seen(uncut, ROWS)[2, "feed-forward"][1]
    errors = [float((seen(each, ROWS)[1, "feed-forward"][1] - wanted).norm()) for each in (plain, model)]
    assert errors[1] < 0.9 * errors[0]


def test_models_of_other_widths_and_no_rows_are_refused():
    uncut = make("bert")
    with pytest.raises(InputError, match="none were given; give some, labelled or not"):
        reconstruct(copy.deepcopy(uncut), uncut, (0, 1, 2), [])
    narrow = make("bert")
    narrow.config.hidden_size = 16
    with pytest.raises(InputError, match="a model of width 16 cannot be fitted to those of one of width 32"):
        reconstruct(narrow, uncut, (0, 1, 2), ROWS)


@pytest.mark.registry
def test_a_few_rows_bring_minilm_with_half_of_its_neurons_closer_to_the_whole(minilm: Path):
    uncut = load_model(minilm, labels=("bad", "good"))
    every = keep_all(shapes(uncut))
    kept = Kept(every.heads, tuple(neurons[::2] for neurons in every.neurons), every.layers)
    draw = torch.Generator().manual_seed(0)
    rows, held_out = (
        [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for ids in torch.randint(1000, 20000, (batches, 8, 24), generator=draw)
        ]
        for batches in (16, 4)
    )
    model = cut(uncut, kept)
    errors = {}
    for when in ("before", "after"):
        if when == "after":
            found = reconstruct(model, uncut, kept.layers, rows)
            assert all(each.after <= each.before for each in found)
        pairs = (seen(one, held_out)[5, "feed-forward"][1] for one in (model, uncut))
        errors[when] = float((next(pairs) - next(pairs)).norm())
    assert errors["after"] < 0.8 * errors["before"]
