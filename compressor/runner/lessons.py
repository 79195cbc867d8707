"""What a plan says of a distill stage: who teaches, which layers, what the cache keeps, how long it takes."""

from __future__ import annotations

from compressor.data.rows import DataSets
from compressor.data.settings import Mix
from compressor.distill.cache_plan import cache_plan
from compressor.distill.layer_map import term_names
from compressor.distill.settings import CONTROL_RATES, RelationsMatch, TeacherPart
from compressor.runner.prepare import Prepared
from compressor.runner.shapes import Known, Lesson, Shape, heads_of, layers_of, lessons, pairing_of
from compressor.settings import value_at
from compressor.stages.distill import Distill
from compressor.train.settings import Train

ROWS_LOOKED_AT = 500
TOKENS_A_WORD = 1.35
"""About what a word piece vocabulary makes of a word of running text; a Chinese sign is a token."""
FLOPS_A_SECOND = 50e9
"""What two cores without bf16 do in training; the estimate is a rough one and says so."""


def distill_details(stage: Distill, known: Known, prepared: Prepared, seed: int) -> tuple[str, ...]:
    """Shape, teachers, and for each training its layer pairs, relation heads, cache and time."""
    student, teacher = known.output.get(stage.id), known.encoder.get(stage.id)
    lines = [f"shape {student}" if student else "shape known after the model that it starts from"]
    how = f"; answers by {stage.combine}" if len(stage.teachers) > 1 else ""
    lines.append(f"taught by {', '.join(_named(part) for part in stage.teachers)}{how}")
    every = lessons(stage)
    for place, lesson in enumerate(every, 1):
        found = _lesson_lines(stage, lesson, teacher, student, prepared, seed)
        lines += [f"phase {place}: {line}" for line in found] if len(every) > 1 else found
    if stage.control:
        lines.append(_control_line(stage, student, prepared))
    return tuple(lines)


