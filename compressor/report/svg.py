"""What every plot of the report is drawn with: matplotlib, as inline SVG in the page's colours and fonts.

Matplotlib is imported when the first plot is drawn, and its settings are as before afterwards.
"""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 560, 360  # SVG units; narrow, so that text stays readable on a phone
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
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@contextmanager
def settings(salt: str) -> Iterator[None]:
    """Matplotlib with our settings and none of the user's; ids in the SVG depend on the salt and on nothing else."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts have them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "svg.hashsalt": salt})
        yield


def sheet(height: float = HEIGHT) -> Figure:
    """An empty figure of the plots' width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")  # 72 SVG units an inch


def plain_axes(figure: Figure, place: tuple[int, int, int] = (1, 1, 1), *, x_name: str, y_name: str = "") -> Axes:
    """An empty plot in its place of the figure: a grid with numbers and the names of the axes."""
    axes = figure.add_subplot(*place)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(clip_on=False)
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.yaxis.set_major_formatter("{x:g}")
    return axes


def cut(name: str, most: int) -> str:
    """The name, cut to that many characters.

    >>> cut("student", 4)
    'stu…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def inline(figure: Figure, name: str, tooltips: Mapping[str, str]) -> str:
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
