"""How much each head, neuron, half of a layer and layer matters: by a loss, by what it writes, or by its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import model_logits
from compressor.model.footprint import half_macs, head_macs, layer_macs, neuron_macs
from compressor.model.gates import channels_gated, gated
from compressor.model.parts import Layer, anatomy, shapes
from compressor.model.states import model_inputs
from compressor.model.surgeon import rises
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
    halves: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.float64))
    """Shape (layers, 2): the attention and the feed-forward half of each; (0, 2) where they were not scored."""
    hidden: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    """Shape (D,), of the channels of the hidden states; (0,) where they were not scored."""


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
    A gate stands on each head's context, each neuron's activation, and each layer's change to its input. That of a half
    stands on all its heads, or neurons, at once: on what it adds to the stream beside the bias, which stays.
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


def surgeon(model: PreTrainedModel, batches: Iterable[Examples], loss_per_row: LossPerRow) -> Scores:
    """About twice the rise of the mean loss as each head or neuron goes, while those left beside it make good for it.

    `model.surgeon.rises` says how. Scores are for parts that go in their order, as one is worth more once another that
    does the same is gone; a half's, and a layer's, is the sum of its parts.
    Raises: InputError when there is no row.
    """
    pairs, rows = rises(model, batches, loss_per_row)
    means = over_rows([costs for pair in pairs for costs in pair], rows)
    heads, neurons = means[::2], means[1::2]
    halves = torch.stack([torch.stack([of_heads.sum(), of_neurons.sum()])
                          for of_heads, of_neurons in zip(heads, neurons, strict=True)])  # fmt: skip
    return Scores(tuple(heads), tuple(neurons), halves.sum(1), halves)


def _gate_scores(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    of_slope: Callable[[Tensor], Tensor],
) -> Scores:
    """Mean over rows of `of_slope` of the row's slope at the gate of every head, neuron, layer and half."""
    sizes = shapes(model)
    count = len(sizes.layers)
    widths = [*(each.heads for each in sizes.layers), *(each.ffn for each in sizes.layers), *(1 for _ in sizes.layers)]

    def install(gates: Sequence[Tensor]) -> AbstractContextManager[None]:
        whole = [gate.squeeze(1) for gate in gates[2 * count :]]
        return gated(model, heads=gates[:count], neurons=gates[count : 2 * count], layers=whole)

    def of_slopes(slopes: Sequence[Tensor]) -> list[Tensor]:
        halves = torch.stack([slope.sum(1) for slope in slopes[: 2 * count]], 1)  # moving all gates of a half at once
        return [of_slope(each) for each in (*slopes, halves)]

    *means, halves = mean_slopes(model, batches, loss_per_row, widths, install, of_slopes)
    return Scores(
        heads=tuple(means[:count]),
        neurons=tuple(means[count : 2 * count]),
        layers=torch.cat(means[2 * count :]),
        halves=halves.view(2, count).T,
    )


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

    def of_slopes(slopes: Sequence[Tensor]) -> list[Tensor]:
        return [slope.abs() for slope in slopes]

    means = mean_slopes(model, batches, loss_per_row, widths, install, of_slopes)
    return Channels(means[0], *(tuple(means[1 + part * count : 1 + (part + 1) * count]) for part in range(3)))


