"""The sections of a report in their order: the verdict first, then what supports it, then rows and machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.report import detail, int8_sections
from compressor.report.model import BudgetLine, Figure, LatencyRow, Report, SubjectRow
from compressor.report.section import Cell, Section, number, said, spread
from compressor.report.table import (
    HEADS,
    cells,
    chain,
    deployed,
    megabytes,
    noise_sentence,
    pytorch_sentence,
    ratio,
    simpler,
)

VERDICT_WORDS = {
    "pass": "pass: every budget is met",
    "fail": "fail: a budget is broken",
    "undecided": "undecided: the evidence does not settle every budget",
    "none": "no budget was set",
}
TONES = {"faster": "pass", "slower": "fail", "same": "dim", "undecided": "dim", "helped": "pass", "hurt": "fail"}


def sections(report: Report) -> tuple[Section, ...]:
    """Everything that page and Markdown show below the verdict; sections without content are left out."""
    found = [
        glance(report),
        budget(report),
        models(report),
        ladder(report),
        answers(report),
        baselines(report),
        Section("doubts", "Doubts", items=report.doubts),
        attribution(report),
        decisions(report),
        *(made(one, place) for place, one in enumerate(report.pruning) for made in (pruned, scored)),
        *int8_sections.sections(report),
        training(report),
        *detail.sections(report),
    ]
    return tuple(one for one in found if not one.empty)


def glance(report: Report) -> Section:
    """The deployed model beside the teacher: speed, score, size, and how far the machine is to be trusted."""
    heads, best, reference = ("what", "figure"), deployed(report), next(iter(chain(report)), None)
    if best is None or best is reference or reference is None:
        return Section("glance", "At a glance")
    rows = [(Cell("model"), Cell(best.name, note=f"{best.precision} on {best.engine}"))]
    versus = best.versus_teacher
    if versus and versus.latency_ratio:
        rows.append((Cell("times as fast"), _speedup(best, reference, versus.latency_ratio)))
    if best.metric:
        drop = f"drop against {reference.name}: {spread(versus.drop).text} pp" if versus and versus.drop else ""
        between = f"{100 * best.metric.low:.1f} to {100 * best.metric.high:.1f}"
        score = number(100 * best.metric.value, ".1f", note="; ".join(part for part in (between, drop) if part))
        rows.append((Cell(f"{best.metric.name} (%)"), score))
    if best.bytes is not None:
        rows.append(
            (Cell("MB"), Cell(megabytes(best.bytes), note=f"{reference.name}: {megabytes(reference.bytes)} MB"))
        )
    if report.quality:
        because = "; ".join(map(str, report.quality.get("because", ())))
        rows.append((Cell("machine for timing"), Cell(str(report.quality.get("grade", "not known")), note=because)))
    return Section("glance", "At a glance", heads, tuple(rows), note=simpler(report))


def _speedup(best: SubjectRow, reference: SubjectRow, found: Figure) -> Cell:
    """The inverse of the latency ratio, with its ends, the word for it and the two medians."""
    inverse = Figure(value=1 / found.value, low=1 / found.high, high=1 / found.low)
    ours, theirs = _first_p50(best), _first_p50(reference)
    word = best.versus_teacher.speed_verdict if best.versus_teacher else None
    medians = f"p50 {ours:.3g} ms, {reference.name} {theirs:.3g} ms" if ours and theirs else ""
    between = f"{inverse.low:.2f} to {inverse.high:.2f}"
    note = "; ".join(part for part in (between, word, medians) if part)
    return Cell(f"{inverse.value:.2f}", inverse.value, note, TONES.get(word or "", ""))


def _first_p50(row: SubjectRow) -> float | None:
    return row.latency[0].p50_ms if row.latency else None


def budget(report: Report) -> Section:
    """Each limit, what was found, and whether it is kept."""
    heads = ("what", "limit", "found", "verdict")
    return Section("budget", "Budget", heads, tuple(_limit(line) for line in report.budgets))


def _limit(line: BudgetLine) -> tuple[Cell, ...]:
    what = f"{line.what} vs {line.vs}" if line.vs else line.what
    return Cell(what), Cell(line.limit), Cell(line.because), Cell(line.verdict, tone=line.verdict)


def models(report: Report) -> Section:
    """Every subject: size, score and time beside the teacher's."""
    note = "Brackets hold 95 % intervals; a drop above 0 is worse, a time below 1 faster. " + _timed(report)
    if report.noise:
        note += f" {noise_sentence(report)}"
    if report.pytorch:
        note += f" {pytorch_sentence(report)}"
    lead = f"Score is {report.task.get('metric', 'the metric')}."
    return Section("models", "Models", HEADS, tuple(map(_model, report.subjects)), lead=lead, note=note)


