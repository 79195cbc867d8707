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
            source = random_model(source, job, "teacher")
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
            loss=self.finetune.loss,
            seed=job.seed,
            device=job.device,
            score=score,
            progress=job.progress,
        ).fit(job.out / "model", work=job.out)


def model_here(folder: Path, job: Job, role: str) -> Path:
    """The folder of a model from elsewhere; in a smoke run a small random one where it holds torch weights."""
    return random_model(folder, job, role) if job.smoke and any(folder.glob("*.safetensors")) else folder


def random_model(source: Path, job: Job, role: str) -> Path:
    """A folder with a small random classifier of the depth and tokenizer of `source`, for smoke runs."""
    from compressor.model.random import save_random_model

    folder = job.out / "random" / role
    save_random_model(source, folder, hidden=32, heads=4, labels=job.data.labels, seed=job.seed)
    return folder
