"""How much each head, neuron and layer matters: by a loss, by what it writes, or by its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import model_logits
from compressor.model.footprint import head_macs, layer_macs, neuron_macs
from compressor.model.gates import channels_gated, gated
from compressor.model.parts import Layer, anatomy, shapes
from compressor.model.written import written

# B rows, L tokens, D hidden, H heads, d head size, F neurons

LossPerRow = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), targets) to loss, shape (B,)."""


class Examples(Protocol):
    """A batch: what the model takes, and what the loss compares with."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """input_ids, attention_mask and so on, each (B, L)."""

    @property
    def targets(self) -> Tensor:
        """Labels (B,), or what else the loss takes, one a row."""


@dataclass(frozen=True)
class Scores:
    """Float64 on the CPU, >= 0; more matters more."""

    heads: tuple[Tensor, ...]
    """One a layer, shape (H,)."""
    neurons: tuple[Tensor, ...]
    """One a layer, shape (F,)."""
    layers: Tensor
    """Shape (layers,)."""


@dataclass(frozen=True)
class Channels:
    """How much each channel matters; >= 0, more matters more."""

    hidden: Tensor
    """Shape (D,)."""
    queries: tuple[Tensor, ...]
    """Of each channel of queries and keys; one a layer, shape (H * d,)."""
    values: tuple[Tensor, ...]
    """Of each channel of the values; one a layer, shape (H * d,)."""
    neurons: tuple[Tensor, ...]
    """One a layer, shape (F,)."""


def taylor(model: PreTrainedModel, batches: Iterable[Examples], loss_per_row: LossPerRow) -> Scores:
    """Mean over rows of |d loss of the row / d gate|, exactly, with one backward a batch.

    The sum over rows comes after the absolute value (Michel et al. 2019, https://arxiv.org/abs/1905.10650, equation 2),
    so signs of rows do not cancel and the score does not depend on the batch size or on padding.
    A gate stands on each head's context, each neuron's activation, and each layer's change to its input.
    Raises: InputError when there is no row.
    """
    return _gate_scores(model, batches, loss_per_row, torch.abs)


def fisher(model: PreTrainedModel, batches: Iterable[Examples], loss_per_row: LossPerRow) -> Scores:
    """Mean over rows of (d loss of the row / d gate) squared, exactly, with the same backward a batch as `taylor`.

    It is the diagonal of the gates' empirical Fisher information, by which Kwon et al. 2022
    (https://arxiv.org/abs/2204.09656) choose masks: half the sum over what is cut estimates how much the loss rises.
    Raises: InputError when there is no row.
    """
    return _gate_scores(model, batches, loss_per_row, torch.square)


def _gate_scores(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    of_slope: Callable[[Tensor], Tensor],
) -> Scores:
    """Mean over rows of `of_slope` of the row's slope at the gate of every head, neuron and layer."""
    sizes = shapes(model)
    count = len(sizes.layers)
    widths = [*(each.heads for each in sizes.layers), *(each.ffn for each in sizes.layers), *(1 for _ in sizes.layers)]

    def install(gates: Sequence[Tensor]) -> AbstractContextManager[None]:
        whole = [gate.squeeze(1) for gate in gates[2 * count :]]
        return gated(model, heads=gates[:count], neurons=gates[count : 2 * count], layers=whole)

    means = _mean_slopes(model, batches, loss_per_row, widths, install, of_slope)
    return Scores(tuple(means[:count]), tuple(means[count : 2 * count]), torch.cat(means[2 * count :]))


def channel_taylor(model: PreTrainedModel, batches: Iterable[Examples], loss_per_row: LossPerRow) -> Channels:
    """How much each channel matters: mean over rows of |d loss of the row / d gate|, as `taylor` does for whole parts.

    The gate of a hidden channel stands on it everywhere in the stack at once: after the embeddings and after both
    norms of every layer. Those of a layer stand on its queries, on the weighted values of its heads and on its neurons.
    Raises: InputError when there is no row, or a layer has no heads or neurons left.
    """
    sizes = shapes(model)
    if any(not layer.heads or not layer.ffn for layer in sizes.layers):
        raise InputError("channels cannot be scored where all heads or neurons of a layer were pruned")
    inner = [layer.heads * layer.head_size for layer in sizes.layers]
    count = len(inner)
    widths = [sizes.hidden, *inner, *inner, *(layer.ffn for layer in sizes.layers)]

    def install(gates: Sequence[Tensor]) -> AbstractContextManager[None]:
        queries, values, neurons = (gates[1 + part * count : 1 + (part + 1) * count] for part in range(3))
        return channels_gated(model, hidden=gates[0], queries=queries, values=values, neurons=neurons)

    means = _mean_slopes(model, batches, loss_per_row, widths, install, torch.abs)
    return Channels(means[0], *(tuple(means[1 + part * count : 1 + (part + 1) * count]) for part in range(3)))


def _mean_slopes(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    widths: Sequence[int],
    install: Callable[[Sequence[Tensor]], AbstractContextManager[None]],
    of_slope: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Mean over rows of `of_slope` of d loss of the row / d gate, which makes it >= 0; one of each width.

    Args:
        install: makes gates, (B, width) each, act on the model.
    Returns: float64 on the CPU.
    """
    device, training, rows = next(model.parameters()).device, model.training, 0
    sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
    used = [index for index, width in enumerate(widths) if width]
    model.eval()
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        size = len(inputs["input_ids"])
        gates = [torch.ones(size, width, device=device, requires_grad=True) for width in widths]
        with install(gates), torch.enable_grad():
            losses = loss_per_row(model(**inputs).logits, batch.targets.to(device))
        slopes = torch.autograd.grad(losses.sum(), [gates[index] for index in used])
        for index, slope in zip(used, slopes, strict=True):
            sums[index] += of_slope(slope.detach().double()).sum(0).cpu()
        rows += size
    model.train(training)
    return _over_rows(sums, rows)


def _over_rows(sums: Sequence[Tensor], rows: int) -> list[Tensor]:
    if rows == 0:
        raise InputError("importance needs rows, and none were given; give labelled ones, or unlabelled and a teacher")
    return [total / rows for total in sums]


def activation(model: PreTrainedModel, batches: Iterable[Examples]) -> Scores:
    """Mean over rows of the squared norm of what each part writes, itself a mean over the row's true tokens.

    Needs no loss: a head writes its context through the output projection, a neuron its activation times its column
    there, a layer the change of its input. Padding does not count, so neither it nor the batch size changes a score.
    Raises: InputError when there is no row.
    """
    sizes, device, rows = shapes(model), next(model.parameters()).device, 0
    count = len(sizes.layers)
    widths = [*(each.heads for each in sizes.layers), *(each.ffn for each in sizes.layers), count]
    sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
    for batch in batches:
        with written(model, batch.inputs["attention_mask"].to(device)) as norms:
            model_logits(model, batch.inputs)
        for total, values in zip(sums, (*norms.heads, *norms.neurons, torch.stack(norms.layers, -1)), strict=True):
            total += values.double().sum(0).cpu()
        rows += len(batch.inputs["input_ids"])
    means = _over_rows(sums, rows)
    return Scores(tuple(means[:count]), tuple(means[count:-1]), means[-1])


def normalised(scores: Scores) -> Scores:
    """Scores of which those of a layer's heads have the norm (L2) 1, likewise its neurons', and those of all layers.

    As Michel et al. 2019 and FastFormers do it, so that no layer goes first because its gradients are small.
    Scores that are all 0 stay so.
    """
    return Scores(tuple(map(_unit, scores.heads)), tuple(map(_unit, scores.neurons)), _unit(scores.layers))


def _unit(scores: Tensor) -> Tensor:
    norm = float(scores.norm())
    return scores / norm if norm else scores


def magnitude(model: PreTrainedModel) -> Scores:
    """Squared norm of the weights that would go with each part; a layer's is the sum of its parts."""
    parts = [(_head_norms(layer), _neuron_norms(layer)) for layer in anatomy(model).layers]
    return Scores(
        heads=tuple(heads for heads, _ in parts),
        neurons=tuple(neurons for _, neurons in parts),
        layers=torch.stack([heads.sum() + neurons.sum() for heads, neurons in parts]),
    )


def channel_norms(model: PreTrainedModel, layers: Sequence[int]) -> Channels:
    """Squared norm of what is written to each hidden channel, and of the product that each inner channel takes part in.

    Args:
        layers: those, from 0, whose writing counts.
    Raises: InputError where a layer has no heads or neurons left.
    """
    parts = anatomy(model)
    if any(not layer.heads or not layer.neurons for layer in parts.layers):
        raise InputError("channels cannot be scored where all heads or neurons of a layer were pruned")
    linears = [layer.linears for layer in parts.layers]
    tables = torch.stack([table.weight.detach().double().square().mean(0) for table in parts.tables]).sum(0)
    written = torch.stack([_squares(output, 1) + _squares(down, 1) for _, _, _, output, _, down in linears])
    return Channels(
        hidden=tables + written[list(layers)].sum(0),
        queries=tuple(_squares(query, 1) * _squares(key, 1) for query, key, *_ in linears),
        values=tuple(_squares(value, 1) * _squares(output, 0) for _, _, value, output, _, _ in linears),
        neurons=tuple(_squares(up, 1) * _squares(down, 0) for *_, up, down in linears),
    )


def randomly(model: PreTrainedModel, *, seed: int) -> Scores:
    """Uniform random numbers times each part's multiply-accumulates: the control for the other criteria."""
    sizes, source = shapes(model), torch.Generator().manual_seed(seed)

    def draw(count: int, scale: float) -> Tensor:
        return torch.rand(count, generator=source, dtype=torch.float64) * scale

    hidden = sizes.hidden
    return Scores(
        heads=tuple(draw(each.heads, head_macs(each.head_size, hidden)) for each in sizes.layers),
        neurons=tuple(draw(each.ffn, neuron_macs(hidden)) for each in sizes.layers),
        layers=torch.cat([draw(1, layer_macs(each, hidden)) for each in sizes.layers]),
    )


def _head_norms(layer: Layer) -> Tensor:
    if layer.query is None:
        return torch.zeros(0, dtype=torch.float64)
    rows: tuple[Any, ...] = (layer.query, layer.key, layer.value)
    output: Any = layer.attention_output
    squares = torch.stack([*(_squares(part, 1) for part in rows), _squares(output, 0)]).sum(0)
    return squares.view(layer.heads, layer.head_size).sum(1).cpu()


def _neuron_norms(layer: Layer) -> Tensor:
    if layer.up is None:
        return torch.zeros(0, dtype=torch.float64)
    down: Any = layer.down
    return (_squares(layer.up, 1) + _squares(down, 0)).cpu()


def _squares(part: torch.nn.Linear, dim: int) -> Tensor:
    return part.weight.detach().double().square().sum(dim)


CRITERIA: dict[str, Callable[[PreTrainedModel, Iterable[Examples], LossPerRow, int], Scores]] = {
    "taylor": lambda model, batches, loss, _seed: taylor(model, batches, loss),
    "fisher": lambda model, batches, loss, _seed: fisher(model, batches, loss),
    "activation": lambda model, batches, _loss, _seed: activation(model, batches),
    "magnitude": lambda model, _batches, _loss, _seed: magnitude(model),
    "random": lambda model, _batches, _loss, seed: randomly(model, seed=seed),
}
"""Name in a recipe to the function of (model, batches, loss per row, seed) that scores every part."""