def _timed(report: Report) -> str:
    """What the times of the main table are of, or why there are none."""
    row = next((row.latency[0] for row in report.subjects if row.latency), None)
    if row is None:
        return ""
    if row.status != "measured":
        return f"Times: not measured ({row.reason})."
    return f"Times: {_conditions(row)}, without tokenizing."


def _conditions(row: LatencyRow) -> str:
    length = "the data's own lengths" if row.length == "data" else f"length {row.length}"
    runs = "" if row.engine is None else f" ({row.device}, {row.engine})"
    clock = "wall time" if row.clock == "wall" else "time between events of the device"
    return f"target {row.target}{runs}, threads {row.threads}, batch {row.batch}, {length}, {clock}"


def _model(row: SubjectRow) -> tuple[Cell, ...]:
    versus = row.versus_teacher
    values = (
        None,
        None,
        row.bytes,
        row.metric.value if row.metric else None,
        versus.drop.value if versus and versus.drop else None,
        _first_p50(row),
        versus.latency_ratio.value if versus and versus.latency_ratio else None,
        None,
    )
    word = versus.speed_verdict if versus else None
    tones = dict.fromkeys(HEADS, "dim" if "/" in row.name else "")
    if word:
        tones["speed"] = TONES[word]
        tones["time vs teacher"] = "dim" if word in ("same", "undecided") else tones["time vs teacher"]
    found = zip(HEADS, cells(row), values, strict=True)
    return tuple(Cell(text, value, tone=tones[head]) for head, text, value in found)


def ladder(report: Report) -> Section:
    """What each step gained and lost against the step before."""
    heads = ("step", "speed-up over the step before", "drop (pp)")
    rows = tuple(
        (Cell(step.step), spread(step.speedup, ratio, note=step.reason or ""), spread(step.drop))
        for step in report.ladder
    )
    note = "A speed-up above 1 is faster, a drop above 0 is worse; each is timed in the rounds of the one before."
    return Section("ladder", "Step by step", heads, rows, note=note)


def answers(report: Report) -> Section:
    """Same, lost and won answers beside the teacher's, with McNemar's test and the divergence."""
    heads = ("model", "same answers %", "lost", "won", "McNemar p", "KL (nats)")
    rows = []
    for row in report.subjects:
        versus = row.versus_teacher
        if versus is None or "/" in row.name or row.same_as is not None or versus.agreement is None:
            continue
        flips = versus.flips or {}
        rows.append(
            (
                Cell(cells(row)[0]),
                number(100 * versus.agreement, ".1f"),
                number(flips.get("lost"), ",d"),
                number(flips.get("won"), ",d"),
                number(versus.mcnemar_p, ".3g"),
                number(versus.kl, ".4f"),
            )
        )
    note = "Lost: right for the teacher alone; won: right for the model alone. A small p says that they are not even."
    return Section("answers", "Answers beside the teacher's", heads, tuple(rows), note=note)


def baselines(report: Report) -> Section:
    """Something simple on the same rows, and whether it would do."""
    heads = ("baseline", "score %", "behind the deployed model (pp)", "MB", "ms a row", "s to make", "suffices")
    rows = tuple(
        (
            Cell(one.name, note=one.what),
            spread(one.metric),
            spread(one.behind_best),
            Cell(megabytes(one.bytes), one.bytes),
            number(one.milliseconds, ".3g"),
            number(one.seconds, ".3g"),
            Cell("yes" if one.suffices else "no", tone="undecided" if one.suffices else "dim"),
        )
        for one in report.baselines
    )
    lead = " ".join(one.sentence for one in report.baselines if one.sentence)
    note = "Milliseconds are with tokenizing, in one process, not paired with the models' times."
    return Section("baselines", "Baselines", heads, rows, lead=lead, note=note if rows else "")


def attribution(report: Report) -> Section:
    """What parts of the training brought over controls without them."""
    heads = ("stage", "what", "gain (pp)", "verdict")
    rows = tuple(
        (
            Cell(one.stage),
            Cell(one.what, note=one.sentence),
            spread(one),
            Cell(one.verdict, tone=TONES.get(one.verdict, "dim")),
        )
        for one in report.attribution
    )
    return Section("attribution", "What distillation brought", heads, rows)


