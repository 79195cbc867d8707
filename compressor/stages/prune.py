"""`prune`: remove attention heads, feed-forward neurons and whole layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from compressor.distill.settings import DEFAULT_MATCH, TeacherChoice, TeacherPart
from compressor.errors import InputError
from compressor.prune.settings import Recover, Remove, Until, kinds_of
from compressor.settings import Integer
from compressor.sources.settings import ModelSource, RowFile
from compressor.stage import Job, Stage
from compressor.stages.distill import Distill, part_of
from compressor.stages.teacher import model_here


class Prune(Stage):
    """Cut what matters least, in steps, with recovery by distillation between them."""

    verb: ClassVar[str] = "prune"
    trains: ClassVar[bool] = True
    gate_actions: ClassVar[tuple[str, ...]] = ("fail", "backtrack", "skip", "warn")

    remove: Remove = Remove(heads="taylor", ffn="taylor")
    """What may go, and by which score."""
    until: Until = Until(macs="0.7x")
    """How much of the stage's input remains."""
    steps: Annotated[Integer, Field(ge=1, le=100)] = 1
    """Cuts; importance is measured again before each, the first ones are the largest."""
    recover: Recover | None = None
    """Distillation after each cut; null leaves the cut model as it is."""
    teacher: TeacherChoice | None = None
    """Who teaches while recovering: the id of a stage or a model; the distill stage's teacher unless given."""

    def model_post_init(self, _context: object) -> None:
        kinds_of(self.remove, self.until)
        if self.teacher is not None and self.recover is None:
            raise ValueError("names a teacher, which only recover needs; add recover: {} or remove teacher")
        part = part_of(self.teacher or "teacher")
        if part.stage is None and part.model is None:
            raise ValueError("teacher must be a stage or a model: recovery needs one that answers every row")
        if part.weight != 1.0:
            raise ValueError("teacher has a weight, which counts beside other teachers alone; leave it out")

    def references(self) -> Mapping[str, str | None]:
        """The model to prune, and the stage that teaches its recovery."""
        part = part_of(self.teacher or "teacher")
        return {"model": self.from_} | ({"teacher": part.stage} if self.recover and part.stage else {})

    def sources(self) -> Mapping[str, ModelSource | RowFile]:
        """The teacher of the recovery where it is no stage."""
        model = part_of(self.teacher or "teacher").model
        return {"teacher": model} if self.recover and model else {}

    def filled(self, earlier: Sequence[Stage]) -> Stage:
        """Recovery with the terms, batches and teacher of the distill stage upstream where it names none.

        Raises: InputError where that stage has no teacher that could teach here.
        """
        if self.recover is None:
            return self
        upstream = distill_upstream(self.from_, earlier)
        match = self.recover.match or (upstream.match if upstream else list(DEFAULT_MATCH))
        mix = self.recover.mix or (upstream.mix if upstream else None)
        teacher = self.teacher or (_teacher_of(upstream) if upstream else "teacher")
        recover = self.recover.model_copy(update={"match": match, "mix": mix})
        return self.model_copy(update={"recover": recover, "teacher": teacher})

    def run(self, job: Job) -> None:
        """Calls Pruner as a user would."""
        from compressor.prune.pruner import Pruner

        backtracks = self.gate is not None and self.gate.otherwise == "backtrack"
        teacher = job.inputs.get("teacher")
        if teacher is not None and "teacher" in self.sources():
            teacher = model_here(teacher, job, "teacher")
        Pruner(
            job.inputs["model"],
            data=job.data,
            remove=self.remove,
            until=self.until,
            steps=self.steps,
            recover=self.recover,
            teacher=teacher,
            seed=job.seed,
            device=job.device,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out, accept=job.gate if backtracks else None)


def distill_upstream(start: str | None, earlier: Sequence[Stage]) -> Distill | None:
    """The distill stage that a stage's input comes from, by way of `from` or of the stage before; None without one."""
    places = {stage.id: place for place, stage in enumerate(earlier)}
    place: int | None = places.get(start) if start is not None else len(earlier) - 1
    while place is not None and place >= 0:
        stage = earlier[place]
        if isinstance(stage, Distill):
            return stage
        place = places.get(stage.from_) if stage.from_ is not None else place - 1
    return None


def _teacher_of(stage: Distill) -> str | TeacherPart:
    """The one teacher of a distill stage, as a stage or a model; InputError where it has none such."""
    first = stage.teachers[0]
    if len(stage.teachers) == 1 and first.stage is not None:
        return first.stage
    if len(stage.teachers) == 1 and first.model is not None:
        return first
    has = f"{len(stage.teachers)} teachers" if len(stage.teachers) > 1 else "one that is neither"
    raise InputError(
        f"recover needs one teacher, a stage or a model, and {stage.id} has {has}; name one beside recover, such as "
        f"teacher: {stage.id}"
    )
