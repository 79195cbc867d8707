"""What a subject takes beside time, as the report says it: size, work, memory, start, energy, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.bench.isolation import Timing
from compressor.bench.process import PLAIN, Work
from compressor.bench.resources import Taken
from compressor.data.encode import open_encoder
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.model.graph_file import MODEL_FILE, model_file, open_graph
from compressor.model.manifest import read_manifest
from compressor.report.model import Resources
from compressor.report.subjects import Subject, count_parameters

if TYPE_CHECKING:
    from compressor.bench.scenarios import Answered

MEASURED = ("peak_memory_bytes", "cold_start_seconds", "energy_joules")
"""Figures that only a timed process gives."""
EMBEDDING_INPUTS = {"Gather": (0,), "EmbedLayerNormalization": (2, 3, 4), "QEmbedLayerNormalization": (2, 3, 4)}
"""Operators of ONNX that look rows up, to the places of the tables among their inputs (the fused one's: word, position,
segment)."""


def resources(
    subject: Subject,
    key: str,
    timings: Mapping[str, Timing],
    *,
    texts: Sequence[Text],
    price: float | None = None,
    untimed: str = "it was not timed",
) -> Resources:
    """What the subject takes, each figure that is missing with its reason.

    Args:
        subject: the model.
        key: name of its process, that of an earlier subject where the two are the same file.
        timings: raw samples by target; the first that has the subject counts.
        texts: rows of the data, whose mean length multiply-adds are counted at.
        price: of this machine an hour; None leaves the cost out.
        untimed: why there are no timings, or not of this subject.
    """
    reasons: dict[str, str] = {}
    timing = next((one for one in timings.values() if one.rounds_of(key)), None)
    taken = None if timing is None else timing.taken.get(key)
    cost, how = cost_per_million(timing, key, price) if timing is not None else (None, untimed)
    reasons["cost_per_million"] = how
    if taken is None:
        reasons |= dict.fromkeys(MEASURED, subject.untimed or untimed)
    else:
        assert timing is not None
        reasons |= _measured_reasons(taken, timing)
    return Resources(
        macs=_or_reason(lambda: _macs(subject.folder, texts), "macs", reasons),
        parameters_without_embeddings=_or_reason(
            lambda: parameters_without_embeddings(subject), "parameters_without_embeddings", reasons
        ),
        peak_memory_bytes=None if taken is None else taken.peak_bytes,
        cold_start_seconds=None if taken is None else taken.cold_seconds,
        energy_joules=None if taken is None else taken.joules,
        cost_per_million=cost,
        reasons=reasons,
    )


def _measured_reasons(taken: Taken, timing: Timing) -> dict[str, str]:
    """Conditions of the figures that there are, reasons of the others."""
    reasons = {"cold_start_seconds": "the model's files were in the page cache"}
    if taken.peak_bytes is None:
        reasons["peak_memory_bytes"] = "this system does not tell a process's highest memory (VmHWM)"
    if taken.joules is None:
        reasons["energy_joules"] = timing.energy_reason or "the counters rose no more than on the idle machine"
    return reasons


def _or_reason(count: Callable[[], int], name: str, reasons: dict[str, str]) -> int | None:
    """What `count()` gives; None, with its words in `reasons`, where the model cannot be counted."""
    try:
        return count()
    except InputError as error:
        reasons[name] = str(error)
        return None


def _macs(folder: Path, texts: Sequence[Text]) -> int:
    """Multiply-adds of the encoder's matrix products for one row of the texts' mean length in tokens."""
    from compressor.model.footprint import macs

    manifest = read_manifest(folder)
    lengths = open_encoder(folder, manifest.max_tokens).encode(list(texts)).lengths
    return macs(manifest.shapes, tokens=max(1, round(float(lengths.mean())) if len(lengths) else 1))


def parameters_without_embeddings(subject: Subject) -> int:
    """Numbers that the model learned, but those of its tables of words, positions and segments.

    Of an ONNX model the tables are those that its graph looks rows up in. Raises InputError for a torch model whose
    parts are not known.
    """
    every = count_parameters(subject) if subject.parameters is None else subject.parameters
    if subject.engine == "onnxruntime":
        return every - embedding_elements(model_file(subject.folder) or subject.folder / MODEL_FILE)
    from compressor.model.encoders import load_model
    from compressor.model.footprint import parameters_without_embeddings as without

    return without(load_model(subject.folder))


def embedding_elements(model: Path) -> int:
    """Elements of the tables that the graph looks rows up in, each counted once, also where they are quantized."""
    graph = open_graph(model, weights=False).graph
    sizes = {one.name: int(np.prod(one.dims)) for one in graph.initializer if len(one.dims) == 2}
    made_from = {
        output: node.input[0]
        for node in graph.node
        if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
        for output in node.output
    }
    tables = set()
    for node in graph.node:
        for place in EMBEDDING_INPUTS.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            while name in made_from:
                name = made_from[name]
            tables.add(name)
    return sum(sizes[name] for name in tables if name in sizes)


def cost_per_million(timing: Timing, key: str, price: float | None) -> tuple[float | None, str]:
    """Cost of a million rows and which throughput it was taken from; None without a price.

    From scenario offline where it was run, else from single stream: end to end where that was timed. `price` is an
    hour's; the cost is in the same currency.
    """
    if price is None:
        return None, "no benchmark.price was given"
    answered: Answered | None = next(
        (one for one in timing.answered if (one.subject, one.scenario) == (key, "offline")), None
    )
    if answered is not None and answered.rows_per_second is not None:
        rate, how = answered.rows_per_second, "offline"
    else:
        whole = Work(end_to_end=True)
        work = whole if timing.rounds_of(key, whole) else PLAIN
        samples = np.concatenate([np.asarray(one) for one in timing.rounds_of(key, work).values()])
        rate, how = 1e9 / float(samples.mean()), "single stream" + ("" if work == whole else " without tokenizing")
    return price / 3600 / rate * 1e6, f"from {rate:.4g} rows a second of {how}"
