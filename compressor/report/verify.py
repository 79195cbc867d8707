"""`verify`: whether a run or a deployed model is still what its report says: files, answers, scores, time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.bench.machine import fingerprint, same_machine, versions
from compressor.data.rows import DataSets
from compressor.device import machine_id
from compressor.errors import CompressorError, InputError
from compressor.evaluate.metrics import score
from compressor.export.parity import TOLERANCE, compare
from compressor.model.digest import model_digest
from compressor.model.manifest import MANIFEST_NAME, read_manifest
from compressor.report.compare import scored_rows
from compressor.report.kept import file_hashes, golden_answers, read_golden
from compressor.report.measure import measure
from compressor.report.model import MetricFigure, Report
from compressor.report.table import points, ratio
from compressor.stage import Progress, silent

ELSEWHERE = 0.99
"""Share of answers that must agree where the machine or onnxruntime is another one: INT8 rounds otherwise there."""

SAME_BAND = 1.02
"""Times within 2 % of one another are the same."""
NOISY = 1.5
"""A time that may be half as long again as it was proves nothing."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    state: Literal["ok", "fail", "not checked"]
    subject: str
    words: str


@dataclass(frozen=True)
class Verification:
    """All that was looked at; `passed` where nothing failed."""

    path: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True where no check failed and one at least was made."""
        states = [check.state for check in self.checks]
        return "fail" not in states and "ok" in states

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        return {"path": self.path, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def verify(
    path: str | Path,
    *,
    rows: DataSets | None = None,
    time: bool = False,
    rounds: int = 15,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Hashes against what was recorded, the model opened again, its answers and its score, its time if wanted.

    Args:
        path: run directory, or the folder of a deployed model.
        rows: the run's rows; without them the score is not looked at.
        time: measure the deployed model beside the teacher again.
        rounds: of that measurement.
        threads: of each model; None takes all that this process may use.
        progress: called while it works.
    Raises: InputError for a path that is neither run nor model.
    """
    path = Path(path)
    root, final = (path, path / "final") if (path / "stages").is_dir() else (None, path)
    if root is None and not (final / "config.json").is_file():
        raise InputError(f"{path} is neither a run (it has no stages/) nor a model (it has no config.json)")
    checks = [*_stages(root, progress)] if root is not None else []
    if not final.is_dir():
        return Verification(str(path), (*checks, Check("fail", "final", f"{final} is not there; run the recipe again")))
    checks += _final(root, final)
    opened = _reloaded(final)
    checks.append(opened)
    if opened.state == "ok":
        checks += _golden(final)
        checks += _scored(root, final, rows, threads, progress)
        if time:
            checks += _timed(root, final, rows, rounds, threads, progress)
    return Verification(str(path), tuple(checks))


def _stages(root: Path, progress: Progress) -> Iterator[Check]:
    """The model of every stage against the digest in its stage.json."""
    folders = sorted(path for path in (root / "stages").iterdir() if (path / "stage.json").is_file())
    for number, folder in enumerate(folders):
        if folder.name.endswith(".partial"):
            continue
        progress("hash stages", number, len(folders))
        recorded = _json(folder / "stage.json").get("model")
        yield _hashed(f"stages/{folder.name}", recorded, model_digest(folder / "model"), "stage.json")
    progress("hash stages", len(folders), len(folders))


def _final(root: Path | None, final: Path) -> Iterator[Check]:
    """The deployed model against the run's record, and each of its files against its own."""
    if root is not None:
        yield _hashed("final", _json(root / "report" / "key.json").get("final"), model_digest(final), "report/key.json")
    recorded = _json(final / MANIFEST_NAME).get("files")
    if not isinstance(recorded, dict):
        yield Check("not checked", "files of final", f"{MANIFEST_NAME} records no hashes of files")
        return
    found = file_hashes(final)
    wrong = [name for name in recorded if found.get(name) != recorded[name]]
    wrong = [f"{name} {'changed' if name in found else 'is gone'}" for name in wrong]
    more = [f"{name} was added" for name in found if name not in recorded]
    words = "; ".join(wrong) or f"{len(recorded)} files are as recorded"
    yield Check("fail" if wrong else "ok", "files of final", "; ".join([words, *more]))


def _hashed(subject: str, recorded: object, found: str, where: str) -> Check:
    if not recorded:
        return Check("not checked", subject, f"{where} records no digest")
    if recorded != found:
        return Check(
            "fail",
            subject,
            f"digest {found[:12]}, {where} has {str(recorded)[:12]}: model files changed, or another version wrote it",
        )
    return Check("ok", subject, f"digest {found[:12]} as in {where}")


def _reloaded(final: Path) -> Check:
    """Whether the model opens and gives whole numbers for every label."""
    try:
        labels = read_manifest(final).labels
        texts, logits = golden_answers(final)
    except CompressorError as error:
        return Check("fail", "reload", str(error))
    if logits.shape != (len(texts), len(labels)) or not np.isfinite(logits).all():
        return Check("fail", "reload", f"answers have shape {logits.shape} or are no numbers; {len(labels)} labels")
    return Check("ok", "reload", f"opens and answers {', '.join(labels)}")


