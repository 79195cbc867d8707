"""Who teaches in a recipe, held against what its terms and students need; and what stages read from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.distill.settings import LabelsMatch, LogitsMatch, TeacherPart
from compressor.errors import InputError, Problem
from compressor.recipe.chain import Written
from compressor.recipe.files import place_of
from compressor.recipe.merge import stage_id
from compressor.sources.models import looks_local, peek_model, resolve_model
from compressor.sources.rows_source import is_local, local_problem
from compressor.sources.settings import ModelSource, RowFile
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune
from compressor.stages.verbs import ONNX_ONLY

SOURCE_KEYS = {"student": "student.init.from"}
"""Role to the key of its source, where it is not that of a teacher."""


def teacher_problems(stages: Sequence[Written], base: Path) -> list[Problem]:
    """Folders and files that are not there, and teachers that cannot do what is asked of them; no network."""
    problems: list[Problem] = []
    for place, written in enumerate(stages):
        missing = _source_problems(written, base)
        problems += missing
        if missing or any(each.stage is None or stage_id(each.node) is None for each in stages[: place + 1]):
            continue  # what an earlier stage is, is not known
        problems += _weights_problems(written, stages[:place], base)
        problems += _recovery_problems(written, stages[:place])
        problems += _augment_problems(written)
    return problems


def _augment_problems(written: Written) -> list[Problem]:
    """Changes to the rows where a teacher's answers to the rows as they are come from a file."""
    stage = written.stage
    if not isinstance(stage, Distill):
        return []
    file = next((each for part in stage.teachers if (each := part.probabilities or part.votes)), None)
    changed = [("mix", stage.mix), *((f"phases.{place}.mix", phase.mix) for place, phase in enumerate(stage.phases))]
    return [
        _at(
            written,
            f"{key}.augment",
            f"changes the rows, but {file.path.path} holds answers to the rows as they are; leave augment out",
        )
        for key, mix in changed
        if file is not None and mix is not None and mix.augment.changes
    ]


def _at(written: Written, key: str, message: str) -> Problem:
    """A problem at a key below the verb."""
    return Problem(str(place_of(written.node, f"{written.verb}.{key}")), f"{written.key}.{written.verb}.{key}", message)


def _source_problems(written: Written, base: Path) -> list[Problem]:
    """Local folders and files that are not there or hold no model."""
    if written.stage is None:
        return []
    problems = []
    for role, source in written.stage.sources().items():
        message = _source_problem(source, base)
        if message is not None:
            problems.append(_at(written, _source_key(written, role), message))
    return problems


def _source_key(written: Written, role: str) -> str:
    """The key under the verb that a role's source is written at."""
    if role in SOURCE_KEYS:
        return SOURCE_KEYS[role]
    place = int(role.removeprefix("teacher") or 1) - 1
    several = isinstance(written.stage, Distill) and isinstance(written.stage.teacher, list)
    return f"teacher.{place}" if several else "teacher"


def _source_problem(source: ModelSource | RowFile, base: Path) -> str | None:
    try:
        if isinstance(source, RowFile):
            return local_problem(source, base) if is_local(source) else None
        if looks_local(source.path, base):
            resolve_model(source, base=base)
    except OSError as error:
        return f"cannot be read: {error.strerror} (got {source.path[:60]!r}); name a folder or a hub id"
    except InputError as error:
        return str(error)
    return None


def _weights_problems(written: Written, before: Sequence[Written], base: Path) -> list[Problem]:
    """A student or terms that need the layers of a teacher, where no teacher has any."""
    stage = written.stage
    if not isinstance(stage, Distill) or any(_has_weights(part, before, base) for part in stage.teachers):
        return []
    problems = []
    first = stage.teachers[0].stage
    if stage.from_ is None and stage.student.init.from_ is None:
        reads = f"reads {first}, whose output is ONNX without" if first else "has no"
        message = (
            f"{reads} layers to make the student of; add student: {{init: {{from: ...}}}}, or from: beside distill:"
        )
        problems.append(_at(written, "teacher", message))
    lists = [stage.match, *(phase.match for phase in stage.phases if phase.match)]
    wanting = [term.of for terms in lists for term in terms if not isinstance(term, LogitsMatch | LabelsMatch)]
    if wanting and not problems:
        message = (
            f"needs a teacher with torch weights for {{of: {wanting[0]}}}, and there is none; "
            "write match: [{of: logits}, {of: labels}]"
        )
        problems.append(_at(written, "match", message))
    return problems


def _has_weights(part: TeacherPart, before: Sequence[Written], base: Path) -> bool:
    """Whether a teacher is, as far as is known here, a torch classifier."""
    if part.stage is not None:
        return {each.id: each.verb for each in before}.get(part.stage) not in ONNX_ONLY
    folder = peek_model(part.model, base) if part.model is not None else None
    return part.model is not None and (folder is None or any(folder.glob("*.safetensors")))


def _recovery_problems(written: Written, before: Sequence[Written]) -> list[Problem]:
    """A pruning that has no teacher, where the stage upstream has several or one that is no model, or is it itself."""
    if not isinstance(written.stage, Prune):
        return []
    try:
        written.stage.filled([each.stage for each in before if each.stage is not None])
    except InputError as error:
        return [_at(written, *str(error).split(" ", 1))]
    return []
