"""One training of a student: batches, layer pairs, where the teachers' answers come from, and the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from compressor.data.augment import Views
from compressor.data.batches import Batch
from compressor.data.drawing import Chosen, choose
from compressor.data.mixing import MixedBatches, mixed_batches
from compressor.data.settings import Mix
from compressor.distill.answers import Teacher
from compressor.distill.desk import Desk, named, sample_batches
from compressor.distill.layer_map import (
    Pairing,
    Pairs,
    nearest_pairs,
    needed_layers,
    needs_probe,
    pairings,
    term_names,
)
from compressor.distill.projections import make_parts
from compressor.distill.settings import Cache, LabelsMatch, LogitsMatch, Term
from compressor.distill.similarity import PROBE_ROWS, layer_similarity
from compressor.distill.teacher_cache import live_teacher, open_cache, pool_logits
from compressor.distill.terms import Teaching
from compressor.errors import InputError
from compressor.evaluate.metrics import score
from compressor.model.parts import shapes
from compressor.stage import Decision, Progress
from compressor.train.finetune import SMOKE_STEPS, digest_of
from compressor.train.fit import Fitted, Loss, fit
from compressor.train.schedules import planned_steps
from compressor.train.scoring import select_scorer
from compressor.train.settings import Train
from compressor.train.steps import STEPS_FILE

SIMILARITY_FILE = "layer_similarity.json"
NO_ROWS = (
    "mix.unlabelled: none of the unlabelled rows may be drawn, as the teacher is not sure enough of any "
    "(keep.confidence) or answered none; lower keep.confidence, or set mix.unlabelled to null"
)


@dataclass(frozen=True)
class Course:
    """One training: what is copied, what a batch is made of, for how long."""

    match: tuple[Term, ...]
    mix: Mix
    train: Train

    @property
    def inner_terms(self) -> list[str]:
        """Names of the terms that read what is inside the teacher."""
        names = zip(term_names(self.match), self.match, strict=True)
        return [name for name, term in names if not isinstance(term, LogitsMatch | LabelsMatch)]

    @property
    def mixes(self) -> bool:
        """Whether it draws unlabelled rows where there are any."""
        return self.mix.unlabelled is not None and self.mix.unlabelled.ratio != 0

    def of_steps(self, steps: int, *, mix: Mix, learning_rate: float | None = None) -> Course:
        """The same terms for so many steps of other batches, at another rate where one is given."""
        changed: dict[str, Any] = {"epochs": None, "steps": steps}
        if learning_rate is not None:
            changed["learning_rate"] = learning_rate
        if self.train.early_stop is not None:  # the best epoch's weights are kept, but no step is saved
            changed["early_stop"] = self.train.early_stop.model_copy(update={"patience": steps})
        return Course(self.match, mix, self.train.model_copy(update=changed))

    def digest(self) -> str:
        """Of terms and batches; the loop's own key holds its length and speed."""
        parts = [[named(term) for term in self.match], named(self.mix)]
        return digest_of(json.dumps(parts, sort_keys=True))


LossOf = Callable[[nn.Module, Batch, float], Loss]
"""(student, batch, share of the steps done) to what is minimised."""


@dataclass(frozen=True)
class Beside:
    """What is trained with a student and acts on it at every step."""

    module: nn.Module
    """A part of the checkpoint."""
    optimizer: Mapping[str, float]
    """`lr` and `eps` of AdamW, the same at every step."""
    around: Callable[[LossOf, int], LossOf]
    """Makes the loss that is minimised, of the student's and the number of steps."""
    key: str
    """Digest of what decides its numbers beside those it begins with."""


@dataclass(frozen=True)
class _Lesson:
    """A course with its batches and layer pairs."""

    course: Course
    batches: MixedBatches
    pairing: Pairing
    steps: int