def _golden(final: Path) -> Iterator[Check]:
    """Answers to our own sentences against those of the day it was made."""
    golden = read_golden(final)
    if golden is None:
        yield Check("not checked", "golden answers", "the folder keeps none (golden.json)")
        return
    _, logits = golden_answers(final, golden.texts)
    if logits.shape != golden.logits.shape:
        yield Check("fail", "golden answers", f"shape {logits.shape} instead of {golden.logits.shape}")
        return
    found = compare(golden.logits, logits)
    words = f"{found.rows} sentences, logits differ by {found.largest:.2g} at most"
    if found.alike:
        yield Check("ok", "golden answers", words)
        return
    agreed = float(np.mean(golden.logits.argmax(-1) == logits.argmax(-1)))
    here = versions(tuple(golden.versions))
    if golden.machine == machine_id() and here == dict(golden.versions):
        yield Check(
            "fail", "golden answers", f"{words}, {TOLERANCE * found.scale:.2g} is rounding; same machine and versions"
        )
        return
    state: Literal["ok", "fail"] = "ok" if agreed >= ELSEWHERE else "fail"
    yield Check(
        state, "golden answers", f"{words}; {100 * agreed:.0f} % the same label, on another machine or versions"
    )


def _scored(
    root: Path | None, final: Path, rows: DataSets | None, threads: int | None, progress: Progress
) -> Iterator[Check]:
    """The score on the run's own rows against the report's."""
    if root is None or rows is None:
        why = "a deployed model alone has no rows; verify the run" if root is None else "the run's rows are not here"
        yield Check("not checked", "score", why)
        return
    recorded = _recorded(root, final)
    if recorded is None:
        yield Check("not checked", "score", "report/report.json has no score of the deployed stage")
        return
    from compressor.runtime.predictor import load

    texts, references, _ = scored_rows(rows)
    progress("score", 0, len(texts))
    logits = load(final, engine="onnxruntime", threads=threads, spinning=False).logits(texts)
    progress("score", len(texts), len(texts))
    kept = [place for place, one in enumerate(references) if one is not None]
    if len(kept) != recorded.rows:
        yield Check("fail", "score", f"the recipe's rows are {len(kept)} now, {recorded.rows} when it was scored")
        return
    ids = np.array([references[place] for place in kept])
    found = score(recorded.name, logits.argmax(-1)[kept], ids, rows.labels)
    words = f"{recorded.name} {100 * found:.2f} % on {len(kept):,} rows, the report says {points(recorded)}"
    yield Check("ok" if recorded.low <= found <= recorded.high else "fail", "score", words)


def _recorded(root: Path, final: Path) -> MetricFigure | None:
    """The report's score of the stage that was deployed."""
    file, stage = root / "report" / "report.json", _json(final / MANIFEST_NAME).get("stage")
    if not file.is_file() or not stage:
        return None
    rows = {row.name: row.metric for row in Report.read(file).subjects if row.engine == "onnxruntime"}
    return rows.get(str(stage))


def _timed(
    root: Path | None, final: Path, rows: DataSets | None, rounds: int, threads: int | None, progress: Progress
) -> Iterator[Check]:
    """Time beside the teacher, measured again, against the report's."""
    if root is None or rows is None:
        yield Check("not checked", "time", "needs a run with its rows, as time is held against the teacher's")
        return
    report = Report.read(root / "report" / "report.json")
    stage = str(_json(final / MANIFEST_NAME).get("stage"))
    was = next((row.versus_teacher for row in report.subjects if row.name == stage and row.versus_teacher), None)
    if was is None or was.latency_ratio is None:
        yield Check("not checked", "time", "the report has no time of the deployed stage beside the teacher")
        return
    teacher = next(place for name in ("onnx", "model") if (place := root / "stages" / "teacher" / name).is_dir())
    folders = {"teacher": teacher, "final": final}
    again = measure(folders, data=rows, rounds=rounds, threads=threads, changed=False, progress=progress)
    versus = again.subject("final").versus_teacher
    now = versus.latency_ratio if versus is not None else None
    if now is None:
        yield Check("not checked", "time", versus.reason or "not timed" if versus else "not timed")
        return
    words = f"{ratio(now)} of the teacher's time, the report says {ratio(was.latency_ratio)}"
    elsewhere = same_machine(report.machine, fingerprint())
    if elsewhere:
        yield Check("not checked", "time", f"{words}, on another machine ({elsewhere[0]})")
        return
    if now.low > was.latency_ratio.high * SAME_BAND:
        yield Check("fail", "time", words)
    elif now.high > was.latency_ratio.high * NOISY:
        yield Check("not checked", "time", f"{words}: the machine is too noisy to tell, try when it is quiet")
    else:
        yield Check("ok", "time", words)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
