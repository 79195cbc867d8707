"""Makes what a recipe asks for: skips what is done, resumes what was interrupted, ends in a report and `final/`."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.device import cpu_name, machine_id, training_device, usable_threads
from compressor.errors import GateError, InputError
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import Chain, gate_references, stages_of, with_previous
from compressor.runner.directory import Attempt, RunDirectory, append_decision, read_lines, write_json
from compressor.runner.finish import Stop, finish
from compressor.runner.keys import SCHEMA, library_versions
from compressor.runner.prepare import Prepared, check_rows, prepare
from compressor.runner.scoring import answers, class_ids, gate_judge, gate_outcome
from compressor.runner.shapes import check_maps, check_rows_and_forms, known_shapes
from compressor.stage import Decision, Job, Outcome, Progress, Stage, silent
from compressor.stages.quantize import Quantize

COLUMNS = 100
"""Width of the lines that the user is told."""

Say = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: report.json's content, the folder to deploy, the table for the terminal, the exit code."""

    report: dict[str, Any]
    final: Path | None
    table: str
    exit_code: int
    message: str | None = None
    """What failed or stayed undecided; None when all is well."""


def _quiet(_line: str) -> None:
    """Says nothing."""


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    redo: Sequence[str] = (),
    progress: Progress = silent,
    say: Say = _quiet,
) -> RunResult:
    """Run a recipe; what stands already in `out` with the same key is not made again.

    Args:
        recipe: a loaded recipe or the path of one.
        out: run directory; `runs/<name>` unless given, `runs/<name>-smoke` for `recipe.smoke()`.
        redo: ids of stages to make again.
        progress: told of every long phase.
        say: told of each stage in a line.
    Raises: InputError for a recipe, rows or a model that cannot be used, StageError for a stage that cannot finish.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = RunDirectory(Path(out) if out else default_out(recipe))
    prepared = prepare(recipe, progress=progress)
    assert prepared is not None
    with directory.locked():
        chain = Chain(
            directory,
            recipe,
            prepared.data,
            prepared.source,
            threads=usable_threads(),
            device=training_device(),
            smoke=recipe.smoke_rows is not None,
            sources=prepared.sources,
        )
        stop = _Making(chain, prepared, progress, say).all(redo)
        _write_decisions(chain, stop)
        directory.tidy(list(chain.keys))
        ending = finish(chain, prepared, stop, progress=progress, say=say)
        return RunResult(
            report=ending.report.to_dict(),
            final=ending.final,
            table=ending.report.table(),
            exit_code=ending.exit_code,
            message=ending.message,
        )


def default_out(recipe: Recipe) -> Path:
    """`runs/<name>` in the working directory; a smoke run has a directory of its own."""
    return Path("runs") / (recipe.name + ("-smoke" if recipe.smoke_rows is not None else ""))


class _Making:
    """Goes through the stages once."""

    def __init__(self, chain: Chain, prepared: Prepared, progress: Progress, say: Say) -> None:
        self.chain = chain
        self.prepared = prepared
        self.progress = progress
        self.say = say
        self.begun = False

    def all(self, redo: Sequence[str]) -> Stop | None:
        """Make or skip every stage; where a gate ends the run, which and why."""
        chain = self.chain
        stages = stages_of(chain.recipe)
        chain.recipe.require_stages(redo)
        check_classes(chain.recipe, stages, chain.data.labels)
        check_maps(stages, known_shapes(stages, self.prepared), chain.recipe.seed)
        check_rows_and_forms(stages, self.prepared.data)
        self._write_recipe()
        for stage, before in with_previous(stages):
            key, parts = chain.key(stage, before)
            found = None if stage.id in redo else chain.standing(stage, key)
            if found is not None:
                chain.directory.adopt(found, stage.id, keep=found in {other.id for other in stages})
                self.say(f"{stage.id}: done already")
            else:
                self._begin()
                try:
                    self._make(stage, before, key, parts)
                except GateError as refused:
                    return Stop(stage.id, before, str(refused), "fail")
            record = chain.directory.record(stage.id) or {}
            chain.add(stage, key, record, before)
            gate = record.get("gate")
            if gate and not gate["passed"]:
                self.say(f"{stage.id}: gate {gate['verdict']} ({gate['because']}), {gate['otherwise']}")
                if gate["otherwise"] not in ("warn", "skip") and not chain.smoke:
                    return Stop(stage.id, before, gate["because"], gate["verdict"])
        return None

    def _write_recipe(self) -> None:
        """recipe.yaml, recipe.resolved.yaml and environment.json as they are now, where they differ."""
        recipe, root = self.chain.recipe, self.chain.directory.root
        text = json.dumps(environment(self.chain.threads), indent=2, ensure_ascii=False) + "\n"
        wanted = {
            "recipe.yaml": recipe.path.read_bytes(),
            "recipe.resolved.yaml": recipe.resolved().encode(),
            "environment.json": text.encode(),
        }
        for name, content in wanted.items():
            path = root / name
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)

    def _begin(self) -> None:
        """What is done once, before the first stage that has to be made."""
        if self.begun:
            return
        self.begun = True
        check_rows(self.prepared)
        import torch

        torch.set_num_threads(self.chain.threads)

    def _make(self, stage: Stage, before: str | None, key: str, parts: dict[str, Any]) -> None:
        chain = self.chain
        record = {
            "schema": SCHEMA,
            "id": stage.id,
            "verb": stage.verb,
            "key_parts": parts,
            "settings": stage.key_settings(),
            "versions": library_versions(),
            "machine": machine_id(),
            "seed": chain.recipe.seed,
            "threads": chain.threads,
            "checkpoint_steps": checkpoint_steps(stage),
        }
        attempt = chain.directory.begin(stage, key, record)
        self.say(f"{stage.id}: {stage.verb}")
        judge = self._judge(stage, before, attempt)
        stage.run(
            Job(
                out=attempt.folder,
                inputs=chain.inputs(stage, before),
                data=chain.data,
                seed=chain.recipe.seed,
                device=chain.device,
                threads=chain.threads,
                progress=lambda what, done, total: self.progress(f"{stage.id}: {what}", done, total),
                decide=lambda decision: self._note(stage, attempt, decision),
                gate=judge,
                smoke=chain.smoke,
            )
        )
        self._score(stage, attempt)
        outcome = self._gate(stage, before, attempt)
        if outcome is not None:
            because = Decision(
                kind="gate", chosen=outcome.verdict, because=outcome.because, candidates=dict(outcome.values)
            )
            append_decision(attempt.folder, stage.id, because)
        chain.directory.commit(stage, attempt, {"gate": _gate_record(stage, outcome)})

    def _note(self, stage: Stage, attempt: Attempt, decision: Decision) -> None:
        """Write a decision down; say it where it is a word, a number or a warning."""
        append_decision(attempt.folder, stage.id, decision)
        if decision.chosen is None:
            self._say_long(f"{stage.id}: {decision.because}")
        elif isinstance(decision.chosen, str | int | float):
            chosen = f"{decision.chosen:.4g}" if isinstance(decision.chosen, float) else decision.chosen
            self._say_long(f"{stage.id}: {decision.kind} {chosen}, {decision.because}")

    def _say_long(self, text: str) -> None:
        """A sentence in lines that fit a terminal."""
        for line in textwrap.wrap(text, COLUMNS, subsequent_indent="  ", break_long_words=False):
            self.say(line)

    def _judge(self, stage: Stage, before: str | None, attempt: Attempt) -> Callable[[Path], Outcome] | None:
        if stage.gate is None:
            return None
        return gate_judge(
            stage.gate,
            against=self._against(stage, before),
            data=self.chain.data,
            threads=self.chain.threads,
            progress=self.progress,
            work=attempt.folder,
        )

    def _gate(self, stage: Stage, before: str | None, attempt: Attempt) -> Outcome | None:
        """How the finished stage's gate ends; None without one."""
        if stage.gate is None:
            return None
        return gate_outcome(
            stage.gate,
            attempt.folder,
            against=self._against(stage, before),
            data=self.chain.data,
            threads=self.chain.threads,
            progress=self.progress,
        )

    def _against(self, stage: Stage, before: str | None) -> dict[str, Path]:
        references = gate_references(stage, before).items()
        return {metric: self.chain.folder(named) for metric, named in references}

    def _score(self, stage: Stage, attempt: Attempt) -> None:
        """metrics.json: every metric of the task on `select`, with its interval."""
        from compressor.evaluate.metrics import METRICS
        from compressor.evaluate.paired import score_interval

        data = self.chain.data
        logits = answers(
            attempt.folder,
            "select",
            data=data,
            threads=self.chain.threads,
            progress=lambda what, done, total: self.progress(f"{stage.id}: {what}", done, total),
        )
        scores = {
            name: asdict(score_interval(name, logits.argmax(-1), class_ids(data.select), data.labels))
            for name in METRICS
        }
        write_json(attempt.folder / "metrics.json", {"select": scores})
        best = scores[data.task.metric]
        self.say(f"{stage.id}: {data.task.metric} {best['value']:.4f} on {best['rows']} select rows")


