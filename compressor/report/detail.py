"""The later sections of a report: accuracy in depth, other ways of timing, resources, rows, machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from compressor.bench.statistics import needs_samples
from compressor.report.model import Figure, LatencyRow, Optimism, Report, Resources, SubjectRow
from compressor.report.section import Cell, Section, facts, number, said, spread
from compressor.report.table import plain

RESOURCES = {  # key: head of its column, what it is divided by, format
    "macs": ("encoder MACs (M)", 1e6, ",.1f"),
    "parameters_without_embeddings": ("parameters without embeddings (M)", 1e6, ",.2f"),
    "peak_memory_bytes": ("peak memory (MB)", 1e6, ",.1f"),
    "cold_start_seconds": ("cold start (s)", 1.0, ".2f"),
    "energy_joules": ("energy (mJ a row)", 1e-3, ".3g"),
    "cost_per_million": ("cost of a million rows", 1.0, ".3g"),
}


def sections(report: Report) -> tuple[Section, ...]:
    """Those sections in their order, empty ones among them."""
    return (
        classes(report),
        lengths(report),
        calibration(report),
        perturbed(report),
        optimism(report),
        times(report),
        resources(report),
        data(report),
        labels(report),
        histogram(report),
        facts("machine", "Machine", list(report.machine.items()), lead=_quality(report)),
        reproduce(report),
    )


def _subjects(report: Report) -> Iterator[SubjectRow]:
    """Subjects with figures of their own, the last of onnxruntime first: the deployed model is asked for most."""
    rows = [row for row in reversed(report.subjects) if row.same_as is None]
    return iter(sorted(rows, key=lambda row: row.engine != "onnxruntime"))


def _name(row: SubjectRow) -> Cell:
    return Cell(row.name if row.engine == "onnxruntime" else f"{row.name} ({row.engine})")


def classes(report: Report) -> Section:
    """Precision and recall of each class."""
    heads = ("model", "class", "rows", "precision %", "recall %", "recall drop (pp)")
    rows = tuple(
        (
            _name(row),
            Cell(one.label),
            number(one.rows, ",d"),
            spread(one.precision),
            spread(one.recall),
            spread(one.recall_drop),
        )
        for row in _subjects(report)
        for one in row.classes
    )
    return Section("classes", "Class by class", heads, rows)


def lengths(report: Report) -> Section:
    """Scores of short and long rows."""
    heads = ("model", "tokens", "rows", "score %", "drop (pp)")
    rows = tuple(
        (
            _name(row),
            Cell(f"{one.low} to {one.high}", one.low),
            number(one.rows, ",d"),
            spread(one.score),
            spread(one.drop),
        )
        for row in _subjects(report)
        for one in row.lengths
    )
    return Section("lengths", "Short and long rows", heads, rows)


def calibration(report: Report) -> Section:
    """How far confidence is from accuracy, before and after temperature."""
    heads = ("model", "calibration error %", "temperature", "error after %", "rows")
    found = [(_name(row), row.calibration) for row in _subjects(report) if row.calibration]
    rows = tuple(
        (
            name,
            number(100 * one.error, ".2f"),
            number(one.temperature, ".3f"),
            number(100 * one.error_after, ".2f"),
            number(one.rows, ",d"),
        )
        for name, one in found
    )
    note = (
        "Expected calibration error over 15 bins of equal width; the temperature, fitted on select, divides the logits."
    )
    return Section("calibration", "Confidence", heads, rows, note=note)


def perturbed(report: Report) -> Section:
    """What small changes of every text do."""
    heads = ("model", "change", "score %", "drop (pp)", "same answers %", "rows")
    rows = tuple(
        (
            _name(row),
            Cell(one.what),
            spread(one.score),
            spread(one.drop),
            number(100 * one.agreement, ".1f"),
            number(one.rows, ",d"),
        )
        for row in _subjects(report)
        for one in row.perturbed
    )
    note = "A drop is the model's own score on the texts as they are minus that on the changed ones."
    return Section("perturbed", "Changed texts", heads, rows, note=note)


def optimism(report: Report) -> Section:
    """What deciding on select flattered."""
    heads = ("stage", "drop on select (pp)", "drop on test (pp)", "test minus select (pp)")
    rows = tuple((Cell(one.stage), spread(one.select), spread(one.test), _gap(one)) for one in report.optimism)
    note = "Within noise: the interval of the difference includes 0, so no flattery is shown."
    return Section("optimism", "What deciding on select flattered", heads, rows, note=note)


def _gap(one: Optimism) -> Cell:
    """Test minus select, and whether chance could have done it."""
    if one.low is None or one.high is None:
        return number(100 * one.optimism, ".1f")
    gap = Figure(value=one.optimism, low=one.low, high=one.high)
    return spread(gap, note="within noise" if gap.low <= 0 <= gap.high else "")


def times(report: Report) -> Section:
    """Every time and rate that was measured, where there is more than the main table shows."""
    heads = (
        "model",
        "how",
        "runs on",
        "clock",
        "batch",
        "length",
        "tokenizing",
        "threads",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "rows/s",
        "samples",
    )
    if all(len(row.latency) < 2 and not any(one.end_to_end for one in row.latency) for row in report.subjects):
        return Section("times", "Times", heads)
    rows = tuple(_time(row, one) for row in report.subjects if row.same_as is None for one in row.latency)
    return Section("times", "Times", heads, rows, note=_padding(report))


def _time(row: SubjectRow, one: LatencyRow) -> tuple[Cell, ...]:
    how = one.scenario if one.target == "cpu" else f"{one.scenario}, {one.target}"
    limit = f"p99 within {one.limit_ms:g} ms" if one.limit_ms is not None else ""
    spent = f"{one.processes} processes" if one.processes > 1 else ""
    said_by = "; ".join(part for part in (spent, limit, one.reason) if part)
    place = ", ".join(part for part in (one.device, one.engine, one.precision) if part)
    return (
        _name(row),
        Cell(how, note=said_by, tone="" if one.status == "measured" else "dim"),
        Cell(place or "-"),
        Cell(one.clock),
        number(one.batch, "d"),
        said(one.length),
        Cell("with" if one.end_to_end else "without"),
        number(one.threads, "d"),
        *(_percentile(one, per_cent) for per_cent in (50, 90, 95, 99)),
        number(one.rows_per_second, ",.4g"),
        number(one.samples, ",d"),
    )


def _percentile(one: LatencyRow, per_cent: int) -> Cell:
    """A percentile with its ends below it, or how many samples it needs."""
    value, low, high = (getattr(one, f"p{per_cent}_{part}") for part in ("ms", "low_ms", "high_ms"))
    if value is None:
        short = needs_samples(per_cent / 100, one.samples) if one.status == "measured" else None
        return number(None, note="" if short is None else short.split(" ", 1)[1])
    return number(value, ".3g", note="" if low is None or high is None else f"{low:.3g} to {high:.3g}")


def _padding(report: Report) -> str:
    """What not padding gains, for each subject timed both ways; empty where none was."""
    gains = []
    for row in (row for row in report.subjects if row.same_as is None):
        found = {
            (one.target, one.batch, one.length): one.p50_ms
            for one in row.latency
            if one.scenario == "single stream" and not one.end_to_end and one.p50_ms
        }
        for (target, batch, length), padded in found.items():
            own = found.get((target, batch, "data"))
            if length == "padded" and own:
                gains.append(f"{_name(row).text} {padded / own:.2f} times (batch {batch})")
    return f"How much faster own lengths are than padding to the data's longest: {', '.join(gains)}." if gains else ""


def resources(report: Report) -> Section:
    """Work, memory, start, energy and cost; columns that nothing is known of are left out, with the reason."""
    found = [(row, row.resources) for row in _subjects(report) if row.resources]
    known = [key for key in RESOURCES if any(getattr(one, key) is not None for _, one in found)]
    reasons = {key: {one.reasons[key] for _, one in found if key in one.reasons} for key in RESOURCES}
    shared = {key: next(iter(said_of)) for key, said_of in reasons.items() if len(said_of) == 1}
    heads = ("model", *(RESOURCES[key][0] for key in known))
    rows = tuple((_name(row), *(_resource(one, key, shared) for key in known)) for row, one in found)
    note = " ".join(f"{RESOURCES[key][0].split(' (')[0].capitalize()}: {reason}." for key, reason in shared.items())
    return Section("resources", "Resources", heads, rows, note=note)


def _resource(one: Resources, key: str, shared: Mapping[str, str]) -> Cell:
    """The figure in its unit; what is said of it alone stands below it."""
    _, unit, form = RESOURCES[key]
    value = getattr(one, key)
    note = "" if key in shared else one.reasons.get(key, "")
    return number(None if value is None else value / unit, form, note=note)


def data(report: Report) -> Section:
    """Rows of each part."""
    return facts("data", "Rows", list(report.data.items()))


def labels(report: Report) -> Section:
    """Rows of each label in each part."""
    parts = list(report.label_counts)
    names = list(dict.fromkeys(name for counts in report.label_counts.values() for name in counts))
    rows = tuple(
        (Cell(name), *(number(report.label_counts[part].get(name, 0), ",d") for part in parts)) for name in names
    )
    return Section("labels", "Labels", ("label", *parts), rows)


def histogram(report: Report) -> Section:
    """Rows by their tokens, in each part."""
    edges, counts = report.histogram.get("edges", ()), report.histogram.get("counts", {})
    rows = tuple(
        (Cell(f"{low:g} to {high:g}", float(low)), *(number(one[place], ",d") for one in counts.values()))
        for place, (low, high) in enumerate(pairwise(edges))
    )
    note = "A row belongs to the bin whose lower end it reaches and whose upper end it does not, but for the last."
    return Section("histogram", "Tokens a row", ("tokens", *counts), rows if counts else (), note=note)


def _quality(report: Report) -> str:
    if not report.quality:
        return ""
    because = "; ".join(map(str, report.quality.get("because", ())))
    grade = f"For timing this machine was {report.quality.get('grade', 'not graded')}"
    return f"{grade}: {because}." if because else f"{grade}."


def reproduce(report: Report) -> Section:
    """The command, and the recipe where the report holds it."""
    known = dict(report.reproduce)
    command, recipe = str(known.pop("command", "") or ""), str(known.pop("recipe", "") or "")
    longer = "\n" in recipe.strip()
    if recipe and not longer:
        known = {"recipe": recipe, **known}
    code = "\n\n".join(part for part in (command, recipe if longer else "") if part)
    rows = tuple((Cell(key), Cell(plain(value))) for key, value in known.items())
    return Section("reproduce", "How to make it again", ("fact", "value"), rows, code=code)
