"""`export`: write the folder that people deploy."""

from __future__ import annotations

from typing import ClassVar, Literal

from compressor.stage import Job, Stage


class Export(Stage):
    """ONNX, tokenizer, config and predict.py in one folder; an input that is ONNX already is taken as it is."""

    verb: ClassVar[str] = "export"
    rows_read: ClassVar[tuple[str, ...]] = ("select",)

    to: Literal["onnx"] = "onnx"
    """File format of the model."""
    layout: Literal["flat"] = "flat"
    """Where the files lie; flat puts all beside each other."""

    def run(self, job: Job) -> None:
        """Calls Exporter as a user would."""
        from compressor.export.exporter import Exporter

        Exporter(job.inputs["model"], data=job.data, progress=job.progress, decide=job.decide).export(job.out / "model")
