"""`export`: write the folder that people deploy."""

from __future__ import annotations

from typing import ClassVar, Literal

from compressor.export.settings import ExportPrecision, Layout, Server, served_twice
from compressor.stage import Job, Stage


class Export(Stage):
    """ONNX, tokenizer, config and predict.py in one folder; an input that is ONNX already is taken as it is.

    The stage's own model is flat and is measured so; `layout` and `serve` say how the runner lays out `final/`.
    """

    verb: ClassVar[str] = "export"
    rows_read: ClassVar[tuple[str, ...]] = ("select",)

    to: Literal["onnx"] = "onnx"
    """File format of the model."""
    precision: ExportPrecision | None = None
    """Of the written weights; null keeps that of the input, which is fp32 where it was not quantized."""
    layout: Layout = "flat"
    """How the files of `final/` lie; flat puts all beside each other."""
    serve: list[Server] = []
    """Servers that `final/serve/` gets a configuration or program for; none unless asked for."""

    def model_post_init(self, _context: object) -> None:
        wrong = served_twice(self.serve)
        if wrong:
            raise ValueError(wrong)

    def run(self, job: Job) -> None:
        """Calls Exporter as a user would."""
        from compressor.export.exporter import Exporter

        Exporter(
            job.inputs["model"], data=job.data, precision=self.precision, progress=job.progress, decide=job.decide
        ).export(job.out / "model")
