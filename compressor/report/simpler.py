"""Baselines in words; nothing here loads what they are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.report.model import Baseline

TITLES: Mapping[str, str] = {
    "tfidf": "TF-IDF with logistic regression",
    "static": "Logistic regression on static vectors",
    "small": "A small model fine-tuned on the labels alone",
}
"""The simplest first."""


def verdict_note(baselines: Sequence[Baseline]) -> str | None:
    """One sentence on the simplest baseline that would do in place of the deployed model; None where none would.

    `baselines` are in the order that `make_baselines` gives.
    """
    enough = next((one for one in baselines if one.suffices), None)
    if enough is None:
        return None
    costs = []
    if enough.milliseconds is not None:
        costs.append(f"{enough.milliseconds:.2g} ms a row")
    if enough.bytes is not None:
        costs.append(f"{enough.bytes / 1e6:.1f} MB")
    shown = f" ({', '.join(costs)})" if costs else ""
    title = TITLES.get(enough.name, enough.name)
    return f"Something simpler may do: {title} reaches {percent(enough)}{shown} and is not shown to be worse."


def percent(row: Baseline) -> str:
    """Its score with the metric's name."""
    return f"{100 * row.metric.value:.1f} % {row.metric.name}"
