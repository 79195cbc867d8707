"""`score`: how a model answers rows that have no labels, beside its teacher, and whether two files are alike."""
# N rows, C classes

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.bench.statistics import Interval
from compressor.data.rows import Text
from compressor.data.settings import Column, Data
from compressor.data.source_rows import read_source
from compressor.data.split import is_empty
from compressor.errors import InputError
from compressor.evaluate.calibration import confidence, expected_accuracy
from compressor.evaluate.fidelity import divergence, mean_interval
from compressor.evaluate.paired import agreement
from compressor.evaluate.proportions import wilson
from compressor.model.manifest import MANIFEST_NAME
from compressor.stage import Progress, settings_of, silent

if TYPE_CHECKING:
    from compressor.data.encoded import Encoded
    from compressor.evaluate.drift import Difference
    from compressor.runtime.predictor import Predictor

FEW_ROWS = 100
"""Fewer rows than this earn a doubt."""
UNKNOWN_SHARE = 0.1
"""A larger share of unknown tokens earns a doubt."""


@dataclass(frozen=True)
class UnlabelledScore:
    """A model beside its teacher on rows without labels; shares in fractions, intervals two-sided 95 %."""

    model: str
    against: str
    file: str
    rows: int
    """Rows answered."""
    blank: int
    """Rows left out because they hold nothing but white space."""
    truncated: int
    """Rows that the model sees the beginning of alone."""
    agreement: Interval
    """Share of rows with the same answer."""
    kl: Interval
    """Mean KL divergence of the model's probabilities from the teacher's, in nats a row."""
    expected_accuracy: Interval
    """What the model's own confidence foretells: its mean, with the interval of that mean alone (`calibration`)."""
    temperature: float | None
    """What divided the logits, from the model's compressor.json; None where it holds none."""
    answered: dict[str, dict[str, int]]
    """Class to the rows called it, by `model` and `against`."""
    unknown_share: float
    """Share of tokens that the model's vocabulary lacks."""
    drift: Difference | None
    """The second file beside this one; None where none was given."""
    doubts: tuple[str, ...] = ()

    @property
    def calibration(self) -> str:
        """What the interval of the expected accuracy leaves out, in words."""
        if self.temperature is None:
            return "uncalibrated: the interval is that of the mean confidence, and accuracy may lie outside it"
        return f"at temperature {self.temperature:.2f}; the interval leaves out how well that fits these rows"

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return {**asdict(self), "calibrated": self.temperature is not None, "calibration": self.calibration}

    def sentences(self) -> tuple[str, ...]:
        """What was found, a line each, doubts last."""
        found = [
            f"{self.rows:,} rows of {self.file}, {self.model} beside {self.against}",
            f"agreement {_shown(self.agreement)}",
            f"KL from the teacher {self.kl.value:.3f} nats a row ({self.kl.low:.3f} to {self.kl.high:.3f})",
            f"expected accuracy {_shown(self.expected_accuracy)}, {self.calibration}",
        ]
        if self.drift is not None:
            found += _drift_sentences(self.drift)
        return (*found, *(f"doubt: {doubt}" for doubt in self.doubts))


def score(
    model: str | Path,
    against: str | Path,
    file: str | Path,
    *,
    drift: str | Path | None = None,
    text: Column | Sequence[Column] | None = None,
    base: Path | None = None,
    threads: int | None = None,
    seed: int = 17,
    progress: Progress = silent,
) -> UnlabelledScore:
    """Agreement, KL and expected accuracy of a model on rows without labels, and drift to a second file of them.

    Args:
        model: folder of the model.
        against: folder of its teacher, which knows the same labels.
        file: rows, as `data.unlabelled` takes them: csv, tsv, jsonl, parquet or txt, `hf:` or `pypi://`.
        drift: a second file, such as this month's rows beside those that the model was made for.
        text: column of the text, or two of a pair; what the model's compressor.json says unless given.
        base: folder that relative paths of rows start from; the current one unless given.
        threads: of each model; None takes all that this process may use.
        seed: of the drift's draws.
        progress: called while it works.
    Raises: InputError for models or rows that cannot be read, models of different labels, and files without rows.
    """
    from compressor.runtime.predictor import load

    temperature = read_temperature(Path(model))
    ours, theirs = (load(folder, threads=threads, spinning=False) for folder in (model, against))
    order = _label_order(ours, theirs)
    columns = list(ours.manifest.text) if text is None else [text] if isinstance(text, str | int) else list(text)
    rows = _read(file, columns, base)
    texts = [one for one in rows if not is_empty(one)]
    if not texts:
        raise InputError(f"{file}: all {len(rows)} rows are blank, so nothing can be scored; look at the text column")
    encoded = ours.encoder.encode(texts)
    other = None if drift is None else _drift((texts, encoded, str(file)), drift, columns, base, ours, seed)
    logits = []
    for number, predictor in enumerate((ours, theirs)):
        progress("scoring", number, 2)
        logits.append(np.asarray(predictor.logits(texts), dtype=np.float64))
    progress("scoring", 2, 2)
    found = UnlabelledScore(
        model=str(model),
        against=str(against),
        file=str(file),
        rows=len(texts),
        blank=len(rows) - len(texts),
        truncated=encoded.truncated,
        temperature=temperature,
        unknown_share=encoded.unknown_share(),
        drift=other,
        **_beside(logits[0], logits[1][:, order], ours.manifest.labels, temperature),
    )
    return replace(found, doubts=_doubts(found))


