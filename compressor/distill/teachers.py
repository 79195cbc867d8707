"""Opening whoever teaches: classifiers, ONNX models, files of answers, or the names of the classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from compressor.data.encode import Encoder, open_encoder
from compressor.data.rows import DataSets
from compressor.data.settings import Augment
from compressor.data.source_rows import Text
from compressor.device import torch_device
from compressor.distill.answer_files import READERS
from compressor.distill.members import Classifier, Member, NamedClasses, Reader, Written, ask_classifier, ask_onnx
from compressor.distill.settings import TeacherPart
from compressor.distill.together import Teachers, teachers_of
from compressor.distill.tokens import Alignment, align, unlike
from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.model.encoders import has_head, load_model
from compressor.model.graph_file import MODEL_FILE, model_file
from compressor.model.manifest import config_labels, read_config
from compressor.runtime.onnx import OnnxEngine
from compressor.runtime.predictor import load
from compressor.sources.digest import file_digest
from compressor.sources.models import resolve_model
from compressor.stage import Decision, Progress, silent

__all__ = ["Teachers", "classifier_folder", "near_chance", "open_teachers", "teachers_of"]

PROBE_ROWS = 512
"""Rows on which two tokenizers are compared."""
COMPARED_ROWS = 20_000
"""Most rows on which those that two aligned tokenizers read differently are counted."""
CHANCE_ROWS, CHANCE_LEVEL = 200, 0.05
"""Fewest rows on which answers can be called chance, and the p-value from which on they are."""


@dataclass(frozen=True)
class _Desk:
    """What opening any of the teachers needs."""

    data: DataSets
    encoder: Encoder
    """The student's."""
    augment: Augment
    base: Path
    device: torch.device
    progress: Progress
    decide: Callable[[Decision], None]
    probe: tuple[Text, ...]
    """Rows on which tokenizers are compared."""


@dataclass(frozen=True)
class _Opened:
    """A member, and what else is known of it."""

    member: Member
    digest: str
    model: PreTrainedModel | None = None
    """Of a torch classifier."""
    alignment: Alignment | None = None


def open_teachers(
    parts: Sequence[tuple[TeacherPart, Path | None]],
    *,
    combine: str = "mean",
    data: DataSets,
    encoder: Encoder,
    terms: Sequence[str] = (),
    augment: Augment | None = None,
    base: Path,
    device: str = "cpu",
    progress: Progress = silent,
    decide: Callable[[Decision], None] | None = None,
) -> Teachers:
    """All teachers, ready to answer in the order of `data.labels`.

    Args:
        parts: each with the folder of its model; None for files and class names.
        combine: `mean` of the probabilities by weight, or the row's `most_confident` teacher.
        data: the rows that will be asked about.
        encoder: the student's tokenizer.
        terms: names of the terms that match hidden states, attention, relations or embeddings.
        augment: changes to the rows, which every teacher must be able to see.
        base: folder that relative paths of files and of the encoder for class names start from.
        device: `cpu` or `gpu`.
        decide: told how a teacher reads the rows where that is not as the student does.
    Raises: InputError for a teacher of other classes, files that fit no row, terms that need states no teacher here
        can give, and changes that a teacher cannot see.
    """
    if not parts:
        raise InputError("distill.teacher needs at least one teacher (got none)")
    _check_weights(parts, combine)
    place = torch_device(device)
    change = augment if augment is not None else Augment()
    told = decide if decide is not None else _nothing
    desk = _Desk(data, encoder, change, base, place, progress, told, _probe(data))
    opened = [_OPENERS[kind](part, folder, desk) for part, folder in parts for kind in (_kind(part),)]
    members = tuple(each.member for each in opened)
    states = next((member for member in members if isinstance(member, Classifier)), None)
    if terms and states is None:
        raise InputError(_no_states(terms, opened))
    return Teachers(
        members,
        len(data.labels),
        combine,
        states,
        next((each.model for each in opened if each.model is not None), None),
        (data.train, data.unlabelled),
        _digest(
            combine, [[each.digest, each.member.weight] for each in opened], data.train.digest(),
            data.unlabelled.digest(), data.labels, data.max_tokens, encoder.tokenizer.to_str(), torch.__version__,
        ),
        "one model" if len(members) == 1 else f"{len(members)} teachers",
        place,
    )  # fmt: skip


