"""How an INT8 graph answers beside the fp32 model it was made from, on the rows of `select`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from compressor.data.rows import Text, open_data
from compressor.errors import StageError
from compressor.evaluate.metrics import confusion, metric_function
from compressor.export.folder import deploy
from compressor.export.parity import margins
from compressor.model.manifest import Manifest
from compressor.quantize.products import scaled_by_batch
from compressor.runtime.engine import Logits, Opening
from compressor.runtime.predictor import MODEL_FILE, open_predictor
from compressor.stage import Outcome

COMPARED_ROWS = 1000
"""Rows of `select` on which INT8 and fp32 are compared, at most."""
LEAST_AGREEMENT = 0.8
"""Below this share of equal decisions, among rows that fp32 is sure of, the file is taken for broken."""
SURE_MARGIN = 0.2
"""Fp32 is sure of a row when its first two logits are at least this far apart (5 points of probability)."""
FEWEST_SURE_ROWS = 10
"""With fewer such rows a scheme is not called broken: an untrained model is sure of nothing."""


@dataclass(frozen=True)
class Trial:
    """How one INT8 model answers beside fp32."""

    agreement: float
    """Share of rows with the same first class as fp32."""
    largest_difference: float
    """Largest difference of a logit."""
    mean_difference: float
    """Mean absolute difference of a logit."""
    flips: int
    """Rows decided otherwise than by fp32."""
    drop: float | None
    """Fall of the task's score beside fp32, as a fraction; below 0 where it rose; None without labelled rows."""
    rows: int
    passed: bool | None
    """Whether it keeps what was asked; None where nothing was."""
    because: str
    """Why it did not pass; empty where it did or nothing was asked."""


@dataclass(frozen=True)
class Limits:
    """What an INT8 model must keep where no gate says it."""

    drop: float | None = None
    """Largest fall of the task's score, as a fraction."""
    agreement: float = 0.0
    """Least share of rows decided as fp32 does."""

    def broken(self, trial: Trial) -> str:
        """What of a trial is beyond the limits, in words; empty where nothing is."""
        found = []
        if self.drop is not None and trial.drop is not None and trial.drop > self.drop + 1e-9:
            found.append(f"loses {trial.drop * 100:.2f} pp on select, over {self.drop * 100:g} pp")
        if trial.agreement < self.agreement:
            found.append(f"decides as fp32 on {trial.agreement:.1%} of rows, below {self.agreement:.1%}")
        return " and ".join(found)


class Trials:
    """Writes graphs as folders to deploy and compares their answers with those of fp32."""

    def __init__(
        self,
        source: Path,
        *,
        data: Any,
        manifest: Manifest,
        work: Path,
        precise: bool,
        accept: Callable[[Path], Outcome] | None,
        limits: Limits | None = None,
        smoke: bool,
    ) -> None:
        """Ask the fp32 model once.

        Args:
            source: fp32 folder with model.onnx.
            manifest: what is written beside an INT8 model.
            work: where folders are made.
            precise: sums without saturating, as the processor that the model is for does and this one does not.
            accept: the gate; None where there is none.
            limits: what decides where there is no gate; None refuses nothing.
            smoke: random weights: nothing is refused.
        """
        opened = open_data(data)
        rows = opened.select
        self.texts: list[Text] = list(rows.texts[:COMPARED_ROWS])
        self.classes = list(rows.labels[:COMPARED_ROWS])
        self.labels = opened.labels
        self.metric = opened.task.metric
        self.source = source
        self.manifest = manifest
        self.work = work
        self.precise = precise
        self.accept = accept
        self.limits = limits
        self.smoke = smoke
        self.reference = answers(source, self.texts, precise=precise)

    def write(self, name: str, graph: ModelProto) -> Path:
        """The folder `name` with the graph and what a deployed model needs."""
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(graph.SerializeToString(deterministic=True))
        manifest = replace(self.manifest, rows_alone=scaled_by_batch(graph))
        return deploy(folder / MODEL_FILE, self.source, folder, manifest=manifest)

    def seen(self, folder: Path, *, what: str) -> Trial:
        """How a folder of `write` answers, without a verdict.

        Raises: StageError, naming `what`, where the answers have little to do with those of fp32.
        """
        found = answers(folder, self.texts, precise=self.precise)
        if not self.smoke:
            require_related(self.reference, found, what=what)
        return self.beside(found)

    def judged(self, folder: Path, *, what: str) -> Trial:
        """As `seen`, with a verdict: the gate's, without one that of the limits, without either none."""
        trial = self.seen(folder, what=what)
        if self.accept is not None:
            outcome = self.accept(folder)
            return replace(trial, passed=outcome.passed, because="" if outcome.passed else outcome.because)
        if self.limits is None or self.smoke:
            return trial
        because = self.limits.broken(trial)
        return replace(trial, passed=not because, because=because)

    def beside(self, found: Logits) -> Trial:
        """Answers of shape (rows, classes) beside those of fp32."""
        gaps = np.abs(self.reference - found)
        same = agreement(self.reference, found)
        return Trial(
            agreement=same,
            largest_difference=float(gaps.max(initial=0.0)),
            mean_difference=float(gaps.mean()) if gaps.size else 0.0,
            flips=round(len(found) * (1 - same)),
            drop=self._drop(found),
            rows=len(found),
            passed=None,
            because="",
        )

    def _drop(self, found: Logits) -> float | None:
        rows = [row for row, label in enumerate(self.classes) if label is not None]
        if not rows:
            return None
        function, true = metric_function(self.metric, self.labels), np.array([self.classes[row] for row in rows])
        before, after = (
            float(function(confusion(true, logits[rows].argmax(axis=1), len(self.labels))))
            for logits in (self.reference, found)
        )
        return before - after


def answers(folder: Path, texts: Sequence[Text], *, precise: bool) -> Logits:
    """Logits of a folder with model.onnx, as `load` gives them, with or without saturating sums."""
    return open_predictor(folder, "onnxruntime", Opening(spinning=False, precise=precise)).logits(texts)


def agreement(reference: Logits, answers: Logits) -> float:
    """Share of rows whose first class is the same; 1.0 for no rows."""
    if not len(reference):
        return 1.0
    return float((reference.argmax(axis=1) == answers.argmax(axis=1)).mean())


def require_related(reference: Logits, answers: Logits, *, what: str) -> None:
    """Nothing, unless the answers disagree where the reference is sure: then StageError."""
    sure = margins(reference) >= SURE_MARGIN
    share = agreement(reference[sure], answers[sure])
    if not np.isfinite(answers).all() or (sure.sum() >= FEWEST_SURE_ROWS and share < LEAST_AGREEMENT):
        raise StageError(
            f"{what} decides as fp32 on {share:.0%} of {int(sure.sum())} rows that fp32 is sure of (at least "
            f"{LEAST_AGREEMENT:.0%} is expected): the INT8 model is broken; ship the fp32 export instead, or try "
            "reduce_range=True"
        )
