"""The report as one HTML page: no network, every text escaped, light and dark, readable on a phone and in print.

Its one script sorts tables; the page's own policy lets nothing else run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from compressor.report.model import Report
from compressor.report.outline import VERDICT_WORDS, sections
from compressor.report.plot import curves_plot, histogram_plot, ladder_plot, lengths_plot, report_plot


def page(report: Report) -> str:
    """One self-contained HTML document."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    home = files("compressor.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((home / "page.html.j2").read_text(encoding="utf-8"))
    script = (home / "page.js").read_text(encoding="utf-8")
    return str(
        template.render(
            report=report,
            sections=sections(report),
            plots={name: Markup(drawn) for name, drawn in plots(report).items() if drawn},
            css=Markup((home / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=script_hash(script),
            verdict_words=VERDICT_WORDS,
        )
    )


def plots(report: Report) -> dict[str, str]:
    """Each plot as SVG by the section that it belongs to; empty text where there is nothing to draw."""
    return {
        "models": report_plot(report),
        "ladder": ladder_plot(report),
        "training": curves_plot(report.curves),
        "lengths": lengths_plot(report),
        "histogram": histogram_plot(report.histogram),
    }


def script_hash(script: str) -> str:
    """What a Content-Security-Policy calls that inline script.

    >>> script_hash("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
