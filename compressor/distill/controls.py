"""What the student would be without a teacher, and without unlabelled rows: the same start, the same steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressor.data.batches import Batch
from compressor.data.settings import Mix
from compressor.data.tasks import unit_logits, unit_targets
from compressor.distill.course import Classroom, Course, gather_steps, phase_folder
from compressor.distill.settings import LabelsMatch, Term
from compressor.model.states import forward
from compressor.stage import Decision
from compressor.train.average import Weights, set_weights
from compressor.train.fit import Loss
from compressor.train.losses import LABEL_LOSSES
from compressor.train.steps import STEPS_FILE

CONTROLS_FOLDER, CONTROLS_FILE = "controls", "controls.json"
NO_KD, NO_MIX = "no_kd", "no_mix"
FACTORS = (0.5, 1.0, 2.0)
"""Of the student's learning rates: those that the control without a teacher may choose from."""

Save = Callable[[PreTrainedModel, Path], None]


def train_controls(
    room: Classroom,
    courses: Sequence[Course],
    steps: Sequence[int],
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
        steps: optimizer steps that it took in each of them.
        model: in which the controls are trained, one after another.
        start: the student's weights before training.
        cache_at: folder of the teachers' answers to the student's rows.
        save: writes a model to a folder.
    """
    found = {NO_KD: _without_teacher(room, courses, steps, model, start, home, save=save)}
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


def _without_teacher(
    room: Classroom,
    courses: Sequence[Course],
    steps: Sequence[int],
    model: PreTrainedModel,
    start: Weights,
    home: Path,
    *,
    save: Save,
) -> dict[str, Any]:
    """On labels alone, at the learning rates of three that score best on `select`; the first of equals."""
    score = room.scorer()

    def trained(factor: float) -> PreTrainedModel:
        set_weights(model, start)
        for number, (course, count) in enumerate(zip(courses, steps, strict=True), start=1):
            mix = Mix(unlabelled=None, augment=course.mix.augment.model_copy(update={"mixup": 0.0, "views": None}))
            alone = course.of_steps(count, mix=mix, learning_rate=factor * course.train.learning_rate)
            turn = replace(room, turn=number - 1)
            turn.fit(
                model,
                turn.batches(alone),
                labels_only([term for each in courses for term in each.match]),
                train=alone.train,
                work=phase_folder(home / f"{NO_KD}-{factor:g}x", number, of=len(courses)),
                what=f"without a teacher, {factor:g}x the learning rate",
                key=f"{NO_KD} {alone.digest()}",
            )
        return model

    scores = {factor: score(trained(factor)) for factor in FACTORS}
    chosen = max(scores, key=lambda factor: scores[factor])
    save(trained(chosen), home / NO_KD / "model")  # found done in its checkpoint
    work = home / f"{NO_KD}-{chosen:g}x"
    if len(courses) > 1:
        gather_steps(work, len(courses))
    shutil.copyfile(work / STEPS_FILE, home / NO_KD / STEPS_FILE)
    rate = courses[0].train.learning_rate
    names = {factor: f"{factor * rate:g}" if len(courses) == 1 else f"{factor:g}x" for factor in FACTORS}
    found = {"learning_rates": {names[factor]: value for factor, value in scores.items()}, "chosen": names[chosen]}
    edge = "" if chosen == 1.0 else "; the best is the last that was tried, another might be better still"
    room.tell(
        Decision(
            "control",
            found["chosen"],
            f"learning rate of the student without a teacher, by its score on select{edge}",
            candidates=found["learning_rates"],
        )
    )
    return {**found, "steps": sum(steps)}


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
        alone = course.of_steps(count, mix=Mix(unlabelled=None, augment=course.mix.augment))
        work = phase_folder(home / NO_MIX, number, of=len(courses))
        quiet = replace(room, turn=number - 1, tell=_nothing)  # what is decided here is not the student's
        quiet.take(alone, model, work, cache_at=cache_at, what="without unlabelled rows")
    if len(courses) > 1:
        gather_steps(home / NO_MIX, len(courses))
    save(model, home / NO_MIX / "model")
    return {"steps": sum(steps)}


def _nothing(_decision: Decision) -> None:
    """Says nothing."""
