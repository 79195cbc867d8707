"""What the student would be without a teacher, and without unlabelled rows: the same start, the same steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.settings import Mix
from compressor.data.tasks import unit_logits, unit_targets
from compressor.distill.course import Classroom, Course
from compressor.distill.settings import LabelsMatch, Term
from compressor.model.states import forward
from compressor.train.average import Weights, set_weights
from compressor.train.fit import Loss
from compressor.train.losses import LABEL_LOSSES
from compressor.train.settings import Train
from compressor.train.steps import STEPS_FILE

CONTROLS_FOLDER, CONTROLS_FILE = "controls", "controls.json"
NO_KD, NO_MIX = "no_kd", "no_mix"
FACTORS = (0.5, 1.0, 2.0)
"""Of the student's learning rate: those that the control without a teacher may choose from."""

Save = Callable[[PreTrainedModel, Path], None]


def train_controls(
    room: Classroom,
    courses: Sequence[Course],
    model: PreTrainedModel,
    start: Weights,
    home: Path,
    *,
    cache_at: Path,
    save: Save,
) -> None:
    """The controls' model folders and controls.json in `home`.

    Args:
        courses: that the student took.
        model: in which the controls are trained, one after another.
        start: the student's weights before training.
        cache_at: folder of the teachers' answers to the student's rows.
        save: writes a model to a folder.
    """
    steps = [room.steps(course, room.batches(_all_rows(course))) for course in courses]
    found = {NO_KD: _without_teacher(room, courses[-1], model, start, home, steps=sum(steps), save=save)}
    if any(course.mixes for course in courses) and room.desk.pool is not None:
        found[NO_MIX] = _without_unlabelled(
            room, courses, model, start, home, steps=steps, cache_at=cache_at, save=save
        )
    partial = home / f"{CONTROLS_FILE}.partial"
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    partial.replace(home / CONTROLS_FILE)


def labels_only(match: Sequence[Term]) -> Callable[[nn.Module, Batch, float], Loss]:
    """The loss of a student without a teacher: the labels term at full weight, cross-entropy where there is none."""
    found = next((term for term in match if isinstance(term, LabelsMatch)), None)
    term = LabelsMatch() if found is None else found

    def loss(model: nn.Module, batch: Batch, _progress: float) -> Loss:
        logits = unit_logits(forward(model, batch), batch)
        value = LABEL_LOSSES[term.loss](logits, unit_targets(batch), gamma=term.gamma, smoothing=term.smoothing)
        return Loss(value, {"labels": value})

    return loss


def rates_of(train: Train) -> tuple[float, ...]:
    """The learning rates that are tried without a teacher.

    >>> rates_of(Train(learning_rate=2e-4))
    (0.0001, 0.0002, 0.0004)
    """
    return tuple(factor * train.learning_rate for factor in FACTORS)


def _without_teacher(
    room: Classroom, course: Course, model: PreTrainedModel, start: Weights, home: Path, *, steps: int, save: Save
) -> dict[str, Any]:
    """On labels alone, at the learning rate of three that scores best on `select`; the first of equals."""
    mix = Mix(augment=course.mix.augment.model_copy(update={"mixup": 0.0, "views": None}))
    score = room.scorer()

    def trained(rate: float) -> PreTrainedModel:
        alone = course.of_steps(steps, mix=mix, learning_rate=rate)
        set_weights(model, start)
        room.fit(
            model,
            room.batches(alone),
            labels_only(course.match),
            train=alone.train,
            work=home / f"{NO_KD}-{rate:g}",
            what=f"without a teacher, rate {rate:g}",
            key=f"{NO_KD} {alone.digest()}",
        )
        return model

    scores = {rate: score(trained(rate)) for rate in rates_of(course.train)}
    chosen = max(scores, key=lambda rate: scores[rate])
    save(trained(chosen), home / NO_KD / "model")  # found done in its checkpoint
    shutil.copyfile(home / f"{NO_KD}-{chosen:g}" / STEPS_FILE, home / NO_KD / STEPS_FILE)
    return {"learning_rates": {f"{rate:g}": value for rate, value in scores.items()}, "chosen": chosen, "steps": steps}


def _without_unlabelled(
    room: Classroom,
    courses: Sequence[Course],
    model: PreTrainedModel,
    start: Weights,
    home: Path,
    *,
    steps: Sequence[int],
    cache_at: Path,
    save: Save,
) -> dict[str, Any]:
    """The same terms and teachers, labelled rows alone, for as many steps."""
    set_weights(model, start)
    for number, (course, count) in enumerate(zip(courses, steps, strict=True), start=1):
        alone = course.of_steps(count, mix=Mix(augment=course.mix.augment))
        work = home / NO_MIX if len(courses) == 1 else home / f"{NO_MIX}-{number}"
        room.take(alone, model, work, cache_at=cache_at, what="without unlabelled rows")
    save(model, home / NO_MIX / "model")
    return {"steps": sum(steps)}


def _all_rows(course: Course) -> Course:
    """The course with every unlabelled row, whose number of steps is the same."""
    if course.mix.unlabelled is None:
        return course
    keep = course.mix.unlabelled.keep.model_copy(update={"confidence": 0.0, "weigh": False, "balance": False})
    unlabelled = course.mix.unlabelled.model_copy(update={"keep": keep})
    return Course(course.match, course.mix.model_copy(update={"unlabelled": unlabelled}), course.train)
