"""Which teacher layer teaches which student layer. Numbers only, nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from compressor.errors import InputError

Pairs = tuple[tuple[int, int], ...]
"""(teacher layer, student layer), counted from 1; 0 is the embeddings' output."""


def uniform(teacher: int, student: int) -> Pairs:
    """Student layer i learns from teacher layer i T / S, rounded down, as `init.layers: uniform` copies them.

    >>> uniform(6, 3), uniform(6, 4)
    (((2, 1), (4, 2), (6, 3)), ((1, 1), (3, 2), (4, 3), (6, 4)))
    """
    return tuple((layer * teacher // student, layer) for layer in range(1, student + 1))


def first(_teacher: int, student: int) -> Pairs:
    """Each from the layer of its own number.

    >>> first(6, 2)
    ((1, 1), (2, 2))
    """
    return tuple((layer, layer) for layer in range(1, student + 1))


def last(teacher: int, student: int) -> Pairs:
    """Each from the layer equally far from the top.

    >>> last(6, 2)
    ((5, 1), (6, 2))
    """
    return tuple((teacher - student + layer, layer) for layer in range(1, student + 1))


def layer_pairs(layer_map: str, teacher_layers: int, student_layers: int) -> Pairs:
    """The pairs of a map.

    Args:
        layer_map: a name in LAYER_MAPS, or pairs teacher:student such as `"2:1 4:2 6:3"`.
        teacher_layers: transformer layers of the teacher.
        student_layers: transformer layers of the student.
    Raises: InputError for a layer that is not there, and for a named map to a deeper student.

    >>> layer_pairs("0:0 6:3", 6, 3)
    ((0, 0), (6, 3))
    """
    if layer_map in LAYER_MAPS:
        if student_layers > teacher_layers:
            raise InputError(
                f"map {layer_map} needs a student of at most the teacher's {teacher_layers} layers "
                f"(got {student_layers}); write pairs teacher:student such as '{teacher_layers}:{student_layers}'"
            )
        return LAYER_MAPS[layer_map](teacher_layers, student_layers)
    try:
        pairs = tuple((int(a), int(b)) for a, b in (pair.split(":") for pair in layer_map.split()))
    except ValueError:
        pairs = ()
    if not pairs:
        raise InputError(
            f"map must be one of {', '.join(LAYER_MAPS)} or pairs teacher:student such as '2:1 4:2' (got {layer_map!r})"
        )
    for teacher, student in pairs:
        for who, layer, count in (("teacher", teacher, teacher_layers), ("student", student, student_layers)):
            if not 0 <= layer <= count:
                raise InputError(
                    f"map {layer_map!r} names {who} layer {layer}, but the {who} has layers 1 to {count} "
                    "(0 is the embeddings)"
                )
    return pairs


LAYER_MAPS: dict[str, Callable[[int, int], Pairs]] = {"uniform": uniform, "first": first, "last": last}
"""Name to the pairs of (teacher's, student's) layer counts."""
