"""What `verify` asks the deployed model: its own sentences, and the run's rows, beside the answers that were kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.bench.machine import versions
from compressor.data.rows import DataSets
from compressor.device import machine_id
from compressor.errors import CompressorError
from compressor.evaluate.metrics import score
from compressor.export.parity import TOLERANCE, compare
from compressor.model.manifest import MANIFEST_NAME, read_manifest
from compressor.report.compare import scored_rows
from compressor.report.kept import GOLDEN_NAME, VERSIONS, Golden, golden_answers, read_answers, read_golden
from compressor.report.model import MetricFigure, Report
from compressor.report.table import points
from compressor.stage import Progress

ELSEWHERE = 0.99
"""Share of answers that must agree where the machine or onnxruntime is another one: INT8 rounds otherwise there."""
SAME_LOGITS = 1e-4
"""Largest difference of a logit where machine and versions are the same."""
EQUAL_SCORES = 1e-6
"""Scores of the same answers differ by rounding alone."""

State = Literal["ok", "fail", "another version", "not checked"]
"""`another version`: what another version of this program recorded cannot be held against the files; neither right nor
wrong is shown."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    state: State
    subject: str
    words: str


def golden_checks(final: Path) -> Iterator[Check]:
    """Answers to our own sentences against those of the day it was made, as numbers and as labels."""
    try:
        golden = read_golden(final)
        if golden is None:
            yield Check("not checked", "golden answers", f"the folder keeps none ({GOLDEN_NAME})")
            return
        _, logits = golden_answers(final, golden.texts)
    except CompressorError as error:
        yield Check("fail", "golden answers", str(error))
        return
    if logits.shape != golden.logits.shape:
        yield Check("fail", "golden answers", f"shape {logits.shape} instead of {golden.logits.shape}")
        return
    yield _golden_logits(golden, logits)
    yield _golden_labels(golden, logits, read_manifest(final).labels)


def _golden_logits(golden: Golden, logits: np.ndarray) -> Check:
    found = compare(golden.logits, logits)
    words = f"{found.rows} sentences, logits differ by {found.largest:.2g} at most"
    if found.alike:
        return Check("ok", "golden answers", words)
    if _rounds_alike(golden.machine, golden.versions):
        words = f"{words}, {TOLERANCE * found.scale:.2g} is rounding; same machine and versions"
        return Check("fail", "golden answers", words)
    agreed = float(np.mean(golden.logits.argmax(-1) == logits.argmax(-1)))
    words = f"{words}; {100 * agreed:.0f} % the same label, on another machine or versions"
    return Check("ok" if agreed >= ELSEWHERE else "fail", "golden answers", words)


def _golden_labels(golden: Golden, logits: np.ndarray, labels: tuple[str, ...]) -> Check:
    """The words for the answers; a row whose class itself is another one now is the concern of the check before."""
    if golden.answers is None:
        return Check("not checked", "golden labels", f"{GOLDEN_NAME} keeps no labels")
    classes = logits.argmax(-1)
    alike = np.flatnonzero(classes == golden.logits.argmax(-1))
    wrong = [
        (golden.answers[row], labels[classes[row]]) for row in alike if golden.answers[row] != labels[classes[row]]
    ]
    if wrong:
        words = f"{len(wrong)} of {len(alike)} answers are called otherwise: {wrong[0][1]} instead of {wrong[0][0]}"
        return Check("fail", "golden labels", words)
    return Check("ok", "golden labels", f"{len(alike)} answers are called as they were")


def _rounds_alike(machine: object, recorded: Mapping[str, str] | None) -> bool:
    """True where that machine, and those versions of what computes, are the ones here."""
    known = {name: version for name, version in (recorded or {}).items() if name in VERSIONS}
    return bool(known) and machine == machine_id() and versions(tuple(known)) == known


