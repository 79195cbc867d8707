"""`inspect`: what a model is made of, part by part, and where its time goes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.data.encode import collate, open_encoder
from compressor.data.rows import Text
from compressor.device import usable_threads
from compressor.model.graph_file import MODEL_FILE, model_file
from compressor.model.manifest import LayerShape, Manifest, Shapes, read_manifest
from compressor.report.graph_parts import NAMES, Times, graph_parts, times_of
from compressor.report.sentences import SENTENCES
from compressor.report.table import WIDTH, lines, megabytes
from compressor.runtime.onnx import Inputs
from compressor.runtime.predictor import find_engine
from compressor.stage import Progress, silent

if TYPE_CHECKING:
    from torch import nn

EMBEDDINGS, HEAD = NAMES
HEADS = ("part", "heads", "neurons", "parameters", "MACs (M)", "MB", "ms a row", "passes", "share %")
PASSES = 5
"""Timed passes over all rows; the median of them is taken for each row, the fastest and slowest are shown beside it."""


@dataclass(frozen=True)
class PartRow:
    """One part of a model; a half of a layer, the embeddings, or the classifier."""

    name: str
    heads: int | None
    """Of an attention half, else None."""
    neurons: int | None
    """Of a feed-forward half, else None."""
    parameters: int
    macs: int | None
    """Multiply-adds of its matrix products for a row of `tokens` tokens; None where they were not counted."""
    bytes: int
    """Of its weights, as they lie in the model."""
    milliseconds: float
    """Of one row, mean over the rows of the median over passes."""
    low_ms: float | None = None
    """The same in the fastest pass over the rows, and in the slowest; None for all parts together."""
    high_ms: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What a model is made of."""

    model: str
    engine: str
    precision: str
    labels: tuple[str, ...]
    hidden: int
    vocabulary: int
    threads: int
    rows: int
    tokens: int
    """Mean length of the rows that were timed; multiply-adds are counted at it."""
    parts: tuple[PartRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return asdict(self)

    def table(self) -> str:
        """A table of at most 100 columns."""
        whole = sum(part.milliseconds for part in self.parts) or 1.0
        shown = lines([HEADS, *(_cells(part, whole) for part in (*self.parts, self.total()))])
        head = (
            f"{self.model}: {self.engine}, {self.precision}, hidden {self.hidden}, vocabulary {self.vocabulary:,}, "
            f"labels {', '.join(self.labels)}"
        )
        foot = (
            f"{self.rows} rows of {self.tokens} tokens in the mean, batch 1, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, timed part by part, which takes time itself; "
            f"passes: the fastest and the slowest of {PASSES}"
        )
        below = textwrap.wrap(foot, WIDTH)
        return "\n".join([head, "", shown[0], "-" * max(map(len, shown)), *shown[1:], "", *below]) + "\n"

    def total(self) -> PartRow:
        """All parts together."""
        counted = [part.macs for part in self.parts if part.macs is not None]
        return PartRow(
            name="all",
            heads=sum(part.heads or 0 for part in self.parts),
            neurons=sum(part.neurons or 0 for part in self.parts),
            parameters=sum(part.parameters for part in self.parts),
            macs=sum(counted) if counted else None,
            bytes=sum(part.bytes for part in self.parts),
            milliseconds=sum(part.milliseconds for part in self.parts),
        )


def inspect_model(
    folder: str | Path,
    *,
    texts: Sequence[Text] | None = None,
    threads: int | None = None,
    name: str | None = None,
    precision: str | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Heads, neurons, parameters, multiply-adds, bytes and measured time of every part of a model.

    A torch model is timed by hooks on its parts, an ONNX one by onnxruntime's profiler, its operators being put to
    parts by the layer norms between them.

    Args:
        folder: model folder with safetensors or model.onnx.
        texts: rows to time, at their own lengths; a few sentences of our own unless given.
        threads: of the model; None takes all that this process may use.
        name: what it is called in the table; the folder unless given.
        precision: of its weights; what its manifest says unless given.
    Raises: InputError for what is no model, or an encoder whose parts are not known by name.
    """
    folder = Path(folder)
    engine, manifest = find_engine(folder), read_manifest(folder)
    threads = threads or usable_threads()
    rows = list(texts) if texts is not None else _sentences(manifest)
    encoder = open_encoder(folder, manifest.max_tokens)
    encoded = encoder.encode(rows)
    inputs = [collate(encoded, [place], encoder.pad_id) for place in range(len(rows))]
    tokens = max(1, round(float(np.mean(encoded.lengths))))
    if engine == "torch":
        shapes, parts = _of_torch(folder, inputs, threads, tokens, progress)
    else:
        shapes, parts = manifest.shapes, _of_graph(folder, manifest.shapes, inputs, threads, tokens, progress)
    return Inspection(
        model=name or str(folder),
        engine=engine,
        precision=precision or manifest.precision,
        labels=manifest.labels,
        hidden=shapes.hidden,
        vocabulary=shapes.vocabulary,
        threads=threads,
        rows=len(rows),
        tokens=tokens,
        parts=parts,
    )


def _sentences(manifest: Manifest) -> list[Text]:
    return [(text, text) if len(manifest.text) == 2 else text for text in SENTENCES]


def part_names(layers: int) -> list[str]:
    """The parts in the order that a row goes through them.

    >>> part_names(1)
    ['embeddings', 'layer 0 attention', 'layer 0 feed-forward', 'classifier']
    """
    halves = [f"layer {number} {half}" for number in range(layers) for half in ("attention", "feed-forward")]
    return [EMBEDDINGS, *halves, HEAD]


def _macs(name: str, shapes: Shapes, tokens: int) -> tuple[LayerShape | None, bool, int]:
    """A half's layer, whether it is attention, and its multiply-adds; nothing for embeddings and classifier."""
    from compressor.model.footprint import head_macs, neuron_macs

    words = name.split()
    if words[0] != "layer":
        return None, False, 0
    layer, attention = shapes.layers[int(words[1])], words[2] == "attention"
    if attention:
        return layer, True, layer.heads * head_macs(layer.head_size, shapes.hidden, tokens=tokens)
    return layer, False, layer.ffn * neuron_macs(shapes.hidden, tokens=tokens)


def _row(name: str, shapes: Shapes, tokens: int, parameters: int, size: int, times: Times) -> PartRow:
    layer, attention, macs = _macs(name, shapes, tokens)
    return PartRow(
        name=name,
        heads=layer.heads if layer is not None and attention else None,
        neurons=layer.ffn if layer is not None and not attention else None,
        parameters=parameters,
        macs=macs if layer is not None else None,
        bytes=size,
        milliseconds=times.median,
        low_ms=times.low,
        high_ms=times.high,
    )


def _of_torch(
    folder: Path, inputs: Sequence[Inputs], threads: int, tokens: int, progress: Progress
) -> tuple[Shapes, tuple[PartRow, ...]]:
    """Shapes and parts of a model with torch weights; torch's thread count is put back."""
    import torch

    from compressor.model.parts import shapes, stack
    from compressor.runtime.torch import TorchEngine

    before = torch.get_num_threads()
    try:
        engine = TorchEngine(folder, threads=threads)
        found, through = shapes(engine.model), stack(engine.model)
        ends: list[tuple[str, nn.Module]] = [(EMBEDDINGS, through.embeddings)]
        for number, layer in enumerate(through.layers):
            ends += [(f"layer {number} attention", layer.attention_norm), (f"layer {number} feed-forward", layer.whole)]
        taken = _hooked(ends, lambda row: engine.logits(inputs[row]), len(inputs), progress)
    finally:
        torch.set_num_threads(before)
    owned = _owned(engine.model, through)
    rows = []
    for name in part_names(len(found.layers)):
        weights = owned[name]
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        rows.append(_row(name, found, tokens, sum(weight.numel() for weight in weights), size, taken[name]))
    return found, tuple(rows)


def _hooked(
    ends: Sequence[tuple[str, nn.Module]], run: Callable[[int], object], rows: int, progress: Progress
) -> dict[str, Times]:
    """The times of a row in each part, which ends where its module does; what is left goes to the classifier."""
    marks: list[tuple[str, int]] = []

    def mark(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            marks.append((name, time.perf_counter_ns()))

        return hook

    handles = [module.register_forward_hook(mark(name)) for name, module in ends]
    taken: dict[str, np.ndarray] = {name: np.zeros((PASSES, rows)) for name in (*(name for name, _ in ends), HEAD)}
    try:
        for number in range(-1, PASSES):
            for row in range(rows):
                marks.clear()
                last = time.perf_counter_ns()
                run(row)
                for name, at in [*marks, (HEAD, time.perf_counter_ns())]:
                    if number >= 0:
                        taken[name][number, row] += (at - last) / 1e6
                    last = at
            progress("time parts", number + 2, PASSES + 1)
    finally:
        for handle in handles:
            handle.remove()
    return {name: times_of(each) for name, each in taken.items()}


def _owned(model: Any, through: Any) -> dict[str, list[Any]]:
    """The weights of each part, each once; what belongs to no other part is the classifier's."""
    parts: list[tuple[str, list[Any]]] = []
    for number, layer in enumerate(through.layers):
        halves = [half for half in (layer.up, layer.down, layer.norm) if half is not None]
        parts.append((f"layer {number} feed-forward", [weight for half in halves for weight in half.parameters()]))
        parts.append((f"layer {number} attention", list(layer.whole.parameters())))
    # ELECTRA's embeddings end in a projection that stands beside them
    words = [*through.words.parameters(), *getattr(model.base_model, "embeddings", through.embeddings).parameters()]
    parts.append((EMBEDDINGS, [*words, *through.embeddings.parameters()]))
    parts.append((HEAD, list(model.parameters())))
    seen: set[int] = set()
    owned: dict[str, list[Any]] = {}
    for name, weights in parts:
        fresh = {id(weight): weight for weight in weights if id(weight) not in seen}
        owned[name] = list(fresh.values())
        seen |= set(fresh)
    return owned


def _of_graph(
    folder: Path, shapes: Shapes, inputs: Sequence[Inputs], threads: int, tokens: int, progress: Progress
) -> tuple[PartRow, ...]:
    """Parts of a model.onnx; one row `whole model` where its layer norms do not tell the layers apart."""
    names = part_names(len(shapes.layers))
    file = model_file(folder) or folder / MODEL_FILE
    found = graph_parts(file, names, inputs, threads=threads, passes=PASSES, progress=progress)
    return tuple(_row(name, shapes, tokens, part.parameters, part.bytes, part.times) for name, part in found.items())


def _cells(part: PartRow, whole: float) -> tuple[str, ...]:
    return (
        part.name,
        "" if part.heads is None else str(part.heads),
        "" if part.neurons is None else f"{part.neurons:,}",
        f"{part.parameters:,}",
        "" if part.macs is None else f"{part.macs / 1e6:.1f}",
        megabytes(part.bytes),
        f"{part.milliseconds:.3f}",
        "" if part.low_ms is None or part.high_ms is None else f"{part.low_ms:.3f}-{part.high_ms:.3f}",
        f"{100 * part.milliseconds / whole:.1f}",
    )