def classifier_folder(parts: Sequence[tuple[TeacherPart, Path | None]]) -> Path | None:
    """Folder of the first torch classifier, whose tokenizer and layers a student takes; None where there is none."""
    folders = (folder for _, folder in parts if folder is not None)
    return next((folder for folder in folders if any(folder.glob("*.safetensors"))), None)


def near_chance(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> str | None:
    """A sentence where the teacher's first classes do not follow the labels; None where they do, or rows are few.

    A chi-square test of independence (scipy.stats.chi2_contingency without correction) over the rows that have both;
    p above 0.05 on 200 rows or more is chance. Answers that follow the labels backwards (Cohen's kappa below 0) are
    told as well: the classes are then mixed up.

    Args:
        logits: shape (N, C), NaN rows where the teacher said nothing.
        targets: shape (N,), class ids, negative where unlabelled.
    """
    from scipy.stats import chi2_contingency

    both = (targets >= 0) & np.isfinite(logits).all(1)
    if both.sum() < CHANCE_ROWS:
        return None
    answers, labels = logits[both].argmax(1), targets[both]
    table = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(table, (answers, labels), 1)
    right, count = float(np.trace(table)), len(labels)
    expected = float((table.sum(1) * table.sum(0)).sum()) / count
    said = f"the teacher is right in {right / count:.1%} of {count} rows, and {expected / count:.1%} would be chance"
    table = table[table.any(1)][:, table.any(0)]
    if min(table.shape) < 2:
        return f"{said}: it answers one class alone" if table.shape[0] < 2 else None
    chance = float(chi2_contingency(table, correction=False).pvalue)
    if chance > CHANCE_LEVEL:
        return f"{said}: its answers do not depend on the labels (p = {chance:.2g})"
    if right < expected:
        return f"{said}: its answers follow the labels the wrong way round, so the classes may be mixed up"
    return None


def _open_model(part: TeacherPart, folder: Path | None, desk: _Desk) -> _Opened:
    """A classifier of torch weights, else of ONNX."""
    assert folder is not None, "the folder of a stage or model is resolved by the caller"
    return (_open_torch if any(folder.glob("*.safetensors")) else _open_onnx)(part, folder, desk)


def _open_torch(part: TeacherPart, folder: Path, desk: _Desk) -> _Opened:
    labels = desk.data.labels
    if not has_head(folder):
        raise InputError(
            f"the teacher in {folder} has no trained classifier; fine-tune it on the rows first, or take it by the "
            "names of the classes: teacher: {label_names: {model: ...}}"
        )
    _check_count(folder, config_labels(read_config(folder)), labels)
    model = load_model(folder, labels=labels, make_head=False).requires_grad_(False).to(desk.device)
    encoder, alignment = _aligned(folder, str(folder), desk)
    if alignment.kind == "separate":
        rows = (desk.data.train, desk.data.unlabelled)
        reader = Reader(str(folder), part.weight, ask_classifier(model), encoder, alignment, rows)
        return _Opened(reader, model_digest(folder), model, alignment)
    ids = None if alignment.ids is None else torch.from_numpy(alignment.ids).to(desk.device)
    member = Classifier(str(folder), part.weight, model, ids)
    return _Opened(member, model_digest(folder), model, alignment)


def _open_onnx(part: TeacherPart, folder: Path, desk: _Desk) -> _Opened:
    if model_file(folder) is None:
        raise InputError(f"the teacher in {folder} has neither *.safetensors nor {MODEL_FILE}; give a finished model")
    _refuse_mixup(f"the ONNX teacher in {folder}", desk)
    predictor = load(folder, engine="onnxruntime", spinning=False)
    assert isinstance(predictor.runner, OnnxEngine)
    labels = desk.data.labels
    _check_count(folder, predictor.manifest.labels, labels)
    columns = class_columns(predictor.manifest.labels, labels, where=f"the teacher in {folder}")
    encoder, alignment = _aligned(folder, str(folder), desk)
    ask = ask_onnx(predictor.runner, columns, alone=predictor.rows_per_batch == 1)
    member = Reader(str(folder), part.weight, ask, encoder, alignment, (desk.data.train, desk.data.unlabelled))
    digest = _digest(model_digest(folder), version("onnxruntime"))
    return _Opened(member, digest, alignment=alignment)


def _open_names(part: TeacherPart, _folder: Path | None, desk: _Desk) -> _Opened:
    assert part.label_names is not None
    settings, data = part.label_names, desk.data
    name = f"label_names of {settings.model.path}"
    _refuse_mixup(f"the teacher {name}", desk)
    folder = resolve_model(settings.model, base=desk.base, progress=desk.progress)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{settings.model.path} holds no *.safetensors, which label_names needs; give a torch encoder")
    encoder, alignment = _aligned(folder, name, desk)
    ask = NamedClasses(folder, settings, data.labels, encoder=encoder, device=desk.device)
    member = Reader(name, part.weight, ask, encoder, alignment, (data.train, data.unlabelled))
    said = _digest(model_digest(folder), settings.model_dump(mode="json", exclude={"model"}))
    return _Opened(member, said, alignment=alignment)


def _open_file(part: TeacherPart, _folder: Path | None, desk: _Desk) -> _Opened:
    kind = _kind(part)
    settings = getattr(part, kind)
    name, data = settings.path.path, desk.data
    if desk.augment.changes:
        raise InputError(
            f"mix.augment changes the rows, but {name} holds answers to the rows as they are; leave mix.augment out"
        )
    file = READERS[kind](settings, data, base=desk.base)
    rows = [text for part in (data.train, data.unlabelled, data.select) for text in part.texts]
    matched = len(file.places.keys() & set(rows))
    if not matched:
        raise InputError(
            f"{name}: none of its {len(file.places)} texts is one of the rows, such as {rows[0]!r:.60}; its columns "
            f"{', '.join(data.text_columns)} must hold the texts exactly as the rows do"
        )
    answered = [int(np.isfinite(file.of(part)).all(1).sum()) for part in (data.train, data.unlabelled)]
    desk.decide(
        Decision(
            "teacher answers",
            sum(answered),
            f"rows of train ({answered[0]} of {len(data.train)}) and unlabelled ({answered[1]} of "
            f"{len(data.unlabelled)}) that {name} answers; {len(file.places) - matched} of its texts are no row",
        )
    )
    member = Written(name, part.weight, file, (data.train, data.unlabelled))
    return _Opened(member, _digest(file_digest(file.path), kind, settings.column))


def _aligned(folder: Path, name: str, desk: _Desk) -> tuple[Encoder, Alignment]:
    """A teacher's tokenizer and how it reads the student's tokens; InputError where it cannot see changed rows."""
    encoder = open_encoder(folder, desk.data.max_tokens)
    alignment = align(encoder, desk.encoder, desk.probe)
    if desk.augment.changes and alignment.kind == "separate":
        raise InputError(
            f"mix.augment changes the rows in the student's tokens, which the teacher {name} cannot read: "
            f"{alignment.reason}; leave mix.augment out, or take a teacher with the student's tokenizer"
        )
    if desk.augment.mask and encoder.mask_id is None:
        raise InputError(f"mix.augment.mask needs a mask token, which the teacher {name} lacks; leave it out")
    if alignment.kind != "same":
        how = "in tokens of its own"
        if alignment.kind == "mapped":
            how = f"token by token under ids of its own; {_read_otherwise(encoder, alignment, desk)}"
        desk.decide(Decision("teacher tokens", alignment.kind, f"{name} reads the rows {how}", alignment.reason))
    return encoder, alignment


def _read_otherwise(encoder: Encoder, alignment: Alignment, desk: _Desk) -> str:
    """On how many rows a mapped teacher sees other tokens than its own tokenizer makes, in words."""
    texts = [*desk.data.train.texts, *desk.data.unlabelled.texts]
    if len(texts) > COMPARED_ROWS:
        chosen = np.random.default_rng(0).choice(len(texts), COMPARED_ROWS, replace=False)
        texts = [texts[number] for number in np.sort(chosen)]
    count = unlike(encoder, desk.encoder, alignment, texts)
    return f"in {count} of {len(texts)} rows its own tokenizer makes other tokens"


def class_columns(names: Sequence[str], labels: Sequence[str], *, where: str) -> list[int]:
    """Of each of the rows' classes its place among a teacher's `names`; as they stand where those say nothing.

    >>> class_columns(["good", "Bad"], ["bad", "good"], where="the teacher")
    [1, 0]
    """
    if all(name.startswith("LABEL_") for name in names):
        return list(range(len(labels)))
    known = {name.casefold(): place for place, name in enumerate(names)}
    if known.keys() != {label.casefold() for label in labels}:
        raise InputError(
            f"{where} answers {', '.join(names)}, but the rows' classes are {', '.join(labels)}; name the classes as "
            "the model does (data.labels, label.bins)"
        )
    return [known[label.casefold()] for label in labels]


def _check_count(folder: Path, names: Sequence[str], labels: Sequence[str]) -> None:
    if len(names) != len(labels):
        raise InputError(
            f"the teacher in {folder} answers {len(names)} classes ({', '.join(names)}), the rows have "
            f"{len(labels)} ({', '.join(labels)}); give a teacher of these classes"
        )


def _check_weights(parts: Sequence[tuple[TeacherPart, Path | None]], combine: str) -> None:
    """InputError for weights that would change nothing."""
    weights = [part.weight for part, _ in parts]
    if combine == "most_confident" and set(weights) != {1.0}:
        raise InputError(
            f"distill.teacher: weight applies to combine: mean alone (got {max(weights):g} with most_confident); "
            "leave the weights out"
        )


def _refuse_mixup(who: str, desk: _Desk) -> None:
    if desk.augment.mixup:
        raise InputError(
            f"mix.augment.mixup mixes embeddings, which {who} does not take; leave mixup out, or take a classifier of "
            "torch weights"
        )


def _no_states(terms: Sequence[str], opened: Sequence[_Opened]) -> str:
    """Why the terms cannot be had."""
    reason = next((each.alignment.reason for each in opened if each.model is not None and each.alignment), None)
    why = reason or "none of the teachers is a classifier of torch weights"
    several = len(terms) > 1
    return (
        f"match: {', '.join(terms)} need{'' if several else 's'} the teacher's hidden states, token by token: {why}; "
        f"match logits alone, or take a torch classifier with the student's tokenizer"
    )


def _probe(data: DataSets) -> tuple[Text, ...]:
    """Rows from all over the data."""
    texts: list[Text] = []
    for rows in (data.train, data.unlabelled):
        step = max(1, len(rows) // (PROBE_ROWS // 2))
        texts.extend(rows.texts[::step][: PROBE_ROWS // 2])
    return tuple(texts)


def _kind(part: TeacherPart) -> str:
    return next(kind for kind in _OPENERS if getattr(part, kind) is not None)


def _nothing(_decision: Decision) -> None:
    """Tells nobody."""


def _digest(*parts: object) -> str:
    """SHA-256 (hex) of values that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_OPENERS: dict[str, Callable[[TeacherPart, Path | None, _Desk], _Opened]] = {
    "stage": _open_model,
    "model": _open_model,
    "probabilities": _open_file,
    "votes": _open_file,
    "label_names": _open_names,
}
"""Key of a part to what opens it."""