def checkpoint_steps(stage: Stage) -> int | None:
    """Steps between the checkpoints of a stage that trains, the most of any phase; else None."""
    parts = [getattr(stage, name, None) for name in ("recover", "finetune")]
    parts += [stage.qat] if isinstance(stage, Quantize) and "qat" in stage.try_ else []
    parts = [*(getattr(stage, "phases", None) or [stage]), *parts]
    trains = [train for part in parts if (train := getattr(part, "train", None)) is not None]
    return max((train.checkpoint for train in trains), default=None)


def environment(threads: int) -> dict[str, Any]:
    """Where a run took place, for environment.json."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "machine": machine_id(),
        "versions": library_versions(),
    }


def _gate_record(stage: Stage, outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None or stage.gate is None:
        return None
    return {
        "verdict": outcome.verdict,
        "passed": outcome.passed,
        "because": outcome.because,
        "values": {name: list(value) for name, value in outcome.values.items()},
        "otherwise": stage.gate.otherwise,
    }


def _write_decisions(chain: Chain, stop: Stop | None) -> None:
    """decisions.jsonl of the run: those of the stages it came through, in order."""
    lines: list[dict[str, Any]] = []
    for stage_id in [*chain.keys, *([stop.stage] if stop and stop.stage not in chain.keys else [])]:
        folder = chain.directory.stage(stage_id) if stage_id in chain.keys else chain.directory.partial(stage_id)
        lines += [{**line, "stage": stage_id} for line in read_lines(folder / "decisions.jsonl")]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path = chain.directory.root / "decisions.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def check_classes(recipe: Recipe, stages: Sequence[Stage], labels: Sequence[str]) -> None:
    """InputError for a METRIC@CLASS of a gate, `expect` or the budget that names no class of the rows."""
    limits = [("budget", name) for name in recipe.budget.scores]
    limits += [(f"{stage.id}.gate", name) for stage in stages if stage.gate for name in stage.gate.limits]
    for where, name in limits:
        of_class = name.partition("@")[2]
        if of_class and of_class not in labels:
            raise InputError(f"{where}.{name} names no class; the rows have {', '.join(labels)}")
