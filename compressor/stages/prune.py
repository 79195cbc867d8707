"""`prune`: remove attention heads, feed-forward neurons, whole layers and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from compressor.bench.machine import versions
from compressor.bench.settings import Target
from compressor.device import machine_id
from compressor.distill.settings import DEFAULT_MATCH, TeacherChoice, TeacherPart
from compressor.errors import InputError
from compressor.prune.settings import (
    GRADIENTS,
    KINDS,
    Masks,
    Recover,
    Remove,
    TimedEngine,
    Until,
    check_alone,
    check_masks,
    is_share,
    kinds_of,
    whole_parts,
)
from compressor.settings import Flag, Integer
from compressor.sources.settings import ModelSource, RowFile
from compressor.stage import Job, Stage
from compressor.stages.distill import Distill, part_of
from compressor.stages.teacher import model_here

WITHOUT_TOKENS = "without the tokens that neither train nor the pool holds"


class Prune(Stage):
    """Cut what matters least, in steps, with recovery by distillation between them."""

    verb: ClassVar[str] = "prune"
    trains: ClassVar[bool] = True
    gate_actions: ClassVar[tuple[str, ...]] = ("fail", "backtrack", "skip", "warn")

    _whole_parts = model_validator(mode="before")(whole_parts)

    remove: Remove = Remove(heads="fisher", ffn="fisher")
    """What may go, and by which score."""
    until: Until | None = Until(macs="0.7x")
    """How much of the stage's input remains; null where `remove` names vocabulary alone."""
    steps: Annotated[Integer, Field(ge=1, le=100)] = 1
    """Cuts; importance is measured again before each, the first ones are the largest."""
    reconstruct: Flag = False
    """After each cut, and before recovery, fit what each layer hands on to the uncut model by least squares: on up to
    1,024 train rows, filled up with unlabelled ones, in seconds and without labels."""
    recover: Recover | None = None
    """Distillation after each cut; null leaves the cut model as it is."""
    masks: Masks | None = None
    """Learn which heads and neurons go while `recover` trains the model, and cut them once, at its end; null cuts by
    the criteria of `remove`."""
    teacher: TeacherChoice | None = None
    """Who teaches while recovering, and whose answers importance compares with where it is `against: teacher`: the id
    of a stage or a model; the distill stage's teacher unless given."""

    engine: TimedEngine | None = None
    """What until.latency is measured in; that of the benchmark's first target with device cpu unless given."""
    threads: Annotated[Integer, Field(ge=1)] | None = None
    """Threads of that engine; those of that target unless given, or all that may be used."""

    @model_validator(mode="before")
    @classmethod
    def _without_target(cls, given: Any) -> Any:
        """The settings, with until: null where none is written and tokens alone go."""
        remove = given.get("remove") if isinstance(given, Mapping) else None
        if not isinstance(remove, Mapping | Remove) or "until" in given:
            return given
        named = {name for name, value in dict(remove).items() if value is not None}
        return {**given, "until": None} if "vocabulary" in named and not named & set(KINDS) else given

    def model_post_init(self, _context: object) -> None:
        kinds_of(self.remove, self.until)
        check_alone(self.remove, steps=self.steps, reconstruct=self.reconstruct, recover=self.recover)
        check_masks(self.masks, self.remove, steps=self.steps, reconstruct=self.reconstruct, recover=self.recover)
        if not self._timed and (self.engine is not None or self.threads is not None):
            raise ValueError("has engine or threads, which say where until.latency is measured; leave them out")
        if self.teacher is not None and not self._needs:
            raise ValueError(
                "names a teacher, which only recover and remove.against: teacher need; add one of them, such as "
                "recover: {}, or remove teacher"
            )
        part = part_of(self.teacher or "teacher")
        if part.stage is None and part.model is None:
            raise ValueError("teacher must be a stage or a model: recovery needs one that answers every row")
        if part.weight != 1.0:
            raise ValueError("teacher has a weight, which counts beside other teachers alone; leave it out")

    @property
    def _timed(self) -> bool:
        """Whether the target is a latency."""
        return self.until is not None and self.until.latency is not None

    @property
    def _needs(self) -> str:
        """The setting that needs a teacher; empty where none does."""
        if self.recover is not None:
            return "recover"
        return "remove.against" if self.remove.against == "teacher" else ""

    def references(self) -> Mapping[str, str | None]:
        """The model to prune, and the stage that teaches."""
        part = part_of(self.teacher or "teacher")
        return {"model": self.from_} | ({"teacher": part.stage} if self._needs and part.stage else {})

    def sources(self) -> Mapping[str, ModelSource | RowFile]:
        """The teacher where it is no stage."""
        model = part_of(self.teacher or "teacher").model
        return {"teacher": model} if self._needs and model else {}

    def filled(self, earlier: Sequence[Stage]) -> Stage:
        """Recovery with the terms, batches and teacher of the distill stage upstream where it names none.

        Raises: InputError where that stage has no teacher that could teach here, or where importance would compare the
            model with itself.
        """
        if not self._needs:
            return self
        upstream = distill_upstream(self.from_, earlier)
        teacher = self.teacher or (_teacher_of(upstream, self._needs) if upstream else "teacher")
        self._check_other(teacher, self.from_ or (earlier[-1].id if earlier else "teacher"))
        recover = self.recover
        if recover is not None:
            match = recover.match or (upstream.match if upstream else list(DEFAULT_MATCH))
            mix = recover.mix or (upstream.mix if upstream else None)
            recover = recover.model_copy(update={"match": match, "mix": mix})
        return self.model_copy(update={"recover": recover, "teacher": teacher})

    def _check_other(self, teacher: str | TeacherPart, source: str) -> None:
        """Nothing, or InputError where a slope would be that of a model's divergence from itself, which is 0."""
        named = sorted(self.remove.criteria & GRADIENTS)
        if self.remove.against == "teacher" and named and part_of(teacher).stage == source:
            raise InputError(
                f"remove.against compares {source} with itself (got teacher), and {' and '.join(named)} would follow a "
                "slope that is 0 for every part; prune a student of that teacher, name another one as teacher, or "
                "leave against out"
            )

    def for_target(self, cpu: Target | None) -> Prune:
        """The stage with the engine and threads that its latency is measured with, where it names none.

        Args:
            cpu: the benchmark's first target with device cpu; None where it has none.
        Raises: InputError where latency has no place to be measured.
        """
        if not self._timed:
            return self
        engine = self.engine or (cpu.engine if cpu is not None else None)
        if engine is None or engine in ("fastest", "tensorrt"):
            found = "has no target with device cpu" if engine is None else f"has engine {engine}, known after pruning"
            raise InputError(
                f"stage {self.id}: until.latency is measured on a processor, and the benchmark {found}; write engine: "
                "onnxruntime beside until"
            )
        threads = self.threads or (cpu.threads if cpu is not None else None)
        return self.model_copy(update={"engine": engine, "threads": threads})

    def key_settings(self) -> dict[str, Any]:
        """Without the place of a measurement where nothing is measured."""
        unused = set() if self._timed else {"engine", "threads"}
        return {name: value for name, value in super().key_settings().items() if name not in unused}

    def conditions(self, device: str) -> Mapping[str, object]:
        """A table of times holds on one machine, and in one version of its engine; that of OpenVINO is in no key."""
        found: dict[str, object] = dict(super().conditions(device))
        if self._timed:
            found["machine"] = machine_id()
            found |= versions(("openvino",)) if self.engine == "openvino" else {}
        return found

    def target_of(self, source: str) -> str:
        """What shall remain of a stage's output, in words for a plan."""
        if self.until is None:
            return f"{source} {WITHOUT_TOKENS}"
        quantity, kept = self.until.target
        also = f", {WITHOUT_TOKENS}" if self.remove.vocabulary else ""
        if not is_share(kept):
            return f"at most {kept} of {source}{also}"
        words = f"{kept} of the {quantity} of {source}{also}"
        if not self._timed:
            return words
        threads = f"{self.threads} threads" if self.threads else "all threads"
        return f"{words} ({self.engine}, {threads}; a table of layers' times is measured first, a minute or two)"

    def run(self, job: Job) -> None:
        """Calls Pruner as a user would."""
        from compressor.prune.pruner import Pruner

        backtracks = self.gate is not None and self.gate.otherwise == "backtrack"
        teacher = job.inputs.get("teacher")
        if teacher is not None and "teacher" in self.sources():
            teacher = model_here(teacher, job, "teacher")
        Pruner(
            job.inputs["model"],
            data=job.data,
            remove=self.remove,
            until=self.until,
            steps=self.steps,
            reconstruct=self.reconstruct,
            recover=self.recover,
            masks=self.masks,
            teacher=teacher,
            seed=job.seed,
            device=job.device,
            engine=self.engine,
            threads=self.threads,
            smoke=job.smoke,
            progress=job.progress,
            decide=job.decide,
        ).fit(job.out / "model", work=job.out, accept=job.gate if backtracks else None)


def distill_upstream(start: str | None, earlier: Sequence[Stage]) -> Distill | None:
    """The distill stage that a stage's input comes from, by way of `from` or of the stage before; None without one."""
    places = {stage.id: place for place, stage in enumerate(earlier)}
    place: int | None = places.get(start) if start is not None else len(earlier) - 1
    while place is not None and place >= 0:
        stage = earlier[place]
        if isinstance(stage, Distill):
            return stage
        place = places.get(stage.from_) if stage.from_ is not None else place - 1
    return None


def _teacher_of(stage: Distill, setting: str) -> str | TeacherPart:
    """The one teacher of a distill stage, as a stage or a model; InputError, on the setting, where it has none such."""
    first = stage.teachers[0]
    if len(stage.teachers) == 1 and first.stage is not None:
        return first.stage
    if len(stage.teachers) == 1 and first.model is not None:
        return first
    has = f"{len(stage.teachers)} teachers" if len(stage.teachers) > 1 else "one that is neither"
    raise InputError(
        f"{setting} needs one teacher, a stage or a model, and {stage.id} has {has}; name one in the stage, such as "
        f"teacher: {stage.id}"
    )