@dataclass(frozen=True)
class Classroom:
    """Where courses are taken: the desk, and how training goes whatever the course."""

    desk: Desk
    cache: Cache
    seed: int
    device: str
    progress: Progress
    tell: Callable[[Decision], None]
    smoke: bool
    turn: int = 0
    """Number of the phase, from 0: each draws rows and layers of its own, and sees the same views of a row."""

    def take(
        self,
        course: Course,
        model: PreTrainedModel,
        work: Path,
        *,
        cache_at: Path,
        what: str,
        beside: Beside | None = None,
    ) -> Fitted:
        """How the course ended; `model` is trained in place, checkpoint and steps.jsonl stay in `work`."""
        desk = self.desk
        lesson = self._lesson(course, model, work, self._chosen(course, model, cache_at))
        encoder = desk.teachers.encoder.model if desk.teachers.encoder and course.inner_terms else None
        parts = make_parts(course.match, lesson.pairing, model, encoder, seed=self.seed)
        weight = course.mix.unlabelled.weight if course.mix.unlabelled else 1.0
        taught = self._taught(lesson, cache_at)
        loss: LossOf = Teaching(course.match, taught, lesson.pairing, parts, lesson.steps, encoder, weight)
        words = json.dumps(lesson.pairing.words(), sort_keys=True)
        key = digest_of(course.digest(), words, json.dumps(named(self.cache), sort_keys=True))
        extra: nn.Module | None = parts
        if beside is not None:
            loss = beside.around(loss, lesson.steps)
            key = digest_of(key, [dict(beside.optimizer), beside.key])
            extra = nn.ModuleDict({"beside": beside.module} | ({"parts": parts} if parts is not None else {}))
        own = None if beside is None else {beside.module: beside.optimizer}
        fitted = self.fit(
            model,
            lesson.batches,
            loss,
            train=course.train,
            work=work,
            what=what,
            key=key,
            extra=extra,
            own=own,
        )
        if parts is not None and parts.balance is not None:
            for sentence in parts.balance.warnings():
                self.tell(Decision("terms", None, sentence))
        return fitted

    def fit(
        self,
        model: PreTrainedModel,
        batches: MixedBatches,
        loss: LossOf,
        *,
        train: Train,
        work: Path,
        what: str,
        key: str,
        extra: nn.Module | None = None,
        own: Mapping[nn.Module, Mapping[str, float]] | None = None,
    ) -> Fitted:
        """The loop on these batches; `key` says what else than desk and `train` decides the weights."""
        return fit(
            model,
            batches,
            loss,
            train=train,
            seed=self.seed + self.turn,
            device=self.device,
            work=work,
            progress=self.progress,
            what=what,
            score=self.scorer() if train.early_stop else None,
            extra=extra,
            own=own,
            max_steps=SMOKE_STEPS if self.smoke else None,
            key=digest_of(self.desk.digest, key),
        )

    def scorer(self) -> Callable[[nn.Module], float]:
        """Score of a model on `select` by the task's metric."""
        return select_scorer(self.desk.data, self.desk.select, score)

    def batches(self, course: Course, chosen: Chosen | None = None) -> MixedBatches:
        """The batches of a course; `chosen` says what the teachers' answers let be drawn."""
        return mixed_batches(
            self.desk.labelled,
            self.desk.pool,
            course.mix,
            course.train,
            seed=self.seed + self.turn,
            keep_rows=None if chosen is None else chosen.rows,
            parts=self.desk.data.pools,
            row_classes=None if chosen is None else chosen.classes,
            row_factors=None if chosen is None else chosen.factors,
            views=self._views(course),
        )

    def steps(self, course: Course, batches: MixedBatches) -> int:
        """Optimizer steps of a course."""
        return planned_steps(course.train, batches.steps_per_epoch, limit=SMOKE_STEPS if self.smoke else None)

    def _views(self, course: Course) -> Views | None:
        augment = course.mix.augment
        return Views.of(augment, self.desk.encoder, seed=self.seed) if augment.changes else None

    def _chosen(self, course: Course, model: PreTrainedModel, cache_at: Path) -> Chosen | None:
        """The unlabelled rows that the teachers' answers let be drawn; None where they are not asked."""
        desk, unlabelled = self.desk, course.mix.unlabelled
        if unlabelled is None or desk.pool is None or not course.mixes:
            return None
        keep = unlabelled.keep
        if not (keep.confidence or keep.weigh or keep.balance):
            return None
        logits = pool_logits(
            desk.teachers, desk.pools(), 1, layers=self._layers(course, model), folder=cache_at, cache=self.cache,
            changed=course.mix.augment.changes, progress=self.progress, decide=self.tell,
        )  # fmt: skip
        chosen = choose(logits, keep)
        if not len(chosen.rows):
            if not self.smoke:  # random weights are sure of nothing
                raise InputError(NO_ROWS)
            return Chosen(np.arange(len(logits)), logits.argmax(1), np.ones(len(logits), dtype=np.float32))
        asked = f"probability {keep.confidence:g} or more" if keep.confidence else "a probability"
        self.tell(
            Decision(
                "confidence",
                len(chosen.rows),
                f"unlabelled rows whose first class has {asked} from the teacher",
                candidates=len(logits),
            )
        )
        return chosen

    def _layers(self, course: Course, model: PreTrainedModel) -> tuple[int, ...] | None:
        """Teacher layers that the course reads; None where that is not known before its batches are."""
        if needs_probe(course.match):
            return None
        pairing = self._pairs(course, model, epochs=1)
        return None if pairing.drawn else needed_layers(course.match, pairing)

    def _lesson(self, course: Course, model: PreTrainedModel, work: Path, chosen: Chosen | None) -> _Lesson:
        """The course's batches, their number, and the layers that it pairs."""
        batches = self.batches(course, chosen)
        if course.mixes and self.desk.pool is not None and not batches.streams and not self.smoke:
            raise InputError(NO_ROWS)
        steps = self.steps(course, batches)
        pairing = self._pairing(course, model, work, epochs=_epochs(batches, steps))
        return _Lesson(course, batches, pairing, steps)

    def _pairing(self, course: Course, model: PreTrainedModel, work: Path, *, epochs: int) -> Pairing:
        nearest = self._nearest(model, work) if needs_probe(course.match) else None
        return self._pairs(course, model, epochs=epochs, nearest=nearest)

    def _pairs(self, course: Course, model: PreTrainedModel, *, epochs: int, nearest: Pairs | None = None) -> Pairing:
        if not course.inner_terms:
            return pairings(course.match, teacher_layers=0, student_layers=0)
        return pairings(
            course.match,
            teacher_layers=self._teacher_layers(),
            student_layers=len(shapes(model).layers),
            nearest=nearest,
            seed=self.seed + self.turn,
            epochs=epochs,
        )

    def _teacher_layers(self) -> int:
        encoder = self.desk.teachers.encoder
        assert encoder is not None, "open_teachers refuses terms that no teacher can serve"
        return len(shapes(encoder.model).layers)

    def _nearest(self, model: PreTrainedModel, work: Path) -> Pairs:
        """The pairs of map nearest; the similarities that they come from are left in layer_similarity.json."""
        desk, layers = self.desk, self._teacher_layers()
        live = desk.teachers.live(range(1, layers + 1))
        device = next(model.parameters()).device
        batches = [batch.to(device) for batch in sample_batches(desk.labelled, rows=PROBE_ROWS, seed=self.seed)]
        self.progress("layer similarity", 0, None)
        matrix = layer_similarity(
            model, lambda batch: live.answers(batch, hidden=True).hidden, batches, layers=layers
        ).tolist()
        pairs = nearest_pairs(matrix)
        work.mkdir(parents=True, exist_ok=True)
        (work / SIMILARITY_FILE).write_text(json.dumps({"cka": matrix, "pairs": pairs}) + "\n", encoding="utf-8")
        said = " ".join(f"{one}:{other}" for one, other in pairs)
        rounded = [[round(value, 4) for value in row] for row in matrix]
        self.tell(
            Decision("nearest", said, "pairs teacher:student by linear CKA on labelled rows; rows of the matrix are "
                     "the teacher's layers from 1", candidates=rounded)
        )  # fmt: skip
        return pairs

    def _taught(self, lesson: _Lesson, folder: Path) -> Teacher:
        """Where the teachers' answers come from: new views at every epoch are answered live, the rest from disk."""
        desk = self.desk
        layers = needed_layers(lesson.course.match, lesson.pairing)
        augment = lesson.course.mix.augment
        if augment.changes and augment.views is None:
            self.tell(Decision("cache", "live", "mix.augment shows the teacher another view of a row at every epoch"))
            return live_teacher(
                desk.teachers,
                layers,
                cache=self.cache,
                pools=desk.pools(),
                used=lesson.batches.rows_used(lesson.steps)[: len(desk.pools())],
                progress=self.progress,
                decide=self.tell,
            )
        return open_cache(
            desk.teachers,
            desk.pools(),
            lesson.batches.rows_used(lesson.steps)[: len(desk.pools())],
            layers=layers,
            folder=folder,
            cache=self.cache,
            views=lesson.batches.views,
            view_count=min(augment.views or 1, _epochs(lesson.batches, lesson.steps)),
            progress=self.progress,
            decide=self.tell,
        )


def phase_folder(work: Path, number: int, *, of: int) -> Path:
    """Where one of several phases, numbered from 1, keeps its checkpoint and log; `work` itself for the only one."""
    return work if of == 1 else work / f"phase-{number}"


def gather_steps(work: Path, courses: int) -> None:
    """Write the logs of courses taken one after another to work / steps.jsonl, their steps counted on."""
    lines: list[str] = []
    before = 0
    for number in range(1, courses + 1):
        log = work / f"phase-{number}" / STEPS_FILE
        read = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        lines += [json.dumps({**line, "step": line["step"] + before, "phase": number}) + "\n" for line in read]
        before += max((line["step"] for line in read), default=0)
    (work / STEPS_FILE).write_text("".join(lines), encoding="utf-8")


def _epochs(batches: MixedBatches, steps: int) -> int:
    """Epochs that so many steps begin."""
    epochs = 0
    while steps > 0:
        steps -= batches.steps_per_epoch(epochs)
        epochs += 1
    return max(epochs, 1)
