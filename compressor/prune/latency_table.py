"""How long each part of an encoder takes here: a table fitted to the times of models of known shapes, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.machine import versions
from compressor.bench.statistics import Interval, ratio_interval
from compressor.device import machine_id
from compressor.model.footprint import head_macs, neuron_macs
from compressor.model.manifest import LayerShape, Precision, Shapes
from compressor.prune.settings import TimedEngine
from compressor.sources.cache import cache_folder, write_atomically

SCHEMA = 1
LIBRARIES = ("onnxruntime", "openvino", "torch", "transformers")
"""Whose versions decide what is run, and how fast."""
LEVELS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the neurons that are timed, beside none."""
ROUND_SIZE = 64
"""Neurons that no kernel likes less than other counts; grids of wide layers are multiples of it."""
ODD_SIZES = (1, 16)
"""Neurons beyond a multiple of ROUND_SIZE that are timed: what sizes of any count, and of multiples of 16, cost."""
LEAST_GAIN = 0.01
"""Share of a model's time that an odd size must cost before sizes are rounded; less is not worth a neuron."""
LOT = 5
"""Models that are on disk and loaded at once while they are timed."""
SMOKE_REST, SMOKE_MACS = 0.1, 1e7
"""Milliseconds outside the layers, and multiply-accumulates a millisecond, of a table that is made up."""


Model = tuple[int, int, int]
"""Layers, and the heads and neurons of each."""


@dataclass(frozen=True)
class Place:
    """Where and how the model will run."""

    engine: TimedEngine = "onnxruntime"
    threads: int = 1
    precision: Precision = "fp32"
    """Of the weights that are timed; INT8 models are made after pruning, so that only fp32 can be timed now."""


@dataclass(frozen=True)
class TableKey:
    """What a table holds for: times of any other place, width or mix of lengths are other times."""

    machine: str
    engine: str
    threads: int
    precision: str
    hidden: int
    head_size: int
    heads: int
    """Most in a layer."""
    ffn: int
    """Most neurons in a layer."""
    activation: str
    """The function of the feed-forward half."""
    layers: int
    lengths: str
    """Digest of the timed rows' numbers of tokens."""
    versions: Mapping[str, str]
    family: str = "bert"
    schema: int = SCHEMA

    def digest(self) -> str:
        """SHA-256 in hex, the name of the table's file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def key_of(sizes: Shapes, place: Place, lengths: Sequence[int], *, activation: str, family: str = "bert") -> TableKey:
    """The key of a table for models of these shapes, or cut from them, here and now.

    Args:
        activation: the function of the feed-forward half, as transformers names it.
        family: as it names the family, whose attention may be another product.
        lengths: tokens of each row that is timed.
    """
    return TableKey(
        machine=machine_id(),
        engine=place.engine,
        threads=place.threads,
        precision=place.precision,
        hidden=sizes.hidden,
        head_size=sizes.layers[0].head_size,
        heads=max(layer.heads for layer in sizes.layers),
        ffn=max(layer.ffn for layer in sizes.layers),
        activation=activation,
        layers=len(sizes.layers),
        lengths=hashlib.sha256(json.dumps(sorted(map(int, lengths))).encode()).hexdigest()[:16],
        versions=versions(LIBRARIES),
        family=family,
    )


@dataclass(frozen=True)
class Point:
    """A timed model: layers that are all alike, and its time in milliseconds with the 95 % interval over rounds."""

    layers: int
    heads: int
    ffn: int
    ms: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the median row: a fixed rest, and for each layer its attention and its feed-forward half."""

    key: TableKey
    rest_ms: float
    """Embeddings, pooler, classifier and the call itself."""
    heads: tuple[int, ...]
    """Counts that were timed, ascending from 0."""
    attention_ms: tuple[float, ...]
    """Of a layer with so many heads and no neuron; never falls."""
    neurons: tuple[int, ...]
    """Counts that were timed, ascending from 0."""
    ffn_ms: tuple[float, ...]
    """Of so many neurons, beyond a layer that has none; never falls."""
    step: int = 1
    """Neurons are kept in multiples of so many, as other counts were measured to be no faster; 1 is any count."""
    misfit: float = 0.0
    """Largest difference of a timed model from the sum of its parts, as a share of its time."""
    points: tuple[Point, ...] = ()
    """What was timed; none in a table that is made up."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """When it was measured and how quiet the machine was."""

    def attention(self, heads: int) -> float:
        """Milliseconds of the attention half, with the layer's norms; linear between counts that were timed."""
        return float(np.interp(heads, self.heads, self.attention_ms))

    def feed_forward(self, neurons: int) -> float:
        """Milliseconds of the feed-forward half; linear between counts that were timed."""
        return float(np.interp(neurons, self.neurons, self.ffn_ms))

    def layer(self, layer: LayerShape) -> float:
        """Milliseconds of one layer."""
        return self.attention(layer.heads) + self.feed_forward(layer.ffn)

    def alike(self, model: Model) -> float:
        """Milliseconds of a model of so many layers with the same heads and neurons each."""
        depth, heads, neurons = model
        return self.rest_ms + depth * (self.attention(heads) + self.feed_forward(neurons))

    def total(self, layers: Iterable[LayerShape]) -> float:
        """Milliseconds of a whole model, to four digits."""
        return round(self.rest_ms + sum(map(self.layer, layers)), 4)


