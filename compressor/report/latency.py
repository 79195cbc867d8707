"""The latency rows of a subject from raw timings: every kind of work and every scenario, or why there is no figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from compressor.bench.isolation import Timing
from compressor.bench.process import PLAIN, Work
from compressor.bench.scenarios import Answered
from compressor.bench.settings import CASTING, Benchmark, Target
from compressor.bench.statistics import median_interval, needs_samples, percentile, percentile_interval
from compressor.device import usable_threads
from compressor.report.model import LatencyRow, Scenario
from compressor.report.workloads import opens, runs, skipped, too_large, works_asked
from compressor.runtime.choose import why_not


def latency_rows(
    key: str,
    timings: Mapping[str, Timing],
    *,
    folder: Path,
    targets: Mapping[str, Target],
    benchmark: Benchmark | None = None,
    engine: str = "onnxruntime",
    untimed: str = "no target of this engine was timed",
    precision: str | None = None,
    unchosen: Mapping[str, str] | None = None,
) -> tuple[LatencyRow, ...]:
    """Every row of one subject, the one that ratios are taken from first; never empty.

    Args:
        key: name of its process, that of an earlier subject where the two are the same file.
        timings: raw samples by target.
        folder: of the model.
        targets: by name.
        benchmark: what was asked for; None asks for the targets that were timed, or else the first there is.
        engine: of the subject; a target of another one has no row.
        untimed: why there is no figure where a subject was not timed at all.
        precision: of the model's file; None where it is not known.
        unchosen: target to why no engine could be chosen there; None where all have theirs.
    """
    names = list(timings) or list(targets)[:1] if benchmark is None else benchmark.targets
    rows: list[LatencyRow] = []
    for name in names:
        target, timing = targets.get(name, Target()), timings.get(name)
        if timing is not None and timing.rounds_of(key):
            rows += _timed_rows(name, timing, key)
            rows += _refused(name, timing, key, folder, benchmark or Benchmark(), target)
        elif opens(target) == engine:
            reason = (
                (unchosen or {}).get(name)
                or skipped(target)
                or (None if runs(folder, target) else why_not(folder, target))
                or untimed
            )
            rows.append(_unmeasured(name, target.threads or usable_threads(), reason))
    if not rows:
        name, target = next(iter(targets.items()))
        rows = [_unmeasured(name, target.threads or usable_threads(), untimed)]
    return tuple(placed(row, targets.get(row.target, Target()), precision) for row in rows)


def placed(row: LatencyRow, target: Target, precision: str | None) -> LatencyRow:
    """The row with what runs the model at its target, and in which precision.

    Args:
        precision: of the model's file; an fp32 one is computed in the target's where that can be another.
    """
    casts = precision == "fp32" and (target.device, target.engine) in CASTING
    here = {"device": target.device, "engine": target.engine, "precision": target.precision if casts else precision}
    return row.model_copy(update=here)


def _timed_rows(target: str, timing: Timing, key: str) -> Iterable[LatencyRow]:
    for work in (PLAIN, *(work for work in timing.works_of(key) if work != PLAIN)):
        yield measured(target, timing, key, work)
    if timing.one_core is not None:
        yield measured(target, timing.one_core, key, scenario="one core")
    for answered in timing.answered:
        if answered.subject == key:
            yield _scenario_row(target, answered)


def _refused(
    name: str, timing: Timing, key: str, folder: Path, benchmark: Benchmark, target: Target
) -> Iterable[LatencyRow]:
    """What was asked for and could not be timed."""
    for work in works_asked(benchmark, target):
        reason = too_large(folder, work, target)
        if reason is not None:
            yield _unmeasured(name, timing.threads, reason, work=work)
    if target.device != "cpu":
        for scenario in benchmark.scenarios:
            if scenario != "single stream":
                reason = "scenarios are run on the processor alone"
                yield _unmeasured(name, timing.threads, reason, scenario=scenario)


def measured(
    target: str, timing: Timing, key: str, work: Work = PLAIN, *, scenario: Scenario = "single stream"
) -> LatencyRow:
    """The row of one kind of work that was timed in rounds; percentiles where the samples can carry them."""
    rounds = list(timing.rounds_of(key, work).values())
    samples = [nanoseconds for one in rounds for nanoseconds in one]
    spread = median_interval(rounds)
    short = [words for share in (0.5, 0.9) if (words := needs_samples(share, len(samples))) is not None]
    return LatencyRow(
        target=target,
        scenario=scenario,
        batch=work.batch,
        length=work.length,
        end_to_end=work.end_to_end,
        clock=work.clock,
        threads=timing.threads,
        status="measured",
        reason="; ".join(short) or None,
        p50_ms=percentile(samples, 0.5),
        samples=len(samples),
        p50_low_ms=spread.low,
        p50_high_ms=spread.high,
        start_seconds=timing.start_seconds.get(key),
        **tail(samples),
    )


def tail(nanoseconds: Sequence[int]) -> dict[str, float | None]:
    """The fields of a latency row for p90, p95 and p99 with their ends; None where samples are too few."""
    found: dict[str, float | None] = {}
    for per_cent in (90, 95, 99):
        ends = percentile_interval(nanoseconds, per_cent / 100)
        found[f"p{per_cent}_ms"] = None if ends is None else ends.value
        found[f"p{per_cent}_low_ms"] = None if ends is None else ends.low
        found[f"p{per_cent}_high_ms"] = None if ends is None else ends.high
    return found


def _scenario_row(target: str, answered: Answered) -> LatencyRow:
    """The row of scenario offline or arrivals, with what else was tried."""
    nanoseconds = [round(1e6 * milliseconds) for milliseconds in answered.milliseconds]
    unit = "rows/s" if answered.scenario == "offline" else "ms p99"
    median = percentile_interval(nanoseconds, 0.5)
    tried = ", ".join(f"{what}: {value:.4g} {unit}" for what, value in answered.tried)
    return LatencyRow(
        target=target,
        scenario=answered.scenario,
        batch=answered.work.batch,
        length=answered.work.length,
        end_to_end=answered.work.end_to_end,
        threads=answered.threads,
        processes=answered.processes,
        status="not measured" if answered.rows_per_second is None else "measured",
        reason="; ".join(part for part in (answered.reason, f"tried {tried}" if tried else None) if part) or None,
        rows_per_second=answered.rows_per_second,
        samples=answered.samples,
        p50_ms=None if median is None else median.value,
        p50_low_ms=None if median is None else median.low,
        p50_high_ms=None if median is None else median.high,
        limit_ms=answered.limit_ms,
        **tail(nanoseconds),
    )


def _unmeasured(
    target: str, threads: int, reason: str, *, work: Work = PLAIN, scenario: Scenario = "single stream"
) -> LatencyRow:
    return LatencyRow(
        target=target,
        scenario=scenario,
        batch=work.batch,
        length=work.length,
        end_to_end=work.end_to_end,
        clock=work.clock,
        threads=threads,
        status="not measured",
        reason=reason,
    )
