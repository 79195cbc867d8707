"""The settings of pruning, checked against each other, and what remains counted in the unit of the target."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.footprint import parameters
from compressor.model.importance import Scores
from compressor.model.manifest import Shapes
from compressor.model.parts import shapes
from compressor.model.surgery import Kept
from compressor.prune.latency_table import LatencyTable
from compressor.prune.schedule import WEIGHT_BYTES, Choice, Counted, Prices, choose, floor, prices_for
from compressor.prune.search import choose_by_time, least_time
from compressor.prune.settings import (
    Kind,
    Masks,
    Quantity,
    Recover,
    Remove,
    Until,
    check_alone,
    check_masks,
    is_share,
    kinds_of,
)
from compressor.prune.width import Widths, choose_width, width_prices
from compressor.settings import parse_bytes, parse_kept_share
from compressor.train.settings import Train

SMOKE_SHARE = 0.7
"""What stands for a size in a smoke run, whose model has another."""

Amounts = Prices | LatencyTable | Widths
"""What a model amounts to: whole numbers of the parts, milliseconds by a table, or whole numbers by its width."""


def amount_left(amounts: Amounts, sizes: Shapes) -> float:
    """What a model of these shapes amounts to."""
    return amounts.totals[sizes.hidden] if isinstance(amounts, Widths) else amounts.total(sizes.layers)


def check_target(
    remove: Remove,
    until: Until | None,
    *,
    steps: int,
    reconstruct: bool,
    recover: Recover | None,
    masks: Masks | None,
) -> frozenset[Kind]:
    """The kinds that may go; InputError for settings that cannot work together or would change nothing that counts."""
    try:
        check_alone(remove, steps=steps, reconstruct=reconstruct, recover=recover)
        check_masks(masks, remove, steps=steps, reconstruct=reconstruct, recover=recover)
        return kinds_of(remove, until)
    except ValueError as error:
        raise InputError(str(error)) from error


def share_of_train(train: Train, steps: int) -> Train:
    """The training of one recovery out of `steps`.

    >>> share_of_train(Train(epochs=3.0), 2).epochs
    1.5
    """
    if train.steps is not None:
        return train.model_copy(update={"steps": max(1, train.steps // steps)})
    return train.model_copy(update={"epochs": (3.0 if train.epochs is None else train.epochs) / steps})


def counted_prices(quantity: Counted, model: PreTrainedModel, *, spared: int = 0) -> Prices:
    """Prices of the parts of a model.

    Args:
        spared: parameters that will go besides, with tokens.
    """
    return prices_for(quantity, shapes(model), parameters=parameters(model) - spared, names=bytes_of_names(model))


def priced_by_width(until: Until, model: PreTrainedModel) -> Widths:
    """What a model amounts to at each width, in the unit of the target, one of those that the width changes."""
    quantity, _ = until.target
    assert quantity in ("macs", "parameters", "bytes")
    return width_prices(quantity, model, names=bytes_of_names(model))


def amount_of(quantity: Quantity, spared: int) -> int:
    """What so many parameters count for outside the layers."""
    return {"parameters": 1, "bytes": WEIGHT_BYTES}.get(quantity, 0) * spared


def bytes_of_names(model: PreTrainedModel) -> int:
    """Bytes of model.safetensors beside its weights: names, shapes and places, in front of them."""
    start, entries = 0, dict[str, object]({"__metadata__": {"format": "pt"}})
    for name, weight in model.state_dict().items():
        end = start + 4 * weight.numel()
        entries[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, end]}
        start = end
    return 8 + math.ceil(len(json.dumps(entries, separators=(",", ":")).encode()) / 8) * 8


def share_left(until: Until, full: float, *, smoke: bool) -> float:
    """The share of `full`, the input's amount, that shall remain; InputError for a size that it has already."""
    quantity, text = until.target
    if is_share(text):
        return parse_kept_share(text)
    if smoke:
        return SMOKE_SHARE
    size = parse_bytes(text)
    if size >= full:
        raise InputError(
            f"until.{quantity} {text} would remove nothing: the model has {full / 1e6:.2f} MB; write less, or leave "
            "the stage out"
        )
    return size / full


def rounded_down(amounts: Amounts, amount: float) -> float:
    """An amount on the grid that totals lie on, so that what is below it is below the amount: ones, or 0.0001 ms."""
    if isinstance(amounts, LatencyTable):
        return math.floor(amount * 1e4 + 1e-6) / 1e4
    return math.floor(amount + 1e-9)


def in_words(amounts: Amounts, amount: float) -> str:
    """An amount with its unit."""
    return f"{amount:.4g} ms" if isinstance(amounts, LatencyTable) else f"{amount}"


def least_left(sizes: Shapes, amounts: Amounts, remove: frozenset[Kind]) -> float:
    """The least amount that pruning can leave, as `floor` says."""
    if isinstance(amounts, LatencyTable):
        return least_time(sizes, amounts, remove)
    if isinstance(amounts, Widths):
        return amounts.floor
    return floor(sizes, amounts, remove)


def choose_parts(
    sizes: Shapes,
    scores: Scores,
    *,
    remove: frozenset[Kind],
    prices: Amounts,
    budget: float,
    last: float | None = None,
    loss_with: Callable[[Kept], float],
) -> Choice:
    """What stays within `budget`: by the search for times, else the parts of least score per price, or channels, go.

    The arguments are those of `choose_by_time` and `choose`.
    """
    if isinstance(prices, LatencyTable):
        return choose_by_time(sizes, scores, remove=remove, table=prices, budget=budget, last=last, loss_with=loss_with)
    if isinstance(prices, Widths):
        return choose_width(sizes, scores.hidden, prices, budget=budget)
    whole = None if last is None else int(last)
    return choose(sizes, scores, remove=remove, prices=prices, budget=int(budget), last=whole, loss_with=loss_with)
