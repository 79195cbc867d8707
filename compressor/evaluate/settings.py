"""What a recipe may promise: the budget that the finished model is held against, on `test`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from compressor.settings import LimitText, MetricName, Settings, Word, parse_limit
from compressor.stage import ScoreLimit

CLASS_METRICS = ("accuracy", "macro_f1")
"""Metrics that may be asked for one class, as METRIC@CLASS: its recall and its F1."""


def check_metric(name: str) -> None:
    """Nothing, when `name` is a metric or METRIC@CLASS; else ValueError that shows the names.

    >>> check_metric("accuracy@negative")
    """
    metric, at, of_class = name.partition("@")
    if metric not in get_args(MetricName):
        raise ValueError(f"{name!r} is not a metric; the metrics are {', '.join(get_args(MetricName))}")
    if at and (metric not in CLASS_METRICS or not of_class):
        raise ValueError(f"{name!r} must be METRIC@CLASS with a METRIC among {', '.join(CLASS_METRICS)}")


def check_score_limit(name: str, limit: ScoreLimit | str) -> None:
    """Nothing, when the limit's direction and unit suit a score; else ValueError that shows the accepted form."""
    check_metric(name)
    parsed = parse_limit(limit.drop if isinstance(limit, ScoreLimit) else limit)
    if isinstance(limit, ScoreLimit):
        if parsed.relation != "<=" or parsed.unit not in ("pp", "%"):
            raise ValueError(f"{name}.drop must look like '<= 0.8pp' or '<= 1%' (got '{limit.drop}')")
    elif parsed.relation != ">=" or parsed.unit != "pp":
        raise ValueError(f"{name} must look like '>= 84pp', or {{drop: '<= 0.8pp'}} (got '{limit}')")


class LatencyLimit(Settings):
    """How long one row may take at batch 1, at the first target of the benchmark."""

    p50: LimitText
    """Median time a row: a ratio such as '<= 0.1x' of that of `vs`, or a time such as '<= 5ms'."""
    vs: Word = "teacher"
    """Id of the stage compared with, on the same engine in its own precision."""

    def model_post_init(self, _context: object) -> None:
        limit = parse_limit(self.p50)
        if limit.relation != "<=" or limit.unit not in ("x", "ms"):
            raise ValueError(f"p50 must look like '<= 0.1x' or '<= 5ms' (got '{self.p50}')")
        if limit.unit == "ms" and self.vs != "teacher":
            raise ValueError(f"p50 in ms is compared with nothing; remove vs (got {self.vs})")


class Budget(Settings):
    """What the finished model must reach: metric names with limits, latency and size, at 95 % one-sided each."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ScoreLimit | LimitText]

    latency: LatencyLimit | None = None
    """Time a row; undecided where it was not measured."""
    size: LimitText | None = None
    """Bytes of the model file, such as '<= 40MB' (10^6 bytes); exact."""
    undecided: Literal["warn", "fail"] = "warn"
    """What a limit does that the rows cannot decide; fail ends the run with exit code 4."""
    confidence: Annotated[float, Field(strict=True, gt=0.5, lt=1)] = 0.95
    """One-sided confidence of each test; 0.95 is usual for non-inferiority."""

    def model_post_init(self, _context: object) -> None:
        for name, limit in self.scores.items():
            check_score_limit(name, limit)
        if self.size is not None:
            limit_of_size = parse_limit(self.size)
            if limit_of_size.relation != "<=" or limit_of_size.unit != "MB":
                raise ValueError(f"size must look like '<= 40MB' (got '{self.size}')")

    @property
    def scores(self) -> dict[str, ScoreLimit | str]:
        """Metric name, or METRIC@CLASS, to its limit."""
        return dict(self.__pydantic_extra__ or {})
