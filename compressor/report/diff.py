"""`diff`: two runs beside each other: what was asked for, where, what came out, and how fast."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.machine import same_machine
from compressor.bench.statistics import Interval
from compressor.errors import InputError
from compressor.evaluate.paired import drop
from compressor.report.kept import UNLABELLED, Kept, read_answers
from compressor.report.model import Figure, LatencyRow, Report, SubjectRow
from compressor.report.table import WIDTH, lines, points, ratio

NOT_COMPARED = ("base",)
"""Keys of the resolved recipe that say where it lay."""


@dataclass(frozen=True)
class Changed:
    """A key whose value differs; None where one side does not have it."""

    key: str
    one: Any
    other: Any


@dataclass(frozen=True)
class ScoreRow:
    """A subject's score in both runs, in fractions."""

    subject: str
    one: Figure | None
    other: Figure | None
    drop: Interval | None
    """The first run's score minus the second's on the same rows: above 0 the second is worse. None where not paired."""
    reason: str | None
    """Why it is not paired."""
    answers_changed: int | None = None
    """Rows, labelled or not, that the two answer differently; None where not paired."""
    rows: int | None = None
    """Rows that both answered; None where not paired."""


@dataclass(frozen=True)
class TimeRow:
    """A subject's p50 in both runs under the same conditions, and its time beside the teacher of its own run."""

    subject: str
    conditions: str | None
    """Target, threads and kind of work; None where the two runs timed it under no conditions alike."""
    one_ms: float | None
    other_ms: float | None
    one_ratio: Figure | None
    other_ratio: Figure | None
    """Both None but for the conditions that either run took its ratios at."""


