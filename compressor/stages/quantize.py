"""`quantize`: write the model as INT8 ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compressor.device import has_vnni, machine_id, native_bf16
from compressor.distill.settings import TeacherChoice
from compressor.errors import InputError
from compressor.quantize.settings import Calibrate, Choice, Isa, Mixed, Qat, RunsOn, Scheme, Smooth, WeightOnly
from compressor.quantize.targets import USERS, check_schemes, unused
from compressor.sources.settings import ModelSource, RowFile
from compressor.stage import Job, Stage
from compressor.stages.distill import part_of
from compressor.stages.prune import distill_upstream
from compressor.stages.teacher import model_here


class Quantize(Stage):
    """Try the schemes in order and keep one."""

    revision: ClassVar[int] = 3
    verb: ClassVar[str] = "quantize"
    gate_actions: ClassVar[tuple[str, ...]] = ("fail", "fallback", "skip", "warn")

    try_: Annotated[list[Scheme], Field(alias="try", min_length=1)] = ["dynamic"]
    """Schemes to try. Where there is no gate, each is held to the drop and agreement of `mixed` if that is tried, else
    to a drop of 1 pp if static is; static that is refused then is followed by mixed, then by dynamic."""
    choose: Choice = "most_accurate"
    """Which of those that pass the gate is kept; agreement with the input on `select` decides accuracy. `fastest` times
    them side by side, so that the stage holds for this machine alone."""
    calibrate: Calibrate = Calibrate()
    """Rows and method that static takes its ranges by."""
    mixed: Mixed = Mixed()
    """What mixed leaves in float."""
    smooth: Smooth | None = None
    """Outliers of activations moved into the weights: how much; null lets each scheme choose. Single neurons that are
    far on at one kind of token are turned down whatever alpha is."""
    qat: Qat = Qat()
    """Training of scheme qat."""
    weight_only: WeightOnly = WeightOnly()
    """Bits of scheme weight_only."""
    teacher: TeacherChoice | None = None
    """Who teaches in scheme qat: the id of a stage or a model; the stage's input unless given."""
    isa: Isa | None = None
    """Instructions of the processor that the model is for; that of the first target with device cpu, else this one."""
    target: RunsOn | None = None
    """What will run the model; taken from the benchmark's targets unless given: the CPU where one of them is."""

    def model_post_init(self, _context: object) -> None:
        wrong = unused(self.try_, {name: getattr(self, name) for name in USERS}, gate=self.gate is not None)
        if wrong:
            raise ValueError(wrong)
        if self.teacher is None:
            return
        if "qat" not in self.try_:
            raise ValueError("names a teacher, which only scheme qat needs; add qat to try or remove teacher")
        part = part_of(self.teacher)
        if part.stage is None and part.model is None:
            raise ValueError("teacher must be a stage or a model: qat needs one that answers every row")
        if part.weight != 1.0:
            raise ValueError("teacher has a weight, which counts beside other teachers alone; leave it out")

    def references(self) -> Mapping[str, str | None]:
        """The model to quantize, and the stage that teaches qat."""
        part = part_of(self.teacher) if self.teacher is not None else None
        return {"model": self.from_} | ({"teacher": part.stage} if part is not None and part.stage else {})

    def sources(self) -> Mapping[str, ModelSource | RowFile]:
        """The teacher of qat where it is no stage."""
        part = part_of(self.teacher) if self.teacher is not None else None
        return {"teacher": part.model} if part is not None and part.model else {}

    def filled(self, earlier: Sequence[Stage]) -> Stage:
        """Batches of qat as those of the distill stage upstream where it names none."""
        upstream = distill_upstream(self.from_, earlier) if "qat" in self.try_ else None
        if upstream is None or self.qat.mix is not None:
            return self
        return self.model_copy(update={"qat": self.qat.model_copy(update={"mix": upstream.mix})})

    def for_target(self, isa: Isa | None, target: RunsOn) -> Quantize:
        """The stage for a processor and what runs the model there, where it does not name its own.

        Raises: InputError for a scheme that cannot run there.
        """
        target = self.target or target
        try:
            check_schemes(self.try_, target, self.mixed, self.choose)
        except InputError as error:
            raise InputError(f"stage {self.id}: {error}") from None
        return self.model_copy(update={"isa": self.isa or isa, "target": target})

    def key_settings(self) -> dict[str, Any]:
        """Without the settings of schemes that are not tried."""
        kept = {name for name, schemes in USERS.items() if schemes & set(self.try_)}
        return {name: value for name, value in super().key_settings().items() if name in kept or name not in USERS}

    def resumes(self) -> bool:
        """Times that a choice was made by, and checkpoints of a training, are taken up again."""
        return self.choose == "fastest" or "qat" in self.try_

    def conditions(self, device: str) -> Mapping[str, object]:
        """Without VNNI weights are for sums of 16 bits, unless `isa` says otherwise; a timing holds on one machine."""
        found: dict[str, object] = {"vnni": has_vnni()}
        if self.choose == "fastest":
            found["machine"] = machine_id()
        if "qat" in self.try_ and device == "cpu":
            found["training_bf16"] = native_bf16()
        return found

    def run(self, job: Job) -> None:
        """Calls Quantizer as a user would."""
        from compressor.quantize.quantizer import Quantizer

        model = job.inputs["model"]
        exported = model.parent / "onnx"  # the runner's fp32 export of torch weights, made when they were scored
        teacher = job.inputs.get("teacher")
        if teacher is not None and "teacher" in self.sources():
            teacher = model_here(teacher, job, "teacher")
        Quantizer(
            model,
            data=job.data,
            try_=self.try_,
            choose=self.choose,
            calibrate=self.calibrate,
            mixed=self.mixed,
            smooth=self.smooth,
            qat=self.qat,
            weight_only=self.weight_only,
            isa=self.isa,
            target=self.target or "cpu",
            exported=exported if (exported / "model.onnx").is_file() else None,
            teacher=teacher,
            device=job.device,
            seed=job.seed,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(
            job.out / "model",
            work=job.out,
            accept=job.gate,
            fallback=self.gate is not None and self.gate.otherwise == "fallback",
        )
