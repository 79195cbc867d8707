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
from compressor.prune.schedule import Choice, Counted, Prices, choose, floor, prices_for
from compressor.prune.search import choose_by_time, least_time
from compressor.prune.settings import Kind, Remove, Until, is_share, kinds_of
from compressor.settings import parse_bytes, parse_kept_share
from compressor.train.settings import Train

SMOKE_SHARE = 0.7
"""What stands for a size in a smoke run, whose model has another."""

Amounts = Prices | LatencyTable
"""What a model, or a layer of it, amounts to: whole numbers of the parts, or milliseconds by a table."""


def check_target(remove: Remove, until: Until) -> frozenset[Kind]:
    """The kinds that may go; InputError where there is none, or where one of them would change nothing that counts."""
    try:
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


def counted_prices(quantity: Counted, model: PreTrainedModel) -> Prices:
    """Prices of the parts of a model."""
    return prices_for(quantity, shapes(model), parameters=parameters(model), names=bytes_of_names(model))


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
    """The least amount that pruning can leave: one head and one neuron a layer, or one layer where layers may go."""
    if isinstance(amounts, LatencyTable):
        return least_time(sizes, amounts, remove)
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
    """What stays within `budget`: by the search for times, else the parts of least score per price go.

    The arguments are those of `choose_by_time` and `choose`.
    """
    if isinstance(prices, LatencyTable):
        return choose_by_time(sizes, scores, remove=remove, table=prices, budget=budget, last=last, loss_with=loss_with)
    whole = None if last is None else int(last)
    return choose(sizes, scores, remove=remove, prices=prices, budget=int(budget), last=whole, loss_with=loss_with)