@dataclass(frozen=True)
class Difference:
    """Two runs, `one` and `other`."""

    one: str
    other: str
    verdicts: tuple[str, str]
    recipe: tuple[Changed, ...]
    """Keys of the recipe as it was understood."""
    unknown: tuple[str, ...]
    """Keys that one of the runs does not know, as another version made it, and that neither recipe sets."""
    environment: tuple[Changed, ...]
    metric: str
    scores: tuple[ScoreRow, ...]
    machines: tuple[str, ...]
    """Why their times must not be compared; empty on the same machine."""
    times: tuple[TimeRow, ...] | None
    """None where the machines differ and it was not asked for all the same."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        found = asdict(self)
        for rows in (found["scores"], found["times"] or ()):
            for row in rows:
                row.update({key: one.model_dump() for key, one in row.items() if isinstance(one, Figure)})
        return found

    def text(self) -> str:
        """The difference for a terminal, tables of at most 100 columns."""
        out = [f"one:   {self.one} (verdict {self.verdicts[0]})", f"other: {self.other} (verdict {self.verdicts[1]})"]
        for title, rows in (("recipe", self.recipe), ("environment", self.environment)):
            out += ["", f"{title}: {'no difference' if not rows else ''}".rstrip()]
            for row in rows:
                out += textwrap.wrap(
                    f"  {row.key}: {_short(row.one)} -> {_short(row.other)}", WIDTH, subsequent_indent="    "
                )
        if self.unknown:
            words = f"known to the version of one run alone, and set by neither recipe: {', '.join(self.unknown)}"
            out += textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ")
        out += ["", f"{self.metric} in %, the drop in pp (above 0: other is worse)"]
        heads = ("model", "one", "other", "drop", "answers changed")
        cells = ((row.subject, points(row.one), points(row.other), _drop(row), _answers(row)) for row in self.scores)
        out += lines([heads, *cells])
        reasons = dict.fromkeys(row.reason for row in self.scores if row.reason)
        for reason in reasons:
            out += textwrap.wrap(f"  not paired: {reason}", WIDTH, subsequent_indent="    ")
        return "\n".join([*out, "", *self._times()]) + "\n"

    def _times(self) -> list[str]:
        why = [f"  {reason}" for reason in self.machines]
        if self.times is None:
            return ["times are not compared, the machines differ (--across-machines shows them all the same):", *why]
        heads = ("model", "one p50 ms", "other p50 ms", "other / one", "one vs teacher", "other vs teacher")
        out = ["times, each run's own, not taken in the same rounds: small differences are noise"]
        for conditions in dict.fromkeys(row.conditions for row in self.times if row.conditions):
            rows = [_cells(row) for row in self.times if row.conditions == conditions]
            out += [f"{conditions}:", *lines([heads, *rows])]
        apart = ", ".join(row.subject for row in self.times if row.conditions is None)
        if apart:
            words = f"not timed in both under the same conditions: {apart}"
            out += textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return [*out, *(["machines differ:", *why] if why else [])]


def diff(one: str | Path, other: str | Path, *, across_machines: bool = False) -> Difference:
    """What differs between two runs; scores are paired where both kept their answers on the same rows.

    Args:
        one: run directory, its report folder, or a report.json.
        other: the same.
        across_machines: show times although the machines differ.
    Raises: InputError for what is no finished run.
    """
    ours, theirs = _open(Path(one)), _open(Path(other))
    recipe, unknown = _recipe_changes(ours, theirs)
    machines = same_machine(ours.report.machine, theirs.report.machine)
    return Difference(
        one=str(one),
        other=str(other),
        verdicts=(ours.report.verdict, theirs.report.verdict),
        recipe=recipe,
        unknown=unknown,
        environment=changed(ours.environment, theirs.environment),
        metric=str(ours.report.task.get("metric", "score")),
        scores=_scores(ours, theirs),
        machines=machines,
        times=_times(ours.report, theirs.report) if not machines or across_machines else None,
    )


@dataclass(frozen=True)
class _Run:
    report: Report
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    answers: Kept | None
    written: frozenset[str]
    """Every key in the recipe as it was written."""
    path: str


def _open(path: Path) -> _Run:
    """A run, as far as its files are there."""
    places = [path, path / "report.json", path / "report" / "report.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(f"{path} holds no report/report.json; give a finished run such as runs/NAME")
    root = file.parent.parent if file.parent.name == "report" else file.parent
    environment = _mapping(root / "environment.json")
    answers, recipe = read_answers(file.parent), _recipe(root / "recipe.resolved.yaml")
    return _Run(Report.read(file), recipe, environment, answers, _written(root / "recipe.yaml"), str(path))


def _written(path: Path) -> frozenset[str]:
    """Every key of a recipe's file, at any depth; none where there is no such file."""
    import yaml

    try:
        left = [yaml.safe_load(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, yaml.YAMLError):
        return frozenset()
    found: set[str] = set()
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found |= set(map(str, value))
            left += value.values()
        elif isinstance(value, list):
            left += value
    return frozenset(found)


def _recipe_changes(ours: _Run, theirs: _Run) -> tuple[tuple[Changed, ...], tuple[str, ...]]:
    """Keys whose values differ, and those that one run's version alone knows while no recipe sets them."""
    written, listed, unknown = ours.written | theirs.written, list[Changed](), list[str]()
    for one in changed(ours.recipe, theirs.recipe):
        parent, _, name = one.key.rpartition(".")
        both = all(_has(run.recipe, one.key) for run in (ours, theirs))
        parts = all(_has(run.recipe, parent) for run in (ours, theirs)) if parent else True
        if both or not parts or parent == "stages" or name in written or not (ours.recipe and theirs.recipe):
            listed.append(one)
        else:
            unknown.append(one.key)
    return tuple(listed), tuple(unknown)


def _has(recipe: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key stands in a recipe."""
    value: Any = recipe
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe as it was understood, its stages by id; empty where it is not there."""
    if not path.is_file():
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}; run the recipe again to write it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no recipe; run the recipe again to write it")
    stages = content.pop("stages", None) or []
    order = [str(stage.get("id")) for stage in stages]
    kept = {key: value for key, value in content.items() if key not in NOT_COMPARED}
    return {**kept, "stages": {**dict(zip(order, stages, strict=True)), "order": order}}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def changed(one: Any, other: Any, key: str = "") -> tuple[Changed, ...]:
    """Every place in which two nested values differ, dotted.

    >>> changed({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    (Changed(key='a.c', one=2, other=3),)
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = [*one, *(name for name in other if name not in one)]
        parts = (changed(one.get(name), other.get(name), f"{key}.{name}" if key else str(name)) for name in names)
        return tuple(each for part in parts for each in part)
    return () if one == other else (Changed(key, one, other),)


def _subjects(report: Report) -> dict[str, SubjectRow]:
    named = {(row.name if row.engine == "onnxruntime" else f"{row.name}@{row.engine}"): row for row in report.subjects}
    return {name: row for name, row in named.items() if not name.endswith("/aa")}


def _scores(ours: _Run, theirs: _Run) -> tuple[ScoreRow, ...]:
    """Every subject of either run."""
    one, other = _subjects(ours.report), _subjects(theirs.report)
    metrics = [str(run.report.task.get("metric")) for run in (ours, theirs)]
    apart = None if metrics[0] == metrics[1] else f"the metrics differ: {metrics[0]} and {metrics[1]}"
    apart = apart or _unpaired(ours, theirs)
    rows = []
    for name in [*one, *(name for name in other if name not in one)]:
        figures = [side[name].metric if name in side else None for side in (one, other)]
        found = None if apart else _paired(name, metrics[0], ours.answers, theirs.answers)
        counts = (None, None) if apart else _answers_changed(name, ours.answers, theirs.answers)
        rows.append(ScoreRow(name, figures[0], figures[1], found, apart, *counts))
    return tuple(rows)


def _unpaired(ours: _Run, theirs: _Run) -> str | None:
    """Why answers cannot be paired, and what to do; None where they can."""
    one, other = ours.answers, theirs.answers
    if one is None or other is None:
        named = " and ".join(run.path for run in (ours, theirs) if run.answers is None)
        again = "run its recipe again with the same --out, which writes them and skips finished stages"
        return f"a run kept no answers (report/answers.npz of {named}); {again}"
    if one.rows != other.rows:
        return "the two were scored on different rows"
    if one.labels != other.labels:
        return "the two know different labels"
    return None


def _paired(name: str, metric: str, one: Kept | None, other: Kept | None) -> Interval | None:
    """The fall of the score on the same rows; None where a run kept no answers of that subject."""
    if one is None or other is None or name not in one.logits or name not in other.logits:
        return None
    labelled = one.references != UNLABELLED
    before, after = (np.asarray(kept.logits[name])[labelled].argmax(-1) for kept in (one, other))
    return drop(metric, before, after, one.references[labelled], one.labels)


def _answers_changed(name: str, one: Kept | None, other: Kept | None) -> tuple[int | None, int | None]:
    """Rows answered differently, and all rows; None where a run kept no answers of that subject."""
    if one is None or other is None or name not in one.logits or name not in other.logits:
        return None, None
    before, after = (np.asarray(kept.logits[name]).argmax(-1) for kept in (one, other))
    return int(np.sum(before != after)), len(before)


def _times(one: Report, other: Report) -> tuple[TimeRow, ...]:
    """Every kind of work that both runs timed, of every subject in both; a row without times where there is none."""
    ours, theirs = _subjects(one), _subjects(other)
    found = []
    for name in (name for name in ours if name in theirs):
        mine, yours = _by_conditions(ours[name]), _by_conditions(theirs[name])
        both = [each for each in mine if each in yours]
        compared = next(iter(mine), None) == next(iter(yours), None)
        for place in both:
            alike = compared and place == both[0]
            ratios = (_ratio(ours[name]), _ratio(theirs[name])) if alike else (None, None)
            found.append(TimeRow(name, _words(mine[place]), mine[place].p50_ms, yours[place].p50_ms, *ratios))
        if not both:
            found.append(TimeRow(name, None, None, None, None, None))
    return tuple(found)


def _by_conditions(row: SubjectRow) -> dict[tuple[object, ...], LatencyRow]:
    """Measured rows by all that must agree for two times to be compared, the one of the ratios first.

    Offline and arrivals are left out: their figure is a rate, and their p50 that of whatever rate was reached.
    """
    timed = [one for one in row.latency if one.p50_ms is not None and one.scenario in ("single stream", "one core")]
    return {(one.target, one.scenario, one.batch, one.length, one.end_to_end, one.threads): one for one in timed}


def _words(row: LatencyRow) -> str:
    """Conditions of a time; what is usual is not said."""
    said = [f"target {row.target}", f"{row.threads} {'thread' if row.threads == 1 else 'threads'}"]
    said += [row.scenario] if row.scenario != "single stream" else []
    said += [f"batch {row.batch}"] if row.batch != 1 else []
    said += [f"length {row.length}"] if row.length != "data" else []
    return ", ".join(said + (["with tokenizing"] if row.end_to_end else []))


def _cells(row: TimeRow) -> tuple[str, ...]:
    times = (_ms(row.one_ms), _ms(row.other_ms), _ms(_over(row)))
    return (row.subject, *times, ratio(row.one_ratio), ratio(row.other_ratio))


def _ratio(row: SubjectRow) -> Figure | None:
    return row.versus_teacher.latency_ratio if row.versus_teacher else None


def _over(row: TimeRow) -> float | None:
    return None if not row.one_ms or row.other_ms is None else row.other_ms / row.one_ms


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _drop(row: ScoreRow) -> str:
    if row.drop is not None:
        return points(row.drop)
    if row.one is None or row.other is None:
        return "-"
    return f"{100 * (row.one.value - row.other.value) + 0.0:.1f} (not paired)"


def _answers(row: ScoreRow) -> str:
    return "-" if row.answers_changed is None else f"{row.answers_changed:,} of {row.rows:,}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 70 else text[:67] + "..."
