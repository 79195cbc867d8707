"""`distill`: train a smaller student to answer as the teacher does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from compressor.data.settings import Mix, Unlabelled
from compressor.distill.settings import DEFAULT_MATCH, Match
from compressor.model.settings import Student
from compressor.settings import ByteSize, Word
from compressor.stage import Job, Stage
from compressor.train.settings import Train


class Distill(Stage):
    """Make a student from the teacher's layers and train it on the teacher's answers."""

    verb: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    student: Student = Student()
    """Shape and start of the student; unused with `from`, which names the student itself."""
    teacher: Word = "teacher"
    """Id of the stage that teaches."""
    match: Annotated[list[Match], Field(min_length=1)] = list(DEFAULT_MATCH)
    """What the student copies, one term each."""
    mix: Mix = Mix(unlabelled=Unlabelled())
    """What a batch is made of; half unlabelled rows unless told, where there are any."""
    train: Train = Train()
    """Length and speed of training."""
    cache: ByteSize = "2GB"
    """Disk for the teacher's answers and hidden states; where the states do not fit, all are computed at every step."""

    def references(self) -> Mapping[str, str | None]:
        """The teacher, and the student where `from` names one."""
        return {"teacher": self.teacher} | ({"model": self.from_} if self.from_ else {})

    def model_post_init(self, _context: object) -> None:
        if self.from_ is not None and self.student != Student():
            raise ValueError("takes student or from, not both: from names a student that is there already")

    def run(self, job: Job) -> None:
        """Calls Distiller as a user would."""
        from compressor.distill.distiller import Distiller

        Distiller(
            job.inputs["teacher"],
            job.inputs.get("model", self.student),
            data=job.data,
            match=self.match,
            mix=self.mix,
            train=self.train,
            cache=self.cache,
            seed=job.seed,
            device=job.device,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out)
