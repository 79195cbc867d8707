"""Activations made easy to round before they are rounded, without a change of what the fp32 graph computes.

Two things make the inputs of an encoder's products hard to round in 256 steps, and both stand at one token, such as
[CLS], for the same few channels in every text: a channel of the normalized states some twenty times larger than the
rest, and one neuron of a feed-forward half that is far from zero there and off at all other tokens. A channel is
divided by a constant that its weights are multiplied by (channels.py). A neuron stands behind a GELU, which no constant
passes: but one that is either off or far on may be turned down before the GELU and up again after it, as a GELU is
nearly straight far from zero. That costs nothing at run time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from compressor.quantize.calibration import Channels, observe
from compressor.quantize.channels import divisors, even, groups, weights_of
from compressor.quantize.material import Material
from compressor.quantize.rounding import round_weights
from compressor.quantize.settings import Smooth
from compressor.quantize.switches import Switch, hidden_layers, turn_down
from compressor.runtime.onnx import Inputs
from compressor.runtime.predictor import MODEL_FILE
from compressor.stage import Decision, Progress, silent

Values = npt.NDArray[np.float32]
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""How far channels are evened, of which the best for each product is taken."""
LEAST_GAIN = 0.1
"""Share by which the error of a product must fall for the multiplication that evens its input."""
MOST_TOKENS = 1024
"""Tokens of each activation that are kept to try on; largest magnitudes are taken over all."""
NORMS = ("LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization")


@dataclass
class Sample:
    """What one activation is like: all its channels' largest magnitudes, and some rows as they are."""

    maxima: Channels | None = None
    rows: list[Values] = field(default_factory=list)
    """Each of shape (tokens, channels)."""
    tokens: int = 0

    def add(self, values: Values) -> None:
        """Take in a batch, shape (rows, tokens, channels)."""
        largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        self.maxima = largest if self.maxima is None else np.maximum(self.maxima, largest)
        if self.tokens < MOST_TOKENS:
            self.rows += [row.copy() for row in values]
            self.tokens += values.shape[0] * values.shape[1]


@dataclass(frozen=True)
class Smoothed:
    """A graph that computes what it did, and what was changed for the sake of rounding."""

    graph: ModelProto
    alphas: Mapping[str, float]
    """Name of a product to how far its input was evened; those left alone are not here."""
    switches: tuple[Switch, ...]
    """Neurons that were turned down."""


def smoothed(material: Material, settings: Smooth | None) -> ModelProto:
    """The material's fused graph, smoothed; made once for one material, as `mixed` asks for it again.

    Args:
        settings: as for `smooth`.
    Raises: InputError where calibration rows are too few or give values that are not finite.
    """
    content = (material.folder / MODEL_FILE).read_bytes()
    key = hashlib.sha256(f"{settings}{material.reduce_range}".encode() + content).hexdigest()[:16]
    kept = material.work / f"smoothed-{key}.onnx"
    if kept.is_file():
        return onnx.load(str(kept))
    found = smooth(
        onnx.load_from_string(content),
        material.batches(),
        alpha=None if settings is None else settings.alpha,
        reduce_range=material.reduce_range,
        progress=material.progress,
    )
    if found.alphas or found.switches:
        material.decide(_decision(found))
    partial = kept.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(found.graph.SerializeToString(deterministic=True))
    partial.replace(kept)
    return found.graph


def smooth(
    model: ModelProto,
    batches: Iterable[Inputs],
    *,
    alpha: float | None = None,
    reduce_range: bool = False,
    progress: Progress = silent,
) -> Smoothed:
    """The same function as `model`, written so that rounding its activations changes it less.

    Args:
        model: fp32 graph, fused or as traced; neurons are found in fused ones alone.
        batches: calibration rows as they will be served.
        alpha: how far the input of every product that reads a normalization is evened, 0 (not at all) to 1; None
            tries several for each, and leaves one alone where that gains less than a tenth.
        reduce_range: whether weights will be rounded for sums of 16 bits.
    Raises: InputError as calibration.observe does.
    """
    readers = _readers(model)
    hidden = hidden_layers(model)
    wanted = {node.input[0] for node in readers} | {name for each in hidden for name in (each.reads, each.makes)}
    samples = {name: Sample() for name in wanted}
    observe(model, samples, batches, lambda name, values: samples[name].add(values), progress=progress)
    maxima = {name: each.maxima for name, each in samples.items() if each.maxima is not None}
    rows = {name: each.rows for name, each in samples.items()}
    result, switches = turn_down(model, hidden, maxima, rows)
    weights = {each.name: numpy_helper.to_array(each) for each in result.graph.initializer if len(each.dims) == 2}
    alphas: dict[str, float] = {}
    for group in groups(readers):
        found = alpha if alpha is not None else _best(group, weights, maxima, rows, reduce_range=reduce_range)
        if found:
            alphas |= {node.name: found for node in group}
    for each in sorted(set(alphas.values())):
        result = even(result, [name for name, chosen in alphas.items() if chosen == each], maxima, alpha=each)
    return Smoothed(result, alphas, switches)


