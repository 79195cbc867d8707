"""`quantize`: write the model as INT8 ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from compressor.device import has_vnni
from compressor.quantize.settings import Choice, Scheme
from compressor.stage import Job, Stage


class Quantize(Stage):
    """Try the schemes in order and keep one."""

    verb: ClassVar[str] = "quantize"
    rows_read: ClassVar[tuple[str, ...]] = ("select",)
    gate_actions: ClassVar[tuple[str, ...]] = ("fail", "fallback", "skip", "warn")

    try_: Annotated[list[Scheme], Field(alias="try", min_length=1)] = ["dynamic"]
    """Schemes to try."""
    choose: Choice = "most_accurate"
    """Which of those that pass the gate is kept; agreement with the input on `select` decides accuracy."""

    def conditions(self, _device: str) -> Mapping[str, object]:
        """Without VNNI the weights take 7 bits, so that products do not saturate."""
        return {"vnni": has_vnni()}

    def run(self, job: Job) -> None:
        """Calls Quantizer as a user would."""
        from compressor.quantize.quantizer import Quantizer

        model = job.inputs["model"]
        exported = model.parent / "onnx"  # the runner's fp32 export of torch weights, made when they were scored
        falls_back = self.gate is not None and self.gate.otherwise == "fallback"
        Quantizer(
            exported if (exported / "model.onnx").is_file() else model,
            data=job.data,
            try_=self.try_,
            choose=self.choose,
            seed=job.seed,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out, accept=job.gate if falls_back else None)
