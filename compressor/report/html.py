"""The report as one HTML page: no network, no script, every text escaped, light and dark, readable on a phone."""

from __future__ import annotations

from importlib.resources import files

from compressor.report.model import Report
from compressor.report.plot import curves_plot, report_plot
from compressor.report.table import HEADS, cells, plain, points, ratio

VERDICT_WORDS = {
    "pass": "pass: every budget is met",
    "fail": "fail: a budget is broken",
    "undecided": "undecided: the evidence does not settle every budget",
    "none": "no budget was set",
}


def page(report: Report) -> str:
    """One self-contained HTML document."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    home = files("compressor.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((home / "page.html.j2").read_text(encoding="utf-8"))
    pruning = [_pruned(one) for one in report.model_dump(mode="json")["pruning"]]
    return str(
        template.render(
            report=report.model_copy(update={"pruning": tuple(pruning)}),
            models=[(row, cells(row)) for row in report.subjects],
            heads=HEADS,
            css=Markup((home / "page.css").read_text(encoding="utf-8")),
            plot=Markup(report_plot(report)),
            curves=Markup(curves_plot(report.curves)),
            plain=plain,
            points=points,
            ratio=ratio,
            verdict_words=VERDICT_WORDS,
        )
    )


def _pruned(one: dict[str, object]) -> dict[str, object]:
    """A prune stage with every key the page asks for."""
    layers = one.get("layers")
    keys = ("layer", "heads", "heads_before", "ffn", "ffn_before", "because")
    filled = [{key: layer.get(key, "-") for key in keys} for layer in layers] if isinstance(layers, list) else []
    return {"stage": one.get("stage", ""), "because": one.get("because", ""), "layers": filled}
