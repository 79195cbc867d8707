"""The rows on which a model answers otherwise than its teacher, the widest apart first, as jsonl for reading."""
# N rows, C classes

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.fidelity import divergence

MOST = 200
"""Rows kept; nobody reads more."""


def disagreements(
    texts: Sequence[Text],
    references: Sequence[int | None],
    labels: Sequence[str],
    *,
    teacher: np.ndarray,
    subject: np.ndarray,
    most: int = MOST,
) -> list[dict[str, Any]]:
    """The rows with different answers, by falling KL(teacher || subject), at most `most`.

    Args:
        texts: N of them, or pairs.
        references: class ids of the rows, None where unlabelled.
        labels: class names in the order of their ids.
        teacher: logits, shape (N, C).
        subject: logits, same shape.
    Returns: `{row, text, label, teacher: {label, scores}, subject: {label, scores}, kl}`; row counts from 0, label is
        the row's own or null, scores are probabilities by class, kl is in nats.
    Raises: InputError when the rows or the classes differ in number.
    """
    apart = divergence(teacher, subject)
    if not len(texts) == len(references) == len(apart) or teacher.shape[-1] != len(labels):
        raise InputError(
            f"texts, labels and answers are of the same rows and classes (got {len(texts)} texts, {len(references)} "
            f"labels, answers of shape {teacher.shape} for {len(labels)} classes)"
        )
    differ = np.flatnonzero(teacher.argmax(-1) != subject.argmax(-1))
    worst = differ[np.argsort(-apart[differ], kind="stable")][:most]
    return [
        {
            "row": int(row),
            "text": texts[row] if isinstance(texts[row], str) else list(texts[row]),
            "label": None if (own := references[row]) is None else labels[own],
            "teacher": _answer(teacher[row], labels),
            "subject": _answer(subject[row], labels),
            "kl": round(float(apart[row]), 6),
        }
        for row in worst
    ]


def write_disagreements(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The path, holding one JSON object a line; an empty file where the models agree everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _answer(logits: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Label and probabilities, as predict.py writes them."""
    shares = special.softmax(np.asarray(logits, dtype=np.float64))
    named = {label: round(float(share), 6) for label, share in zip(labels, shares, strict=True)}
    return {"label": labels[int(shares.argmax())], "scores": named}
