"""`prune`: remove attention heads, feed-forward neurons and whole layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from compressor.distill.settings import DEFAULT_MATCH
from compressor.prune.settings import Recover, Remove, Until, kinds_of
from compressor.settings import Integer
from compressor.stage import Job, Stage
from compressor.stages.distill import Distill


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
    teacher: str | None = None
    """Id of the stage that teaches while recovering; the distill stage's teacher unless given."""

    def model_post_init(self, _context: object) -> None:
        kinds_of(self.remove, self.until)
        if self.teacher is not None and self.recover is None:
            raise ValueError("names a teacher, which only recover needs; add recover: {} or remove teacher")

    def references(self) -> Mapping[str, str | None]:
        """The model to prune, and the teacher of its recovery."""
        return {"model": self.from_} | ({"teacher": self.teacher or "teacher"} if self.recover else {})

    def filled(self, earlier: Sequence[Stage]) -> Stage:
        """Recovery with the terms, batches and teacher of the distill stage upstream where it names none."""
        if self.recover is None:
            return self
        upstream = _upstream(self.from_, earlier)
        match = self.recover.match or (upstream.match if upstream else list(DEFAULT_MATCH))
        mix = self.recover.mix or (upstream.mix if upstream else None)
        teacher = self.teacher or (upstream.teacher if upstream else "teacher")
        recover = self.recover.model_copy(update={"match": match, "mix": mix})
        return self.model_copy(update={"recover": recover, "teacher": teacher})

    def run(self, job: Job) -> None:
        """Calls Pruner as a user would."""
        from compressor.prune.pruner import Pruner

        backtracks = self.gate is not None and self.gate.otherwise == "backtrack"
        Pruner(
            job.inputs["model"],
            data=job.data,
            remove=self.remove,
            until=self.until,
            steps=self.steps,
            recover=self.recover,
            teacher=job.inputs.get("teacher"),
            seed=job.seed,
            device=job.device,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out, accept=job.gate if backtracks else None)


def _upstream(start: str | None, earlier: Sequence[Stage]) -> Distill | None:
    """The distill stage that a stage's input comes from, by way of `from` or of the stage before; None without one."""
    places = {stage.id: place for place, stage in enumerate(earlier)}
    place: int | None = places.get(start) if start is not None else len(earlier) - 1
    while place is not None and place >= 0:
        stage = earlier[place]
        if isinstance(stage, Distill):
            return stage
        place = places.get(stage.from_) if stage.from_ is not None else place - 1
    return None
