"""`teacher`: the model that everything is measured against, taken as it is or fine-tuned here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from compressor.sources.settings import ModelFrom
from compressor.stage import Gate, Job, Stage
from compressor.train.settings import Finetune


class Teacher(Stage):
    """The teacher; its id is always `teacher`. Its gate is the recipe's `expect`."""

    verb: ClassVar[str] = "teacher"
    trains: ClassVar[bool] = True
    rows_read: ClassVar[tuple[str, ...]] = ("train", "select")

    id: str = "teacher"
    """Reserved."""
    model: ModelFrom
    """Where it comes from: a folder, a hub id or `pypi://PACKAGE==VERSION/folder`."""
    finetune: Finetune | None = None
    """How to make it from a pretrained encoder; null takes the model as it is."""
    gate: Gate | None = None
    """The recipe's `expect`."""

    def references(self) -> Mapping[str, str | None]:
        """None: the teacher comes first."""
        return {}

    def run(self, job: Job) -> None:
        """Import or fine-tune; `job.inputs["source"]` is the resolved folder of `model`."""
        source = job.inputs["source"]
        if job.smoke:
            source = _random_teacher(source, job)
        if self.finetune is None:
            from compressor.train.finetune import import_model

            import_model(source, job.out / "model", data=job.data, seed=job.seed)
            return
        from compressor.evaluate.metrics import score
        from compressor.train.finetune import Finetuner

        Finetuner(
            source,
            data=job.data,
            train=self.finetune.train,
            seed=job.seed,
            device=job.device,
            score=score,
            progress=job.progress,
        ).fit(job.out / "model", work=job.out)


def _random_teacher(source: Path, job: Job) -> Path:
    """A folder with a small random model of the same depth and tokenizer, for smoke runs."""
    from compressor.model.random import save_random_model

    folder = job.out / "random"
    save_random_model(source, folder, hidden=32, heads=4, labels=job.data.labels, seed=job.seed)
    return folder
