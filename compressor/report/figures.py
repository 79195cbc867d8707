"""What every part of report.json is made from: frozen parts, and values with their intervals."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen part of the report that keeps keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, populate_by_name=True, use_attribute_docstrings=True
    )


class Figure(Part):
    """A value with the ends of its two-sided 95 % interval."""

    value: float
    low: float
    high: float


class MetricFigure(Figure):
    """A score in fractions, and the rows it was taken on."""

    name: str
    rows: int
