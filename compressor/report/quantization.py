"""The parts of report.json that say what a quantize stage tried, what it left in float, and where sums saturate."""

from __future__ import annotations

from typing import Any

from compressor.report.figures import Figure, MetricFigure, Part


class Int8Candidate(Part):
    """What came of one scheme, beside the fp32 model on the rows of `select`."""

    scheme: str
    kept: bool
    refused: str = ""
    """Why it was not to be taken; empty where it was."""
    drop: float | None = None
    """Fall of the score as a fraction, below 0 where it rose."""
    agreement: float | None = None
    """Share of rows decided as fp32 does."""
    flips: int | None = None
    """Rows decided otherwise."""
    rows: int | None = None
    largest_difference: float | None = None
    """Of a logit."""
    mean_difference: float | None = None
    bytes: int | None = None
    """Of model.onnx."""
    p50_ms: float | None = None
    """Of a row, timed side by side; None where the choice needed no time."""
    integer_products: int | None = None
    """Operators that multiply in INT8."""
    products: int | None = None
    """All that multiply with weights; None where it was not counted."""
    kept_in_float: tuple[str, ...] = ()
    """Products left in float, in words."""


class RankedProduct(Part):
    """What INT8 does to one product with weights, and what leaving it in float brings and costs."""

    product: str
    kl: float | None
    """Divergence of the answers where it alone is in INT8, in nats a row."""
    signal_to_noise_db: float | None = None
    """Of its output; None where it has no error."""
    precision: str
    """Int8, or what it was left in."""
    gain: float | None = None
    """Rise of the score on `select` (of the agreement with fp32 where no row is labelled) with it alone in float."""
    latency_ratio: Figure | None = None
    """Time of a row with it alone in float over that with all products in INT8; None where it was not priced."""


class Built(Part):
    """What the file of the stage is made of, counted against what its shapes allow."""

    fused: dict[str, int]
    """Fused operators by name."""
    expected: dict[str, int]
    not_fused: tuple[str, ...] = ()
    """Places left in pieces: slower, not wrong."""
    integer: dict[str, int]
    """Operators that multiply in INT8 by name."""
    products: int
    in_float: tuple[str, ...] = ()
    int8_embeddings: bool


class Quantization(Part):
    """What one quantize stage tried and kept."""

    stage: str
    chosen: str
    because: str
    precision: str
    isa: str | None = None
    """Instructions of the processor that the weights were made for."""
    candidates: tuple[Int8Candidate, ...] = ()
    ranking: tuple[RankedProduct, ...] = ()
    """Products by how far INT8 of each alone moves the answers, for a stage that searched what to leave in float."""
    ranked: str = ""
    """What came of that search, in words."""
    built: Built | None = None
    notes: tuple[dict[str, Any], ...] = ()
    """`{kind, chosen, because}` of what else it decided, such as smoothing."""


class Saturation(Part):
    """The deployed INT8 file with sums that saturate (16 bits, as on x86 without VNNI) beside exact ones."""

    status: str
    """`measured` or `not measured`."""
    reason: str | None = None
    isa: str | None
    """Instructions that the file was made for."""
    rows: int = 0
    """Scored rows that were asked, at most 1,000, evenly spaced."""
    exact: MetricFigure | None = None
    saturating: MetricFigure | None = None
    drop: Figure | None = None
    """Score with exact sums minus that with saturating ones, on the same rows."""
    agreement: float | None = None
    """Share of rows with the same answer."""
    largest_difference: float | None = None
    """Of a logit."""
