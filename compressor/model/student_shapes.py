"""The shapes of a student from those of the model that it starts from. Numbers only, nothing heavy."""

from __future__ import annotations

from dataclasses import replace

from compressor.errors import InputError
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.settings import Student


def student_shapes(source: Shapes, student: Student) -> Shapes:
    """The student's shapes, what it leaves open taken from the model that it starts from (half the teacher's layers).

    Args:
        source: shapes of the teacher, or of `student.init.from`, all of whose layers are taken unless told.
    Raises: InputError where the student is larger than its source, or its heads do not divide its width.
    """
    start = student.init.from_
    name = "the teacher" if start is None else f"student.init.from {start.path}"
    if not source.is_stock:
        raise InputError(f"student cannot be copied from a pruned model, as {name} is; name its unpruned teacher")
    given = source.layers[0]
    hidden = student.hidden or source.hidden
    heads, ffn = student.heads or given.heads, student.ffn or given.ffn
    count = student.layers or (max(1, len(source.layers) // 2) if start is None else len(source.layers))
    for what, wanted, limit in (
        ("layers", count, len(source.layers)),
        ("hidden", hidden, source.hidden),
        ("ffn", ffn, given.ffn),
    ):
        if wanted > limit:
            raise InputError(f"student.{what} must be at most {name}'s {limit} (got {wanted})")
    if hidden % heads:
        fits = [number for number in range(1, hidden + 1) if hidden % number == 0 and number <= 2 * given.heads]
        raise InputError(
            f"student.hidden must be divisible by its heads (got hidden {hidden}, heads {heads}"
            f"{'' if student.heads else f' as {name}'}); heads that fit: {', '.join(map(str, fits))}"
        )
    layer = LayerShape(heads=heads, head_size=hidden // heads, ffn=ffn)
    return replace(source, hidden=hidden, layers=(layer,) * count)
