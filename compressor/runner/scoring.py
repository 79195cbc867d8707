"""Answers of each stage's model on `select` and `test`, all by onnxruntime, kept beside the stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.data.rows import DataSets, Rows
from compressor.model.digest import model_digest
from compressor.model.manifest import read_manifest
from compressor.runner.keys import digest, library_versions
from compressor.stage import Gate, Outcome, Progress

if TYPE_CHECKING:
    import numpy as np


def onnx_folder(stage_folder: Path, *, data: DataSets, progress: Progress) -> Path:
    """Folder with the stage's model.onnx; the fp32 export of torch weights is made when first asked for."""
    if (stage_folder / "model" / "model.onnx").is_file():
        return stage_folder / "model"
    folder = stage_folder / "onnx"
    if not (folder / "model.onnx").is_file():
        _export(stage_folder / "model", folder, data=data, progress=progress)
    return folder


def answers(
    stage_folder: Path, part: str, *, data: DataSets, threads: int, progress: Progress, store: Path | None = None
) -> np.ndarray:
    """Logits of a stage's model on `select` or `test`, shape (rows, classes), fp32.

    They are kept by the digests of model and rows, so that one file is asked once.

    Args:
        store: where they are kept; `answers/` of the run that the folder is a stage of unless given.
    """
    import numpy as np

    rows: Rows = getattr(data, part)
    folder = onnx_folder(stage_folder, data=data, progress=progress)
    store = stage_folder.parent.parent / "answers" if store is None else store
    read_as = [model_digest(folder), read_manifest(folder).max_tokens, rows.digest(), threads, library_versions()]
    kept = store / f"{digest(read_as)[:32]}.npy"
    if kept.is_file():
        return np.asarray(np.load(kept), dtype=np.float32)
    progress(f"score on {part}", 0, len(rows))
    logits = _logits(folder, rows, threads)
    progress(f"score on {part}", len(rows), len(rows))
    store.mkdir(exist_ok=True)
    partial = kept.with_suffix(".partial.npy")
    np.save(partial, logits)
    partial.replace(kept)
    return logits


def gate_outcome(
    gate: Gate, stage_folder: Path, *, against: Mapping[str, Path], data: DataSets, threads: int, progress: Progress
) -> Outcome:
    """How a stage's own gate ends on its model's answers to `select`.

    Args:
        against: metric of each drop limit to the folder of the stage it is compared with.
    """
    return _judged(
        gate,
        answers(stage_folder, "select", data=data, threads=threads, progress=progress),
        against,
        data=data,
        threads=threads,
        progress=progress,
    )


def gate_judge(
    gate: Gate,
    *,
    against: Mapping[str, Path],
    data: DataSets,
    threads: int,
    progress: Progress,
    work: Path,
) -> Callable[[Path], Outcome]:
    """A function that exports a model folder, scores it on `select` and holds it against the gate.

    Args:
        against: metric of each drop limit to the folder of the stage it is compared with.
        work: where exports of candidates are made; each is removed once judged.
    """

    def judged(model: Path) -> Outcome:
        if (model / "model.onnx").is_file():
            logits = _logits(model, data.select, threads)
        else:
            folder = work / f"candidate-{model_digest(model)[:16]}"
            _export(model, folder, data=data, progress=progress)
            logits = _logits(folder, data.select, threads)
            shutil.rmtree(folder)
        return _judged(gate, logits, against, data=data, threads=threads, progress=progress)

    return judged


def _judged(
    gate: Gate,
    logits: np.ndarray,
    against: Mapping[str, Path],
    *,
    data: DataSets,
    threads: int,
    progress: Progress,
) -> Outcome:
    from compressor.evaluate.gates import judge

    compared = {
        metric: answers(folder, "select", data=data, threads=threads, progress=progress)
        for metric, folder in against.items()
    }
    return judge(gate, logits, compared, data.select.labels, data.labels)


def class_ids(rows: Rows) -> np.ndarray:
    """The rows' own class ids, shape (rows,); every row of `select` and `test` has one."""
    import numpy as np

    return np.array(rows.labels, dtype=np.int64)


def _export(model: Path, out: Path, *, data: DataSets, progress: Progress) -> None:
    from compressor.export.exporter import Exporter

    shutil.rmtree(out, ignore_errors=True)
    Exporter(model, data=data, progress=progress).export(out)


def _logits(folder: Path, rows: Rows, threads: int) -> np.ndarray:
    from compressor.runtime.predictor import load

    predictor = load(folder, engine="onnxruntime", threads=threads, spinning=False)
    return predictor.logits(list(rows.texts))
