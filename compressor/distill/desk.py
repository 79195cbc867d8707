"""What every training with the same teachers shares: the rows in the student's tokens, the teachers, the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from transformers import PreTrainedModel

from compressor.data.batches import Batch, Pool, bucketed
from compressor.data.encode import Encoder, open_encoder
from compressor.data.encoded import check_pool
from compressor.data.rows import DataSets, open_data
from compressor.data.settings import Augment, Data
from compressor.device import seed_all
from compressor.distill.settings import TeacherPart
from compressor.distill.teachers import CHANCE_ROWS, Teachers, classifier_folder, near_chance, open_teachers
from compressor.errors import InputError
from compressor.model.encoders import load_model
from compressor.model.manifest import teacher_labels
from compressor.model.settings import Student
from compressor.model.student import make_student
from compressor.settings import Settings
from compressor.sources.models import resolve_model
from compressor.sources.settings import ModelSource
from compressor.stage import Decision, Progress, settings_of
from compressor.train.finetune import digest_of, encoded_pool, model_folder

PROBE_ROWS = 256
"""Labelled rows on which the importance of layers and channels is measured."""
PROBE_TOKENS = 2048
"""Tokens a batch of the probe, padding included."""

TeacherLike: TypeAlias = str | Path | TeacherPart | Mapping[str, Any]
StudentLike: TypeAlias = Student | str | Path | PreTrainedModel


@dataclass(frozen=True)
class Desk:
    """Rows, tokenizer and teachers, opened once."""

    home: Path
    """Folder whose tokenizer the student reads, and whose classifier it starts from where that is no teacher's."""
    data: DataSets
    encoder: Encoder
    """The student's tokenizer."""
    teachers: Teachers
    labelled: Pool
    pool: Pool | None
    """None without unlabelled rows."""
    select: Pool
    digest: str
    """Of teachers, rows and tokenizer."""

    def pools(self) -> list[Pool]:
        """The labelled rows, then the unlabelled ones where there are any."""
        return [self.labelled] if self.pool is None else [self.labelled, self.pool]


def parts_of(teacher: TeacherLike | Sequence[TeacherLike]) -> tuple[TeacherPart, ...]:
    """Each teacher in full; InputError for one that cannot be understood, or none."""
    given = [teacher] if isinstance(teacher, str | Path | TeacherPart | Mapping) else list(teacher)
    if not given:
        raise InputError("teacher needs at least one teacher (got none)")
    return tuple(_part(each, f"teacher.{place}" if len(given) > 1 else "teacher") for place, each in enumerate(given))


def _part(given: TeacherLike, name: str) -> TeacherPart:
    if isinstance(given, str | Path):
        return TeacherPart(model=ModelSource(path=str(given)))
    part = settings_of(TeacherPart, given, name)
    if part.stage is not None:
        raise InputError(f"{name}: stage names a stage of a recipe (got {part.stage}); give its folder as model")
    return part


def open_desk(
    parts: Sequence[TeacherPart],
    student: StudentLike,
    *,
    combine: str,
    data: DataSets | Data | Mapping[str, Any],
    tokenizer: str | Path | None,
    terms: Sequence[str],
    augments: Sequence[Augment],
    mixes: bool,
    device: str,
    progress: Progress,
    decide: Any,
) -> Desk:
    """Teachers, rows and tokenizer.

    Args:
        terms: names of the terms that read what is inside the teacher.
        augments: changes to the rows, of each training.
        mixes: whether unlabelled rows are used.
        tokenizer: folder whose tokenizer a student given as a model reads.
    Raises: InputError for whatever does not fit together.
    """
    placed = [(part, _folder(part, progress)) for part in parts]
    first = classifier_folder(placed)
    names = teacher_labels(first) if first is not None else None
    rows = open_data(data, teacher_labels=names)
    home = _home(student, tokenizer, first, progress)
    encoder = open_encoder(home, rows.max_tokens)
    teachers = open_teachers(
        placed, combine=combine, data=rows, encoder=encoder, terms=terms, augment=_together(augments), base=Path.cwd(),
        device=device, progress=progress, decide=decide,
    )  # fmt: skip
    labelled = encoded_pool(rows.train, encoder, "data.train")
    pool = None
    if mixes and len(rows.unlabelled):
        pool = Pool.of(rows.unlabelled, encoder)
        check_pool(pool.encoded, rows.pools, labelled.encoded)
    digests = (each.digest() for each in (rows.train, rows.unlabelled, rows.select))
    return Desk(
        home, rows, encoder, teachers, labelled, pool, encoded_pool(rows.select, encoder, "data.select"),
        digest_of(
            teachers.digest, *digests, rows.labels, rows.max_tokens, rows.task.metric,
            [[part.rows, part.share] for part in rows.pools],
        ),
    )  # fmt: skip


