"""Whether a teacher can read the student's tokens: the same ones, the same under other numbers, or none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compressor.data.encode import Encoder
from compressor.data.source_rows import Text

TOKENS_SHOWN = 12
"""Tokens of a row that an error quotes."""


@dataclass(frozen=True)
class Alignment:
    """How a teacher reads the rows of a student."""

    kind: Literal["same", "mapped", "separate"]
    """same ids; mapped, token by token, to ids of its own; or separate, where it tokenises the texts itself."""
    ids: NDArray[np.int64] | None = None
    """(student's vocabulary,) the teacher's id of each of the student's tokens; of mapped alone."""
    reason: str | None = None
    """The first row that differs; of separate alone."""


def align(teacher: Encoder, student: Encoder, texts: Sequence[Text]) -> Alignment:
    """How the teacher reads what the student's tokenizer makes of `texts`, a sample of the rows.

    Tokens stand for each other by spelling, special ones by role (start, end, padding, mask, unknown). `mapped` needs
    the teacher's own encoding of each of the texts to be the mapped one, as that of BERT and MPNet is; a token that
    occurs in none of them and that the teacher lacks is its unknown token.
    """
    ids = token_map(teacher, student)
    ours, theirs = student.encode(texts), teacher.encode(texts)
    for place, text in enumerate(texts):
        if not np.array_equal(ids[ours.row(place)], theirs.row(place)):
            return Alignment("separate", reason=_difference(teacher, student, text))
    if np.array_equal(ids, np.arange(len(ids))) and _size(teacher) == _size(student):
        return Alignment("same")
    return Alignment("mapped", ids)


def unlike(teacher: Encoder, student: Encoder, alignment: Alignment, texts: Sequence[Text]) -> int:
    """How many texts an aligned teacher sees in other tokens than its own tokenizer makes of them.

    Args:
        alignment: as `align` found on a sample; 0 for `separate`, whose teacher reads the texts itself.
    """
    if alignment.kind == "separate":
        return 0
    ours, theirs = student.encode(texts), teacher.encode(texts)
    read = ours.ids if alignment.ids is None else alignment.ids[ours.ids]
    even = ours.lengths == theirs.lengths
    apart = read[np.repeat(even, ours.lengths)] != theirs.ids[np.repeat(even, theirs.lengths)]
    rows = np.repeat(np.flatnonzero(even), ours.lengths[even])
    return int((~even).sum()) + len(np.unique(rows[apart]))


def token_map(teacher: Encoder, student: Encoder) -> NDArray[np.int64]:
    """The teacher's id of each of the student's tokens, its unknown token (else its padding) where it has none."""
    known = teacher.tokenizer.get_vocab(with_added_tokens=True)
    spare = teacher.pad_id if teacher.unknown_id is None else teacher.unknown_id
    ids = np.full(_size(student), spare, dtype=np.int64)
    for token, number in student.tokenizer.get_vocab(with_added_tokens=True).items():
        ids[number] = known.get(token, spare)
    roles = [
        (student.pad_id, teacher.pad_id),
        (student.mask_id, teacher.mask_id),
        (student.unknown_id, teacher.unknown_id),
        *_frames(teacher, student),
    ]
    for own, other in roles:
        if own is not None and other is not None:
            ids[own] = other
    return ids


def _frames(teacher: Encoder, student: Encoder) -> list[tuple[int, int]]:
    """What both put around a text, place by place; nothing where they put unequally many."""
    ours, theirs = student.encode([""]).row(0).tolist(), teacher.encode([""]).row(0).tolist()
    return list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []


def _size(encoder: Encoder) -> int:
    """One more than the largest id."""
    return max(encoder.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _difference(teacher: Encoder, student: Encoder, text: Text) -> str:
    """Why two tokenizers do not align, from the first text that shows it."""
    return (
        f"the tokenizers differ: of {text!r:.60} the teacher makes {_spelled(teacher, text)}, the student "
        f"{_spelled(student, text)}"
    )


def _spelled(encoder: Encoder, text: Text) -> str:
    tokens = [str(encoder.tokenizer.id_to_token(int(number))) for number in encoder.encode([text]).row(0)]
    return " ".join(tokens[:TOKENS_SHOWN]) + (" ..." if len(tokens) > TOKENS_SHOWN else "")
