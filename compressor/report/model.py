"""report.json: what a run proves, schema 1. Keys are never renamed or removed; later versions add some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from compressor.errors import InputError

Verdict = Literal["pass", "fail", "undecided", "none"]


class Part(BaseModel):
    """A frozen part of the report that keeps keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, populate_by_name=True)


class Figure(Part):
    """A value with the ends of its two-sided 95 % interval."""

    value: float
    low: float
    high: float


class MetricFigure(Figure):
    """A score in fractions, and the rows it was taken on."""

    name: str
    rows: int


class Versus(Part):
    """A subject beside the teacher: on the same rows, and in the same rounds on the same engine."""

    drop: Figure | None
    agreement: float | None
    latency_ratio: Figure | None
    reason: str | None = None
    """Why a figure is null."""
    flips: dict[str, int] | None = None
    """Rows right for both, for the teacher alone (lost), for the subject alone (won), for neither."""


class LatencyRow(Part):
    """Time of one row at one target."""

    target: str
    batch: int = 1
    length: str | int = "data"
    threads: int
    status: Literal["measured", "not measured"]
    reason: str | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    samples: int = 0
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    start_seconds: float | None = None


class SubjectRow(Part):
    """One model on one engine in one precision."""

    name: str
    engine: str
    precision: str
    path: str
    parameters: int | None
    bytes: int | None
    metric: MetricFigure | None
    metrics: dict[str, float] = {}
    versus_teacher: Versus | None
    latency: tuple[LatencyRow, ...]
    same_as: str | None = None
    """Name of an earlier subject with the very same model file, whose figures these are."""


class BudgetLine(Part):
    """One limit of the budget; low and high are its two one-sided bounds."""

    what: str
    limit: str
    vs: str | None
    value: float | None
    low: float | None
    high: float | None
    verdict: Literal["pass", "fail", "undecided"]
    because: str = ""


class Step(Part):
    """What one stage gained and lost against the stage before."""

    step: str
    speedup: Figure | None
    drop: Figure | None
    reason: str | None = None


class Attribution(Figure):
    """What a part of the training brought: the score gained over a control without it, in fractions."""

    stage: str
    what: Literal["distillation", "unlabelled rows"]
    verdict: Literal["helped", "hurt", "no evidence"]
    """Helped where the interval lies above 0, hurt where it lies below."""
    sentence: str


class Report(Part):
    """What a run proves, with its doubts beside it."""

    schema_: Literal[1] = Field(1, alias="schema")
    verdict: Verdict
    task: dict[str, Any]
    machine: dict[str, Any]
    data: dict[str, Any]
    budgets: tuple[BudgetLine, ...]
    subjects: tuple[SubjectRow, ...]
    ladder: tuple[Step, ...]
    doubts: tuple[str, ...] = ()
    name: str = "report"
    noise: Figure | None = None
    """Ratio of the teacher to itself, timed as two subjects: gains within it are noise."""
    pruning: tuple[dict[str, Any], ...] = ()
    curves: dict[str, Any] = {}
    attribution: tuple[Attribution, ...] = ()
    """Whether distillation and unlabelled rows helped, for each stage that trained controls."""
    decisions: tuple[dict[str, Any], ...] = ()
    """What was found and chosen while distilling, the score before training too: `{stage, kind, chosen, because}`."""

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """The report in a report.json; InputError where it is none."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.get("schema") is None:
                raise ValueError("it has no key schema")
            return cls.model_validate(content)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a report.json of schema 1: {error}") from error

    def subject(self, name: str, engine: str = "onnxruntime") -> SubjectRow:
        """The subject of that name and engine; InputError shows the names."""
        for row in self.subjects:
            if (row.name, row.engine) == (name, engine):
                return row
        raise InputError(f"no subject {name!r} on {engine}; there are {', '.join(row.name for row in self.subjects)}")

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self) -> str:
        """report.json as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown."""
        from compressor.report.markdown import markdown

        return markdown(self)

    def to_html(self) -> str:
        """The report as one page that needs no network."""
        from compressor.report.html import page

        return page(self)

    def table(self) -> str:
        """The report's main table and verdict as plain text, at most 100 columns wide."""
        from compressor.report.table import text

        return text(self)