def head_grid(most: int) -> tuple[int, ...]:
    """Counts of heads that are timed: none, one, thirds and all.

    >>> head_grid(12)
    (0, 1, 4, 8, 12)
    """
    return tuple(sorted({0, min(1, most), round(most / 3), round(2 * most / 3), most}))


def neuron_grid(most: int) -> tuple[int, ...]:
    """Counts of neurons that are timed, in wide layers multiples of ROUND_SIZE.

    >>> neuron_grid(1536), neuron_grid(64)
    ((0, 192, 384, 768, 1152, 1536), (0, 8, 16, 32, 48, 64))
    """
    wide = most >= 8 * ROUND_SIZE
    inner = {round(most * level / ROUND_SIZE) * ROUND_SIZE if wide else round(most * level) for level in LEVELS[:-1]}
    return tuple(sorted({0, most, *inner}))


@dataclass(frozen=True)
class Design:
    """The models that are timed, the first being the one that others are held to."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    models: tuple[Model, ...]
    odd: tuple[Model, ...]
    """Models whose count of neurons is no round one, one for each of ODD_SIZES; none where layers are narrow."""
    beside: Model
    """The model of a round size that those are held to."""

    def lots(self) -> tuple[tuple[Model, ...], ...]:
        """All models in lots of at most LOT, to be timed one lot after another.

        The first model is in each, the odd ones in the first, with the one that they are held to.
        """
        first, *others = self.models
        rest = list(dict.fromkeys((*((self.beside, *self.odd) if self.odd else ()), *others)))
        return tuple((first, *rest[start : start + LOT - 1]) for start in range(0, len(rest), LOT - 1))


def design(key: TableKey) -> Design:
    """What tells the parts apart: each grid at the middle of the other, all parts, and all in half as many layers.

    One more, of all heads and few neurons, shows whether the halves add up, and one of neither what is always there.
    """
    heads, neurons = head_grid(key.heads), neuron_grid(key.ffn)
    depth, head, neuron = max(2, key.layers), heads[len(heads) // 2], neurons[len(neurons) // 2]
    models = [
        (depth, key.heads, key.ffn),
        (depth // 2, key.heads, key.ffn),
        (depth, key.heads, neurons[min(2, len(neurons) - 1)]),
        (depth, 0, 0),
    ]
    models += [(depth, each, neuron) for each in heads] + [(depth, head, each) for each in neurons]
    wide = key.ffn >= 8 * ROUND_SIZE
    odd = tuple((depth, head, neuron + each) for each in ODD_SIZES) if wide else ()
    return Design(heads, neurons, tuple(dict.fromkeys(models)), odd, (depth, head, neuron))


def fitted(
    key: TableKey, lots: Sequence[Mapping[Model, Sequence[float]]], conditions: Mapping[str, Any]
) -> LatencyTable:
    """The table that explains the times of a design's models best.

    Least squares of relative errors in which no time is below 0 and more parts never take less: an isotonic regression
    of both grids at once, as non-negative least squares of their steps. Times are held to the first model's of the same
    lot round by round, so that what slows a whole round, or a lot, changes nothing.

    Args:
        lots: of each of the design's lots the median milliseconds of every round, by model; two rounds or more.
    """
    plan = design(key)
    first = plan.models[0]
    whole = float(np.median(np.concatenate([lot[first] for lot in lots])))
    points = {model: _point(model, lot, first, whole) for lot in lots for model in lot}
    rest, attention, neurons = _parts(plan, [points[model] for model in plan.models])
    table = LatencyTable(
        key=key,
        rest_ms=rest,
        heads=plan.heads,
        attention_ms=attention,
        neurons=plan.neurons,
        ffn_ms=neurons,
        points=tuple(points[model] for model in (*plan.models, *plan.odd)),
        conditions=dict(conditions),
    )
    misfit = max(abs(table.alike(model) / points[model].ms - 1.0) for model in plan.models)
    return replace(table, step=_step(table, plan, lots[0]), misfit=misfit)


def _point(model: Model, lot: Mapping[Model, Sequence[float]], first: Model, whole: float) -> Point:
    """A model's time as a share of the first model's in its lot, which takes `whole` milliseconds."""
    ratio = Interval(1.0, 1.0, 1.0) if model == first else ratio_interval(lot[model], lot[first])
    return Point(*model, whole * ratio.value, whole * ratio.low, whole * ratio.high)


def _parts(plan: Design, points: Sequence[Point]) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Rest, attention by grid and neurons by grid, the last from 0; all at least 0, and neither grid ever falls."""
    from scipy.optimize import nnls

    count = len(plan.heads)
    rows = np.zeros((len(points), count + len(plan.neurons)))  # rest, attention's steps from 0, neurons' steps
    for row, point in zip(rows, points, strict=True):
        row[0] = 1.0
        row[1 : 2 + plan.heads.index(point.heads)] = point.layers
        row[1 + count : 1 + count + plan.neurons.index(point.ffn)] = point.layers
    times = np.array([point.ms for point in points])
    steps, _ = nnls(rows / times[:, None], np.ones(len(times)))
    attention, neurons = np.cumsum(steps[1 : 1 + count]), np.cumsum(steps[1 + count :])
    return float(steps[0]), tuple(map(float, attention)), (0.0, *map(float, neurons))


