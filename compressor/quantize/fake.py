"""A torch model that rounds as its INT8 file will, while gradients pass as if it did not.

What scheme dynamic does to a row that is served alone: weights in signed bytes with a scale for each output
channel, the inputs of each projection in unsigned bytes with one range for all the row's tokens, embeddings in bytes
with a scale for each row of the table. Products inside attention stay in fp32. Gradients go straight through the
rounding (Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
"""

# B rows, L tokens, D channels in, O channels out

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressor.model.parts import bare
from compressor.quantize.embeddings import FEWEST_ROWS
from compressor.quantize.embeddings import round_rows as round_rows_of
from compressor.quantize.rounding import LARGEST

LEVELS = 255
"""Steps between the least and the largest of 256 values."""


def round_rows(values: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """Each row in 256 steps from its least to its largest value and back, zero kept exact; as DynamicQuantizeLinear.

    https://github.com/onnx/onnx/blob/main/docs/Operators.md#DynamicQuantizeLinear

    Args:
        values: shape (B, D) or (B, L, D), fp32 or narrower; each row has a range of its own.
        mask_BL: 0 at padding, which no range counts; None counts every place, as does a mask of another shape.
    Returns: the shape and type of `values`; padding is held inside its row's range. Gradients pass unchanged at every
        place that a range counts.
    """
    low, high = values.detach().float().aminmax(dim=-1)
    if low.dim() > 1:
        if mask_BL is not None and mask_BL.shape == low.shape:
            padding = mask_BL == 0
            low, high = low.masked_fill(padding, 0.0), high.masked_fill(padding, 0.0)
        low, high = low.flatten(1).amin(1), high.flatten(1).amax(1)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale_B = (high - low) / LEVELS
    scale_B = torch.where(scale_B > 0, scale_B, 1.0)
    zero_B = (-low / scale_B).round().clamp(0, LEVELS).to(torch.int32)
    return torch.fake_quantize_per_channel_affine(values.float(), scale_B, zero_B, 0, 0, LEVELS).to(values.dtype)


def round_channels(weight_OD: Tensor, *, reduce_range: bool) -> Tensor:
    """Each output channel in signed bytes with a step of its own, and back, as rounding.round_weights; gradients pass.

    Args:
        weight_OD: shape (O, D), as nn.Linear keeps it.
        reduce_range: keeps neighbours of one sign to 128 steps together.
    """
    given_OD = weight_OD.detach().float()
    largest_O = given_OD.abs().amax(1)
    if reduce_range:
        pairs_ODP = nn.functional.pad(given_OD, (0, given_OD.shape[1] % 2)).view(len(given_OD), -1, 2)
        for side in (pairs_ODP, -pairs_ODP):
            largest_O = torch.maximum(largest_O, side.clamp(min=0).sum(-1).amax(1))
    size_O = largest_O / LARGEST
    size_O = torch.where(size_O >= torch.finfo(size_O.dtype).tiny, size_O, 1.0)
    return _in_steps(weight_OD, size_O)


def round_embeddings(looked_up: Tensor, sizes_S: Tensor) -> Tensor:
    """Each embedding in signed bytes by the least of the steps that holds it, and back; gradients pass unchanged.

    Args:
        looked_up: shape (..., D).
        sizes_S: the steps to choose from, ascending, as embeddings.round_rows finds them for a whole table.
    """
    rows_BD = looked_up.flatten(0, -2)
    wanted_B = rows_BD.detach().float().abs().amax(1) / LARGEST
    size_B = sizes_S[torch.searchsorted(sizes_S, wanted_B).clamp(max=len(sizes_S) - 1)]
    return _in_steps(rows_BD, torch.where(size_B > 0, size_B, 1.0)).view_as(looked_up)


def _in_steps(values_OD: Tensor, size_O: Tensor) -> Tensor:
    zero_O = torch.zeros_like(size_O, dtype=torch.int32)
    wide_OD = values_OD.float()
    return torch.fake_quantize_per_channel_affine(wide_OD, size_O, zero_O, 0, -LARGEST, LARGEST).to(values_OD.dtype)


@contextlib.contextmanager
def rounding(model: nn.Module, *, reduce_range: bool) -> Iterator[None]:
    """While open, every projection and embedding of `model` rounds; its weights, names and modes stay as they are.

    Args:
        model: an encoder, called with `attention_mask` by name.
        reduce_range: as in `round_channels`.
    """
    projections = [part for part in model.modules() if isinstance(part, nn.Linear)]
    words: Any = bare(model).get_input_embeddings()
    width = words.embedding_dim  # MPNet's table of distances has another, and stays in fp32
    every = [part for part in model.modules() if isinstance(part, nn.Embedding) and part.embedding_dim == width]
    tables = [part for part in every if part.num_embeddings >= FEWEST_ROWS]
    inputs = _Inputs()
    hooks = [model.register_forward_pre_hook(inputs.take_mask, with_kwargs=True)]
    hooks += [table.register_forward_hook(_rounded_embeddings(table)) for table in tables]
    for part in projections:
        part.__dict__["forward"] = _rounded_projection(part, inputs, reduce_range=reduce_range)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in projections:
            del part.__dict__["forward"]


class _Inputs:
    """Inputs of projections, rounded once where several read the same: queries, keys and values do."""

    def __init__(self) -> None:
        self.mask_BL: Tensor | None = None
        self.last: Tensor | None = None
        self.last_rounded: Tensor | None = None

    def take_mask(self, _model: nn.Module, _places: Any, names: dict[str, Any]) -> None:
        """Remember the attention mask of the pass that begins, and forget the pass before."""
        self.mask_BL, self.last, self.last_rounded = names.get("attention_mask"), None, None

    def rounded(self, values: Tensor) -> Tensor:
        """`round_rows`, once for the same tensor."""
        if self.last is not values or self.last_rounded is None:
            self.last, self.last_rounded = values, round_rows(values, self.mask_BL)
        return self.last_rounded


def _rounded_projection(part: nn.Linear, inputs: _Inputs, *, reduce_range: bool) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        weight_OD = round_channels(part.weight, reduce_range=reduce_range)
        return nn.functional.linear(inputs.rounded(values), weight_OD, part.bias)

    return forward


def _rounded_embeddings(table: nn.Embedding) -> Callable[..., Tensor]:
    """A hook that rounds what is looked up, by steps found for the table as it is now: training moves them little."""
    weight = table.weight.detach()
    sizes_S = torch.from_numpy(round_rows_of(weight.float().cpu().numpy())[-1]).to(weight.device)

    def hook(_table: nn.Module, _places: Any, looked_up: Tensor) -> Tensor:
        return round_embeddings(looked_up, sizes_S)

    return hook
