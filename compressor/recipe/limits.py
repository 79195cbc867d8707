"""The limits of gates, budgets and `expect`: metric names, units and directions, each checked at its own place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from compressor.errors import Problem
from compressor.evaluate.settings import check_metric, check_score_limit
from compressor.recipe.document import Entry, Fields, Scalar
from compressor.recipe.merge import did_you_mean
from compressor.recipe.problems import given
from compressor.settings import MetricName, parse_limit
from compressor.stage import ScoreLimit

GATE_KEYS = ("else", "confidence", "undecided")
BUDGET_KEYS = ("latency", "size", "undecided", "confidence")


def fitting_limits(
    limits: Fields, keys: Sequence[str], where: str, labels: Sequence[str] | None, problems: list[Problem]
) -> Fields:
    """The map less the limits that name no metric or do not suit a score, which are added to `problems`.

    Args:
        limits: a gate, budget or `expect`.
        keys: keys that are no metric, such as `else`.
        where: dotted path of the map.
        labels: class names for METRIC@CLASS; None where they are not known.
        problems: grows.
    """
    for name, entry in limits.entries.items():
        if name in keys:
            continue
        problem = _name_problem(name, entry, keys, where, labels) or _unit_problem(name, entry, where)
        if problem is not None:
            problems.append(problem)
            limits = limits.without(name)
    return limits


def _name_problem(
    name: str, entry: Entry, keys: Sequence[str], where: str, labels: Sequence[str] | None
) -> Problem | None:
    metric, at, of_class = name.partition("@")
    metrics = get_args(MetricName)
    if metric not in metrics:
        advice = did_you_mean(metric, [*metrics, *keys])
        message = f"is neither a metric nor a key here (got {given(entry.node)}); {advice}"
        return Problem(str(entry.mark), f"{where}.{name}", message)
    try:
        check_metric(name)
    except ValueError as error:
        return Problem(str(entry.mark), f"{where}.{name}", str(error))
    if at and labels is not None and of_class not in labels:
        return Problem(str(entry.mark), f"{where}.{name}", f"names no class; {did_you_mean(of_class, labels)}")
    return None


def _unit_problem(name: str, entry: Entry, where: str) -> Problem | None:
    """The problem of a limit that is well formed and of the wrong unit or direction; its form is checked later."""
    node, key = entry.node, f"{where}.{name}"
    inner = node.get("drop") if isinstance(node, Fields) else None
    value = inner if isinstance(inner, Scalar) else node
    if not isinstance(value, Scalar) or not isinstance(value.value, str):
        return None
    try:
        parse_limit(value.value)
    except ValueError:
        return None
    try:
        check_score_limit(name, ScoreLimit(drop=value.value) if inner is not None else value.value)
    except ValueError as error:
        key = f"{key}.drop" if inner is not None else key
        return Problem(str(value.mark), key, str(error).partition(" ")[2])
    return None
