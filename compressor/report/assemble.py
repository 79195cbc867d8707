"""The report from answers and raw timings: arithmetic alone, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from compressor.bench.isolation import Timing
from compressor.bench.settings import TARGETS, Benchmark, Target
from compressor.bench.statistics import LOOKS, Interval, SpeedVerdict, p50_by_round, ratio_interval, speed_verdict
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.gates import Answers, BudgetRow, Times, answers_from, judge_budget, worst
from compressor.evaluate.metrics import METRICS, scores
from compressor.evaluate.paired import agreement, drop, flips, score_interval
from compressor.evaluate.settings import Budget
from compressor.report.attribution import attributions, one_seed
from compressor.report.doubts import doubts, machine_quality
from compressor.report.latency import latency_rows, measured, placed
from compressor.report.model import (
    Attribution,
    BesidePytorch,
    BudgetLine,
    Figure,
    LatencyRow,
    MetricFigure,
    Quantization,
    Report,
    Resources,
    Step,
    SubjectRow,
    Versus,
)
from compressor.report.resources import resources
from compressor.report.subjects import (
    CONTROL,
    PYTORCH,
    Subject,
    count_parameters,
    draw_texts,
    model_bytes,
    no_pytorch,
    same_models,
)
from compressor.report.workloads import opens, ratio_target, skipped

EXACTLY_ONE, NOTHING = Figure(value=1.0, low=1.0, high=1.0), Figure(value=0.0, low=0.0, high=0.0)


@dataclass(frozen=True)
class Scored:
    """The rows that scores are taken on: their class ids (None where unlabelled), the class names, and which rows."""

    references: Sequence[int | None]
    labels: Sequence[str]
    on_test: bool
    """False where there is no test set and these are the rows of select."""
    texts: Sequence[Text] = ()
    """Of these rows; without them nothing is said of what the models take."""


@dataclass(frozen=True)
class Told:
    """What the report repeats: who it is about, the counts of rows, the machine, and notes of earlier steps."""

    name: str
    task: Mapping[str, Any]
    """`kind` and `metric`, as in the recipe."""
    data: Mapping[str, Any]
    """train, select, test, unlabelled and removed, as report.json has them."""
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """Doubts known from elsewhere, one sentence each."""
    pruning: tuple[Mapping[str, Any], ...] = ()
    """For each prune stage `{stage, layers: [{layer, heads, heads_before, ffn, ffn_before, because}], because}`."""
    curves: Mapping[str, Any] = field(default_factory=dict)
    """Stage to a list of `{step, loss}`."""
    decisions: tuple[Mapping[str, Any], ...] = ()
    """`{stage, kind, chosen, because}` of what was decided while distilling, and of engines chosen by time."""
    quantization: tuple[Quantization, ...] = ()
    """Of each quantize stage."""
    unchosen: Mapping[str, str] = field(default_factory=dict)
    """Target to why no engine could be chosen there, so that nothing was timed."""


def assemble(
    told: Told,
    subjects: Sequence[Subject],
    scored: Scored,
    *,
    timings: Mapping[str, Timing] | str,
    targets: Mapping[str, Target] = TARGETS,
    benchmark: Benchmark | None = None,
    budget: Budget | None = None,
    reference: str = "teacher",
    best: str | None = None,
) -> Report:
    """The report of subjects whose logits are known, in the order of the ladder.

    Args:
        told: what is repeated.
        subjects: the reference and what was made of it; each with logits on the scored rows.
        scored: those rows.
        timings: raw samples by target, the first of them the one that ratios are taken at; or why there are none.
        targets: by name, for the thread count where nothing was timed.
        benchmark: what was asked for beside the batch of one.
        budget: limits for the subject `best`.
        reference: name of the subject that others are compared with.
        best: name of the subject that the budget is for; the last on onnxruntime unless given.
    Raises: InputError where logits, the reference or an id of the budget are missing.
    """
    facts = _Facts(told, tuple(subjects), scored, timings, dict(targets), reference, benchmark)
    noise = facts.ratio(facts.base + CONTROL, facts.base)
    rows = tuple(facts.row(subject) for subject in subjects) + facts.control(noise)
    budgets = facts.budget(budget, best) if budget is not None else ()
    gained = facts.attribution()
    return Report(
        name=told.name,
        verdict=worst([row.verdict for row in budgets]),
        task=dict(told.task),
        machine=dict(told.machine) | facts.conditions(),
        data=dict(told.data),
        budgets=tuple(BudgetLine(**asdict(row)) for row in budgets),
        subjects=rows,
        ladder=facts.ladder(),
        doubts=tuple(facts.doubts(noise)) + one_seed(gained) + tuple(told.notes),
        noise=_figure(noise),
        pytorch=facts.beside_pytorch(best),
        pruning=tuple(dict(one) for one in told.pruning),
        curves=dict(told.curves),
        attribution=gained,
        decisions=tuple(dict(one) for one in told.decisions),
        quantization=told.quantization,
        quality=machine_quality(told.machine, timings, noise),
        best=best,
    )


class _Facts:
    """Everything that rows of the report are computed from."""

    def __init__(
        self,
        told: Told,
        subjects: tuple[Subject, ...],
        scored: Scored,
        timings: Mapping[str, Timing] | str,
        targets: dict[str, Target],
        reference: str,
        benchmark: Benchmark | None,
    ) -> None:
        self.told, self.subjects, self.scored, self.targets, self.reference = told, subjects, scored, targets, reference
        self.benchmark = benchmark
        self.timings: Mapping[str, Timing] = {} if isinstance(timings, str) else timings
        self.untimed = timings if isinstance(timings, str) else "no target of this engine was timed"
        self.first = ratio_target(self.timings, self.targets)
        """The target that ratios are taken at."""
        self.engine = opens(self.targets.get(self.first or "", Target()))
        """That of the subjects timed there."""
        self.base = next((one.key for one in subjects if (one.name, one.engine) == (reference, self.engine)), reference)
        """Key of the reference there."""
        self.compared = self.timings[self.first] if self.first is not None else None
        self.metric = str(told.task["metric"])
        self.same = same_models(subjects)
        logits = {subject.key: subject.logits for subject in subjects}
        missing = [key for key, one in logits.items() if one is None]
        if missing or reference not in logits:
            raise InputError(f"a report needs the answers of {', '.join(missing) or reference}")
        self.answers = {key: self._ids(np.asarray(one)) for key, one in logits.items()}

    def _ids(self, logits: np.ndarray) -> Answers:
        return answers_from(logits, {}, self.scored.references, self.scored.labels)

    def _canonical(self, key: str) -> str:
        return self.same.get(key, key)

    def timed_key(self, subject: Subject) -> str:
        """Key of the model of that name at the target of ratios, where it is timed there."""
        same = (one.key for one in self.subjects if (one.name, one.engine) == (subject.name, self.engine))
        return next(same, subject.key)

    def slots(self, key: str) -> dict[int, tuple[int, ...]]:
        """Samples at the target of ratios by round; empty where not timed there."""
        return self.compared.rounds_of(self._canonical(key)) if self.compared is not None else {}

    def ratio(self, subject: str, reference: str, *, confidence: float = 0.95) -> Interval | None:
        """Time of one over the other at the target of ratios; None where either was not timed."""
        ours, theirs = self.slots(subject), self.slots(reference)
        if not ours or not theirs:
            return None
        return ratio_interval(p50_by_round(ours), p50_by_round(theirs), confidence=confidence)

    def drop(self, subject: str, reference: str) -> Figure:
        """Fall of the score from one to the other, on the same rows."""
        if self._canonical(subject) == self._canonical(reference):
            return NOTHING
        ours, theirs = self.answers[subject], self.answers[reference]
        found = drop(self.metric, theirs.predictions, ours.predictions, ours.references, ours.labels)
        return Figure(value=found.value, low=found.low, high=found.high)

    def row(self, subject: Subject) -> SubjectRow:
        """Everything that is known of one subject."""
        ours = self.answers[subject.key]
        every = scores(tuple(METRICS), ours.predictions, ours.references, ours.labels)
        found = score_interval(self.metric, ours.predictions, ours.references, ours.labels)
        every.setdefault(self.metric, found.value)
        same = self.same.get(subject.key)
        return SubjectRow(
            name=subject.name,
            engine=subject.engine,
            precision=subject.precision,
            path=subject.path or str(subject.folder),
            parameters=count_parameters(subject) if subject.parameters is None else subject.parameters,
            bytes=model_bytes(subject),
            metric=MetricFigure(**{**asdict(found), "value": every[self.metric]}, name=self.metric),
            metrics=every,
            versus_teacher=None if subject.name == self.reference else self.versus(subject),
            latency=self.latency(subject),
            resources=self.resources(subject),
            same_as=None if same is None else next(one.name for one in self.subjects if one.key == same),
        )

    def versus(self, subject: Subject) -> Versus:
        """The subject beside the reference."""
        ours, theirs = self.answers[subject.key], self.answers[self.reference]
        on_engine = subject.engine == self.engine
        ratio = self.ratio(subject.key, self.base) if on_engine else None
        untimed = subject.untimed or self.untimed
        reason = None if ratio else untimed if on_engine else f"ratios are taken at target {self.first}"
        return Versus(
            drop=self.drop(subject.key, self.reference),
            agreement=agreement(theirs.predictions, ours.predictions),
            latency_ratio=_figure(ratio),
            speed_verdict=None if ratio is None else self.speed(subject.key),
            reason=reason,
            flips=asdict(flips(theirs.predictions, ours.predictions, ours.references)),
        )

    def control(self, noise: Interval | None) -> tuple[SubjectRow, ...]:
        """The reference timed a second time, as a subject of its own."""
        if noise is None:
            return ()
        again = self.row(next(one for one in self.subjects if one.key == self.base))
        twin = Versus(drop=NOTHING, agreement=1.0, latency_ratio=_figure(noise))
        assert self.first is not None
        assert self.compared is not None
        row = measured(self.first, self.compared, self.base + CONTROL)
        latency = (placed(row, self.targets.get(self.first, Target()), again.precision),)
        name = self.reference + CONTROL
        return (
            again.model_copy(
                update={"name": name, "versus_teacher": twin, "latency": latency, "same_as": self.reference}
            ),
        )

    def speed(self, key: str) -> SpeedVerdict | None:
        """What the ratio to the reference says beside the noise floor, at the confidence that all looks leave."""
        if self._canonical(key) == self._canonical(self.base):
            return "same"
        confidence = LOOKS[self.compared.looks] if self.compared is not None else LOOKS[1]
        ratio = self.ratio(key, self.base, confidence=confidence)
        noise = self.ratio(self.base + CONTROL, self.base, confidence=confidence)
        return None if ratio is None else speed_verdict(ratio, noise)

    def beside_pytorch(self, best: str | None) -> BesidePytorch | None:
        """The deployed model and the reference, as they are served, beside the reference in PyTorch; None untimed."""
        beside = self.reference + PYTORCH
        deployed = next((one for one in reversed(self.chain()) if best in (None, one.name)), None)
        engine = _figure(self.ratio(self.base, beside))
        ours = _figure(self.ratio(self.timed_key(deployed), beside)) if deployed is not None else None
        if engine is None or ours is None or self.first is None or self.compared is None:
            return None
        p50 = measured(self.first, self.compared, beside).p50_ms
        return BesidePytorch(subject=self.reference, p50_ms=p50, engine=engine, deployed=ours)

    def latency(self, subject: Subject) -> tuple[LatencyRow, ...]:
        """One row for each kind of work at each target of the subject's engine; one saying why where none was timed."""
        return latency_rows(
            self._canonical(subject.key),
            self.timings,
            folder=subject.folder,
            targets=self.targets,
            benchmark=self.benchmark,
            engine=subject.engine,
            untimed=subject.untimed or self.untimed,
            precision=subject.precision,
            unchosen=self.told.unchosen,
        )

    def resources(self, subject: Subject) -> Resources | None:
        """What a subject takes beside time; None where the rows are not known."""
        if not self.scored.texts:
            return None
        price = self.benchmark.price if self.benchmark else None
        texts, key = draw_texts(self.scored.texts), self._canonical(subject.key)
        reason = subject.untimed or self.untimed
        return resources(subject, key, self.timings, texts=texts, price=price, untimed=reason)

    def chain(self) -> list[Subject]:
        """The subjects whose steps make the ladder: on onnxruntime, without baselines and controls."""
        return [one for one in self.subjects if one.engine == "onnxruntime" and "/" not in one.name]

    def ladder(self) -> tuple[Step, ...]:
        """Each subject against the one before."""
        steps = []
        chain = self.chain()
        for before, after in pairwise(chain):
            earlier, later = self._canonical(self.timed_key(before)), self._canonical(self.timed_key(after))
            if earlier == later:
                speedup = EXACTLY_ONE if self.slots(later) else None
            else:
                speedup = _figure(self.ratio(earlier, later))
            reason = None if speedup else self.untimed
            steps.append(Step(step=after.name, speedup=speedup, drop=self.drop(after.key, before.key), reason=reason))
        return tuple(steps)

    def budget(self, budget: Budget, best: str | None) -> tuple[BudgetRow, ...]:
        """The budget's limits held against one subject."""
        chain = {subject.name: subject for subject in self.chain()}
        if best is not None and best not in chain:
            raise InputError(f"no subject {best!r} to hold the budget against; there are {', '.join(chain)}")
        subject = chain[best] if best is not None else list(chain.values())[-1]
        names = dict(chain) | {"teacher": chain.get("teacher", chain[self.reference])}
        compared = {name: self.answers[one.key].predictions for name, one in names.items()}
        answers = replace(self.answers[subject.key], compared=compared)
        ours = self.slots(self.timed_key(subject))
        slots = {name: self.slots(self.timed_key(one)) for name, one in names.items()}
        times = Times(ours, {name: one for name, one in slots.items() if one}) if ours else self.untimed
        size = model_bytes(subject)
        return judge_budget(budget, answers=answers, on_test=self.scored.on_test, times=times, size_bytes=size)

    def attribution(self) -> tuple[Attribution, ...]:
        """What students gained over their controls."""
        ours = {one.name: self.answers[one.key] for one in self.subjects if one.engine == "onnxruntime"}
        return attributions(ours, metric=self.metric)

    def conditions(self) -> dict[str, Any]:
        """What the timings were taken under."""
        if not self.timings:
            return {}
        kept = ("threads", "busy_before", "load_before", "stolen_seconds", "wall_seconds", "looks", "throttled")
        found = {name: {key: getattr(one, key) for key in kept} for name, one in self.timings.items()}
        pinned = {name: None if one.cpus is None else list(one.cpus) for name, one in self.timings.items()}
        return {"timing": {name: {**found[name], "cpus": pinned[name]} for name in found}}

    def doubts(self, noise: Interval | None) -> list[str]:
        """Doubts about the figures."""
        rows = len(self.answers[self.reference].references)
        timings = self.timings or self.untimed
        found = doubts(on_test=self.scored.on_test, rows=rows, timings=timings, noise=noise, machine=self.told.machine)
        return [*found, *self.skipped()]

    def skipped(self) -> list[str]:
        """A sentence for each target that was asked for and cannot be timed here."""
        asked = self.benchmark.targets if self.benchmark else list(self.timings)
        known = [name for name in asked if name in self.targets]
        whys = [(name, self.told.unchosen.get(name) or skipped(self.targets[name])) for name in known]
        found = [f"Target {name} was not timed: {why}." for name, why in whys if why]
        if self.first is not None and self.first != asked[0]:
            found.append(f"Ratios, the noise and budgets are those of target {self.first} instead of {asked[0]}.")
        return found + self.without_pytorch()

    def without_pytorch(self) -> list[str]:
        """A sentence where the reference was to be timed in PyTorch, too, and its weights do not open."""
        if (
            not self.slots(self.base)
            or self.slots(self.reference + PYTORCH)
            or not (self.benchmark or Benchmark()).pytorch
        ):
            return []
        reference = next(one for one in self.subjects if one.key == self.reference)
        why = no_pytorch(reference)
        return [f"{self.reference} was not timed in PyTorch: {why}."] if why else []


def _figure(interval: Interval | None) -> Figure | None:
    return None if interval is None else Figure(value=interval.value, low=interval.low, high=interval.high)