def tokens_a_row(data: DataSets) -> float:
    """About how many tokens a row of train and pool has, from the words and Chinese signs of some; two are special.

    The plan loads no tokenizer.
    """
    texts = [*data.train.texts, *data.unlabelled.texts]
    chosen = texts[:: max(1, len(texts) // ROWS_LOOKED_AT)]
    counts = [min(float(data.max_tokens), 2 + _tokens(text)) for text in chosen]
    return sum(counts) / len(counts) if counts else 32.0


def _tokens(text: str | tuple[str, str]) -> float:
    whole = text if isinstance(text, str) else " ".join(text)
    signs = sum("\u3400" <= sign <= "\u9fff" for sign in whole)
    spaced = "".join(" " if "\u3400" <= sign <= "\u9fff" else sign for sign in whole) if signs else whole
    return signs + TOKENS_A_WORD * len(spaced.split())


def _lesson_lines(
    stage: Distill, lesson: Lesson, teacher: Shape | None, student: Shape | None, prepared: Prepared, seed: int
) -> list[str]:
    lines = []
    layers: tuple[int, ...] = ()
    if teacher is not None and student is not None:
        words = pairing_of(lesson, teacher, student, seed).words()
        if words:
            lines.append("layer pairs teacher:student " + "; ".join(f"{name} {said}" for name, said in words.items()))
        lines += _relation_lines(lesson, teacher, student)
        layers = layers_of(lesson, teacher, student, seed)
    used = rows_drawn(lesson, prepared)
    lines.append(_cache_line(stage, lesson, used, layers, teacher, prepared))
    ratio = mean_ratio(lesson.mix, prepared)
    time = training_time(lesson.train, student, prepared.data, ratio, teacher=teacher, teacher_rows=used)
    return [*lines, time]


def _relation_lines(lesson: Lesson, teacher: Shape, student: Shape) -> list[str]:
    names = [
        name
        for name, term in zip(term_names(lesson.match), lesson.match, strict=True)
        if isinstance(term, RelationsMatch)
    ]
    counts = heads_of(lesson.match, teacher, student)
    return [f"{name} in {count} relation heads" for name, count in zip(names, counts, strict=True)]


def _cache_line(
    stage: Distill, lesson: Lesson, used: int, layers: tuple[int, ...], teacher: Shape | None, prepared: Prepared
) -> str:
    augment = lesson.mix.augment
    if augment.mixup or (augment.changes and augment.views is None):
        return "teacher's answers computed at every step: augment makes a new view of a row each time"
    if layers and teacher is None:
        return "teacher cache known after its models are here"
    views = augment.views or 1
    data = prepared.data
    kept = cache_plan(
        rows=len(data.train) + len(data.unlabelled),
        tokens=round(used * tokens_a_row(data)),
        classes=len(data.labels),
        layers=layers,
        hidden=teacher.hidden if teacher else 0,
        cache=stage.cache,
        views=views,
    )
    seen = f" in {views} views" if views > 1 else ""
    return f"teacher cache for {used} rows{seen}, about: {kept.sentence()}"


def _control_line(stage: Distill, student: Shape | None, prepared: Prepared) -> str:
    ratios = [mean_ratio(lesson.mix, prepared) for lesson in lessons(stage)]
    also = ", and one without unlabelled rows" if any(ratios) else ""
    said = f"control: {len(CONTROL_RATES)} more trainings without a teacher, one for each learning rate{also}"
    if student is None:
        return said
    # controls take as many steps as the student
    minutes = sum(
        training_minutes(lesson.train, student, prepared.data, ratio)
        for lesson, ratio in zip(lessons(stage), ratios, strict=True)
    )
    return f"{said}; about {_whole(minutes * (len(CONTROL_RATES) + any(ratios)))} min more"


def mean_ratio(mix: Mix, prepared: Prepared) -> float:
    """Unlabelled share of the rows over the whole training; 0 where there are none."""
    if mix.unlabelled is None or not len(prepared.data.unlabelled):
        return 0.0
    points = [(place + 0.5) / 20 for place in range(20)]
    return sum(value_at(mix.unlabelled.ratio, point) for point in points) / len(points)


def rows_drawn(lesson: Lesson, prepared: Prepared) -> int:
    """Different rows that a training draws, labelled and unlabelled."""
    labelled, pool = len(prepared.data.train), len(prepared.data.unlabelled)
    ratio = mean_ratio(lesson.mix, prepared)
    return labelled + min(pool, round((lesson.train.epochs or 3.0) * labelled * ratio / (1 - ratio)))


def training_time(
    train: Train,
    shape: Shape | None,
    data: DataSets,
    ratio: float = 0.0,
    *,
    teacher: Shape | None = None,
    teacher_rows: int = 0,
) -> str:
    """A rough estimate in words, from the matrix products alone."""
    if shape is None:
        return "time known after the stage before"
    minutes = training_minutes(train, shape, data, ratio, teacher=teacher, teacher_rows=teacher_rows)
    return f"about {_whole(minutes)} min of training on two cores (rough)"


def training_minutes(
    train: Train,
    shape: Shape,
    data: DataSets,
    ratio: float = 0.0,
    *,
    teacher: Shape | None = None,
    teacher_rows: int = 0,
) -> float:
    """Minutes by the matrix products of the steps, and of one pass of the teacher over so many rows."""
    each = tokens_a_row(data)
    if train.steps is not None:
        tokens = train.steps * float(train.batch_tokens or (train.batch_rows or 32) * each)
    else:
        tokens = (train.epochs or 3.0) * len(data.train) / (1 - ratio) * each
    flops = 6.0 * shape.parameters * tokens
    flops += 2.0 * teacher.parameters * teacher_rows * each if teacher else 0.0
    return flops / FLOPS_A_SECOND / 60


def _whole(minutes: float) -> int:
    return max(1, round(minutes))


def _named(part: TeacherPart) -> str:
    """A teacher in a few words."""
    if part.stage is not None:
        said = part.stage
    elif part.model is not None:
        said = part.model.path
    elif part.label_names is not None:
        said = f"the names of the classes by {part.label_names.model.path}"
    else:
        answers, what = (part.probabilities, "probabilities") if part.probabilities else (part.votes, "votes")
        said = f"{what} in {answers.path.path}" if answers else ""
    return said if part.weight == 1.0 else f"{said} (weight {part.weight:g})"
