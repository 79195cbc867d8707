"""What the student would be without a teacher, and without unlabelled rows: the same start, the same steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.settings import Mix
from compressor.data.tasks import unit_logits, unit_targets
from compressor.distill.course import Classroom, Course, gather_steps, phase_folder
from compressor.distill.settings import CONTROL_RATES, LabelsMatch, Term
from compressor.model.states import forward
from compressor.stage import Decision
from compressor.train.average import Weights, set_weights
from compressor.train.fit import Loss
from compressor.train.losses import LABEL_LOSSES
from compressor.train.steps import STEPS_FILE

CONTROLS_FOLDER, CONTROLS_FILE = "controls", "controls.json"
NO_KD, NO_MIX = "no_kd", "no_mix"
Save = Callable[[PreTrainedModel, Path], None]


@dataclass(frozen=True)
class Controls:
    """Students like the one that was trained, without what is asked about.

    room: where they are trained. courses: that the student took. steps: optimizer steps that it took in each of them.
    model: in which the controls are trained, one after another. start: the student's weights before training. home:
    folder of what is made. cache_at: folder of the teachers' answers to the student's rows. save: writes a model to a
    folder.
    """

    room: Classroom
    courses: Sequence[Course]
    steps: Sequence[int]
    model: PreTrainedModel
    start: Weights
    home: Path
    cache_at: Path
    save: Save

    def train(self) -> None:
        """Leave the controls' model folders and controls.json in `home`."""
        found = {NO_KD: self._without_teacher()}
        if any(course.mixes for course in self.courses) and self.room.desk.pool is not None:
            found[NO_MIX] = self._without_unlabelled()
        partial = self.home / f"{CONTROLS_FILE}.partial"
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.home / CONTROLS_FILE)

    def _without_teacher(self) -> dict[str, Any]:
        """On labels alone, at the learning rates of three that score best on `select`; the first of equals."""
        score = self.room.scorer()
        scores: dict[float, float] = {}
        for factor in CONTROL_RATES:
            self._on_labels(factor)
            scores[factor] = score(self.model)
        chosen = max(scores, key=lambda factor: scores[factor])
        work = self._on_labels(chosen)  # found done in its checkpoint
        self._keep(NO_KD, work)
        rates = {f"{self._rate(factor)}": value for factor, value in scores.items()}
        edge = "" if chosen == 1.0 else "; the best is the last that was tried, another might be better still"
        because = f"learning rate of the student without a teacher, by its score on select{edge}"
        self.room.tell(Decision("control", self._rate(chosen), because, candidates=rates))
        return {"learning_rates": rates, "chosen": self._rate(chosen), "steps": sum(self.steps)}

    def _rate(self, factor: float) -> str:
        """A learning rate in words; of several phases, with rates of their own, the factor."""
        one = len(self.courses) == 1
        return f"{factor * self.courses[0].train.learning_rate:g}" if one else f"{factor:g}x"

    def _on_labels(self, factor: float) -> Path:
        """The work folder of a training without a teacher, at so many times the learning rates; in `model`."""
        work = self.home / f"{NO_KD}-{factor:g}x"
        loss = labels_only([term for course in self.courses for term in course.match])
        set_weights(self.model, self.start)
        for turn, (course, steps) in enumerate(zip(self.courses, self.steps, strict=True)):
            mix = Mix(unlabelled=None, augment=course.mix.augment.model_copy(update={"mixup": 0.0, "views": None}))
            alone = course.of_steps(steps, mix=mix, learning_rate=factor * course.train.learning_rate)
            room = replace(self.room, turn=turn)
            room.fit(
                self.model,
                room.batches(alone),
                loss,
                train=alone.train,
                work=phase_folder(work, turn + 1, of=len(self.courses)),
                what=f"without a teacher, {factor:g}x the learning rate",
                key=f"{NO_KD} {alone.digest()}",
            )
        return work

    def _without_unlabelled(self) -> dict[str, Any]:
        """The same terms and teachers, labelled rows alone, for as many steps."""
        work = self.home / NO_MIX
        set_weights(self.model, self.start)
        for turn, (course, steps) in enumerate(zip(self.courses, self.steps, strict=True)):
            alone = course.of_steps(steps, mix=Mix(unlabelled=None, augment=course.mix.augment))
            place = phase_folder(work, turn + 1, of=len(self.courses))
            quiet = replace(self.room, turn=turn, tell=_nothing)  # what is decided here is not the student's
            quiet.take(alone, self.model, place, cache_at=self.cache_at, what="without unlabelled rows")
        self._keep(NO_MIX, work)
        return {"steps": sum(self.steps)}

    def _keep(self, name: str, work: Path) -> None:
        """Save the model of a control and the log of its training."""
        self.save(self.model, self.home / name / "model")
        if len(self.courses) > 1:
            gather_steps(work, len(self.courses))
        if work != self.home / name:
            shutil.copyfile(work / STEPS_FILE, self.home / name / STEPS_FILE)


def labels_only(match: Sequence[Term]) -> Callable[[nn.Module, Batch, float], Loss]:
    """The loss of a student without a teacher: the labels term at full weight, cross-entropy where there is none."""
    found = next((term for term in match if isinstance(term, LabelsMatch)), None)
    term = LabelsMatch() if found is None else found

    def loss(model: nn.Module, batch: Batch, _progress: float) -> Loss:
        logits = unit_logits(forward(model, batch), batch)
        value = LABEL_LOSSES[term.loss](logits, unit_targets(batch), gamma=term.gamma, smoothing=term.smoothing)
        return Loss(value, {"labels": value})

    return loss


def _nothing(_decision: Decision) -> None:
    """Says nothing."""