def mean_slopes(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    widths: Sequence[int],
    install: Callable[[Sequence[Tensor]], AbstractContextManager[None]],
    of_slopes: Callable[[Sequence[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Mean over rows of what `of_slopes` makes of d loss of the row / d gate.

    Args:
        widths: of the gates.
        install: makes gates, (B, width) each, act on the model.
        of_slopes: takes the slopes, float64, (B, width) each; gives tensors >= 0, (B, ..) each.
    Returns: float64 on the CPU.
    """
    device, training, rows = next(model.parameters()).device, model.training, 0
    sums = list[Tensor]()
    used = [index for index, width in enumerate(widths) if width]
    model.eval()
    for batch in batches:
        inputs = {name: value.to(device) for name, value in model_inputs(model, batch.inputs).items()}
        size = len(inputs["input_ids"])
        gates = [torch.ones(size, width, device=device, requires_grad=True) for width in widths]
        with install(gates), torch.enable_grad():
            losses = loss_per_row(model(**inputs).logits, batch.targets.to(device))
        slopes = [torch.zeros_like(gate, dtype=torch.float64) for gate in gates]
        found = torch.autograd.grad(losses.sum(), [gates[index] for index in used])
        for index, slope in zip(used, found, strict=True):
            slopes[index] = slope.detach().double()
        values = [value.sum(0).cpu() for value in of_slopes(slopes)]
        sums = [total + value for total, value in zip(sums, values, strict=True)] if rows else values
        rows += size
    model.train(training)
    return over_rows(sums, rows)


def over_rows(sums: Sequence[Tensor], rows: int) -> list[Tensor]:
    if rows == 0:
        raise InputError("importance needs rows, and none were given; give labelled ones, or unlabelled and a teacher")
    return [total / rows for total in sums]


def activation(model: PreTrainedModel, batches: Iterable[Examples]) -> Scores:
    """Mean over rows of the squared norm of what each part writes, itself a mean over the row's true tokens.

    Needs no loss: a head writes its context through the output projection, a neuron its activation times its column
    there, a half the sum of what its heads or neurons write, a layer the change of its input. Padding does not count,
    so neither it nor the batch size changes a score.
    Raises: InputError when there is no row.
    """
    sizes, device, rows = shapes(model), next(model.parameters()).device, 0
    count = len(sizes.layers)
    widths = [*(each.heads for each in sizes.layers), *(each.ffn for each in sizes.layers), *[count] * 3]
    sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
    for batch in batches:
        with written(model, batch.inputs["attention_mask"].to(device)) as norms:
            model_logits(model, batch.inputs)
        stacked = (torch.stack(each, -1) for each in (norms.layers, norms.attention, norms.feed_forward))
        for total, values in zip(sums, (*norms.heads, *norms.neurons, *stacked), strict=True):
            total += values.double().sum(0).cpu()
        rows += len(batch.inputs["input_ids"])
    *parts, layers, attention, feed_forward = over_rows(sums, rows)
    halves = torch.stack([attention, feed_forward], 1)
    return Scores(tuple(parts[:count]), tuple(parts[count:]), layers, halves)


def normalised(scores: Scores) -> Scores:
    """Scores of which those of a layer's heads have the norm (L2) 1, likewise its neurons', all layers' and halves'.

    As Michel et al. 2019 and FastFormers do it, so that no layer goes first because its gradients are small.
    Scores that are all 0 stay so.
    """
    heads, neurons = tuple(map(_unit, scores.heads)), tuple(map(_unit, scores.neurons))
    return Scores(heads, neurons, _unit(scores.layers), _unit(scores.halves))


def _unit(scores: Tensor) -> Tensor:
    norm = float(scores.norm())
    return scores / norm if norm else scores


def magnitude(model: PreTrainedModel) -> Scores:
    """Squared norm of the weights that would go with each part; a half's, and a layer's, is the sum of its parts."""
    parts = [(_head_norms(layer), _neuron_norms(layer)) for layer in anatomy(model).layers]
    halves = torch.stack([torch.stack([heads.sum(), neurons.sum()]) for heads, neurons in parts])
    return Scores(
        heads=tuple(heads for heads, _ in parts),
        neurons=tuple(neurons for _, neurons in parts),
        layers=halves.sum(1),
        halves=halves,
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
    first = tables if parts.projection is None else _squares(parts.projection, 1)
    written = torch.stack([_squares(output, 1) + _squares(down, 1) for _, _, _, output, _, down in linears])
    return Channels(
        hidden=first + written[list(layers)].sum(0),
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
    halves = [half_macs(each, hidden) for each in sizes.layers]
    return Scores(
        heads=tuple(draw(each.heads, head_macs(each.head_size, hidden)) for each in sizes.layers),
        neurons=tuple(draw(each.ffn, neuron_macs(hidden)) for each in sizes.layers),
        layers=torch.cat([draw(1, layer_macs(each, hidden)) for each in sizes.layers]),
        halves=torch.stack([torch.cat([draw(1, each) for each in both]) for both in halves]),
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
    "surgeon": lambda model, batches, loss, _seed: surgeon(model, batches, loss),
    "activation": lambda model, batches, _loss, _seed: activation(model, batches),
    "magnitude": lambda model, _batches, _loss, _seed: magnitude(model),
    "random": lambda model, _batches, _loss, seed: randomly(model, seed=seed),
}
"""Name in a recipe to the function of (model, batches, loss per row, seed) that scores every part."""
