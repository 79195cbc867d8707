"""What all settings share: frozen schemas that refuse unknown keys, numbers that may be schedules, units, limits.

Imports nothing of the project and nothing heavy, so every room may use it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Integer = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True)]
Word = Annotated[str, Field(strict=True, min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]

MetricName = Literal[
    "accuracy",
    "macro_f1",
    "worst_class_recall",
    "matthews",
]
"""The metrics a task, gate, budget or `expect` may name; evaluate/metrics holds one function for each."""

LOWER_IS_BETTER: frozenset[str] = frozenset()
"""Metrics where less is better; their drops are negated."""


class Settings(BaseModel):
    """A frozen schema whose field docstrings say unit and reason; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )


def mistakes(problem: ValidationError, name: str) -> str:
    """What pydantic refused, one line each: the dotted place below `name`, what is wrong, the value given."""
    lines: dict[str, str] = {}
    for each in sorted(problem.errors(), key=lambda error: error["type"] in ("model_type", "dict_type")):
        what = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            what = "is not a setting"
        given = "" if "(got " in what else f" (got {each['input']!r:.60})"
        place = ".".join([name, *(str(part) for part in each["loc"] if not _names_a_type(part))])
        lines.setdefault(place, f"{place}: {what}{given}")  # of the alternatives of a union, one is told
    return "\n".join(lines.values())


def _names_a_type(part: int | str) -> bool:
    """Whether a part of pydantic's place is an alternative of a union instead of a field."""
    return isinstance(part, str) and ("[" in part or part[:1].isupper() or part in ("float", "int", "str", "bool"))


class Ramp(Settings):
    """A number that changes while training, from `from` to `to`."""

    from_: Real = Field(alias="from")
    """Value at the first step, in the unit of the setting it stands for."""
    to: Real
    """Value once `over` of the steps are done."""
    over: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
    """Share of the steps in which the change happens; after it the value stays at `to`."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it moves between the two; cosine starts and ends gently."""


Number = Real | Ramp
"""A number or a schedule."""


def ramp(start: float, end: float, *, over: float = 1.0, shape: Literal["linear", "cosine"] = "linear") -> Ramp:
    """A number that moves from `start` to `end` during the first `over` (share) of the steps.

    >>> value_at(ramp(4.0, 1.0), 0.5)
    2.5
    """
    return Ramp.model_validate({"from": float(start), "to": float(end), "over": over, "shape": shape})


def value_at(number: Number, progress: float) -> float:
    """The value of a number or schedule after `progress` (0 to 1) of the steps.

    >>> value_at(0.3, 0.9)
    0.3
    """
    if not isinstance(number, Ramp):
        return float(number)
    share = min(max(progress / number.over, 0.0), 1.0)
    if number.shape == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    return number.from_ + (number.to - number.from_) * share


Unit = Literal["pp", "%", "x", "ms", "MB"]
_QUANTITY = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(pp|%|x|ms|MB)"


@dataclass(frozen=True)
class Limit:
    """A comparison with a unit, such as `<= 0.8pp`; `value` is as written, `unit` one of pp, %, x, ms, MB."""

    relation: Literal["<=", ">="]
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}{self.unit}"


def parse_limit(text: str) -> Limit:
    """A limit from its text; raises ValueError that shows the accepted form.

    >>> parse_limit("<= 0.8pp")
    Limit(relation='<=', value=0.8, unit='pp')
    """
    found = re.fullmatch(rf"\s*(<=|>=)\s*{_QUANTITY}\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"must be a comparison with a unit such as '<= 0.8pp' (got {text!r}); units are pp, %, x, ms, MB"
        )
    return Limit("<=" if found[1] == "<=" else ">=", float(found[2]), found[3])


def parse_kept_share(text: str) -> float:
    """What remains, from a text such as `0.5x`, as a share in (0, 1].

    >>> parse_kept_share("0.6x")
    0.6
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*x\s*", text) if isinstance(text, str) else None
    share = float(found[1]) if found else 0.0
    if not 0.0 < share <= 1.0:
        hint = (
            f"; write {text / 100:g}x for {text:g} percent" if isinstance(text, int | float) and 1 < text <= 100 else ""
        )
        raise ValueError(
            f"must be a share such as 0.5x, above 0x and at most 1x (got {text!r}){hint or '; 0.5x keeps half'}"
        )
    return share


def parse_bytes(text: str) -> int:
    """A number of bytes from a text such as `2GB`; units are kB, MB, GB, powers of 1000.

    >>> parse_bytes("40MB")
    40000000
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*(kB|MB|GB)\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"must be a size such as 40MB or 2GB (got {text!r})")
    return int(float(found[1]) * {"kB": 10**3, "MB": 10**6, "GB": 10**9}[found[2]])


def _checked(parse: Any) -> Any:
    """A validator that keeps the text as written once `parse` accepts it."""

    def check(text: Any) -> Any:
        parse(text)
        return text

    return check


LimitText = Annotated[str, BeforeValidator(_checked(parse_limit))]
KeptShare = Annotated[str, BeforeValidator(_checked(parse_kept_share))]
ByteSize = Annotated[str, BeforeValidator(_checked(parse_bytes))]


def _positive(number: Number) -> Number:
    ends = (number.from_, number.to) if isinstance(number, Ramp) else (number,)
    if min(ends) <= 0:
        raise ValueError(f"must be above 0 (got {min(ends):g})")
    return number


def _not_negative(number: Number) -> Number:
    ends = (number.from_, number.to) if isinstance(number, Ramp) else (number,)
    if min(ends) < 0:
        raise ValueError(f"must not be negative (got {min(ends):g})")
    return number


Temperature = Annotated[Number, AfterValidator(_positive)]
Weight = Annotated[Number, AfterValidator(_not_negative)]


def _ratio(number: Number) -> Number:
    ends = (number.from_, number.to) if isinstance(number, Ramp) else (number,)
    if min(ends) < 0 or max(ends) >= 1:
        raise ValueError(f"must be at least 0 and below 1 (got {max(ends) if max(ends) >= 1 else min(ends):g})")
    return number


Ratio = Annotated[Number, AfterValidator(_ratio)]


class AutoWeight(Settings):
    """A weight that keeps a term's gradient at a share of the whole."""

    auto: Annotated[Real, Field(gt=0)] = 1.0
    """Size of this term's gradient beside the other terms': 1 as large as each of them, 0.5 half as large."""


def _auto_weight(value: Any) -> Any:
    return AutoWeight() if value == "auto" else value


TermWeight = Annotated[Weight | AutoWeight, BeforeValidator(_auto_weight)]
"""A number, a schedule, `auto`, or `{auto: 0.5}`."""
