"""How much a loss would rise, were parts removed one by one and what is left of their projection fitted each time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.model.parts import anatomy
from compressor.model.reconstruct import DAMPING, Place, hooked, places
from compressor.model.states import model_inputs

if TYPE_CHECKING:
    from compressor.model.importance import Examples, LossPerRow

# B rows, L tokens, N true tokens, D hidden, K inputs of a projection, U units (heads or neurons) of d inputs each

COMPACT = 64
"""Removals after which the matrices are made as small as what is left."""


@dataclass
class Curvature:
    """Sums over true tokens at one output projection, in float64."""

    inputs: Tensor
    """Of what it reads, with a 1 behind it, times itself and the squared norm of the token's slope, (K + 1, K + 1)."""
    slopes: Tensor
    """Of the slope of the row's loss at what it writes, times itself, (D, D)."""

    @classmethod
    def empty(cls, place: Place) -> Curvature:
        """Of no token."""
        bias = place.projection.bias
        return cls(*(torch.zeros(size, size).to(bias.device, torch.float64) for size in (place.inputs + 1, len(bias))))

    def add(self, inputs_NK: Tensor, slopes_ND: Tensor) -> None:
        """Count tokens in: what the projection reads, and the slope of the loss of the token's row at its output."""
        slopes = slopes_ND.double()
        wide = torch.cat([inputs_NK, inputs_NK.new_ones(len(inputs_NK), 1)], dim=1).double()
        weighed = wide * slopes.norm(dim=1, keepdim=True)
        self.inputs += weighed.T @ weighed
        self.slopes += slopes.T @ slopes

    def costs(self, place: Place, size: int, damping: float) -> Tensor:
        """What each unit of `size` inputs adds when it goes, (U,), on the CPU; 0 where no slope says otherwise."""
        total = float(self.inputs[-1, -1])
        if not place.inputs or not total > 0:
            return torch.zeros(place.inputs // size, dtype=torch.float64)
        mean_K = self.inputs[:-1, -1] / total
        gram_KK = self.inputs[:-1, :-1] - total * torch.outer(mean_K, mean_K)
        ridge = damping * float(gram_KK.diagonal().mean())
        if not ridge > 0:
            return torch.zeros(place.inputs // size, dtype=torch.float64)
        gram_KK += ridge * torch.eye(len(gram_KK)).to(gram_KK)
        values, vectors = torch.linalg.eigh(self.slopes / self.slopes.trace())
        root_DD = vectors.T * values.clamp_min(0.0).sqrt()[:, None]
        weight: Any = place.projection.weight
        return removal_costs(gram_KK, root_DD @ weight.detach().double(), size).cpu()


def removal_costs(gram_KK: Tensor, weight_DK: Tensor, size: int) -> Tensor:
    """What each unit adds to the squares that are missing when the units go one by one, the cheapest first, (U,).

    After each the other units' weights make good for it as far as least squares can, so that of two that are alike the
    first costs next to nothing and the second what both are worth (the optimal brain surgeon, Hassibi and Stork 1993,
    on whole units as in Kurtic et al. 2023, https://arxiv.org/abs/2302.04089). None is said to cost less than those
    that went before it, so that costs put the units in the order in which they go.

    Args:
        gram_KK: inputs times themselves, summed over tokens; positive definite.
        weight_DK: of the projection.
        size: inputs of a unit; they follow each other.
    """
    inverse_KK, weight_DK = torch.linalg.inv(gram_KK), weight_DK.clone()
    units = torch.arange(len(gram_KK) // size, device=gram_KK.device)
    here = torch.ones_like(units, dtype=torch.bool)
    found, worst = torch.zeros(len(units), dtype=gram_KK.dtype, device=gram_KK.device), 0.0
    for removed in range(1, len(units) + 1):
        costs = _costs(inverse_KK, weight_DK, size).masked_fill(~here, torch.inf)
        one = int(costs.argmin())
        worst = max(worst, float(costs[one]))
        found[units[one]], here[one] = worst, False
        _remove(inverse_KK, weight_DK, slice(one * size, (one + 1) * size))
        if removed % COMPACT == 0:
            left = here.repeat_interleave(size)
            inverse_KK, weight_DK = inverse_KK[left][:, left].contiguous(), weight_DK[:, left].contiguous()
            units, here = units[here], here[here]
    return found


def _costs(inverse_KK: Tensor, weight_DK: Tensor, size: int) -> Tensor:
    """What each unit would add now, (U,)."""
    if size == 1:
        return weight_DK.square().sum(0) / inverse_KK.diagonal()
    units = len(inverse_KK) // size
    blocks_Udd = inverse_KK.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts_UdD = weight_DK.view(-1, units, size).permute(1, 2, 0)
    fitted_UdD: Tensor = torch.linalg.solve(blocks_Udd, parts_UdD)
    return (parts_UdD * fitted_UdD).sum((1, 2))


def _remove(inverse_KK: Tensor, weight_DK: Tensor, unit: slice) -> None:
    """Takes a unit out of both in place; what stands there afterwards costs nothing and can be inverted."""
    share_dK = torch.linalg.solve(inverse_KK[unit, unit], inverse_KK[unit])
    weight_DK -= weight_DK[:, unit] @ share_dK
    inverse_KK -= inverse_KK[:, unit] @ share_dK
    weight_DK[:, unit] = inverse_KK[unit] = inverse_KK[:, unit] = 0.0
    inverse_KK[unit, unit] = torch.eye(unit.stop - unit.start).to(inverse_KK)


def rises(
    model: PreTrainedModel,
    batches: Iterable[Examples],
    loss_per_row: LossPerRow,
    *,
    damping: float = DAMPING,
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """For each layer what each head, (H,), and each neuron, (F,), adds to the loss as it goes, and how many rows.

    Sums over rows of about twice the rise, by `removal_costs` at each output projection. There the loss is taken to be
    quadratic, its curvature as what the tokens' inputs times themselves, weighed by the squared norms of their slopes,
    and these slopes times themselves give when they are independent (after Martens and Grosse 2015,
    https://arxiv.org/abs/1503.05671). The bias is fitted, too. Padding does not count.
    """
    layers = anatomy(model).layers
    every = [place for layer in layers for place in places(layer)]
    device, training, rows = next(model.parameters()).device, model.training, 0
    found = [Curvature.empty(place) for place in every]
    model.eval()
    for batch in batches:
        inputs = {name: value.to(device) for name, value in model_inputs(model, batch.inputs).items()}
        with _probed(every) as (read, probes), torch.enable_grad():
            losses = loss_per_row(model(**inputs).logits, batch.targets.to(device))
        true = batch.inputs["attention_mask"].to(device).bool()
        for one, values, slopes in zip(found, read, torch.autograd.grad(losses.sum(), probes), strict=True):
            one.add(values[true], slopes[true])
        rows += len(true)
    model.train(training)
    sizes = [size for layer in layers for size in (layer.head_size, 1)]
    costs = [one.costs(place, size, damping) for one, place, size in zip(found, every, sizes, strict=True)]
    return list(zip(costs[::2], costs[1::2], strict=True)), rows


@contextlib.contextmanager
def _probed(every: Sequence[Place]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Inside, a pass fills both lists, one a place: what its projection reads, and zeros that are added to its sum."""
    read, probes = list[Tensor](), list[Tensor]()

    def add_probe(_norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        probes.append(torch.zeros_like(args[0], requires_grad=True))
        return (args[0] + probes[-1], *args[1:])

    def reader(inputs: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _projection, args: read.append(args[0].detach()[..., :inputs])

    hooks = [place.projection.register_forward_pre_hook(reader(place.inputs)) for place in every]
    with hooked(*hooks, *(place.norm.register_forward_pre_hook(add_probe) for place in every)):
        yield read, probes