def _step(table: LatencyTable, plan: Design, p50: Mapping[Model, Sequence[float]]) -> int:
    """The least of 1, 16 and 64 whose multiples are not shown to be slower than the table says of them."""
    for extra, model in zip(ODD_SIZES, plan.odd, strict=False):
        expected = table.alike(model) / table.alike(plan.beside)
        found = ratio_interval(p50[model], p50[plan.beside])
        if found.low <= expected or found.value <= expected * (1 + LEAST_GAIN):
            return extra
    return ROUND_SIZE if plan.odd else 1


def made_up(key: TableKey) -> LatencyTable:
    """A table in which time follows multiply-accumulates, for smoke runs: no figure of it means anything."""
    heads, neurons = (0, key.heads), (0, key.ffn)
    return LatencyTable(
        key=key,
        rest_ms=SMOKE_REST,
        heads=heads,
        attention_ms=tuple(0.01 + count * head_macs(key.head_size, key.hidden) / SMOKE_MACS for count in heads),
        neurons=neurons,
        ffn_ms=tuple(count * neuron_macs(key.hidden) / SMOKE_MACS for count in neurons),
        conditions={"made up": True},
    )


def table_path(key: TableKey) -> Path:
    """Where the table of that key is kept on this machine."""
    return cache_folder() / "latency" / f"{key.digest()}.json"


def read_table(path: Path, key: TableKey) -> LatencyTable | None:
    """The table in a file; None where there is none, it is torn, or it was measured for another key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("key") != asdict(key):
            return None
        lists = {name: tuple(content.pop(name)) for name in ("heads", "attention_ms", "neurons", "ffn_ms")}
        content |= {"points": tuple(Point(**point) for point in content["points"]), **lists}
        return LatencyTable(key=key, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_table(path: Path, table: LatencyTable) -> None:
    """The table as JSON under `path`, whole or not at all."""
    write_atomically(path, (json.dumps(asdict(table), indent=1) + "\n").encode())


def kept_table(key: TableKey, own: Path, measure: Callable[[], LatencyTable]) -> LatencyTable:
    """The table of a run: what it began with, else what is kept on this machine, else measured now and kept.

    Args:
        own: the run's copy, written before the table is used, so that a run that goes on decides by the same times.
    """
    table = read_table(own, key)
    if table is not None:
        return table
    table = read_table(table_path(key), key)
    if table is None:
        table = measure()
        write_table(table_path(key), table)
    write_table(own, table)
    return table
