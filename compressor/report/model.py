"""report.json: what a run proves, schema 1. Keys are never renamed or removed; later versions add some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compressor.errors import InputError
from compressor.report.figures import Figure as Figure
from compressor.report.figures import MetricFigure as MetricFigure
from compressor.report.figures import Part as Part
from compressor.report.quantization import Quantization as Quantization
from compressor.report.quantization import Saturation as Saturation

Verdict = Literal["pass", "fail", "undecided", "none"]


class Versus(Part):
    """A subject beside the teacher: on the same rows, and in the same rounds on the same engine."""

    drop: Figure | None
    agreement: float | None
    latency_ratio: Figure | None
    reason: str | None = None
    """Why a figure is null."""
    flips: dict[str, int] | None = None
    """Rows right for both, for the teacher alone (lost), for the subject alone (won), for neither."""
    mcnemar_p: float | None = None
    """Chance of flips this uneven where both are equally often right: exact McNemar, two-sided."""
    kl: float | None = None
    """Mean KL divergence of the subject's probabilities from the teacher's, in nats a row."""
    speed_verdict: Literal["faster", "slower", "same", "undecided"] | None = None
    """What latency_ratio says beside the noise floor; None where not timed."""


class BesidePytorch(Part):
    """Times beside the reference in PyTorch fp32, of the same rounds: what another engine, and all of it, brought."""

    subject: str
    """Name of the reference."""
    p50_ms: float | None
    """Of the reference in PyTorch; None where the samples are too few."""
    engine: Figure
    """Time of the reference in the engine of the other figures over that in PyTorch."""
    deployed: Figure
    """Time of the deployed model over that of the reference in PyTorch."""


Scenario = Literal["single stream", "one core", "offline", "arrivals"]


class LatencyRow(Part):
    """Time of one batch at one target, or what a scenario gave."""

    target: str
    scenario: Scenario = "single stream"
    """Calls one after the other; the same on one processor; all rows at once in several processes; Poisson arrivals."""
    batch: int = 1
    length: str | int = "data"
    """`data`: own lengths, padded to the batch's longest; `padded`: to the longest row timed; or a number."""
    end_to_end: bool = False
    """Whether tokenizing counts."""
    clock: Literal["wall", "event"] = "wall"
    """`event`: between two marks in a GPU's own queue, without the wait of the program for it."""
    device: str | None = None
    """Of the target, as engine and precision: `cpu` or `gpu`; None in reports of earlier versions."""
    engine: str | None = None
    precision: str | None = None
    """In what the model was computed there."""
    threads: int
    status: Literal["measured", "not measured"]
    reason: str | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    samples: int = 0
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    p99_ms: float | None = None
    """Shown from 1,000 samples on."""
    p95_ms: float | None = None
    """Shown from 200 samples on, p90 from 100, p50 from 20."""
    p90_low_ms: float | None = None
    p90_high_ms: float | None = None
    """Between two of the samples (order statistics, 95 %), as those of p95 and p99; those of p50 count whole rounds."""
    p95_low_ms: float | None = None
    p95_high_ms: float | None = None
    p99_low_ms: float | None = None
    p99_high_ms: float | None = None
    start_seconds: float | None = None
    rows_per_second: float | None = None
    """Of scenario offline; the highest rate of arrivals whose p99 kept the limit; else None."""
    processes: int = 1
    limit_ms: float | None = None
    """The p99 that arrivals had to keep."""


class ClassRow(Part):
    """How well one class is found."""

    label: str
    rows: int
    """Rows of that class."""
    precision: Figure | None
    recall: Figure | None
    """None where no row is of the class, or for precision where none was called it."""
    recall_drop: Figure | None = None
    """The teacher's recall minus the subject's, on the same rows."""


class LengthRow(Part):
    """The score of rows of some lengths, in tokens as the model reads them."""

    low: int
    high: int
    """Both ends belong to it."""
    rows: int
    score: Figure
    drop: Figure | None = None


