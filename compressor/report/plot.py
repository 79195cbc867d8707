"""The report's plots: score against time or size, what each step bought, loss, scores by length, tokens a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from compressor.report.model import Figure, Report, Step, SubjectRow
from compressor.report.svg import COLOURS, HEIGHT, INKS, WIDTH, cut, inline, plain_axes, settings, sheet
from compressor.report.table import chain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME_LENGTH = 40  # characters beside a mark; its tooltip has the whole name
SHORT_NAME = 14  # characters at the side of the ladder
MOST_LINES = 6  # models in the plot of lengths: as many as there are inks


@dataclass(frozen=True)
class Point:
    """One model in the plot: x with its interval (above 0), y with its interval."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    ring: bool = False
    """Drawn hollow: not timed like the others."""


def report_plot(report: Report) -> str:
    """Score in percent against milliseconds a row, or against megabytes where nothing was timed; empty without points.

    Left out: other engines than onnxruntime, since the axes are of one kind, and a second subject of the same file.
    """
    rows = [row for row in chain(report) if row.metric and row.same_as is None]
    timed = [point for row in rows if (point := _timed(row)) is not None]
    points = timed or [point for row in rows if (point := _sized(row)) is not None]
    across = "milliseconds a row (median, batch 1, log scale)" if timed else "megabytes (log scale)"
    return scatter(
        points + (_simple(report) if timed else []),
        x_name=across,
        y_name=f"{report.task.get('metric', 'score')} (%)",
    )


def _timed(row: SubjectRow) -> Point | None:
    found = row.latency[0] if row.latency else None
    if found is None or found.p50_ms is None:
        return None
    low, high = found.p50_low_ms or found.p50_ms, found.p50_high_ms or found.p50_ms
    return Point(row.name, (found.p50_ms, low, high), _percent(row.metric))


def _sized(row: SubjectRow) -> Point | None:
    if not row.bytes:
        return None
    size = row.bytes / 1e6
    return Point(row.name, (size, size, size), _percent(row.metric))


def _simple(report: Report) -> list[Point]:
    """The baselines that were timed."""
    return [
        Point(one.name, (one.milliseconds,) * 3, _percent(one.metric), ring=True)
        for one in report.baselines
        if one.milliseconds
    ]


