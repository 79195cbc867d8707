"""`distill`: train a smaller student to answer as its teachers do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.data.settings import Mix
from compressor.distill.settings import (
    DEFAULT_MATCH,
    Cache,
    CacheChoice,
    Combine,
    Phase,
    TeacherChoice,
    TeacherPart,
    Term,
    Terms,
    check_control,
    check_teachers,
)
from compressor.model.settings import Student
from compressor.settings import Flag
from compressor.sources.settings import ModelSource, RowFile
from compressor.stage import ID_PATTERN, Job, Stage
from compressor.stages.teacher import model_here
from compressor.train.settings import Train

PLACES: dict[str, Any] = {
    "stage": True,
    "model": True,
    "probabilities": {"path": {"path", "sha256"}},
    "votes": {"path": {"path", "sha256"}},
    "label_names": {"model": True},
}
"""What of a teacher says where it lies; its digest stands for that in the key."""


class Distill(Stage):
    """Make a student from the teacher's layers, or from a checkpoint, and train it on the teachers' answers."""

    verb: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    student: Student = Student()
    """Shape and start of the student; unused with `from`, which names the student itself."""
    teacher: TeacherChoice | Annotated[list[TeacherChoice], Field(min_length=1)] = "teacher"
    """Who teaches: the id of a stage in one word, another text a source, or a list of teachers."""
    combine: Combine = "mean"
    """How several teachers make one answer: the weighted mean of their probabilities, or each row's surest teacher."""
    match: Terms = list(DEFAULT_MATCH)
    """What the student copies, one term each."""
    mix: Mix = Mix()
    """What a batch is made of; half unlabelled rows unless told, where there are any."""
    train: Train = Train()
    """Length and speed of training; phases have their own."""
    cache: CacheChoice = Cache()
    """Disk for the teachers' answers and hidden states, such as 2GB; layers over it are computed at every step."""
    control: Flag = False
    """Also trains students without a teacher and without unlabelled rows, so that the report says what each brought."""
    phases: list[Phase] = []
    """Trainings one after another, each with what differs from the stage; none makes one training of `train`."""

    def model_post_init(self, _context: object) -> None:
        if self.from_ is not None and self.student != Student():
            raise ValueError("takes student or from, not both: from names a student that is there already")
        if self.phases and self.train != Train():
            raise ValueError("train is unused with phases, each of which has its own; move it there")
        if self.control:
            check_control(self._terms())
        check_teachers(self.teachers, self.combine)

    def _terms(self) -> list[Term]:
        """Every term that some phase trains with."""
        lists = [phase.match or self.match for phase in self.phases] or [self.match]
        return [term for terms in lists for term in terms]

    @property
    def teachers(self) -> tuple[TeacherPart, ...]:
        """Each teacher in full, in the order written."""
        return tuple(part_of(choice) for choice in _listed(self.teacher))

    def references(self) -> Mapping[str, str | None]:
        """The teachers that are stages, and the student where `from` names one."""
        stages = {role: part.stage for role, part in self.roles().items() if part.stage is not None}
        return stages | ({"model": self.from_} if self.from_ else {})

    def sources(self) -> Mapping[str, ModelSource | RowFile]:
        """The teachers that are no stages, and the checkpoint that the student starts from."""
        found = {role: source for role, part in self.roles().items() if (source := part.source) is not None}
        return found | ({"student": self.student.init.from_} if self.student.init.from_ else {})

    def promised(self) -> tuple[str, ...]:
        """The model, and the controls with what they were trained with."""
        return (*self.outputs, "controls/controls.json") if self.control else self.outputs

    def key_settings(self) -> dict[str, Any]:
        """All settings less where teachers and checkpoint lie."""
        parts = [part.model_dump(mode="json", exclude=PLACES, exclude_none=True) for part in self.teachers]
        found = super().key_settings() | {"teachers": parts}
        del found["student"]["init"]["from"]
        return found

    def roles(self) -> dict[str, TeacherPart]:
        """Role of each teacher, `teacher`, `teacher2` and so on, to the teacher."""
        return {f"teacher{place}" if place > 1 else "teacher": part for place, part in enumerate(self.teachers, 1)}

    def run(self, job: Job) -> None:
        """Calls Distiller as a user would."""
        from compressor.distill.distiller import Distiller

        Distiller(
            [_placed(part, job.inputs[role], role, job) for role, part in self.roles().items()],
            job.inputs.get("model", self._student(job)),
            data=job.data,
            match=self.match,
            combine=self.combine,
            mix=self.mix,
            train=None if self.phases else self.train,
            cache=self.cache,
            control=self.control,
            phases=self.phases,
            seed=job.seed,
            device=job.device,
            progress=job.progress,
            decide=job.decide,
            smoke=job.smoke,
        ).fit(job.out / "model", work=job.out)

    def _student(self, job: Job) -> Student:
        """The student with its checkpoint as a folder that is here."""
        if self.student.init.from_ is None:
            return self.student
        folder = model_here(job.inputs["student"], job, "student")
        init = self.student.init.model_copy(update={"from_": _here(folder)})
        return self.student.model_copy(update={"init": init})


def part_of(choice: str | TeacherPart) -> TeacherPart:
    """A teacher in full: a text that could be a stage's id is one, any other a source.

    >>> part_of("student").stage, part_of("./my-bert").model.path
    ('student', './my-bert')
    """
    if isinstance(choice, TeacherPart):
        return choice
    if re.fullmatch(ID_PATTERN, choice):
        return TeacherPart(stage=choice)
    return TeacherPart(model=ModelSource(path=choice))


def _listed(teacher: str | TeacherPart | Sequence[str | TeacherPart]) -> Sequence[str | TeacherPart]:
    return [teacher] if isinstance(teacher, str | TeacherPart) else teacher


def _placed(part: TeacherPart, path: Path, role: str, job: Job) -> TeacherPart:
    """The teacher with its source at `path`; a smoke run takes a small random model for one with torch weights."""
    if part.label_names is not None:
        return part.model_copy(update={"label_names": part.label_names.model_copy(update={"model": _here(path)})})
    for name, answers in (("probabilities", part.probabilities), ("votes", part.votes)):
        if answers is not None:
            rows = answers.path.model_copy(update={"path": str(path.resolve()), "sha256": None})
            return part.model_copy(update={name: answers.model_copy(update={"path": rows})})
    folder = path if part.stage is not None else model_here(path, job, role)
    return part.model_copy(update={"stage": None, "model": _here(folder)})


def _here(folder: Path) -> ModelSource:
    return ModelSource(path=str(folder.resolve()))
