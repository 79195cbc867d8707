"""What a run would do, stage by stage, without doing it, without the network and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.data.rows import DataSets
from compressor.device import training_device, usable_threads
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import Chain, stages_of, with_previous
from compressor.runner.directory import RunDirectory
from compressor.runner.keys import difference
from compressor.runner.lessons import distill_details, training_time
from compressor.runner.prepare import Prepared, prepare
from compressor.runner.shapes import Known, check_maps, check_rows_and_forms, known_shapes
from compressor.stage import Stage, silent
from compressor.stages.distill import Distill
from compressor.stages.finetune import FinetuneStage
from compressor.stages.prune import Prune
from compressor.stages.teacher import Teacher


@dataclass(frozen=True)
class PlanLine:
    """One stage of a plan."""

    stage: str
    verb: str
    status: Literal["HIT", "MISS"]
    reason: str
    details: tuple[str, ...] = ()


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
        sources=prepared.sources,
        trust_cache=True,
    )
    lines: list[PlanLine] = []
    known = known_shapes(stages, prepared)
    check_maps(stages, known, recipe.seed)
    check_rows_and_forms(stages, prepared.data)
    missed: str | None = None
    for stage, before in with_previous(stages):
        details = _details(stage, before, known, prepared, recipe.seed)
        if missed is not None:
            lines.append(PlanLine(stage.id, stage.verb, "MISS", f"follows {missed}", details))
            continue
        status, reason = _status(chain, stage, before, redo)
        lines.append(PlanLine(stage.id, stage.verb, status, reason, details))
        missed = stage.id if status == "MISS" else None
    return lines


def _status(chain: Chain, stage: Stage, before: str | None, redo: Sequence[str]) -> tuple[Literal["HIT", "MISS"], str]:
    if chain.missing(stage):
        return "MISS", f"known after download of {', '.join(chain.missing(stage))}"
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


def _details(stage: Stage, before: str | None, known: Known, prepared: Prepared, seed: int) -> tuple[str, ...]:
    """Lines on what a stage will be."""
    data = prepared.data
    shape = known.output.get(stage.id)
    if isinstance(stage, Teacher):
        trained = stage.finetune.train if stage.finetune else None
        return (f"shape {shape}", *([training_time(trained, shape, data)] if trained else []))
    if isinstance(stage, Distill):
        return distill_details(stage, known, prepared, seed)
    if isinstance(stage, Prune):
        return _prune_details(stage, before, known, data)
    if isinstance(stage, FinetuneStage):
        return (training_time(stage.train, shape, data),)
    return ()


def _prune_details(stage: Prune, before: str | None, known: Known, data: DataSets) -> tuple[str, ...]:
    source = stage.from_ or before
    line = stage.target_of(source or "teacher")
    if stage.remove.criteria:
        line += f"; layers' shapes known after {stage.id}"
    if stage.masks:
        line += f"; {stage.masks.kind} masks are learned while it trains"
    recover = stage.recover.train if stage.recover else None
    return (line, *([training_time(recover, known.output.get(source or ""), data)] if recover else []))
