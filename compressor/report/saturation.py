"""The deployed INT8 file where sums of products saturate, beside exact sums: what it would answer on other processors.

x86 without VNNI adds two u8 x s8 products in 16 bits, which saturates where weights use all 8 bits; VNNI, AMX and Arm
add in 32 bits. onnxruntime does both on a processor without VNNI (session.x64quantprecision).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from compressor.data.rows import DataSets, Text
from compressor.device import EXACT_SUMS, cpu_isa, has_vnni
from compressor.evaluate.metrics import score
from compressor.evaluate.paired import agreement, drop, score_interval
from compressor.model.manifest import Manifest, read_manifest
from compressor.report.compare import scored_rows
from compressor.report.model import Figure, MetricFigure, Report, Saturation
from compressor.report.subjects import Subject
from compressor.report.table import deployed, points
from compressor.runtime.engine import Opening
from compressor.runtime.predictor import open_predictor
from compressor.stage import Progress, silent

MOST_ROWS = 1000
"""Rows that are asked once more, at most."""
X86 = ("x86_64", "AMD64", "x86", "i686")


def with_saturation(
    report: Report,
    subjects: Sequence[Subject],
    data: DataSets,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> Report:
    """The report with the sums of the deployed model, and a doubt where they change its score; as it was for fp32.

    Args:
        report: names the deployed model.
        subjects: with logits on the scored rows of `data`.
        threads: of the model that is asked once more.
        progress: called before and after.
    """
    row = deployed(report)
    here = {one.name: one for one in subjects if one.engine == "onnxruntime" and one.logits is not None}
    subject = None if row is None else here.get(row.name)
    if subject is None:
        return report
    manifest = read_manifest(subject.folder)
    if manifest.precision != "int8":
        return report
    found = not_measured(manifest.isa) or measured(
        subject, manifest, data, metric=str(report.task["metric"]), threads=threads, progress=progress
    )
    return report.model_copy(update={"saturation": found, "doubts": (*report.doubts, *doubts(found))})


def not_measured(isa: str | None) -> Saturation | None:
    """Why saturating sums cannot be had on this processor; None where they can."""
    if platform.machine() not in X86:
        reason = "this processor is no x86, whose sums alone saturate"
    elif has_vnni():
        reason = f"this CPU sums exactly ({cpu_isa()})"
    else:
        return None
    return Saturation(status="not measured", reason=reason, isa=isa)


def measured(
    subject: Subject, manifest: Manifest, data: DataSets, *, metric: str, threads: int | None, progress: Progress
) -> Saturation:
    """Both sums on the scored rows, of which the subject's own answers are the one that its file is served with."""
    texts, references, _ = scored_rows(data)
    count = min(len(texts), MOST_ROWS)
    places = np.linspace(0, len(texts) - 1, count).round().astype(int)
    served_exactly = manifest.isa in EXACT_SUMS
    known = np.asarray(subject.logits)[places]
    progress("INT8 sums", 0, count)
    other = asked(subject.folder, [texts[place] for place in places], precise=not served_exactly, threads=threads)
    progress("INT8 sums", count, count)
    exact, saturating = (known, other) if served_exactly else (other, known)
    labelled = [number for number, place in enumerate(places) if references[place] is not None]
    ids = np.array([references[places[number]] for number in labelled], dtype=np.int64)
    answers = exact.argmax(-1), saturating.argmax(-1)
    figures = [_figure(metric, each[labelled], ids, data.labels) for each in answers] if labelled else [None, None]
    fall = drop(metric, answers[0][labelled], answers[1][labelled], ids, data.labels) if labelled else None
    return Saturation(
        status="measured",
        isa=manifest.isa,
        rows=count,
        exact=figures[0],
        saturating=figures[1],
        drop=None if fall is None else Figure(value=fall.value, low=fall.low, high=fall.high),
        agreement=agreement(*answers),
        largest_difference=float(np.abs(exact - saturating).max(initial=0.0)),
    )


def asked(folder: Path, texts: list[Text], *, precise: bool, threads: int | None) -> np.ndarray:
    """Logits of a folder's model.onnx, shape (rows, classes), with exact sums (`precise`) or this processor's own."""
    opening = Opening(threads=threads, spinning=False, precise=precise)
    return open_predictor(folder, "onnxruntime", opening).logits(texts)


def _figure(metric: str, predictions: np.ndarray, ids: np.ndarray, labels: Sequence[str]) -> MetricFigure:
    found = asdict(score_interval(metric, predictions, ids, labels))
    return MetricFigure(**{**found, "value": score(metric, predictions, ids, labels)}, name=metric)


def doubts(found: Saturation) -> list[str]:
    """A sentence where the score depends on how sums are taken."""
    if found.drop is None or found.exact is None or found.saturating is None or found.drop.value == 0.0:
        return []
    made_for = f" (it was made for {found.isa})" if found.isa else ""
    return [
        f"The deployed INT8 file{made_for} scores {100 * found.exact.value:.1f} % with exact sums and "
        f"{100 * found.saturating.value:.1f} % with saturating ones on {found.rows:,} rows, and gives the same answer "
        f"to {100 * (found.agreement or 0):.1f} %: its score depends on the processor (drop {points(found.drop)} pp)."
    ]
