"""Pruner: measures what matters least, cuts it in steps, recovers by distillation, keeps the last model that passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedModel

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets, open_data
from compressor.data.settings import Data
from compressor.device import torch_device, usable_threads
from compressor.distill.tokens import align
from compressor.errors import GateError, InputError, StageError
from compressor.model.encoders import load_model
from compressor.model.footprint import parameters
from compressor.model.manifest import teacher_labels
from compressor.prune.latency_table import Place
from compressor.prune.plan import Plan
from compressor.prune.saving import save_pruned
from compressor.prune.settings import Masks, Recover, Remove, TimedEngine, Until
from compressor.prune.steps import Run
from compressor.prune.targets import check_target, in_words
from compressor.prune.vocabulary import Words, count_words
from compressor.sources.models import resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import Decision, Outcome, Progress, settings_of, silent

PROBE_ROWS = 512
"""Rows on which the tokenizers of model and teacher are compared."""
VOCABULARY_FOLDER = "vocabulary"
"""Where the model without unseen tokens is made, in the work folder."""


class Pruner:
    """Removes heads, feed-forward neurons and layers from a fine-tuned model until a target is met, and unseen tokens.

    Args:
        model: folder, hub id or pypi:// of a fine-tuned classifier.
        data: rows, or settings as under `data` in a recipe.
        remove: what may go, and by which criterion.
        until: what remains of the input, such as {"macs": "0.6x"} or {"latency": "0.5x"}; None where `remove` names
            vocabulary alone.
        steps: cuts; scores are measured again before each.
        reconstruct: after each cut, and before recovery, fit what the layers hand on to the uncut model by least
            squares, in seconds and without labels.
        recover: distillation after each cut; None leaves the cut model as it is.
        masks: learn which heads and neurons go while `recover` trains the model, such as {"kind": "movement"}, and cut
            them at its end; None cuts by the criteria of `remove`.
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
        until: Until | Mapping[str, Any] | None = None,
        steps: int = 1,
        reconstruct: bool = False,
        recover: Recover | Mapping[str, Any] | None = None,
        masks: Masks | Mapping[str, Any] | None = None,
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
        self.until = None if until is None else settings_of(Until, until, "until")
        self.recover = None if recover is None else settings_of(Recover, recover, "recover")
        self.masks = None if masks is None else settings_of(Masks, masks, "masks")
        self.kinds = check_target(
            self.remove, self.until, steps=steps, reconstruct=reconstruct, recover=self.recover, masks=self.masks
        )
        self.place = _place(self.until, engine, threads)
        if steps < 1:
            raise InputError(f"steps must be at least 1 (got {steps})")
        self.steps, self.reconstruct, self.seed, self.device, self.smoke = steps, reconstruct, seed, device, smoke
        self.progress = progress
        self.decide = decide or (lambda _decision: None)

    def fit(self, out: Path, *, work: Path | None = None, accept: Callable[[Path], Outcome] | None = None) -> Path:
        """The folder `out` with the pruned model.

        Args:
            work: where finished steps are kept, so that an interrupted run goes on after the last one and a rerun
                finds them done; `OUT.partial`, removed at the end, unless given.
            accept: judges each step's model folder, and at last the one without unseen tokens; the first that fails
                ends the cuts and the one before is kept.
                What an earlier call finished in `work` is not judged again.
        Raises: InputError for a target below the floor or a teacher that reads other tokens; GateError when `accept`
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
        words = None
        if self.remove.vocabulary is not None:
            words = count_words(folder, data, model, progress=self.progress)
        if self.until is None:
            assert words is not None
            made, home = self._words_alone(words, model, work, accept)
        else:
            run = Run(self._plan(folder, teacher, accept, self.until, words), data, model, work)
            made, home = self._cut(run, self.until, words)
        save_pruned(made, out, source=folder, data=data, tokenizer=home)
        shutil.rmtree(work / VOCABULARY_FOLDER, ignore_errors=True)
        if own:
            shutil.rmtree(work)
        return out

    def _words_alone(
        self, words: Words, model: PreTrainedModel, work: Path, accept: Callable[[Path], Outcome] | None
    ) -> tuple[PreTrainedModel, Path]:
        """The model without unseen tokens and the folder of its tokenizer."""
        if not words.parameters:
            raise StageError(
                f"pruning changed no parameter: each of {words.of} tokens stands in train or the pool, or the "
                "tokenizer needs it; leave vocabulary out of remove"
            )
        made, home, outcome = words.cut(model, work / VOCABULARY_FOLDER, accept=accept, decide=self.decide)
        if outcome is not None and not outcome.passed:
            raise GateError(
                f"the gate refuses the model without unseen tokens ({outcome.because}); nothing was pruned: add rows "
                "to data.unlabelled, so that fewer tokens are unseen, or leave the stage out"
            )
        return made, home

    def _cut(self, run: Run, until: Until, words: Words | None) -> tuple[PreTrainedModel, Path]:
        """The model after all cuts and the folder of its tokenizer, which is the input's where no tokens went."""
        standing, home = run.go(), run.plan.folder
        if parameters(standing.model) == parameters(run.model):
            raise StageError(
                f"pruning changed no parameter: until.{until.target[0]} {until.target[1]} leaves all of "
                f"{in_words(run.prices, run.full)}; lower it"
            )
        run.check_latency(standing)
        if words is not None:
            place = run.work / VOCABULARY_FOLDER
            made, tokens, outcome = words.cut(standing.model, place, accept=run.plan.accept, decide=self.decide)
            if outcome is None or outcome.passed:
                standing.model, home = made, tokens
            else:
                self.decide(words.backtrack(outcome))
        self.decide(run.summary(standing))
        run.gather_steps()
        return standing.model, home

    def _plan(
        self,
        folder: Path,
        teacher: Path | None,
        accept: Callable[[Path], Outcome] | None,
        until: Until,
        words: Words | None,
    ) -> Plan:
        return Plan(
            folder=folder,
            teacher=teacher,
            remove=self.remove,
            kinds=self.kinds,
            until=until,
            place=self.place,
            steps=self.steps,
            reconstruct=self.reconstruct,
            recover=self.recover,
            masks=self.masks,
            seed=self.seed,
            device=self.device,
            smoke=self.smoke,
            progress=self.progress,
            decide=self.decide,
            accept=accept,
            spared=0 if words is None or self.smoke else words.parameters,  # a smoke run's model is mostly word table
        )

    def _folder(self, source: Path | str) -> Path:
        return Path(resolve_model(ModelSource(path=str(source)), base=Path.cwd(), progress=self.progress))


def _place(until: Until | None, engine: TimedEngine | None, threads: int | None) -> Place | None:
    """Where latency is measured; None for another target. InputError for what cannot be, or would change nothing."""
    if until is None or until.latency is None:
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
    """Nothing, or InputError where model and teacher read the rows in different tokens; their numbers may differ."""
    model_side, teacher_side = (open_encoder(each, data.max_tokens) for each in (folder, teacher))
    found = align(teacher_side, model_side, data.train.head(PROBE_ROWS).texts)
    if found.kind == "separate":
        raise InputError(
            f"the model in {folder} and the teacher in {teacher} have different tokenizers ({found.reason}); "
            "take a teacher with the model's tokenizer, such as the stage that was distilled"
        )
