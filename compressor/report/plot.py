"""Plots as inline SVG that follow the page's colours: score against time (or size), and lines over steps.

Matplotlib draws them. It is imported when the first plot is drawn, and its settings are as before afterwards.
"""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from compressor.report.model import Report, SubjectRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 720, 400
NAME_LENGTH = 40  # characters beside a mark; its tooltip has the whole name
COLOURS = {  # as drawn, and where the page's CSS lacks the variable
    "text": "#1b1f24",
    "dim": "#59636e",
    "line": "#d5dae0",
    "ink-0": "#2f6fde",
    "ink-1": "#c2571a",
    "ink-2": "#1f8a5b",
    "ink-3": "#9a4fc4",
    "ink-4": "#b0860b",
    "ink-5": "#c43a6f",
}
INKS = tuple(colour for name, colour in COLOURS.items() if name.startswith("ink-"))
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: the reader's fonts show what DejaVu has no glyphs for
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "DejaVu Sans",  # ships with matplotlib; measures the labels, the page's own font shows them
    "font.size": 13,
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.15,  # inches
    "figure.constrained_layout.h_pad": 0.15,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": COLOURS["dim"],
    "axes.labelsize": 13,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1,
    "text.color": COLOURS["text"],
    "xtick.labelcolor": COLOURS["dim"],
    "ytick.labelcolor": COLOURS["dim"],
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


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
    name = f"{y_name} against {x_name}"
    with _settings(name):
        from matplotlib.ticker import LogLocator, NullLocator

        figure, axes = _blank(x_name, y_name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x_high < 1000 * x_low else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlim=(x_low, x_high), ylim=(y_low - margin, y_high + margin))
        route = [point.x[0] for point in points], [point.y[0] for point in points]
        axes.plot(*route, color=COLOURS["dim"], linewidth=1, linestyle=(0, (3, 5)), clip_on=False)
        middle = (x_low * x_high) ** 0.5
        for number, point in enumerate(points):
            _mark(axes, point, number, to_the_left=point.x[0] > middle)
        return _inline(figure, name, {f"mark-{number}": _tooltip(point) for number, point in enumerate(points)})


def _mark(axes: Axes, point: Point, number: int, *, to_the_left: bool) -> None:
    """A point with its error bars and its name; the bars go from low to high wherever the point is."""
    x, y, ink = point.x[0], point.y[0], INKS[number % len(INKS)]
    for side, xs, ys in (("x", point.x[1:], (y, y)), ("y", (x, x), point.y[1:])):
        axes.plot(xs, ys, color=ink, linewidth=1.5, clip_on=False, gid=f"bar-{side}-{number}")
    axes.plot(x, y, "o", markersize=11, markeredgewidth=0, color=ink, clip_on=False, gid=f"mark-{number}")
    axes.annotate(
        point.name if len(point.name) <= NAME_LENGTH else point.name[: NAME_LENGTH - 1] + "…",
        (x, y),
        xytext=(-9 if to_the_left else 9, 9),
        textcoords="offset points",
        horizontalalignment="right" if to_the_left else "left",
        in_layout=False,
    )


def _tooltip(point: Point) -> str:
    return f"{point.name}: {point.x[0]:.3g}, {point.y[0]:.2f} ({point.y[1]:.2f} to {point.y[2]:.2f})"


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
    with _settings(name):
        figure, axes = _blank("step", "loss")
        lines = [
            axes.plot(steps, losses, color=INKS[number % len(INKS)], clip_on=False, gid=f"mark-{number}")[0]
            for number, (steps, losses) in enumerate(series.values())
        ]
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, max(1.0, *(step for steps, _ in series.values() for step in steps)))
        axes.set_ylim(bottom=min(0.0, *(loss for _, losses in series.values() for loss in losses)))
        axes.legend(lines, list(series), loc="upper right", frameon=False)
        return _inline(figure, name, {f"mark-{number}": stage for number, stage in enumerate(series)})


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """Matplotlib with our settings and none of the user's; ids in the SVG depend on the salt and on nothing else."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts have them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "svg.hashsalt": salt})
        yield


def _blank(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    """An empty plot: a grid with numbers and the names of the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")  # 72 SVG units an inch
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(clip_on=False)
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.yaxis.set_major_formatter("{x:g}")
    return figure, axes


def _inline(figure: Figure, name: str, tooltips: Mapping[str, str]) -> str:
    """The figure as one SVG element for an HTML page: as wide as its place, in the page's font and colours.

    Without prolog, metadata and a style sheet (which would rule the whole page); the only ids are those that the
    plot itself refers to. Groups that were drawn with a gid have it as their class, and their tooltip by it.
    """
    written = BytesIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(written.getvalue())
    used = {element.get(f"{XLINK}href", "").removeprefix("#") for element in root.iter()}
    for parent in list(root.iter()):
        for sheet in parent.findall(f"{SVG}style"):
            parent.remove(sheet)
    for element in list(root.iter()):
        gid = element.get("id", "")
        if gid not in used:
            element.attrib.pop("id", None)
        if gid.startswith(("mark-", "bar-")):
            element.set("class", gid)
        if gid in tooltips:
            title = ElementTree.Element("title")
            title.text = tooltips[gid]
            element.insert(0, title)
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"]))
        if target := element.attrib.pop(f"{XLINK}href", ""):
            element.set("xlink:href", target)
        element.tag = element.tag.removeprefix(SVG)
    root.attrib = {
        "xmlns": SVG.strip("{}"),
        "xmlns:xlink": XLINK.strip("{}"),
        "viewBox": root.attrib["viewBox"],
        "width": "100%",
        "role": "img",
        "aria-label": name,
        "style": "stroke-linejoin: round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    """A style with the page's variables for the drawn colours, and the page's font.

    >>> _themed("stroke: #d5dae0")
    'stroke: var(--line, #d5dae0)'
    """
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name}, {colour})")
    return re.sub(r"'DejaVu Sans'[^;]*", "system-ui, sans-serif", style)
