"""Copies of a training's weights: a moving average, the best so far, and their use in place of the current ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(module: nn.Module) -> Weights:
    """Copies of the parameters by name, shared ones once."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def set_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write the parameters by name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[name])


def update_average(average: Weights, module: nn.Module, *, decay: float, step: int) -> None:
    """Move `average` towards the parameters, in place, after optimizer step `step` (from 1).

    average = d average + (1 - d) parameter, with d = min(decay, step / (10 + step)), so that the first steps are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage with num_updates).
    """
    share = 1.0 - min(decay, step / (10.0 + step))
    with torch.no_grad():
        parameters = [parameter.detach() for _, parameter in module.named_parameters()]
        torch._foreach_lerp_(list(average.values()), parameters, share)


@contextlib.contextmanager
def using(module: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside, `module` has these weights (None: its own); after it, those it had."""
    if weights is None:
        yield
        return
    before = weights_of(module)
    set_weights(module, weights)
    try:
        yield
    finally:
        set_weights(module, before)
