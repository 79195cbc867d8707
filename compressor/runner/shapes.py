"""What is known of each model's shape and form before anything is made, and whether layer maps and stages fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.data.rows import DataSets
from compressor.data.settings import Mix
from compressor.distill.layer_map import Pairing, Term, needed_layers, pairings, relation_heads
from compressor.distill.settings import RelationsMatch, TeacherPart
from compressor.errors import InputError
from compressor.model.manifest import LayerShape, Shapes, read_manifest
from compressor.model.settings import Student
from compressor.model.student_shapes import student_shapes
from compressor.runner.chain import reads_of, with_previous
from compressor.runner.prepare import Prepared
from compressor.stage import Stage
from compressor.stages.distill import Distill, part_of
from compressor.stages.export import Export
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.teacher import Teacher
from compressor.stages.verbs import ONNX_ONLY
from compressor.train.settings import Train


@dataclass(frozen=True)
class Shape:
    """What is known of a model: its layers, width, neurons and heads; parameters outside the embeddings."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    channels: int
    """Channels of the queries of a layer, all heads together."""

    @property
    def parameters(self) -> int:
        """Weights of the encoder's matrices."""
        return self.layers * (4 * self.hidden * self.channels + 2 * self.hidden * self.ffn)

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.hidden} wide, {self.ffn} neurons"


@dataclass(frozen=True)
class Lesson:
    """A training of a distill stage: its terms, batches and length."""

    match: Sequence[Term]
    mix: Mix
    train: Train


@dataclass(frozen=True)
class Known:
    """Shapes by stage id; None where only making the stage tells."""

    output: Mapping[str, Shape | None]
    """Of the model that the stage leaves."""
    encoder: Mapping[str, Shape | None]
    """Of the first teacher with torch weights; without the stages that have none."""


def lessons(stage: Distill) -> tuple[Lesson, ...]:
    """The trainings of a stage, one for each phase."""
    if not stage.phases:
        return (Lesson(stage.match, stage.mix, stage.train),)
    return tuple(Lesson(phase.match or stage.match, phase.mix or stage.mix, phase.train) for phase in stage.phases)


def known_shapes(stages: Sequence[Stage], prepared: Prepared) -> Known:
    """The shapes that follow from the folders that are here and from the settings."""
    output: dict[str, Shape | None] = {}
    encoder: dict[str, Shape | None] = {}
    verbs: dict[str, str] = {}
    before: str | None = None
    for stage in stages:
        read = output.get(stage.from_ or before or "")
        if isinstance(stage, Teacher):
            output[stage.id] = read_shape(prepared.source)
        elif isinstance(stage, Distill):
            parts = zip(stage.roles(), stage.teachers, strict=True)
            usable = [(role, part) for role, part in parts if _has_weights(stage, role, part, verbs, prepared)]
            if usable:
                encoder[stage.id] = _teacher_shape(stage, *usable[0], output, prepared)
            try:
                output[stage.id] = _student_shape(stage, output, encoder.get(stage.id), prepared)
            except InputError as error:
                raise InputError(f"stages.{stage.id}.distill.{error}") from error
        elif isinstance(stage, Prune):
            output[stage.id] = None if stage.remove.criteria else read
            part = part_of(stage.teacher or "teacher")
            if stage.recover and _has_weights(stage, "teacher", part, verbs, prepared):
                encoder[stage.id] = _teacher_shape(stage, "teacher", part, output, prepared)
        else:
            output[stage.id] = read
        verbs[stage.id] = stage.verb
        before = stage.id
    return Known(output, encoder)


def check_maps(stages: Sequence[Stage], known: Known, seed: int) -> None:
    """Nothing, or InputError for a map or relation heads that do not fit the models, where these are known."""
    before: str | None = None
    for stage in stages:
        student = known.output.get(stage.id)
        taught: tuple[Lesson, ...] = lessons(stage) if isinstance(stage, Distill) else ()
        if isinstance(stage, Prune) and stage.recover is not None and stage.remove.layers is None:
            student = known.output.get(stage.from_ or before or "")
            taught = (Lesson(stage.recover.match or (), stage.recover.mix or Mix(), stage.recover.train),)
        teacher = known.encoder.get(stage.id)
        if teacher is not None and student is not None:
            try:
                for lesson in taught:
                    heads_of(lesson.match, teacher, student)
                    pairing_of(lesson, teacher, student, seed)
            except InputError as error:
                raise InputError(f"stages.{stage.id}: {error}") from error
        before = stage.id