def _percent(figure: Figure | None) -> tuple[float, float, float]:
    assert figure is not None
    return 100 * figure.value, 100 * figure.low, 100 * figure.high


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, from the fastest; rings are not asked.

    >>> fast, slow, bad = (Point(n, (x, x, x), (y, y, y)) for n, x, y in (("a", 1, 80), ("b", 2, 90), ("c", 3, 85)))
    >>> [point.name for point in frontier([slow, bad, fast])]
    ['a', 'b']
    """
    found: list[Point] = []
    for point in sorted((one for one in points if not one.ring), key=lambda one: (one.x[0], -one.y[0])):
        if not found or point.y[0] > found[-1].y[0]:
            found.append(point)
    return found


def scatter(points: Sequence[Point], *, x_name: str, y_name: str) -> str:
    """Points with error bars as SVG, and the line of those that none beats; x on a log scale; empty without points."""
    if not points:
        return ""
    x_low, x_high = min(point.x[1] for point in points) / 1.4, max(point.x[2] for point in points) * 1.6
    y_low, y_high = min(point.y[1] for point in points), max(point.y[2] for point in points)
    margin = max(0.08 * (y_high - y_low), 0.5)
    y_low, y_high = y_low - margin, y_high + margin
    name = f"{y_name} against {x_name}"
    with settings(name):
        from matplotlib.ticker import LogLocator, NullLocator

        figure = sheet()
        axes = plain_axes(figure, x_name=x_name, y_name=y_name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x_high < 1000 * x_low else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
        best = frontier(points)
        axes.plot(
            [point.x[0] for point in best],
            [point.y[0] for point in best],
            drawstyle="steps-post",
            color=COLOURS["dim"],
            linewidth=1,
            linestyle=(0, (3, 5)),
            clip_on=False,
            gid="bar-frontier",
        )
        sides = _sides(points, (x_low, x_high), (y_low, y_high))
        for number, (point, side) in enumerate(zip(points, sides, strict=True)):
            _mark(axes, point, number, side)
        return inline(figure, name, {f"mark-{number}": _tooltip(point) for number, point in enumerate(points)})


def _sides(points: Sequence[Point], across: tuple[float, float], up: tuple[float, float]) -> list[tuple[int, int]]:
    """Where each name stands beside its mark, (right, above) as 1 or -1: the first place that covers nothing yet."""
    wide, tall = WIDTH - 80, HEIGHT - 70  # about what the axes leave
    spots = [
        (wide * log(point.x[0] / across[0]) / log(across[1] / across[0]), tall * (point.y[0] - up[0]) / (up[1] - up[0]))
        for point in points
    ]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    found = []
    for point, (x, y) in zip(points, spots, strict=True):
        first = -1 if x > wide / 2 else 1
        length = 7.5 * len(cut(point.name, NAME_LENGTH))
        boxes = {}
        for right, above in ((first, 1), (first, -1), (-first, 1), (-first, -1)):
            left = x + 8 if right == 1 else x - 8 - length
            low = y + 7 if above == 1 else y - 23
            boxes[right, above] = (left, low, left + length, low + 16)
        free = [
            side
            for side, box in boxes.items()
            if box[0] >= -20 and box[2] <= wide + 20 and not any(_overlap(box, other) for other in taken)
        ]
        side = free[0] if free else (first, 1)
        taken.append(boxes[side])
        found.append(side)
    return found


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, low, right, high) cover a place in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(axes: Axes, point: Point, number: int, side: tuple[int, int]) -> None:
    """A point with its error bars and its name; the bars go from low to high wherever the point is."""
    x, y, ink = point.x[0], point.y[0], INKS[number % len(INKS)]
    right, above = side
    for name, xs, ys in (("x", point.x[1:], (y, y)), ("y", (x, x), point.y[1:])):
        axes.plot(xs, ys, color=ink, linewidth=1.5, clip_on=False, gid=f"bar-{name}-{number}")
    style = {"markerfacecolor": "none", "markeredgewidth": 2} if point.ring else {"markeredgewidth": 0}
    axes.plot(x, y, "o", markersize=11, color=ink, clip_on=False, gid=f"mark-{number}", **style)
    axes.annotate(
        cut(point.name, NAME_LENGTH),
        (x, y),
        xytext=(9 * right, 9 if above == 1 else -18),
        textcoords="offset points",
        horizontalalignment="left" if right == 1 else "right",
        in_layout=False,
    )


def _tooltip(point: Point) -> str:
    return f"{point.name}: {point.x[0]:.3g}, {point.y[0]:.2f} ({point.y[1]:.2f} to {point.y[2]:.2f})"


def ladder_plot(report: Report) -> str:
    """Speed-up and drop of each step with their intervals, side by side; empty without steps."""
    steps = [step for step in report.ladder if step.speedup or step.drop]
    if not steps:
        return ""
    timed = any(step.speedup for step in steps)
    name = "what each step bought"
    with settings(name):
        figure = sheet(90 + 38 * len(steps))
        shown: dict[str, str] = {}
        if timed:
            axes = plain_axes(figure, (1, 2, 1), x_name="speed-up (log scale)")
            axes.set_xscale("log")
            noise = _turned(report.noise)
            if noise:
                axes.axvspan(noise.low, noise.high, color=COLOURS["line"], linewidth=0, clip_on=False, gid="bar-noise")
            _rungs(axes, steps, {step.step: step.speedup for step in steps}, 1.0, "speed", shown)
            _few_numbers(axes, [*(step.speedup for step in steps if step.speedup), *([noise] if noise else [])])
        axes = plain_axes(figure, (1, 2, 2) if timed else (1, 1, 1), x_name="drop (pp)")
        drops = {step.step: _hundredfold(step.drop) for step in steps}
        _rungs(axes, steps, drops, 0.0, "drop", shown)
        if timed:
            axes.set_yticklabels([])
        return inline(figure, name, shown)


def _few_numbers(axes: Axes, figures: Sequence[Figure]) -> None:
    """Numbers at 1, 2, 5, 10 where the steps span more than a doubling, else some round ones between."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    high = max(1.05, *(one.high for one in figures))
    low = min(0.95, *(one.low for one in figures))
    axes.set_xlim(low / 1.05, high * 1.05)
    doubled = high / low > 4
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if doubled else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _turned(ratio: Figure | None) -> Figure | None:
    """A speed-up from a ratio of times."""
    return None if ratio is None else Figure(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)


def _hundredfold(figure: Figure | None) -> Figure | None:
    if figure is None:
        return None
    return Figure(value=100 * figure.value, low=100 * figure.low, high=100 * figure.high)