def score_checks(
    root: Path | None, final: Path, rows: DataSets | None, threads: int | None, progress: Progress
) -> Iterator[Check]:
    """The answers on the run's own rows against those kept with the report; the score alone where none were kept."""
    if root is None or rows is None:
        why = "a deployed model alone has no rows; verify the run" if root is None else "the run's rows are not here"
        yield Check("not checked", "score", why)
        return
    report, stage = run_report(root), str(read_object(final / MANIFEST_NAME).get("stage") or "")
    recorded = recorded_score(report, stage)
    from compressor.runtime.predictor import load

    try:
        kept = read_answers(root / "report")
        kept = kept if kept is not None and stage in kept.logits else None
        if kept is None and recorded is None:
            yield Check("not checked", "score", "the report has neither answers nor a score of the deployed stage")
            return
        texts, references, _ = scored_rows(rows)
        used = rows.scored
        if kept is not None and (kept.rows != used.digest() or kept.labels != tuple(rows.labels)):
            words = f"the recipe's rows are others now ({len(used)}) than when it was scored ({len(kept.references)})"
            yield Check("fail", "score", words)
            return
        progress("score", 0, len(texts))
        logits = np.asarray(load(final, engine="onnxruntime", threads=threads, spinning=False).logits(texts))
        progress("score", len(texts), len(texts))
    except CompressorError as error:
        yield Check("fail", "score", str(error))
        return
    labelled = [place for place, one in enumerate(references) if one is not None]
    ids = np.array([references[place] for place in labelled])

    def scored(answers: np.ndarray, name: str) -> float:
        return score(name, answers.argmax(-1)[labelled], ids, rows.labels)

    if kept is None:
        assert recorded is not None
        yield _in_interval(scored(logits, recorded.name), len(labelled), recorded)
        return
    before = np.asarray(kept.logits[stage])
    if recorded is not None and abs((was := scored(before, recorded.name)) - recorded.value) > EQUAL_SCORES:
        words = f"the report says {points(recorded)}, the answers kept with it give {100 * was:.2f} %"
        yield Check("fail", "score", words)
        return
    machine = report.machine if report is not None else {}
    here = threads is None or threads == machine.get("usable")
    yield _same_answers(before, logits, same=here and _rounds_alike(machine.get("id"), machine.get("versions")))


def _same_answers(before: np.ndarray, now: np.ndarray, *, same: bool) -> Check:
    """Row by row; `same` where machine, threads and versions are those of the report."""
    if before.shape != now.shape or not np.isfinite(now).all():
        return Check("fail", "score", f"answers have shape {now.shape} instead of {before.shape}, or are no numbers")
    largest = float(np.abs(before - now).max(initial=0.0))
    other = int(np.sum(before.argmax(-1) != now.argmax(-1)))
    words = f"{other} of {len(now):,} answers changed, logits differ by {largest:.2g} at most"
    if same:
        alike = other == 0 and largest <= SAME_LOGITS
        return Check(
            "ok" if alike else "fail", "score", f"{words} ({SAME_LOGITS:g} allowed, same machine and versions)"
        )
    limit = f"on another machine, threads or versions, where {100 * ELSEWHERE:.0f} % must be alike"
    return Check("ok" if other <= (1 - ELSEWHERE) * len(now) + 1e-9 else "fail", "score", f"{words}, {limit}")


def _in_interval(found: float, count: int, recorded: MetricFigure) -> Check:
    """The weak check, where no answers were kept: another model of like quality passes it."""
    if count != recorded.rows:
        return Check("fail", "score", f"the recipe's rows are {count} now, {recorded.rows} when it was scored")
    words = f"{recorded.name} {100 * found:.2f} % on {count:,} rows, the report says {points(recorded)}"
    words += "; a weak check, as no answers were kept (report/answers.npz)"
    return Check("ok" if recorded.low <= found <= recorded.high else "fail", "score", words)


def run_report(root: Path) -> Report | None:
    """The run's report; None where there is none."""
    file = root / "report" / "report.json"
    return Report.read(file) if file.is_file() else None


def recorded_score(report: Report | None, stage: str) -> MetricFigure | None:
    """The report's score of the stage that was deployed."""
    rows = () if report is None else report.subjects
    return {row.name: row.metric for row in rows if row.engine == "onnxruntime"}.get(stage)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
