"""A recipe's settings at the size of a smoke run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compressor.distill.settings import RelationsMatch
from compressor.errors import InputError
from compressor.model.manifest import read_manifest
from compressor.model.settings import Student
from compressor.quantize.settings import Qat
from compressor.settings import Settings
from compressor.sources.models import peek_model
from compressor.stage import Stage
from compressor.stages.distill import Distill
from compressor.stages.quantize import Quantize
from compressor.train.settings import Train

SMOKE_ROWS = 64
SMOKE_STEPS = 2
SMOKE_HIDDEN = 32
SMOKE_HEADS = 4
SMOKE_FFN = 64

AnySettings = TypeVar("AnySettings", bound=Settings)


@dataclass(frozen=True)
class Scale:
    """Sizes of the real teacher, which becomes 32 wide with 4 heads and 64 neurons a layer in a smoke run."""

    hidden: int
    heads: int
    ffn: int


def smoke_scale(teacher: Path | None, stages: tuple[Stage, ...]) -> Scale:
    """The teacher's sizes from its folder; where it is not here, the largest that a student of the recipe has."""
    if teacher is not None:
        try:
            shapes = read_manifest(teacher).shapes
        except InputError:
            return smoke_scale(None, stages)
        heads = max((layer.heads for layer in shapes.layers), default=SMOKE_HEADS)
        ffn = max((layer.ffn for layer in shapes.layers), default=SMOKE_FFN)
        return Scale(shapes.hidden, heads, ffn)
    students = [stage.student for stage in stages if isinstance(stage, Distill)]
    return Scale(
        max((student.hidden or 0 for student in students), default=0) or SMOKE_HIDDEN,
        max((student.heads or 0 for student in students), default=0) or SMOKE_HEADS,
        max((student.ffn or 0 for student in students), default=0) or SMOKE_FFN,
    )


def smoke_stage(stage: Stage, scale: Scale, base: Path) -> Stage:
    """The stage with two steps a phase, small widths and a gate that only warns.

    Args:
        scale: of the teacher; a student that starts from another model is scaled as that one is.
        base: folder that relative paths start from.
    """
    stage = smoke_settings(stage)
    if isinstance(stage, Distill):
        start = stage.student.init.from_
        own = scale if start is None else smoke_scale(peek_model(start, base=base), (stage,))
        train = Train() if stage.phases else stage.train  # unused beside phases, and refused there unless it is plain
        stage = stage.model_copy(update={"student": smoke_student(stage.student, own), "train": train})
    if isinstance(stage, Quantize) and "qat" not in stage.try_:
        stage = stage.model_copy(update={"qat": Qat()})  # what serves no scheme is refused there unless it is plain
    if stage.gate is not None:
        stage = stage.model_copy(update={"gate": stage.gate.model_copy(update={"otherwise": "warn"})})
    return stage


def smoke_student(student: Student, scale: Scale) -> Student:
    """The student's widths and head counts scaled as the teacher's are; what is not given stays the teacher's.

    >>> small = smoke_student(Student(hidden=192, heads=6), Scale(hidden=384, heads=12, ffn=1536))
    >>> small.hidden, small.heads
    (16, 2)
    """
    heads = max(1, round(student.heads * SMOKE_HEADS / scale.heads)) if student.heads else None
    hidden, ffn = student.hidden, student.ffn
    if hidden is not None:
        count = heads or SMOKE_HEADS
        hidden = max(4, count, round(hidden * SMOKE_HIDDEN / scale.hidden / count) * count)
    elif heads is not None and SMOKE_HIDDEN % heads:
        heads = max(count for count in range(1, heads + 1) if SMOKE_HIDDEN % count == 0)
    if ffn is not None:
        ffn = max(4, round(ffn * SMOKE_FFN / scale.ffn))
    return student.model_copy(update={"hidden": hidden, "heads": heads, "ffn": ffn})


def smoke_settings(settings: AnySettings) -> AnySettings:
    """The same settings with every `train` inside cut to two steps, and relation heads left to what fits."""
    if isinstance(settings, Train):
        return settings.model_copy(update={"epochs": None, "steps": SMOKE_STEPS, "early_stop": None})
    if isinstance(settings, RelationsMatch):
        return settings.model_copy(update={"heads": None})
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            changed[name] = smoke_settings(value)
        elif isinstance(value, list):
            changed[name] = [smoke_settings(one) if isinstance(one, Settings) else one for one in value]
    return settings.model_copy(update=changed) if changed else settings