def decisions(report: Report) -> Section:
    """What was found and chosen while distilling."""
    heads = ("stage", "what", "found or chosen")
    rows = tuple(
        (said(one.get("stage")), said(one.get("kind")), said(one.get("chosen"), note=str(one.get("because") or "")))
        for one in report.decisions
        if one.get("kind") != "engine"
    )
    return Section("decisions", "Decided while distilling", heads, rows)


def pruned(one: Mapping[str, Any], place: int) -> Section:
    """Heads and neurons left of each layer of a prune stage, and the width where that was cut."""
    heads: tuple[str, ...] = ("layer", "heads kept", "neurons kept", "whole layer")
    rows = tuple(map(_layer, one.get("layers") or ()))
    width = one.get("hidden") or {}
    if width and width["kept"] < width["before"]:
        heads = (*heads[:3], "width kept", *heads[3:])
        share = width["kept"] / width["before"]
        kept = Cell(_of(width["kept"], width["before"]), width["kept"], share=share)
        rows = tuple((*row[:3], kept, *row[3:]) for row in rows)
    stage, because = str(one.get("stage", "")), str(one.get("because") or "")
    return Section(f"pruned-{place}", f"Pruned: {stage}", heads, rows, lead=because)


def scored(one: Mapping[str, Any], place: int) -> Section:
    """What the heads and layers of a prune stage's input were worth; empty where that was not kept."""
    layers = [layer for layer in one.get("layers") or () if layer.get("head_scores") is not None]
    most = max((score for layer in layers for score in layer["head_scores"]), default=0.0)
    whole = max((layer.get("score") or 0.0 for layer in layers), default=0.0)
    rows = tuple((_layer(layer)[0], *_scores(layer, most, whole)) for layer in layers)
    note = "Scores are those before the first cut; the darker a square, the more that head matters."
    title = f"Pruned: {one.get('stage', '')}, scores"
    return Section(f"scores-{place}", title, ("layer", "heads' scores", "layer's score"), rows, note=note)


def _scores(layer: Mapping[str, Any], most: float, whole: float) -> tuple[Cell, ...]:
    """Of one layer, each head's score and its own, drawn as shares of the greatest of all layers."""
    scores, own = layer.get("head_scores") or (), float(layer.get("score") or 0.0)
    shades = tuple(score / most if most else 0.0 for score in scores)
    text = f"{min(scores):.2g} to {max(scores):.2g}" if scores else "-"
    return (
        Cell(text, max(scores) if scores else None, shades=shades),
        Cell(f"{own:.3g}", own, share=own / whole if whole else None),
    )


def _layer(layer: Mapping[str, Any]) -> tuple[Cell, ...]:
    """One layer; `kept_heads`, the places of the heads that stayed, tells which squares are filled."""
    heads, before = layer.get("heads"), layer.get("heads_before")
    left, most = layer.get("ffn"), layer.get("ffn_before")
    places = layer.get("kept_heads")
    kept: tuple[bool, ...] = ()
    if isinstance(heads, int) and isinstance(before, int):
        stayed = set(range(heads)) if places is None else set(places)
        kept = tuple(place in stayed for place in range(before))
    share = left / most if isinstance(left, int) and isinstance(most, int) and most else None
    gone = bool(layer.get("removed"))
    because = str(layer.get("because") or "")
    return (
        Cell(plain_layer := str(layer.get("layer", "")), float(plain_layer) if plain_layer.isdecimal() else None),
        Cell(_of(heads, before), heads, kept=kept),
        Cell(_of(left, most), left, share=share),
        Cell("removed" if gone else "kept", note=because, tone="dim"),
    )


def _of(kept: object, before: object) -> str:
    """Kept of before, in words.

    >>> _of(3, 4), _of(None, None)
    ('3 of 4', '-')
    """
    return "-" if kept is None else f"{kept:,} of {before:,}" if isinstance(before, int) else f"{kept}"


def training(report: Report) -> Section:
    """Steps and loss of every stage that trained."""
    heads = ("stage", "up to step", "first loss", "last loss")
    rows = tuple(
        (
            Cell(stage),
            number(max(int(point["step"]) for point in points), ",d"),
            number(points[0]["loss"], ".4f"),
            number(points[-1]["loss"], ".4f"),
        )
        for stage, points in report.curves.items()
        if points
    )
    return Section("training", "Training", heads, rows)