def _together(augments: Sequence[Augment]) -> Augment:
    """Every kind of change that one of the trainings makes, for what the teachers must be able to see."""
    kinds = ("mask", "delete", "ngram", "mixup")
    return Augment(**{kind: max(getattr(each, kind) for each in augments) for kind in kinds})


def _folder(part: TeacherPart, progress: Progress) -> Path | None:
    return None if part.model is None else resolve_model(part.model, base=Path.cwd(), progress=progress)


def _home(student: StudentLike, tokenizer: str | Path | None, first: Path | None, progress: Progress) -> Path:
    """Folder of the student's tokenizer."""
    if tokenizer is not None:
        return model_folder(tokenizer, progress)
    if isinstance(student, str | Path):
        return model_folder(student, progress)
    if isinstance(student, Student) and student.init.from_ is not None:
        return resolve_model(student.init.from_, base=Path.cwd(), progress=progress)
    if first is None:
        raise InputError(
            "none of the teachers is a classifier of torch weights that a student could be made from; name a small "
            "checkpoint: student: {init: {from: ...}}"
        )
    return first


def start_student(desk: Desk, student: StudentLike, *, seed: int) -> PreTrainedModel:
    """The student before training; InputError where it does not fit the rows or its tokenizer.

    A model that is given is taken as it is.
    """
    if isinstance(student, PreTrainedModel):
        _check_given(student, desk)
        return student
    seed_all(seed)
    if isinstance(student, str | Path):
        return load_model(desk.home, labels=desk.data.labels)
    source = desk.teachers.encoder_teacher
    if student.init.from_ is not None:
        source = load_model(desk.home, labels=desk.data.labels, other_names="new head")
    assert source is not None, "a student without a source has no home"
    probe = sample_batches(desk.labelled, rows=PROBE_ROWS, seed=seed) if _asks_importance(student) else None
    return make_student(source, student, seed=seed, probe=probe).requires_grad_(True)


def sample_batches(pool: Pool, *, rows: int, seed: int) -> list[Batch]:
    """A seeded sample of at most so many rows of a pool, in batches of similar length."""
    chosen = np.random.default_rng([seed, len(pool)]).permutation(len(pool))[:rows]
    batches = bucketed(pool.lengths[chosen], batch_tokens=PROBE_TOKENS, shuffle=False)
    return [pool.batch(chosen[indices].tolist()) for indices in batches]


def _asks_importance(student: Student) -> bool:
    return "importance" in (student.init.layers, student.init.width)


def _check_given(student: PreTrainedModel, desk: Desk) -> None:
    """InputError for a student in hand with other classes or another vocabulary."""
    vocabulary, needed = int(student.config.vocab_size), desk.encoder.tokenizer.get_vocab_size()
    if vocabulary < needed:
        raise InputError(
            f"the student has {vocabulary} tokens, its tokenizer in {desk.home} {needed}; name the tokenizer's folder "
            "as tokenizer="
        )
    if int(student.config.num_labels) != len(desk.data.labels):
        raise InputError(
            f"the student answers {student.config.num_labels} classes, the rows have {len(desk.data.labels)} "
            f"({', '.join(desk.data.labels)}); give it a head of these"
        )


def check_score(desk: Desk, *, progress: Progress) -> Decision:
    """The teachers' score on `select`; InputError where that of one of them, or of all together, is chance."""
    each = desk.teachers.answered_each(desk.data.select, desk.select, progress=progress)
    logits = desk.teachers.together(each)
    members = desk.teachers.members
    alone = [(f"{member.name}: ", said) for member, said in zip(members, each, strict=True)] if len(members) > 1 else []
    for name, said in [*alone, ("", logits)]:
        problem = near_chance(said, desk.select.targets)
        if problem is not None:
            advice = "nothing can be learned from it: fine-tune the teacher, or look at data.labels"
            raise InputError(f"{name}{problem}; {advice}")
    answered = (desk.select.targets >= 0) & (logits == logits).all(1)
    rows = int(answered.sum())
    right = float((logits[answered].argmax(1) == desk.select.targets[answered]).mean()) if rows else "unknown"
    few = f"; at least {CHANCE_ROWS} would tell whether it is better than chance" if rows < CHANCE_ROWS else ""
    return Decision("teacher", right, f"accuracy of the teacher's answers on {rows} rows of select{few}")


def named(settings: Settings) -> Any:
    """Settings as JSON, for digests."""
    return settings.model_dump(mode="json", by_alias=True)
