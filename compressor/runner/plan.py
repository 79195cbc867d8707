"""What a run would do, stage by stage, without doing it, without the network and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.device import training_device, usable_threads
from compressor.distill.layer_map import layer_pairs
from compressor.distill.settings import HiddenMatch
from compressor.model.manifest import read_manifest
from compressor.prune.settings import Until
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import Chain, stages_of, with_previous
from compressor.runner.directory import RunDirectory
from compressor.runner.keys import difference
from compressor.runner.prepare import Prepared, prepare
from compressor.settings import parse_bytes
from compressor.stage import Stage, silent
from compressor.stages.distill import Distill
from compressor.stages.finetune import FinetuneStage
from compressor.stages.prune import Prune
from compressor.stages.teacher import Teacher
from compressor.train.settings import Train

TOKENS_A_ROW = 32
FLOPS_A_SECOND = 50e9
"""What two cores without bf16 do in training; the estimate is a rough one and says so."""


@dataclass(frozen=True)
class PlanLine:
    """One stage of a plan."""

    stage: str
    verb: str
    status: Literal["HIT", "MISS"]
    reason: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a plan knows of a model: its layers, width and neurons, and parameters outside the embeddings."""

    layers: int
    hidden: int
    ffn: int

    @property
    def parameters(self) -> int:
        """Weights of the encoder's matrices."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)


def plan(recipe: Recipe, out: Path, *, redo: Sequence[str] = ()) -> list[PlanLine]:
    """HIT or MISS with its reason for each stage, and what is known of it before it runs."""
    prepared = prepare(recipe, progress=silent, offline=True)
    stages = stages_of(recipe)
    if prepared is None:
        after = "known after download"
        return [
            PlanLine(stage.id, stage.verb, "MISS", after if n == 0 else f"follows {stages[n - 1].id}")
            for n, stage in enumerate(stages)
        ]
    chain = Chain(
        RunDirectory(out),
        recipe,
        prepared.data,
        prepared.source,
        threads=usable_threads(),
        device=training_device(),
        smoke=recipe.smoke_rows is not None,
        trust_cache=True,
    )
    lines: list[PlanLine] = []
    shapes: dict[str, Shape | None] = {}
    missed: str | None = None
    for stage, before in with_previous(stages):
        details = _details(stage, before, shapes, prepared)
        if missed is not None:
            lines.append(PlanLine(stage.id, stage.verb, "MISS", f"follows {missed}", details))
            continue
        status, reason = _status(chain, stage, before, redo)
        lines.append(PlanLine(stage.id, stage.verb, status, reason, details))
        missed = stage.id if status == "MISS" else None
    return lines


def _status(chain: Chain, stage: Stage, before: str | None, redo: Sequence[str]) -> tuple[Literal["HIT", "MISS"], str]:
    key, parts = chain.key(stage, before)
    if stage.id in redo:
        return "MISS", "--redo"
    found = chain.standing(stage, key)
    if found is not None:
        record = chain.directory.record(found) or {}
        chain.add(stage, key, record, before)
        chain.outputs[stage.id] = chain.directory.stage(found) / "model"
        return "HIT", f"made {record.get('started', 'earlier')}" + ("" if found == stage.id else f" as {found}")
    earlier = chain.directory.record(stage.id)
    if earlier is None:
        begun = chain.directory.partial(stage.id).exists()
        return "MISS", "interrupted, not finished" if begun else "not made yet"
    return "MISS", difference(earlier.get("key_parts"), parts) or "its model is not the one that was made"


def _details(stage: Stage, before: str | None, shapes: dict[str, Shape | None], prepared: Prepared) -> tuple[str, ...]:
    """Lines on what a stage will be; also notes the shape of its output in `shapes`."""
    rows = len(prepared.data.train)
    if isinstance(stage, Teacher):
        shape = _shape(prepared.source)
        shapes[stage.id] = shape
        trained = stage.finetune.train if stage.finetune else None
        return (f"shape {_words(shape)}", *([_time(trained, shape, rows, 0.0)] if trained else []))
    if isinstance(stage, Distill):
        return _distill_details(stage, shapes, prepared)
    shapes[stage.id] = None if isinstance(stage, Prune) else shapes.get(stage.from_ or before or "")
    if isinstance(stage, Prune):
        name, kept = stage.until.target if isinstance(stage.until, Until) else ("", "")
        known = f"{kept} of the {name} of {stage.from_ or before}; layers' shapes known after {stage.id}"
        recover = stage.recover.train if stage.recover else None
        shape = shapes.get(stage.from_ or before or "")
        return (known, *([_time(recover, shape, rows, 0.0)] if recover else []))
    if isinstance(stage, FinetuneStage):
        return (_time(stage.train, shapes.get(stage.id), rows, 0.0),)
    return ()


def _distill_details(stage: Distill, shapes: dict[str, Shape | None], prepared: Prepared) -> tuple[str, ...]:
    teacher = shapes.get(stage.teacher)
    if stage.from_ is not None:
        shapes[stage.id] = shapes.get(stage.from_)
    elif teacher is not None:
        wanted = stage.student
        shapes[stage.id] = Shape(
            wanted.layers or max(1, teacher.layers // 2), wanted.hidden or teacher.hidden, wanted.ffn or teacher.ffn
        )
    student = shapes.get(stage.id)
    if teacher is None or student is None:
        return (f"shape known after {stage.teacher}",)
    lines = [f"shape {_words(student)}"]
    pairs = [
        pair
        for term in stage.match
        if isinstance(term, HiddenMatch)
        for pair in layer_pairs(term.map, teacher.layers, student.layers)
    ]
    if pairs:
        lines.append("layer pairs teacher:student " + " ".join(f"{one}:{other}" for one, other in pairs))
    data = prepared.data
    ratio = stage.mix.unlabelled.ratio if stage.mix.unlabelled and len(data.unlabelled) else 0.0
    used = len(data.train) + min(
        len(data.unlabelled), round(_epochs(stage.train) * len(data.train) * ratio / (1 - ratio))
    )
    layers = {one for one, _other in pairs}
    needed = used * (len(data.labels) * 4 + len(layers) * TOKENS_A_ROW * teacher.hidden * 2)
    limit = parse_bytes(stage.cache)
    lines.append(f"teacher cache about {min(needed, limit) / 1e6:.0f} MB of {stage.cache} for {used} rows")
    lines.append(_time(stage.train, student, len(data.train), ratio, teacher=teacher, teacher_rows=used))
    return tuple(lines)


def _epochs(train: Train) -> float:
    return train.epochs or 3.0


def _time(
    train: Train, shape: Shape | None, rows: int, ratio: float, *, teacher: Shape | None = None, teacher_rows: int = 0
) -> str:
    if shape is None:
        return "time known after the stage before"
    if train.steps is not None:
        tokens = train.steps * float(train.batch_tokens or (train.batch_rows or 32) * TOKENS_A_ROW)
    else:
        tokens = _epochs(train) * rows / (1 - ratio) * TOKENS_A_ROW
    flops = 6.0 * shape.parameters * tokens
    flops += 2.0 * teacher.parameters * teacher_rows * TOKENS_A_ROW if teacher else 0.0
    return f"about {max(1, round(flops / FLOPS_A_SECOND / 60))} min of training on two cores (rough)"


def _shape(folder: Path) -> Shape | None:
    layers = read_manifest(folder).shapes
    if layers is None:
        return None
    ffn = max((layer.ffn for layer in layers.layers), default=0)
    return Shape(len(layers.layers), layers.hidden, ffn)


def _words(shape: Shape | None) -> str:
    return f"{shape.layers} layers, {shape.hidden} wide, {shape.ffn} neurons" if shape else "known after download"
