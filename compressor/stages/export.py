"""`export`: write the folder that people deploy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from compressor.export.settings import ExportPrecision, Layout, Server
from compressor.stage import Job, Stage


def _once(names: list[Server]) -> list[Server]:
    if len(set(names)) < len(names):
        raise ValueError(f"must name each server once (got {', '.join(names)})")
    return names


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
    serve: Annotated[list[Server], AfterValidator(_once)] = []
    """Servers that `final/serve/` gets a configuration or program for; none unless asked for."""

    def run(self, job: Job) -> None:
        """Calls Exporter as a user would."""
        from compressor.export.exporter import Exporter

        Exporter(
            job.inputs["model"], data=job.data, precision=self.precision, progress=job.progress, decide=job.decide
        ).export(job.out / "model")