def _rungs(
    axes: Axes,
    steps: Sequence[Step],
    figures: Mapping[str, Figure | None],
    nothing: float,
    what: str,
    shown: dict[str, str],
) -> None:
    """One mark a step, the first on top, with its interval, and a line where nothing is gained or lost."""
    axes.axvline(nothing, color=COLOURS["dim"], linewidth=1, clip_on=False, gid=f"bar-{what}-nothing")
    for number, step in enumerate(steps):
        found, ink = figures[step.step], INKS[(number + 1) % len(INKS)]  # the teacher's ink is the first
        if found is None:
            continue
        place = f"{what}-{number}"
        axes.plot((found.low, found.high), (number, number), color=ink, linewidth=2, clip_on=False, gid=f"bar-{place}")
        axes.plot(
            found.value, number, "o", markersize=9, markeredgewidth=0, color=ink, clip_on=False, gid=f"mark-{place}"
        )
        shown[f"mark-{place}"] = f"{step.step}: {found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
    axes.set_yticks(range(len(steps)), [cut(step.step, SHORT_NAME) for step in steps])
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def curves_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss over the steps of each stage as SVG, one line a stage from its first step; empty without curves."""
    series = {
        name: ([float(point["step"]) for point in points], [float(point["loss"]) for point in points])
        for name, points in curves.items()
        if len(points) > 1
    }
    if not series:
        return ""
    name = "loss over the steps of each stage"
    with settings(name):
        figure = sheet()
        axes = plain_axes(figure, x_name="step", y_name="loss")
        lines = [
            axes.plot(steps, losses, color=INKS[number % len(INKS)], clip_on=False, gid=f"mark-{number}")[0]
            for number, (steps, losses) in enumerate(series.values())
        ]
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, max(1.0, *(step for steps, _ in series.values() for step in steps)))
        axes.set_ylim(bottom=min(0.0, *(loss for _, losses in series.values() for loss in losses)))
        axes.legend(lines, list(series), loc="upper right", frameon=False)
        return inline(figure, name, {f"mark-{number}": stage for number, stage in enumerate(series)})


def lengths_plot(report: Report) -> str:
    """Scores of rows by their tokens, one line a model with intervals; empty where they were not asked."""
    rows = [row for row in chain(report) if row.lengths and row.same_as is None][:MOST_LINES]
    if not rows:
        return ""
    bins = list(dict.fromkeys((one.low, one.high) for row in rows for one in row.lengths))
    name = "scores by tokens a row"
    with settings(name):
        figure = sheet()
        axes = plain_axes(figure, x_name="tokens a row", y_name=f"{report.task.get('metric', 'score')} (%)")
        lines = []
        for number, row in enumerate(rows):
            ink, aside = INKS[number % len(INKS)], 0.08 * (number - (len(rows) - 1) / 2)
            xs = [bins.index((one.low, one.high)) + aside for one in row.lengths]
            for x, one in zip(xs, row.lengths, strict=True):
                axes.plot((x, x), (100 * one.score.low, 100 * one.score.high), color=ink, linewidth=1.5, clip_on=False)
            ys = [100 * one.score.value for one in row.lengths]
            lines += axes.plot(
                xs, ys, "o-", color=ink, linewidth=1, markeredgewidth=0, clip_on=False, gid=f"mark-{number}"
            )
        axes.set_xticks(range(len(bins)), [f"{low}\u2013{high}" for low, high in bins])
        axes.grid(axis="x", visible=False)
        axes.legend(lines, [cut(row.name, NAME_LENGTH) for row in rows], loc="best", frameon=False)
        return inline(figure, name, {f"mark-{number}": row.name for number, row in enumerate(rows)})


def histogram_plot(histogram: Mapping[str, Any]) -> str:
    """Share of rows by tokens, one outline a part of the data; empty without counts."""
    edges = histogram.get("edges", ())
    counts = {part: found for part, found in histogram.get("counts", {}).items() if sum(found) > 0}
    if not counts:
        return ""
    name = "tokens a row"
    with settings(name):
        figure = sheet(0.8 * HEIGHT)
        axes = plain_axes(figure, x_name="tokens a row", y_name="% of its rows")
        lines = []
        for number, found in enumerate(counts.values()):
            shares = [100 * one / sum(found) for one in found]
            ink = INKS[number % len(INKS)]
            lines.append(axes.stairs(shares, edges, color=ink, linewidth=1.5, clip_on=False, gid=f"mark-{number}"))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.legend(lines, list(counts), loc="upper right", frameon=False)
        return inline(figure, name, {f"mark-{number}": part for number, part in enumerate(counts)})