def _readers(model: ModelProto) -> list[NodeProto]:
    """Products with stored weights that read a normalization over tokens."""
    stored = {each.name for each in model.graph.initializer if len(each.dims) == 2}
    normal = {node.output[0] for node in model.graph.node if node.op_type in NORMS} | _traced_norms(model)
    return [
        node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Attention") and node.input[0] in normal and node.input[1] in stored
    ]


def _traced_norms(model: ModelProto) -> set[str]:
    """Outputs of normalizations that the tracer wrote in pieces: the addition of the bias to what the gain scaled."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {each.name for each in model.graph.initializer if len(each.dims) == 1}
    found = set()
    for node in model.graph.node:
        if node.op_type != "Add" or not stored.intersection(node.input):
            continue
        scaled = [makers[name] for name in node.input if name in makers]
        divided = [makers.get(name) for each in scaled if each.op_type == "Mul" for name in each.input]
        if any(each is not None and each.op_type == "Div" for each in divided):
            found.add(node.output[0])
    return found


def _best(
    group: Sequence[NodeProto],
    weights: Mapping[str, Values],
    maxima: Mapping[str, Channels],
    rows: Mapping[str, Sequence[Values]],
    *,
    reduce_range: bool,
) -> float:
    """The alpha at which products that share an input err least in INT8; 0 where that gains too little."""
    tensors = list(dict.fromkeys(node.input[0] for node in group))
    joined = np.concatenate([weights_of(node, weights) for node in group], axis=1)
    largest = np.max([maxima[tensor] for tensor in tensors], axis=0)
    given = [row for tensor in tensors for row in rows[tensor]]
    reading = np.abs(joined).max(axis=1)
    errors = {0.0: rounding_error(given, joined, reduce_range=reduce_range)}
    for alpha in ALPHAS:
        by = divisors(largest, reading, alpha)
        errors[alpha] = rounding_error([row / by for row in given], joined * by[:, None], reduce_range=reduce_range)
    best = min(errors, key=lambda alpha: errors[alpha])
    return best if errors[best] < (1 - LEAST_GAIN) * errors[0.0] else 0.0


def rounding_error(rows: Sequence[Values], weights: Values, *, reduce_range: bool) -> float:
    """Mean square by which the outputs of a product move when its input and its weights are rounded.

    Args:
        rows: inputs, each of shape (tokens, inputs) and with a range of its own, as it is served.
        weights: shape (inputs, outputs).
    """
    steps, size = round_weights(weights, reduce_range=reduce_range)
    moved = np.concatenate([round_row(row) for row in rows]) @ (steps * size) - np.concatenate(rows) @ weights
    return float(np.square(moved).mean())


def round_row(values: Values) -> Values:
    """A row in 256 steps from its least to its largest value and back, zero kept exact; as DynamicQuantizeLinear.

    https://github.com/onnx/onnx/blob/main/docs/Operators.md#DynamicQuantizeLinear

    >>> round_row(np.array([[0.0, 0.6, 255.0]], np.float32)).tolist()
    [[0.0, 1.0, 255.0]]
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    size = (high - low) / 255
    if size == 0.0:
        return values
    zero = np.rint(-low / size)
    return np.asarray((np.clip(np.rint(values / size) + zero, 0, 255) - zero) * size, dtype=np.float32)


def _decision(found: Smoothed) -> Decision:
    evened, neurons = len(found.alphas), len(found.switches)
    some = f"{neurons} neuron{'s' * (neurons != 1)}"
    parts = []
    if evened:
        low, high = min(found.alphas.values()), max(found.alphas.values())
        how = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        parts.append(f"the inputs of {evened} products have a few channels far larger than the rest (alpha {how})")
    if neurons:
        largest = max(each.largest for each in found.switches)
        parts.append(f"{some} reach {largest:.0f} at one kind of token and are off at the others")
    chosen = f"{evened} inputs evened, {some} turned down"
    readers = {name: node.name for node in found.graph.graph.node for name in node.input}
    candidates = [{"product": name, "alpha": alpha} for name, alpha in found.alphas.items()]
    candidates += [{**asdict(each), "product": readers[each.product]} for each in found.switches]
    return Decision(kind="smooth", chosen=chosen, because=" and ".join(parts), candidates=candidates)
