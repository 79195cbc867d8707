"""The stages of a run in order, with what each reads: the part that planning and making share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.bench.settings import Target
from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.quantize.settings import Isa, RunsOn
from compressor.recipe.recipe import Recipe
from compressor.runner.directory import RunDirectory
from compressor.runner.keys import digest, key_parts
from compressor.sources.digest import file_digest
from compressor.stage import Gate, ScoreLimit, Stage
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.teacher import Teacher

TEACHER = "teacher"
ALWAYS = ("test texts", "read as")
"""Digests of rows that are in every key."""


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The teacher and the recipe's stages, each with the settings it takes from earlier ones written in."""
    wanted = recipe.teacher
    gate = Gate.model_validate(wanted.expect) if wanted.expect else None
    made: list[Stage] = [Teacher(id=TEACHER, model=wanted.model, finetune=wanted.finetune, gate=gate)]
    for stage in recipe.stages:
        filled = stage.filled(made)
        if isinstance(filled, Prune):
            filled = filled.for_target(_first_cpu(recipe))
        made.append(filled.for_target(*_runs_on(recipe)) if isinstance(filled, Quantize) else filled)
    return tuple(made)


def _first_cpu(recipe: Recipe) -> Target | None:
    """The benchmark's first target with device cpu."""
    named = [recipe.targets[name] for name in recipe.benchmark.targets]
    return next((target for target in named if target.device == "cpu"), None)


def _runs_on(recipe: Recipe) -> tuple[Isa | None, RunsOn]:
    """The processor's instructions and what will run the model, from the benchmark's targets: a CPU where one is."""
    named = [recipe.targets[name] for name in recipe.benchmark.targets]
    cpu = _first_cpu(recipe)
    if cpu is not None:
        return cpu.isa, "cpu"
    return None, "tensorrt" if any(target.engine == "tensorrt" for target in named) else "cuda"


def reads_of(stage: Stage, before: str | None) -> dict[str, str]:
    """Role to the id of the stage whose output it reads."""
    fallback = {"model": before, "teacher": TEACHER}
    return {role: named or fallback[role] or TEACHER for role, named in stage.references().items()}


def gate_references(stage: Stage, before: str | None) -> dict[str, str]:
    """Metric of each drop limit in the stage's gate to the id it is compared with: the stage's input unless named."""
    reads = reads_of(stage, before)
    default = reads.get("model", reads.get("teacher", TEACHER))
    limits = stage.gate.limits.items() if stage.gate else ()
    return {name: limit.vs or default for name, limit in limits if isinstance(limit, ScoreLimit)}


def rows_digests(data: DataSets) -> dict[str, str]:
    """Digests of what stages read of the rows; of the test rows the texts alone, since their labels decide nothing."""
    test = hashlib.sha256(repr(data.test.texts if data.test else None).encode()).hexdigest()
    return {
        "train": data.train.digest(),
        "select": data.select.digest(),
        "unlabelled": digest([data.unlabelled.digest(), [[part.rows, part.share] for part in data.pools]]),
        "test texts": test,
        "read as": digest(
            [data.task.model_dump(mode="json"), list(data.labels), list(data.text_columns), data.max_tokens]
        ),
    }


@dataclass
class Chain:
    """What stands so far in a run: for each id the folder that later stages read, and its key."""

    directory: RunDirectory
    recipe: Recipe
    data: DataSets
    source: Path
    """Folder of the model that the teacher is made from."""
    threads: int
    device: str
    smoke: bool
    sources: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    """(Id of a stage, role) to what it reads from outside the stages."""
    trust_cache: bool = False
    """True takes digests of unchanged files from the cache, for a plan."""
    outputs: dict[str, Path] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """Id to the id whose output stands for it, where a gate skipped it."""

    def folder(self, stage_id: str) -> Path:
        """Folder of the stage whose output stands for that id."""
        return self.directory.stage(self.origin.get(stage_id, stage_id))

    def inputs(self, stage: Stage, before: str | None) -> dict[str, Path]:
        """Role to the model folder that the stage reads, or to the file of a teacher's answers."""
        found = {role: self.outputs[named] for role, named in reads_of(stage, before).items()}
        found |= {role: self.sources[stage.id, role] for role in stage.sources()}
        return found | ({"source": self.source} if isinstance(stage, Teacher) else {})

    def missing(self, stage: Stage) -> list[str]:
        """Sources of the stage that are not here yet, as the recipe writes them; empty but in a plan."""
        return [source.path for role, source in stage.sources().items() if (stage.id, role) not in self.sources]

    def key(self, stage: Stage, before: str | None) -> tuple[str, dict[str, Any]]:
        """The stage's key and the parts it is made of."""
        folders = self.inputs(stage, before)
        for role, folder in folders.items():
            if isinstance(stage, Teacher) and not any(folder.glob("config.json")):
                raise InputError(f"{role} model {folder} holds no config.json")
        against = {metric: self.keys[named] for metric, named in gate_references(stage, before).items()}
        digests = rows_digests(self.data)
        parts = key_parts(
            stage,
            inputs={role: self._digest(path) for role, path in folders.items()},
            rows={name: value for name, value in digests.items() if name in (*stage.rows_read, *ALWAYS)},
            gate_against=against,
            seed=self.recipe.seed,
            threads=self.threads,
            device=self.device,
            smoke=self.smoke,
        )
        return digest(parts), parts

    def _digest(self, path: Path) -> str:
        read = file_digest if path.is_file() else model_digest
        return read(path, trust_cache=self.trust_cache)

    def standing(self, stage: Stage, key: str) -> str | None:
        """Id of the finished stage with that key whose model is still the one that was made; None without one."""
        found = self.directory.find_key(key, stage.id)
        if found is None or not all((self.directory.stage(found) / path).exists() for path in stage.promised()):
            return None
        made = (self.directory.record(found) or {}).get("model")
        there = model_digest(self.directory.stage(found) / "model", trust_cache=self.trust_cache)
        return found if made == there else None

    def add(self, stage: Stage, key: str, record: Mapping[str, Any], before: str | None) -> None:
        """Take a finished stage's output for what later stages read; the input's where its gate skips it."""
        self.keys[stage.id] = key
        gate = record.get("gate") or {}
        if gate.get("passed", True) or gate.get("otherwise") != "skip" or before is None:
            self.outputs[stage.id] = self.directory.stage(stage.id) / "model"
            return
        stands_for = reads_of(stage, before).get("model", before)
        self.origin[stage.id] = self.origin.get(stands_for, stands_for)
        self.outputs[stage.id] = self.outputs[stands_for]


def with_previous(stages: tuple[Stage, ...]) -> Iterator[tuple[Stage, str | None]]:
    """Each stage with the id of the one before it."""
    before: str | None = None
    for stage in stages:
        yield stage, before
        before = stage.id