def pairing_of(lesson: Lesson, teacher: Shape, student: Shape, seed: int) -> Pairing:
    """The layers that each term of a training pairs; InputError where one is not there."""
    epochs = max(1, round(lesson.train.epochs or 3))
    return pairings(
        lesson.match, teacher_layers=teacher.layers, student_layers=student.layers, seed=seed, epochs=epochs
    )


def heads_of(match: Sequence[Term], teacher: Shape, student: Shape) -> list[int]:
    """Relation heads of each term of relations; InputError where the heads wanted do not divide a width."""
    return [
        relation_heads(
            term.heads,
            student_width=student.channels,
            teacher_width=teacher.channels,
            teacher_heads=teacher.heads,
        )
        for term in match
        if isinstance(term, RelationsMatch)
    ]


def layers_of(lesson: Lesson, teacher: Shape, student: Shape, seed: int) -> tuple[int, ...]:
    """Hidden states of the teacher that a training reads, ascending; 0 the embeddings."""
    return needed_layers(lesson.match, pairing_of(lesson, teacher, student, seed))


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a folder; InputError where its config.json says none."""
    shapes = read_manifest(folder).shapes
    return Shape(
        layers=len(shapes.layers),
        hidden=shapes.hidden,
        ffn=max((layer.ffn for layer in shapes.layers), default=0),
        heads=max((layer.heads for layer in shapes.layers), default=0),
        channels=max((layer.heads * layer.head_size for layer in shapes.layers), default=0),
    )


def _has_weights(stage: Stage, role: str, part: TeacherPart, verbs: Mapping[str, str], prepared: Prepared) -> bool:
    """Whether a teacher is a torch classifier, as far as is known."""
    if part.stage is not None:
        return verbs.get(part.stage) not in ONNX_ONLY
    folder = prepared.sources.get((stage.id, role))
    return part.model is not None and (folder is None or any(folder.glob("*.safetensors")))


def _teacher_shape(
    stage: Stage, role: str, part: TeacherPart, output: Mapping[str, Shape | None], prepared: Prepared
) -> Shape | None:
    if part.stage is not None:
        return output.get(part.stage)
    folder = prepared.sources.get((stage.id, role))
    return read_shape(folder) if folder is not None else None


def _student_shape(
    stage: Distill, output: Mapping[str, Shape | None], teacher: Shape | None, prepared: Prepared
) -> Shape | None:
    if stage.from_ is not None:
        return output.get(stage.from_)
    if stage.student.init.from_ is None:
        return None if teacher is None else scaled(teacher, stage.student)
    folder = prepared.sources.get((stage.id, "student"))
    return scaled(read_shape(folder), stage.student) if folder is not None else None


def scaled(start: Shape, student: Student) -> Shape:
    """The student's shape when it starts from a model of that shape; InputError where it cannot."""
    layer = LayerShape(heads=start.heads, head_size=start.channels // max(1, start.heads), ffn=start.ffn)
    made = student_shapes(Shapes(hidden=start.hidden, layers=(layer,) * start.layers, vocabulary=1), student)
    given = made.layers[0]
    return Shape(len(made.layers), made.hidden, given.ffn, given.heads, channels=made.hidden)


def check_rows_and_forms(stages: Sequence[Stage], data: DataSets) -> None:
    """Nothing, unless a stage would fail for what is known before any is made; InputError names the stage."""
    by_id = {stage.id: (stage, previous) for stage, previous in with_previous(tuple(stages))}
    for stage, previous in by_id.values():
        if isinstance(stage, Quantize) and stage.calibrate.source == "unlabelled" and not len(data.unlabelled):
            raise InputError(
                f"stage {stage.id}: quantize.calibrate.from is unlabelled, and the data holds no such rows; write "
                "from: train, or name rows in data.unlabelled"
            )
        if isinstance(stage, Export) and stage.precision in ("fp16", "bf16"):
            source, _ = by_id[reads_of(stage, previous)["model"]]
            if isinstance(source, Quantize):
                raise InputError(
                    f"stage {stage.id}: export.precision is {stage.precision}, and stage {source.id} gives INT8, which "
                    f"cannot be written so; remove precision, or let it read another stage (from: ID)"
                )
