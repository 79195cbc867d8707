"""Labels as read, as class names, as ids: bins over numbers, the order of the classes, and what contradicts it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.data.settings import Data, Label
from compressor.errors import InputError

_COMPARISON = re.compile(r"\s*(<=|>=|==|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda value, edge: value < edge,
    "<=": lambda value, edge: value <= edge,
    ">": lambda value, edge: value > edge,
    ">=": lambda value, edge: value >= edge,
    "==": lambda value, edge: value == edge,
}


@dataclass(frozen=True)
class Bins:
    """Class names with the comparisons that a number must all pass to be of the class."""

    edges: Mapping[str, tuple[tuple[str, float], ...]]

    def classes(self, number: float) -> list[str]:
        """Names of the bins that hold the number."""
        return [name for name, edges in self.edges.items() if all(_HOLDS[how](number, edge) for how, edge in edges)]


def parse_bin(text: str) -> tuple[tuple[str, float], ...]:
    """The comparisons of a bin such as '> 0.5' or '>= 1 and < 2'; raises ValueError that shows the form.

    >>> parse_bin('< -0.5')
    (('<', -0.5),)
    """
    edges = []
    for part in re.split(r"\band\b", text):
        found = _COMPARISON.fullmatch(part)
        if found is None:
            raise ValueError(f"must be a comparison such as '> 0.5' or '>= 1 and < 2' (got {text!r})")
        edges.append((found[1], float(found[2])))
    return tuple(edges)


def parse_bins(label: object) -> Bins | None:
    """The bins of `data.label`; None where the column holds the labels themselves."""
    if not isinstance(label, Label) or label.bins is None:
        return None
    edges = {}
    for name, text in label.bins.items():
        try:
            edges[name] = parse_bin(text)
        except ValueError as problem:
            raise InputError(f"data.label.bins.{name} {problem}") from problem
    if len(edges) < 2:
        raise InputError(f"data.label.bins needs at least two classes (got {len(edges)})")
    return Bins(edges)


def label_of(value: Any, bins: Bins | None, *, where: Callable[[], str]) -> str | None:
    """The class name of one value as read; None where it is empty, null or in no bin.

    Raises: InputError with `where()` (file and line) for a value that is no label or, with bins, no number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        value = value.strip()
        if not value:
            return None
    if bins is not None:
        return _binned(value, bins, where)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int):
        return str(value)
    raise InputError(
        f"{where()}: a label is one string or one integer (got {value!r:.60}); derive classes of numbers with "
        "data.label: {column, bins}"
    )


def _binned(value: Any, bins: Bins, where: Callable[[], str]) -> str | None:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise InputError(f"{where()}: data.label.bins needs a number (got {value!r:.60})")
    found = bins.classes(number)
    if len(found) > 1:
        raise InputError(f"{where()}: {number:g} lies in the bins {' and '.join(found)}; make data.label.bins disjoint")
    return found[0] if found else None


def class_order(
    data: Data, found: Iterable[str], *, bins: Bins | None, teacher: Sequence[str] | None, name: str
) -> tuple[str, ...]:
    """Class names by id: `data.labels`, else a fine-tuned teacher's, else the bins as written, else sorted.

    Args:
        found: class names of the labelled rows in the file `name`. Integers are sorted as numbers, and where the
            classes have names (given or the teacher's) they are taken as ids.
    Raises: InputError where data.labels repeats a name, or has the teacher's names in another order.
    """
    classes = set(found)
    if data.labels is not None:
        names = tuple(data.labels)
        if len(set(names)) < len(names):
            raise InputError(f"data.labels names a class twice (got {', '.join(names)})")
        problem = order_problem(names, teacher)
        if problem:
            raise InputError(f"data.labels {problem}")
    elif teacher is not None:
        names = tuple(teacher)
    elif bins is not None:
        names = tuple(bins.edges)
    else:
        names = tuple(sorted(classes, key=_sort_key(classes)))
    unknown = sorted(classes - set(names) - _ids_of(classes, names))
    if unknown:
        whose = "data.labels" if data.labels is not None else "the teacher"
        raise InputError(f"{name}: class {unknown[0]!r} is not one of those of {whose}: {', '.join(names)}")
    return names


def order_problem(labels: Sequence[str], teacher: Sequence[str] | None) -> str | None:
    """What contradicts the classes of a fine-tuned teacher; None where nothing does."""
    if teacher is None or tuple(labels) == tuple(teacher):
        return None
    if set(labels) == set(teacher):
        return (
            f"must be in the teacher's order, {', '.join(teacher)} (got {', '.join(labels)}); leave data.labels out "
            "to take it"
        )
    return f"must name the teacher's classes, {', '.join(teacher)} (got {', '.join(labels)})"


def label_ids(labels: Iterable[str | None], names: Sequence[str]) -> list[int | None]:
    """Ids of class names, -1 for one that is not known, None for None."""
    number = {name: place for place, name in enumerate(names)}
    labels = list(labels)
    by_number = _ids_of({label for label in labels if label is not None}, names)
    return [None if label is None else int(label) if label in by_number else number.get(label, -1) for label in labels]


def _ids_of(classes: set[str], names: Sequence[str]) -> set[str]:
    """Those classes that are ids of `names`: only where none of the classes is a name itself."""
    if classes & set(names):
        return set()
    ids = {str(place) for place in range(len(names))}
    return classes if classes <= ids else set()


def _sort_key(classes: set[str]) -> Callable[[str], Any]:
    whole = all(re.fullmatch(r"[+-]?\d+", name) for name in classes)
    return (lambda name: (int(name), name)) if whole else (lambda name: name)


def require_labels(folder: Path, known: Sequence[str], labels: Sequence[str]) -> None:
    """Nothing, where the model in `folder` knows the labels of the rows, ids alike; else InputError."""
    if tuple(known) != tuple(labels):
        raise InputError(
            f"{folder} answers {', '.join(known)}, the rows have {', '.join(labels)}; "
            "set data.labels to the model's labels in their order"
        )
