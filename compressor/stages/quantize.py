"""`quantize`: write the model as INT8 ONNX."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from compressor.quantize.settings import Choice, Scheme
from compressor.stage import Job, Stage


class Quantize(Stage):
    """Try the schemes in order and keep one."""

    verb: ClassVar[str] = "quantize"

    try_: Annotated[list[Scheme], Field(alias="try", min_length=1)] = ["dynamic"]
    """Schemes to try."""
    choose: Choice = "most_accurate"
    """Which of those that pass the gate is kept; agreement with the input on `select` decides accuracy."""

    def run(self, job: Job) -> None:
        """Calls Quantizer as a user would."""
        from compressor.quantize.quantizer import Quantizer

        falls_back = self.gate is not None and self.gate.otherwise == "fallback"
        Quantizer(
            job.inputs["model"],
            data=job.data,
            try_=self.try_,
            choose=self.choose,
            seed=job.seed,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out, accept=job.gate if falls_back else None)