class Calibration(Part):
    """How far confidence is from accuracy (expected calibration error, 15 bins of equal width), in fractions."""

    error: float
    temperature: float
    """What divides the logits, fitted on `select`."""
    error_after: float
    rows: int


class Perturbed(Part):
    """What a small change of every text does."""

    what: str
    score: Figure
    drop: Figure
    """The subject's score on the texts as they are minus that on the changed ones."""
    agreement: float
    """Share of rows with the same answer before and after."""
    rows: int


class Resources(Part):
    """What a model takes; None where it is not known here; `reasons` says why, or how a figure came about."""

    macs: int | None = None
    """Multiply-adds of the encoder for one row of mean length."""
    parameters_without_embeddings: int | None = None
    peak_memory_bytes: int | None = None
    """Highest resident memory of a process that loads the model and answers, less that of the engine alone."""
    cold_start_seconds: float | None = None
    """From starting a process to the first answer."""
    energy_joules: float | None = None
    """A row, from the processor's own counters less idle."""
    cost_per_million: float | None = None
    """Of a million rows, in the currency of benchmark.price."""
    reasons: dict[str, str] = {}


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
    classes: tuple[ClassRow, ...] = ()
    lengths: tuple[LengthRow, ...] = ()
    calibration: Calibration | None = None
    perturbed: tuple[Perturbed, ...] = ()
    resources: Resources | None = None


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


class Optimism(Part):
    """What deciding on `select` flattered: drops in fractions, and the test's minus select's."""

    stage: str
    select: Figure
    test: Figure
    optimism: float
    low: float | None = None
    """Ends of its two-sided 95 % interval; None in reports of earlier versions."""
    high: float | None = None


class Baseline(Part):
    """What something simple reaches on the same rows."""

    name: str
    """A subject is called baseline/NAME where it is a model; tfidf and static are none."""
    what: str
    """In words."""
    metric: MetricFigure
    drop: Figure
    """The teacher's score minus its own."""
    behind_best: Figure
    """The deployed model's score minus its own: above 0 the deployed model is better."""
    bytes: int | None = None
    milliseconds: float | None = None
    """A row with its tokenizing, in one process, not paired with the others; None where not timed."""
    seconds: float | None = None
    """To make it."""
    suffices: bool = False
    """Whether it is not shown to be worse than the deployed model and passes the budget's score limits; where there are
    none, is shown to be at most 1 pp behind."""
    sentence: str = ""


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
    best: str | None = None
    """Name of the subject that was deployed; the last of the ladder where it is not said."""
    pytorch: BesidePytorch | None = None
    """None where the reference was not timed in PyTorch."""
    noise: Figure | None = None
    """Ratio of the teacher to itself, timed as two subjects: gains within it are noise."""
    pruning: tuple[dict[str, Any], ...] = ()
    curves: dict[str, Any] = {}
    attribution: tuple[Attribution, ...] = ()
    """Whether distillation and unlabelled rows helped, for each stage that trained controls."""
    decisions: tuple[dict[str, Any], ...] = ()
    """What was found and chosen while distilling, the score before training too: `{stage, kind, chosen, because}`; an
    engine that was chosen by time also has `target` and `candidates`."""
    quantization: tuple[Quantization, ...] = ()
    """Each quantize stage: what was tried, left in float and kept."""
    saturation: Saturation | None = None
    """None where the deployed model is not INT8."""
    optimism: tuple[Optimism, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    histogram: dict[str, Any] = {}
    """Tokens a row: `{edges: [..], counts: {train: [..], select: [..], ...}}`, len(edges) == len(counts) + 1."""
    label_counts: dict[str, dict[str, int]] = {}
    """Split to label to rows."""
    quality: dict[str, Any] = {}
    """How far the machine is to be trusted: `{grade: good|fair|poor, because: [..]}`."""
    reproduce: dict[str, Any] = {}
    """`{command, recipe, versions}`: how to make it again."""

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
