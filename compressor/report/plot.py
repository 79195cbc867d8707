"""Plots as inline SVG that follow the page's colours: score against time (or size), and lines over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from compressor.report.model import Report, SubjectRow

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 52


@dataclass(frozen=True)
class Point:
    """One model in the plot: x with its interval (above 0), y with its interval."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def report_plot(report: Report) -> str:
    """Score in percent against milliseconds a row, or against megabytes where nothing was timed; empty without points.

    Left out: other engines than onnxruntime, since the axes are of one kind, and a second subject of the same file.
    """
    rows = [
        row
        for row in report.subjects
        if row.engine == "onnxruntime" and "/" not in row.name and row.metric and row.same_as is None
    ]
    timed = [point for row in rows if (point := _timed(row)) is not None]
    points = timed or [point for row in rows if (point := _sized(row)) is not None]
    across = "milliseconds a row (median, batch 1, log scale)" if timed else "megabytes (log scale)"
    return scatter(points, x_name=across, y_name=f"{report.task.get('metric', 'score')} (%)")


def _timed(row: SubjectRow) -> Point | None:
    found = row.latency[0] if row.latency else None
    if found is None or found.p50_ms is None:
        return None
    low, high = found.p50_low_ms or found.p50_ms, found.p50_high_ms or found.p50_ms
    return Point(row.name, (found.p50_ms, low, high), _score(row))


def _sized(row: SubjectRow) -> Point | None:
    if not row.bytes:
        return None
    size = row.bytes / 1e6
    return Point(row.name, (size, size, size), _score(row))


def _score(row: SubjectRow) -> tuple[float, float, float]:
    assert row.metric is not None
    return 100 * row.metric.value, 100 * row.metric.low, 100 * row.metric.high


def scatter(points: Sequence[Point], *, x_name: str, y_name: str) -> str:
    """Points with error bars as SVG; x on a log scale; empty text without points."""
    if not points:
        return ""
    x_low, x_high = min(point.x[1] for point in points) / 1.4, max(point.x[2] for point in points) * 1.6
    y_low, y_high = min(point.y[1] for point in points), max(point.y[2] for point in points)
    margin = max(0.08 * (y_high - y_low), 0.5)
    y_low, y_high = y_low - margin, y_high + margin

    def place_x(value: float) -> float:
        share = math.log(value / x_low) / math.log(x_high / x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = _axes(
        [(place_x(tick), f"{tick:g}") for tick in log_ticks(x_low, x_high)],
        [(place_y(tick), f"{tick:g}") for tick in linear_ticks(y_low, y_high)],
        x_name,
        y_name,
    )
    route = " ".join(f"{place_x(point.x[0]):.1f},{place_y(point.y[0]):.1f}" for point in points)
    parts.append(f'<polyline class="route" points="{route}"/>')
    for number, point in enumerate(points):
        parts += _mark(point, number, place_x, place_y)
    return _svg(parts, f"{y_name} against {x_name}")


def _mark(point: Point, number: int, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> list[str]:
    """A point with its error bars and its name."""
    x, left, right = (place_x(value) for value in point.x)
    y, low, high = (place_y(value) for value in point.y)
    name = escape(point.name)
    shown = f"{name}: {point.x[0]:.3g}, {point.y[0]:.2f} ({point.y[1]:.2f} to {point.y[2]:.2f})"
    side, anchor = (-9, "end") if x > 0.8 * WIDTH else (9, "start")
    return [
        f'<g class="mark m{number % 6}"><title>{shown}</title>',
        f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>',
        f'<text x="{x + side:.1f}" y="{y - 9:.1f}" text-anchor="{anchor}">{name}</text></g>',
    ]


def curves_plot(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss over the steps of each stage as SVG, each stage's steps over the whole width; empty without curves."""
    series = {
        name: [(float(point["step"]), float(point["loss"])) for point in points]
        for name, points in curves.items()
        if len(points) > 1
    }
    if not series:
        return ""
    highest = max(loss for points in series.values() for _, loss in points)
    last = max(step for points in series.values() for step, _ in points)
    lowest = min(0.0, min(loss for points in series.values() for _, loss in points))
    height = (highest - lowest) or 1.0

    def place(step: float, loss: float) -> str:
        x = LEFT + step / (last or 1.0) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (loss - lowest) / height * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    x_ticks = [(float(place(tick, 0).split(",")[0]), f"{tick:g}") for tick in linear_ticks(0, last)]
    y_ticks = [(float(place(0, tick).split(",")[1]), f"{tick:g}") for tick in linear_ticks(lowest, highest)]
    parts = _axes(x_ticks, y_ticks, "step", "loss")
    for number, (name, points) in enumerate(series.items()):
        route = " ".join(place(step, loss) for step, loss in points)
        parts.append(f'<g class="mark m{number % 6}"><title>{escape(name)}</title><polyline points="{route}"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP + 16 * (number + 1)}" text-anchor="end">{escape(name)}</text></g>'
        )
    return _svg(parts, "loss over the steps of each stage")


def linear_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from low to high, at most `most` of them.

    >>> linear_ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high (both above 0).

    >>> log_ticks(0.4, 12)
    [0.5, 1.0, 2.0, 5.0, 10.0]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    every = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    return [tick for tick in every if low <= tick <= high]


def _axes(
    x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str
) -> list[str]:
    bottom, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    parts = ['<g class="axis">']
    for x, label in x_ticks:
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}"/><text x="{x:.1f}" y="{bottom + 18}">{label}</text>')
    for y, label in y_ticks:
        line = f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        parts.append(f'{line}<text class="y" x="{LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">{escape(x_name)}</text>')
    turned = f'<text transform="translate(16 {middle}) rotate(-90)">{escape(y_name)}</text>'
    return [*parts, turned, "</g>"]


def _svg(parts: Sequence[str], name: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}" xmlns="http://www.w3.org/2000/svg">'
    return head + "".join(parts) + "</svg>"