def read_temperature(folder: Path) -> float | None:
    """What divides a model's logits for calibrated confidence, from its compressor.json; None where it holds none.

    Raises InputError for a temperature that is not a number above 0.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("temperature")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found > 0):
        raise InputError(
            f"{path}: temperature must be a number above 0 (got {found!r}); take the key out or correct it"
        )
    return float(found)


def _beside(
    logits: np.ndarray, reference_logits: np.ndarray, labels: Sequence[str], temperature: float | None
) -> dict[str, Any]:
    """The figures that compare the two models' logits, shape (N, C) each."""
    answers = {"model": logits.argmax(-1), "against": reference_logits.argmax(-1)}
    alike = agreement(answers["against"], answers["model"])
    return {
        "agreement": wilson(alike, len(logits)),
        "kl": mean_interval(divergence(reference_logits, logits)),
        "expected_accuracy": expected_accuracy(confidence(logits, temperature=temperature or 1.0)),
        "answered": {
            label: {who: int(np.sum(found == place)) for who, found in answers.items()}
            for place, label in enumerate(labels)
        },
    }


def _label_order(ours: Predictor, theirs: Predictor) -> list[int]:
    """Places of our labels among the other model's; InputError where the labels differ."""
    mine, other = ours.manifest.labels, theirs.manifest.labels
    if sorted(mine) != sorted(other):
        raise InputError(
            f"{ours.folder} answers {', '.join(mine)}, {theirs.folder} answers {', '.join(other)}; "
            "score a model against one that knows the same labels"
        )
    return [other.index(label) for label in mine]


def _read(file: str | Path, columns: Sequence[Column], base: Path | None) -> list[Text]:
    """The texts of a file, or its pairs."""
    asked = {"train": str(file), "text": columns[0] if len(columns) == 1 else list(columns)}
    data = settings_of(Data, asked, "score")
    return list(read_source(data.train, data, base=base or Path.cwd(), bins=None, labelled=False).texts)


def _drift(
    first: tuple[Sequence[Text], Encoded, str],
    file: str | Path,
    columns: Sequence[Column],
    base: Path | None,
    model: Predictor,
    seed: int,
) -> Difference:
    """The second file beside the first, of which texts, tokens and name are given."""
    from compressor.evaluate.drift import difference

    others = [one for one in _read(file, columns, base) if not is_empty(one)]
    texts, encoded, name = first
    pair = encoded, model.encoder.encode(others)
    return difference(texts, others, encoded=pair, names=(name, str(file)), seed=seed)


def _doubts(score: UnlabelledScore) -> tuple[str, ...]:
    """What a reader should know, a sentence each."""
    found = []
    if score.temperature is None:
        found.append(
            "the model's compressor.json holds no temperature, so its confidence is taken as it is, which is mostly "
            "more than its accuracy."
        )
    else:
        found.append("the expected accuracy holds where these rows are like those that the temperature was fitted on.")
    if score.drift is not None and score.drift.differs:
        found.append("the two files differ, so figures of one do not carry over to the other.")
    if score.rows < FEW_ROWS:
        found.append(f"{score.rows} rows are few; {FEW_ROWS} or more are usual.")
    if score.blank:
        found.append(f"blank rows left out: {score.blank:,}.")
    if score.truncated:
        found.append(f"rows longer than the model reads, whose ends it did not see: {score.truncated:,}.")
    if score.unknown_share > UNKNOWN_SHARE:
        found.append(f"{100 * score.unknown_share:.0f} % of the tokens are unknown to the model's vocabulary.")
    return tuple(found)


def _drift_sentences(drift: Difference) -> list[str]:
    before, after = (", ".join(words) for words in drift.words)
    unknown = " and ".join(f"{100 * share:.1f} %" for share in drift.unknown)
    shared = " and ".join(f"{100 * share:.1f} %" for share in drift.shared)
    own = f"{drift.rows[0]:,} and {drift.rows[1]:,} texts"
    if drift.told:
        how = f"a classifier tells them apart with AUC {drift.auc:.3f} (p {drift.auc_p:.3f}) on {own}"
    else:
        how = f"{own} that the other lacks are too few to tell files apart"
    found = [
        f"drift: {'the files differ' if drift.differs else 'no difference shown'}: {how}",
        f"drift: {drift.tokens[0]:.1f} and {drift.tokens[1]:.1f} tokens a row (p {drift.tokens_p:.3f}), "
        f"unknown to the model {unknown}",
    ]
    if any(drift.shared):
        found.insert(1, f"drift: {shared} of their different texts are in both files, and were left out")
    if drift.auc_p < 0.05:
        found.append(f"drift: the first is known by {before}; the second by {after}")
    return found


def _shown(share: Interval) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
