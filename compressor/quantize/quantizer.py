"""A model as INT8 ONNX: schemes are tried in order, compared with the fp32 model on real rows, and one is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from compressor.data.rows import Text, open_data
from compressor.device import has_vnni
from compressor.errors import InputError, StageError
from compressor.export.exporter import Exporter
from compressor.export.folder import deploy
from compressor.export.parity import margins
from compressor.model.manifest import read_manifest
from compressor.quantize.schemes import SCHEMES, integer_products
from compressor.quantize.settings import Choice, Scheme
from compressor.runtime.onnx import Logits
from compressor.runtime.predictor import MODEL_FILE, find_engine, load
from compressor.stage import Decision, Outcome, Progress, silent

COMPARED_ROWS = 1000
"""Rows of `select` on which INT8 and fp32 are compared, at most."""
LEAST_AGREEMENT = 0.8
"""Below this share of equal decisions, among rows that fp32 is sure of, the file is taken for broken."""
SURE_MARGIN = 0.2
"""Fp32 is sure of a row when its first two logits are at least this far apart (5 points of probability)."""
FEWEST_SURE_ROWS = 10
"""With fewer such rows a scheme is not called broken: an untrained model is sure of nothing."""


@dataclass(frozen=True)
class Candidate:
    """One scheme's file and how it answers beside fp32."""

    scheme: Scheme
    agreement: float
    """Share of rows with the same first class as fp32."""
    largest_difference: float
    """Largest difference of a logit."""
    rows: int
    bytes: int
    integer_products: int
    """Operators of the graph that multiply in INT8."""
    reduce_range: bool
    passed: bool | None
    """Whether it passed the gate; None without one."""


class Quantizer:
    """A model folder, written as INT8 ONNX."""

    def __init__(
        self,
        model: str | Path,
        *,
        data: Any,
        try_: Sequence[Scheme] = ("dynamic",),
        choose: Choice = "most_accurate",
        reduce_range: bool | None = None,
        seed: int = 17,
        smoke: bool = False,
        progress: Progress = silent,
        decide: Callable[[Decision], None] | None = None,
    ) -> None:
        """Take an fp32 model folder, with safetensors or model.onnx.

        Args:
            data: DataSets, or settings of the recipe's `data`; answers are compared on `select`.
            try_: schemes in the order they are tried.
            choose: which of those that pass is kept.
            reduce_range: 7-bit weights; None decides by this CPU (True where it has no VNNI).
            seed: accepted so that all stages are called alike; no scheme of today draws random numbers.
            smoke: random weights: a scheme that disagrees with fp32 is kept all the same.
            decide: told which scheme was kept and why.
        Raises: InputError for unknown schemes or choices, none at all, or a model that is INT8 already.
        """
        unknown = [name for name in try_ if name not in SCHEMES]
        if unknown or not try_:
            raise InputError(f"try must list some of {', '.join(SCHEMES)} (got {list(try_)})")
        if choose not in get_args(Choice):
            raise InputError(f"choose must be one of {', '.join(get_args(Choice))} (got {choose!r})")
        self.model = Path(model)
        if read_manifest(self.model).precision == "int8":
            raise InputError(f"{self.model} is INT8 already; quantize the fp32 model it was made from")
        self.data = data
        self.try_ = tuple(try_)
        self.choose = choose
        self.reduce_range = not has_vnni() if reduce_range is None else reduce_range
        self.seed = seed
        self.smoke = smoke
        self.progress = progress
        self.decide = decide

    def fit(
        self, out: str | Path, *, work: Path | None = None, accept: Callable[[Path], Outcome] | None = None
    ) -> Path:
        """The folder `out` with the INT8 model, its tokenizer and predict.py.

        Args:
            work: where fp32 and the candidates are made; removed at the end. None takes a folder beside `out`.
            accept: the gate; where no scheme passes it, `out` holds the fp32 model and the decision says so.
        Raises: StageError when a scheme's answers have little to do with those of fp32.
        """
        out = Path(out)
        if out.exists() and any(out.iterdir()):
            raise StageError(f"{out} is there already and not empty; give another folder or remove it")
        work = (out.parent if work is None else Path(work)) / (out.name + ".quantize")
        if work.exists():
            shutil.rmtree(work)
        texts: list[Text] = list(open_data(self.data).select.texts[:COMPARED_ROWS])
        source = self._fp32(work / "fp32")
        reference = load(source, spinning=False).logits(texts)
        tried = []
        for number, scheme in enumerate(self.try_):
            self.progress("quantize", number, len(self.try_))
            tried.append(self._try(scheme, source, work / scheme, texts=texts, reference=reference, accept=accept))
        self.progress("quantize", len(self.try_), len(self.try_))
        kept = choose(tried, self.choose)
        self._report(kept, tried)
        if out.exists():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        (work / kept.scheme if kept is not None else source).replace(out)
        shutil.rmtree(work)
        return out

    def _fp32(self, folder: Path) -> Path:
        """A folder of ours with the fused fp32 graph."""
        if find_engine(self.model) == "torch":
            return Exporter(self.model, data=self.data, progress=self.progress).export(folder)
        return deploy(self.model / MODEL_FILE, self.model, folder, manifest=read_manifest(self.model))

    def _try(
        self,
        scheme: Scheme,
        source: Path,
        folder: Path,
        *,
        texts: Sequence[Text],
        reference: Logits,
        accept: Callable[[Path], Outcome] | None,
    ) -> Candidate:
        quantized = SCHEMES[scheme](onnx.load(str(source / MODEL_FILE)), reduce_range=self.reduce_range)
        folder.mkdir(parents=True)
        (folder / MODEL_FILE).write_bytes(quantized.SerializeToString(deterministic=True))
        manifest = replace(read_manifest(source), precision="int8")
        deploy(folder / MODEL_FILE, source, folder, manifest=manifest)
        answers = load(folder, spinning=False).logits(texts)
        if not self.smoke:
            require_related(reference, answers, what=f"scheme {scheme} of {self.model}")
        return Candidate(
            scheme=scheme,
            agreement=agreement(reference, answers),
            largest_difference=float(np.abs(reference - answers).max(initial=0.0)),
            rows=len(texts),
            bytes=(folder / MODEL_FILE).stat().st_size,
            integer_products=integer_products(quantized),
            reduce_range=self.reduce_range,
            passed=None if accept is None else accept(folder).passed,
        )

    def _report(self, kept: Candidate | None, tried: Sequence[Candidate]) -> None:
        if self.decide is None:
            return
        bits = "7 bits, as this CPU has no VNNI or the caller asked for it" if self.reduce_range else "8 bits"
        if kept is None:
            chosen, because = "fp32", "no scheme passed the gate, so the model stays in fp32"
        else:
            chosen = kept.scheme
            among = f"{self.choose.replace('_', ' ')} of {len(tried)}" if len(tried) > 1 else "the only scheme to try"
            because = (
                f"{among}; decides as fp32 on {kept.agreement:.1%} of {kept.rows} rows of select, logits differ by up "
                f"to {kept.largest_difference:.2g}; weights in {bits}"
            )
        self.decide(
            Decision(kind="quantize", chosen=chosen, because=because, candidates=[asdict(each) for each in tried])
        )


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


def choose(tried: Sequence[Candidate], choice: Choice) -> Candidate | None:
    """The smallest, or the most accurate, of those that no gate refused; the earlier of equals; None if all failed."""
    passed = [each for each in tried if each.passed is not False]
    if not passed:
        return None
    if choice == "smallest":
        return min(passed, key=lambda each: each.bytes)
    return max(passed, key=lambda each: each.agreement)
