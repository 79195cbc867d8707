"""Answers kept with a report or a model, by which runs are compared row by row and models are checked later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.machine import versions
from compressor.device import machine_id
from compressor.errors import InputError
from compressor.model.manifest import MANIFEST_NAME, read_manifest
from compressor.report.sentences import SENTENCES
from compressor.report.subjects import Subject

ANSWERS_NAME = "answers.npz"
GOLDEN_NAME = "golden.json"
VERSIONS = ("onnxruntime", "tokenizers", "numpy")
"""Libraries that decide how a model's answers are rounded."""
UNLABELLED = -1
WRITTEN_LATER = ("verdict", "stage", "recipe", "version", "temperature", "files", "engine", "digest_scheme")
"""Keys of compressor.json that are written after golden.json, so that it cannot tell whether they changed."""


@dataclass(frozen=True)
class Kept:
    """Answers of every subject of a report on its scored rows."""

    part: str
    """`test` or `select`."""
    rows: str
    """Digest of the rows, as Rows.digest gives it."""
    labels: tuple[str, ...]
    references: np.ndarray
    """The rows' own class ids, shape (rows,), -1 where unlabelled."""
    logits: Mapping[str, np.ndarray]
    """Key of a subject to its logits, shape (rows, classes)."""


@dataclass(frozen=True)
class Golden:
    """What a model answered when it was made, on sentences of our own."""

    machine: str
    """Id of the machine, as bench.machine gives it."""
    versions: Mapping[str, str]
    texts: tuple[str | tuple[str, str], ...]
    logits: np.ndarray
    """Shape (rows, classes)."""
    answers: tuple[str, ...] | None = None
    """Label of each row, as `load(folder).predict` gave it; None where an older version wrote the file."""
    manifest: str | None = None
    """`manifest_digest` of the day; None where an older version wrote the file."""


def keep_answers(
    folder: Path,
    subjects: Sequence[Subject],
    references: Sequence[int | None],
    labels: Sequence[str],
    *,
    rows: str,
    part: str,
) -> Path:
    """`folder / answers.npz` with the logits of every scored subject; a few bytes a row and class."""
    found = {one.key: one.logits for one in subjects if one.logits is not None}
    about = {"schema": 1, "part": part, "rows": rows, "labels": list(labels), "subjects": list(found)}
    ids = np.array([UNLABELLED if one is None else one for one in references], dtype=np.int64)
    arrays = {f"logits_{place}": np.asarray(one, dtype=np.float32) for place, one in enumerate(found.values())}
    path = folder / ANSWERS_NAME
    partial = folder / f"partial-{ANSWERS_NAME}"
    np.savez(partial, about=np.array(json.dumps(about)), references=ids, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
    return path


def read_answers(folder: Path) -> Kept | None:
    """What `keep_answers` wrote; None where nothing was kept. InputError for a file that is not whole."""
    path = folder / ANSWERS_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            about = json.loads(str(kept["about"]))
            logits = {name: kept[f"logits_{place}"] for place, name in enumerate(about["subjects"])}
            return Kept(about["part"], about["rows"], tuple(about["labels"]), kept["references"], logits)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {error}; run the recipe again to write it") from error


def write_golden(folder: Path) -> Path:
    """`golden.json` in a model folder: what it answers to our own sentences, here and now."""
    texts, logits = golden_answers(folder)
    labels = read_manifest(folder).labels
    content = {
        "schema": 1,
        "machine": machine_id(),
        "versions": versions(VERSIONS),
        "manifest": manifest_digest(folder),
        "rows": [
            {"text": text, "label": labels[int(row.argmax())], "logits": [float(one) for one in row]}
            for text, row in zip(texts, logits, strict=True)
        ],
    }
    path = folder / GOLDEN_NAME
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_golden(folder: Path) -> Golden | None:
    """What `write_golden` wrote; None where it is not there. InputError for a file that is not whole."""
    path = folder / GOLDEN_NAME
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = content["rows"]
        texts = tuple(tuple(row["text"]) if isinstance(row["text"], list) else row["text"] for row in rows)
        logits = np.array([row["logits"] for row in rows], dtype=np.float32)
        answers = tuple(str(row["label"]) for row in rows) if all("label" in row for row in rows) else None
        return Golden(content["machine"], content["versions"], texts, logits, answers, content.get("manifest"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}; deploy the model again") from error


def golden_answers(
    folder: Path, texts: Sequence[str | tuple[str, str]] | None = None
) -> tuple[list[str | tuple[str, str]], np.ndarray]:
    """Texts, our own sentences unless given, and the model's logits on them, shape (rows, classes)."""
    from compressor.runtime.predictor import load

    if texts is None:
        pairs = len(read_manifest(folder).text) == 2
        texts = [(text, text) if pairs else text for text in SENTENCES]
    return list(texts), np.asarray(load(folder, spinning=False).logits(list(texts)), dtype=np.float32)


def manifest_digest(folder: Path) -> str | None:
    """SHA-256 over what compressor.json says but for the keys of WRITTEN_LATER; None where it is no JSON object."""
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    said = {key: value for key, value in content.items() if key not in WRITTEN_LATER}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Name to SHA-256 of every file below a model folder but compressor.json, which holds these."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    found = {}
    for path in files:
        with path.open("rb") as stream:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
