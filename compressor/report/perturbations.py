"""What small changes of the texts do to subjects of a report: each is asked again where its tokens change."""
# N rows, C classes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from compressor.data.encode import Encoded
from compressor.data.rows import Text
from compressor.errors import InputError
from compressor.evaluate.perturb import draw_rows, perturbed
from compressor.report.accuracy import Known
from compressor.report.model import Figure, Perturbed, Report
from compressor.report.subjects import Subject
from compressor.stage import Progress, silent


def with_perturbations(
    report: Report,
    subjects: Sequence[Subject],
    texts: Sequence[Text],
    known: Known,
    *,
    names: Sequence[str],
    threads: int | None = None,
    seed: int = 17,
    progress: Progress = silent,
) -> Report:
    """The report with what small changes of the texts do to the subjects called `names`, on onnxruntime.

    Args:
        report: whose rows are filled.
        subjects: with logits on `texts`.
        texts: the scored rows; at most 500 labelled ones are changed, drawn by `seed`.
        known: their class ids.
        names: subjects to ask; a model answers anew only where the change reaches its tokens.
        threads: of each model.
        seed: draws rows and typos.
        progress: called before each subject.
    Raises: InputError for a name that is no subject with answers.
    """
    here = {one.name: one for one in subjects if one.engine == "onnxruntime" and one.logits is not None}
    found: dict[str, tuple[Perturbed, ...]] = {}
    for number, name in enumerate(names):
        if name not in here:
            raise InputError(f"no answers of {name!r} to change the texts of; there are {', '.join(here)}")
        progress("changed texts", number, len(names))
        found[name] = perturb(here[name], texts, known, threads=threads, seed=seed)
    progress("changed texts", len(names), len(names))
    rows = tuple(
        row.model_copy(update={"perturbed": found[row.name]})
        if row.engine == "onnxruntime" and row.name in found
        else row
        for row in report.subjects
    )
    return report.model_copy(update={"subjects": rows})


def perturb(
    subject: Subject, texts: Sequence[Text], known: Known, *, threads: int | None = None, seed: int = 17
) -> tuple[Perturbed, ...]:
    """What small changes do to one subject, which has logits on `texts`; empty where no row is labelled."""
    from compressor.runtime.predictor import load

    labelled = np.array([row for row, label in enumerate(known.references) if label is not None], dtype=np.int64)
    if not len(labelled):
        return ()
    rows = labelled[draw_rows(len(labelled), seed=seed)]
    taken, logits = [texts[row] for row in rows], np.asarray(subject.logits)[rows]
    predictor = load(subject.folder, engine=subject.engine, threads=threads, spinning=False)
    changes = perturbed(
        remembering(predictor.encoder.encode, predictor.logits, taken, logits),
        taken,
        logits.argmax(-1),
        np.array([known.references[row] for row in rows], dtype=np.int64),
        known.labels,
        metric=known.metric,
        seed=seed,
    )
    return tuple(
        Perturbed(
            what=change.what,
            score=Figure(value=change.score.value, low=change.score.low, high=change.score.high),
            drop=Figure(**asdict(change.drop)),
            agreement=change.agreement,
            rows=change.score.rows,
        )
        for change in changes
    )


def remembering(
    encode: Callable[[Sequence[Text]], Encoded],
    ask: Callable[[list[Text]], np.ndarray],
    texts: Sequence[Text],
    logits: np.ndarray,
) -> Callable[[list[Text]], np.ndarray]:
    """`ask`, asked only for texts whose tokens no earlier text had; an uncased model is not asked for capitals.

    Args:
        encode: texts to tokens. ask: texts to logits, shape (texts, C).
        texts: those answered already. logits: their answers, shape (N, C).
    """
    known = dict(zip(_token_keys(encode(texts)), logits, strict=True))

    def answer(asked: list[Text]) -> np.ndarray:
        keys = _token_keys(encode(asked))
        new = {key: text for key, text in zip(keys, asked, strict=True) if key not in known}
        if new:
            known.update(zip(new, ask(list(new.values())), strict=True))
        return np.stack([known[key] for key in keys])

    return answer


def _token_keys(encoded: Encoded) -> list[bytes]:
    """What tells rows apart: ids and segments."""
    return [encoded.row(row).tobytes() + encoded.row_types(row).tobytes() for row in range(len(encoded))]
