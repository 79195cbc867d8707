"""What a quantize stage tried, left in float and kept: from its decisions and the file that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.export.audit import audit, audit_int8
from compressor.model.graph_file import MODEL_FILE, model_file, open_graph
from compressor.model.manifest import read_config, read_manifest
from compressor.report.figures import Figure
from compressor.report.quantization import Built, Int8Candidate, Quantization, RankedProduct

MAIN = ("quantize", "gate")
"""Kinds of decisions that are told elsewhere than among the notes."""
EMBEDDINGS = "EmbedLayerNormalization"
Line = Mapping[str, Any]
"""One line of decisions.jsonl."""


def quantization(stage: str, lines: Sequence[Line], folder: Path | None = None) -> Quantization | None:
    """What a stage's decisions say of INT8; None where it quantized nothing.

    Args:
        stage: its id.
        lines: of its decisions.jsonl; of a kind that stands twice the last one counts.
        folder: of its model, whose operators are counted; None leaves that out.
    """
    last, search = chosen_line(lines), search_line(lines)
    if last is None:
        return None
    chosen = str(last["chosen"])
    candidates = tuple(candidate(one, chosen) for one in last.get("candidates") or ())
    manifest = read_manifest(folder) if folder is not None else None
    return Quantization(
        stage=stage,
        chosen=chosen,
        because=str(last["because"]),
        precision=manifest.precision if manifest else "fp32" if chosen == "fp32" else "int8",
        isa=manifest.isa if manifest else None,
        candidates=candidates,
        ranking=ranking(search, candidates) if search else (),
        ranked=f"{search['chosen']}: {_reason(search)}" if search else "",
        built=built(folder) if folder is not None else None,
        notes=_notes(lines, search),
    )


def chosen_line(lines: Sequence[Line]) -> Line | None:
    """The decision on what is kept."""
    return next((line for line in reversed(lines) if line["kind"] == "quantize"), None)


def search_line(lines: Sequence[Line]) -> Line | None:
    """The decision on what mixed leaves in float; it ranks the products."""
    return next((line for line in reversed(lines) if line["kind"] == "mixed" and line.get("candidates")), None)


def candidate(told: Mapping[str, Any], chosen: str) -> Int8Candidate:
    """One candidate of the decision `quantize`; what an earlier version did not say is None."""
    known = {name: told[name] for name in Int8Candidate.model_fields if name in told}
    refused = str(told.get("because") or "") if told.get("passed") is False else ""
    size = told.get("bytes") or None  # 0 where there is no file
    counts = {name: told.get(name) if size else None for name in ("integer_products", "products")}
    counts["products"] = counts["products"] or None
    kept = told.get("scheme") == chosen
    return Int8Candidate(**{**known, **counts, "kept": kept, "refused": refused, "bytes": size})


def ranking(search: Line, candidates: Sequence[Int8Candidate]) -> tuple[RankedProduct, ...]:
    """The products in the order of the search, those of candidate `mixed` left in float, and the prices."""
    left = {name for one in candidates if one.scheme == "mixed" for name in one.kept_in_float}
    keep, prices = str(search["chosen"]).rpartition(" ")[2], dict(search.get("cost") or {})
    found = []
    for one in search["candidates"]:
        name = str(one["product"])
        price = prices.get(name) or {}
        found.append(
            RankedProduct(
                product=name,
                kl=one.get("kl"),
                signal_to_noise_db=one.get("signal_to_noise_db"),
                precision=keep if name in left or name in prices else "int8",
                gain=price.get("gain"),
                latency_ratio=Figure(**price["latency_ratio"]) if price else None,
            )
        )
    return tuple(found)


def built(folder: Path) -> Built | None:
    """The operators of a model folder's graph; None where it holds no ONNX.

    Word embeddings in INT8 are read by an operator of their own, so that none that is fused is expected of them.
    """
    file = model_file(folder) or folder / MODEL_FILE
    if not file.is_file():
        return None
    graph, shapes = open_graph(file), read_manifest(folder).shapes
    fused = audit(graph, shapes, model_type=str(read_config(folder).get("model_type", "bert")))
    integer = audit_int8(graph, shapes)
    expected, left = dict(fused.expected), fused.left
    if integer.embeddings and not fused.found.get(EMBEDDINGS):
        expected.pop(EMBEDDINGS, None)
        left = tuple(place for place in left if place != "embeddings")
    return Built(
        fused={name: fused.found.get(name, 0) for name in expected},
        expected=expected,
        not_fused=left,
        integer=dict(integer.found),
        products=integer.products,
        in_float=integer.in_float,
        int8_embeddings=integer.embeddings,
    )


def _reason(search: Line) -> str:
    """Why so many were left in float, without the prices, which have columns of their own."""
    because = str(search["because"])
    for name in search.get("cost") or {}:
        because = because.partition(f": {name} in ")[0]
    return because


def _notes(lines: Sequence[Line], search: Line | None) -> tuple[dict[str, Any], ...]:
    """What else was decided, each once: smoothing, what followed static, an engine, a fusion."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        if line["kind"] in MAIN or line["chosen"] is None or line is search:
            continue
        if line["kind"] == "mixed" and line.get("candidates"):
            continue
        one = {key: line[key] for key in ("kind", "chosen", "because")}
        found[tuple(map(str, one.values()))] = one
    return tuple(found.values())
