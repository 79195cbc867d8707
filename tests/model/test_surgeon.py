"""What parts cost as they go one by one: brute force over sets and single rows as the references."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from families import make
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from compressor.model.importance import fisher, surgeon
from compressor.model.parts import anatomy
from compressor.model.reconstruct import DAMPING
from compressor.model.surgeon import removal_costs

ROWS = 32
IDS = [torch.arange(3 + row % 7) * 3 % 47 + 5 + row % 8 for row in range(ROWS)]
LABELS = torch.tensor([row % 3 % 2 for row in range(ROWS)])


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor


def batches(size: int, padding: int = 0) -> list[Batch]:
    """Short rows of tokens from 5 to 59, padded with 1 to the longest of a batch and further."""
    made = []
    for start in range(0, ROWS, size):
        ids = IDS[start : start + size]
        width = max(map(len, ids)) + padding
        mask = torch.stack([(torch.arange(width) < len(each)).long() for each in ids])
        padded = torch.stack([pad(each, (0, width - len(each)), value=1) for each in ids])
        made.append(Batch({"input_ids": padded, "attention_mask": mask}, LABELS[start : start + size]))
    return made


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def missing(gram_KK: np.ndarray, weight_DK: np.ndarray, gone: list[int]) -> float:
    """Squares that are missing without these inputs when the others' weights are fitted: by the Schur complement."""
    left = [each for each in range(len(gram_KK)) if each not in gone]
    inner = gram_KK[np.ix_(gone, gone)]
    if left:
        across = gram_KK[np.ix_(left, gone)]
        inner = inner - across.T @ np.linalg.solve(gram_KK[np.ix_(left, left)], across)
    return float(np.trace(weight_DK[:, gone] @ inner @ weight_DK[:, gone].T))


def by_brute_force(gram_KK: np.ndarray, weight_DK: np.ndarray, size: int) -> np.ndarray:
    """Each unit's cost: of every unit that may go next, the one with which least is missing goes."""
    units = len(gram_KK) // size
    costs, gone, so_far, worst = np.zeros(units), list[int](), 0.0, 0.0

    def inputs(numbers: list[int]) -> list[int]:
        return [unit * size + offset for unit in numbers for offset in range(size)]

    while len(gone) < units:
        tried = {one: missing(gram_KK, weight_DK, inputs([*gone, one])) for one in range(units) if one not in gone}
        one = min(tried, key=lambda each: tried[each])
        worst = max(worst, tried[one] - so_far)
        costs[one], so_far = worst, tried[one]
        gone.append(one)
    return costs


@pytest.mark.parametrize(("units", "size"), [(10, 1), (5, 3), (70, 1)])
def test_costs_are_those_of_trying_every_unit_and_fitting_the_rest(units: int, size: int):
    draw = np.random.default_rng(5)
    inputs = draw.normal(size=(300, units * size)) @ draw.normal(size=(units * size, units * size))
    gram, weight = inputs.T @ inputs, draw.normal(size=(6, units * size))
    found = removal_costs(torch.tensor(gram), torch.tensor(weight), size).numpy()
    np.testing.assert_allclose(found, by_brute_force(gram, weight, size), rtol=1e-5)


def test_of_two_units_that_are_alike_the_first_costs_nothing_and_the_second_what_both_are_worth():
    draw = np.random.default_rng(5)
    inputs = draw.normal(size=(200, 6))
    inputs[:, 3] = inputs[:, 1]
    weight = torch.tensor(draw.normal(size=(4, 6)))
    gram = torch.tensor(inputs.T @ inputs) + 1e-9 * torch.eye(6, dtype=torch.float64)
    costs = removal_costs(gram, weight, 1)
    first, second = sorted((float(costs[1]), float(costs[3])))
    assert first < 1e-6 * second
    together = (weight[:, 1] + weight[:, 3])[:, None]
    rest = [0, 1, 2, 4, 5]
    alone = removal_costs(gram[rest][:, rest], torch.cat([weight[:, :1], together, weight[:, [2, 4, 5]]], 1), 1)
    assert second == pytest.approx(float(alone[1]), rel=1e-4)


def row_by_row(model: torch.nn.Module, place: tuple[torch.nn.Module, torch.nn.Module]) -> tuple[Tensor, Tensor]:
    """What a projection reads and the slope of each row's loss at the norm behind it, of all tokens of single rows."""
    projection, norm = place
    read, sums = list[Tensor](), list[Tensor]()
    hooks = [
        projection.register_forward_pre_hook(lambda _part, args: read.append(args[0][0].detach())),
        norm.register_forward_pre_hook(lambda _part, args: (args[0].retain_grad(), sums.append(args[0]))[0]),
    ]
    for batch in batches(1):
        loss(model(**batch.inputs).logits, batch.targets).backward()
    for hook in hooks:
        hook.remove()
    return torch.cat(read).double(), torch.cat([each.grad[0] for each in sums]).double()


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 9), (32, 0)])
def test_scores_are_brute_forces_on_single_rows_at_any_batch_size_and_padding(size: int, padding: int):
    model = make("bert")
    found = surgeon(model, batches(size, padding), loss)
    for index, layer in enumerate(anatomy(model).layers):
        for projection, norm, mine, unit in (
            (layer.attention_output, layer.attention_norm, found.heads[index], 8),
            (layer.down, layer.norm, found.neurons[index], 1),
        ):
            read, slopes = row_by_row(model, (projection, norm))
            charge = slopes.square().sum(1, keepdim=True)
            centred = read - (charge * read).sum(0) / charge.sum()
            gram = (charge * centred).T @ centred / ROWS
            gram += DAMPING * gram.diagonal().mean() * torch.eye(len(gram))
            spread = slopes.T @ slopes / slopes.square().sum()
            root = torch.linalg.cholesky(spread + 1e-12 * torch.eye(len(spread)))
            weight = root.T @ projection.weight.detach().double()
            expected = by_brute_force(gram.numpy(), weight.numpy(), unit)
            np.testing.assert_allclose(mine.numpy(), expected, rtol=2e-3, atol=1e-4 * expected.max())
        assert float(found.halves[index, 0]) == pytest.approx(float(found.heads[index].sum()))
        assert float(found.layers[index]) == pytest.approx(float(found.halves[index].sum()))


def test_a_neuron_whose_double_stays_is_the_first_to_go_where_fisher_sees_no_difference():
    model = make("bert")
    layer = anatomy(model).layers[0]
    with torch.no_grad():
        layer.up.weight[9], layer.up.bias[9] = layer.up.weight[4].clone(), layer.up.bias[4].clone()
        layer.down.weight[:, 9] = layer.down.weight[:, 4] = 3 * layer.down.weight[:, 4].clone()
    alike = fisher(model, batches(8), loss).neurons[0]
    assert float(alike[[4, 9]].min()) > float(alike.median())
    costs = surgeon(model, batches(8), loss).neurons[0]
    assert float(costs[[4, 9]].min()) < 0.05 * float(costs[[4, 9]].max())


@pytest.mark.parametrize("family", ["roberta", "distilbert", "mpnet", "electra", "pruned-bert"])
def test_every_family_has_scores(family: str):
    model = make(family)
    found = surgeon(model, batches(8), loss)
    for layer, heads, neurons in zip(anatomy(model).layers, found.heads, found.neurons, strict=True):
        assert (len(heads), len(neurons)) == (layer.heads, layer.neurons)
        assert float(heads.min()) > 0
        assert float(neurons.min()) > 0
