"""INT8 with as few products as possible left in float: a ranking, a binary search, and a price for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compressor.bench.statistics import Interval
from compressor.errors import StageError
from compressor.export.audit import FLOAT
from compressor.quantize.choice import time_side_by_side, timed_elsewhere
from compressor.quantize.material import Material
from compressor.quantize.products import KEPT, Product, clean, combined, products
from compressor.quantize.sensitivity import Sensitivity, exchangeable, rank
from compressor.quantize.settings import Mixed
from compressor.quantize.trials import Trial, Trials
from compressor.stage import Decision

PRICE_ROUNDS = 7
"""Slots in which each priced form is timed."""
MOST_PRICED = 6
"""Products that are priced at most; each takes an evaluation and a process."""

Base = Callable[[frozenset[str]], ModelProto]
"""The scheme of the other products: names of the nodes to leave in float, to the graph."""


@dataclass(frozen=True)
class Mixture:
    """What the search found."""

    graph: ModelProto
    kept: tuple[Product, ...]
    """Products in float, the most sensitive first."""
    trial: Trial
    """How the graph answers; its `passed` is False where even the most float that is allowed does not suffice."""


def mixed(material: Material, settings: Mixed, *, base: Base, graph: ModelProto, trials: Trials) -> Mixture:
    """The fewest products in float that pass the gate, or without one the limits of `trials`.

    Products are ranked by how far the answers move where each alone is in INT8; that a longer part of the ranking in
    float never does worse is taken for granted by the search, and the form that is kept was tried itself.

    Args:
        base: makes the graph with given nodes in float; called for none of them and for all of them.
        graph: the fp32 graph that `base` quantizes.
        trials: compares with fp32 and knows the gate and the limits.
    Raises: StageError where the ranking finds no product in INT8.
    """
    integers = base(frozenset())
    floats = base(frozenset(each.node for each in products(graph)))
    fits = exchangeable(floats, integers, material.batches(), precise=trials.precise)

    def between(kept: Collection[Product]) -> ModelProto:
        return combined(floats, integers, kept) if fits else base(frozenset(each.node for each in kept))

    ranking = rank(
        floats, integers, material.batches(), form=between, precise=trials.precise, progress=material.progress
    )
    if not ranking:
        raise StageError("no product of the INT8 graph could be told apart, so none can be left in float")
    tried: dict[int, Trial] = {}

    def form(kept: Collection[Product]) -> ModelProto:
        return in_half(between(kept), kept, settings.keep)

    def passes(count: int) -> bool:
        if count not in tried:
            folder = trials.write("search", form([each.product for each in ranking[:count]]))
            tried[count] = trials.judged(folder, what=f"INT8 with {count} products in {settings.keep}")
        return tried[count].passed is not False

    most = math.floor(settings.max_float * len(ranking) + 1e-9)
    count = fewest(most, passes)
    passes(count)
    kept = tuple(each.product for each in ranking[:count])
    prices = _prices(material, trials, form, kept, integers)
    _tell(material, settings, ranking, kept, tried[count], prices, timed_elsewhere(trials.manifest.isa))
    return Mixture(form(kept), kept, tried[count])


def fewest(most: int, passes: Callable[[int], bool]) -> int:
    """The least count from 0 to `most` that passes, by binary search; `most` where none does.

    >>> fewest(7, lambda count: count >= 3)
    3
    """
    if most == 0 or passes(0):
        return 0
    low, high = 0, most  # low does not pass
    if not passes(high):
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Price:
    """What one product in float brings and costs, beside the graph with every product in INT8."""

    words: str
    gain: float
    """Rise of the score on `select` (of the agreement with fp32 where rows have no label), as a fraction."""
    ratio: Interval
    """Time of a row over that of the graph it stands beside, with its 95 % interval over rounds."""

    def told(self, keep: str) -> str:
        """Such as `layer 4 output in fp32: +0.4 pp, +2 percent latency (+1 to +3)`."""
        rise, low, high = (100 * (one - 1) for one in (self.ratio.value, self.ratio.low, self.ratio.high))
        time = f"{rise:+.0f} percent latency ({low:+.0f} to {high:+.0f})"
        return f"{self.words} in {keep}: {self.gain * 100:+.1f} pp, {time}"


def _prices(
    material: Material,
    trials: Trials,
    form: Callable[[Collection[Product]], ModelProto],
    kept: Sequence[Product],
    integers: ModelProto,
) -> list[Price]:
    """A price for each of the first products kept; none for a target whose times a CPU does not tell."""
    if not kept or trials.smoke or material.target != "cpu":
        return []
    folders: dict[str, Path] = {"int8": trials.write("price-int8", integers)}
    priced = kept[:MOST_PRICED]
    for number, product in enumerate(priced):
        material.progress("prices", number, len(priced))
        folders[product.node] = trials.write(f"price-{number}", form([product]))
    first, *others = [trials.seen(folder, what="a form of mixed INT8") for folder in folders.values()]
    times = time_side_by_side(folders, trials.texts, rounds=PRICE_ROUNDS, seed=material.seed)
    return [
        Price(product.words, _gain(first, other), times.ratio(product.node, "int8"))
        for product, other in zip(priced, others, strict=True)
    ]


def _gain(before: Trial, after: Trial) -> float:
    if before.drop is None or after.drop is None:
        return after.agreement - before.agreement
    return before.drop - after.drop


def _tell(
    material: Material,
    settings: Mixed,
    ranking: Sequence[Sensitivity],
    kept: Sequence[Product],
    trial: Trial,
    prices: Sequence[Price],
    elsewhere: str,
) -> None:
    chosen = f"{len(kept)} of {len(ranking)} products in {settings.keep}"
    priced = "; ".join(each.told(settings.keep) for each in prices)
    if trial.passed is False:
        because = f"with as many as max_float {settings.max_float:g} allows it still {trial.because}"
    else:
        because = "the fewest that suffice" if kept else "INT8 suffices as it is"
    because += f": {priced}{elsewhere}" if priced else ""
    rows = [
        {"product": each.product.words, "signal_to_noise_db": _finite(each.signal_to_noise), "kl": each.divergence}
        for each in ranking
    ]
    cost = {each.words: {"gain": each.gain, "latency_ratio": asdict(each.ratio)} for each in prices}
    material.decide(Decision(kind="mixed", chosen=chosen, because=because, candidates=rows, cost=cost))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def in_half(model: ModelProto, kept: Collection[Product], keep: str) -> ModelProto:
    """The graph with the float products among `kept` computed in fp16 or bf16, between casts; fp32 leaves it as it is.

    Args:
        keep: `fp32`, `fp16` or `bf16`.
    """
    if keep == "fp32" or not kept:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    weights = {each.name: each for each in result.graph.initializer}
    names = {each.node for each in kept}
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        ours = node.name in names or node.name.startswith(KEPT)
        halve = ours and node.op_type in FLOAT and weights.keys() & set(node.input)
        nodes += _between_casts(node, weights, result.graph, keep) if halve else [node]
    made = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(made)
    clean(result.graph)
    return result


def _between_casts(
    node: NodeProto, weights: Mapping[str, TensorProto], graph: GraphProto, keep: str
) -> list[NodeProto]:
    """The node with its weights in half precision, and casts before and after it; adds the weights to the graph."""
    kind, numbers = HALVES[keep]
    made = NodeProto.FromString(node.SerializeToString())
    casts = []
    for place, name in enumerate(node.input):
        if name in weights and weights[name].data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(weights[name]).astype(numbers)
            graph.initializer.append(numpy_helper.from_array(half, f"{name}/{keep}"))
            made.input[place] = f"{name}/{keep}"
        elif place == 0:
            made.input[place] = f"{node.name}/{keep}"
            casts.append(helper.make_node("Cast", [name], [made.input[place]], f"{node.name}/cast", to=kind))
    made.output[0] = f"{node.name}/{keep}_output"
    back = helper.make_node("Cast", [made.output[0]], [node.output[0]], f"{node.name}/back", to=TensorProto.FLOAT)
    return [*casts, made, back]


HALVES: dict[str, tuple[int, Any]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
"""Precision to its number in ONNX and its type in numpy."""
