"""How much each channel of the hidden states matters, and what a model of fewer of them amounts to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.model.encoders import model_logits
from compressor.model.footprint import layer_parameters, parameters
from compressor.model.gates import hidden_gated
from compressor.model.importance import Examples, LossPerRow, mean_slopes, over_rows
from compressor.model.parts import anatomy, shapes
from compressor.model.states import record_hidden

# B rows, L tokens, D hidden


def hidden_slopes(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    of_slope: Callable[[Tensor], Tensor],
) -> Tensor:
    """Mean over rows of `of_slope` of d loss of the row / d gate of each hidden channel, shape (D,).

    The gate is that of `gates.hidden_gated`, by which the channel counts everywhere at once, in the norms too: the same
    as `surgery.masked` sets to 0. Neither batch size nor padding changes a score.
    Raises: InputError when there is no row.
    """

    def install(gates: Sequence[Tensor]) -> AbstractContextManager[None]:
        return hidden_gated(model, gates[0])

    def of_slopes(slopes: Sequence[Tensor]) -> list[Tensor]:
        return [of_slope(slopes[0])]

    (means,) = mean_slopes(model, batches, loss_per_row, [shapes(model).hidden], install, of_slopes)
    return means


def hidden_activation(model: PreTrainedModel, batches: Iterable[Examples]) -> Tensor:
    """Mean over rows of the square of each hidden channel, itself a mean over the row's true tokens, shape (D,).

    Needs no loss. Summed over what the first layer reads and what each layer gives.
    Raises: InputError when there is no row.
    """
    sizes, device, rows = shapes(model), next(model.parameters()).device, 0
    total = torch.zeros(sizes.hidden, dtype=torch.float64)
    with record_hidden(model, layers=range(len(sizes.layers) + 1)) as states:
        for batch in batches:
            model_logits(model, batch.inputs)
            mask = batch.inputs["attention_mask"].to(device).double()
            share = mask / mask.sum(-1, keepdim=True)
            for state_BLD in states.values():
                total += torch.einsum("bld,bl->d", state_BLD.double().square(), share).cpu()
            rows += len(mask)
    return over_rows([total], rows)[0]


def hidden_norms(model: PreTrainedModel) -> Tensor:
    """Squared norm of the weights that would go with each hidden channel, shape (D,); of tables a mean of rows."""
    parts = anatomy(model)
    writes = [half for layer in parts.layers for half in (layer.attention_output, layer.down)]
    reads = [part for layer in parts.layers for part in (layer.query, layer.key, layer.value, layer.up) if part]
    rows = [*([] if parts.projection is None else [parts.projection]), parts.pooler, *writes]
    columns = [*reads, parts.pooler, parts.classifier]
    tables = parts.tables if parts.projection is None else ()
    found = [table.weight.detach().double().square().mean(0) for table in tables]
    found += [part.weight.detach().double().square().sum(1) for part in rows if isinstance(part, torch.nn.Linear)]
    found += [part.weight.detach().double().square().sum(0) for part in columns]
    return torch.stack(found).sum(0).cpu()


def hidden_random(model: PreTrainedModel, *, seed: int) -> Tensor:
    """Uniform random numbers, shape (D,): the control for the other criteria."""
    return torch.rand(shapes(model).hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN_CRITERIA: dict[str, Callable[[PreTrainedModel, Iterable[Examples], LossPerRow, int], Tensor]] = {
    "taylor": lambda model, batches, loss, _seed: hidden_slopes(model, batches, loss, torch.abs),
    "fisher": lambda model, batches, loss, _seed: hidden_slopes(model, batches, loss, torch.square),
    "activation": lambda model, batches, _loss, _seed: hidden_activation(model, batches),
    "magnitude": lambda model, _batches, _loss, _seed: hidden_norms(model),
    "random": lambda model, _batches, _loss, seed: hidden_random(model, seed=seed),
}
"""Name in a recipe to the function of (model, batches, loss per row, seed) that scores every hidden channel."""


def parameters_at(model: PreTrainedModel, width: int) -> int:
    """Numbers in all weights of `model` cut to so many hidden channels; its own at its own width."""

    def going(hidden: int) -> int:
        """Numbers in what is as wide as the hidden states."""
        inside = sum(layer_parameters(layer, hidden) for layer in sizes.layers)
        return inside + embedded * hidden + hidden * (hidden + 1) + parts.classifier.out_features * hidden

    parts, sizes = anatomy(model), shapes(model)
    if parts.projection is None:
        embedded = sum(table.num_embeddings for table in parts.tables) + 2
    else:
        embedded = parts.projection.in_features + 1
    return parameters(model) - going(sizes.hidden) + going(width)
