"""`finetune`: train a model on the labelled rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from compressor.stage import Job, Stage
from compressor.train.settings import Train


class FinetuneStage(Stage):
    """Train the stage's input on the labels."""

    verb: ClassVar[str] = "finetune"
    trains: ClassVar[bool] = True
    rows_read: ClassVar[tuple[str, ...]] = ("train", "select")

    train: Train = Train()
    """Length and speed of training."""
    loss: Literal["ce", "focal", "gce"] = "ce"
    """Cross-entropy; focal looks less at rows that are right already; gce resists wrong labels."""

    def run(self, job: Job) -> None:
        """Calls Finetuner as a user would."""
        from compressor.evaluate.metrics import score
        from compressor.train.finetune import Finetuner

        Finetuner(
            job.inputs["model"],
            data=job.data,
            train=self.train,
            loss=self.loss,
            seed=job.seed,
            device=job.device,
            score=score,
            progress=job.progress,
        ).fit(job.out / "model", work=job.out)
