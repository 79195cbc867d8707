"""`verify`: whether a run or a deployed model is still what its report says: files, answers, scores, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.bench.machine import same_machine
from compressor.data.rows import DataSets
from compressor.errors import CompressorError, InputError
from compressor.model.digest import model_digest
from compressor.model.manifest import DIGEST_SCHEME, MANIFEST_NAME, read_manifest
from compressor.report.kept import (
    GOLDEN_NAME,
    WRITTEN_LATER,
    file_hashes,
    golden_answers,
    manifest_digest,
    read_golden,
)
from compressor.report.measure import measure
from compressor.report.model import Report
from compressor.report.table import ratio
from compressor.report.verify_answers import (
    Check,
    golden_checks,
    read_object,
    run_report,
    score_checks,
)
from compressor.stage import Progress, silent

SAME_BAND = 1.02
"""Times within 2 % of one another are the same."""
NOISY = 1.5
"""A time that may be half as long again as it was proves nothing."""

COMPARED = ("final", "files of final", "golden answers", "score")
"""Subjects by which the deployed model itself is held against what was recorded of it."""

Outcome = Literal["pass", "fail", "another version", "nothing compared"]


@dataclass(frozen=True)
class Verification:
    """All that was looked at."""

    path: str
    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """`pass` needs that nothing failed and that the deployed model was compared with a record one time at least."""
        states = [check.state for check in self.checks]
        if "fail" in states:
            return "fail"
        if any(check.state == "ok" for check in self.checks if check.subject in COMPARED):
            return "pass"
        return "another version" if "another version" in states else "nothing compared"

    @property
    def passed(self) -> bool:
        """True where the outcome is `pass`."""
        return self.outcome == "pass"

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        checks = [asdict(check) for check in self.checks]
        return {"path": self.path, "passed": self.passed, "outcome": self.outcome, "checks": checks}

    def sentence(self) -> str:
        """The outcome in words, with what to do where it is no pass."""
        if self.outcome == "pass":
            return f"{self.path} is what was recorded"
        if self.outcome == "fail":
            failed = ", ".join(check.subject for check in self.checks if check.state == "fail")
            return f"{self.path} is not what was recorded: {failed}"
        if self.outcome == "another version":
            version = "verify it with the version that made it, or run the recipe again"
            return f"{self.path} was recorded by another version of this program and nothing else is kept; {version}"
        return f"{self.path} keeps nothing that the deployed model could be compared with; run the recipe again"


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
        threads: of each model; None scores with all that this process may use and times with the report's.
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
    checks += [*_final(root, final), _manifest(final)]
    opened = _reloaded(final)
    checks.append(opened)
    if opened.state == "ok":
        checks += golden_checks(final)
        checks += score_checks(root, final, rows, threads, progress)
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
        recorded = read_object(folder / "stage.json").get("model")
        yield _hashed(f"stages/{folder.name}", recorded, folder / "model", "stage.json")
    progress("hash stages", len(folders), len(folders))


def _final(root: Path | None, final: Path) -> Iterator[Check]:
    """The deployed model against the run's record, and each of its files against its own."""
    if root is not None:
        yield _hashed("final", read_object(root / "report" / "key.json").get("final"), final, "report/key.json")
    recorded = read_object(final / MANIFEST_NAME).get("files")
    if not isinstance(recorded, dict):
        yield Check("not checked", "files of final", f"{MANIFEST_NAME} records no hashes of files")
        return
    found = file_hashes(final)
    wrong = [name for name in recorded if found.get(name) != recorded[name]]
    wrong = [f"{name} {'changed' if name in found else 'is gone'}" for name in wrong]
    more = [f"{name} was added" for name in found if name not in recorded]
    words = "; ".join(wrong) or f"{len(recorded)} files are as recorded"
    yield Check("fail" if wrong else "ok", "files of final", "; ".join([words, *more]))


def _hashed(subject: str, recorded: object, folder: Path, where: str) -> Check:
    """A folder's digest against the recorded one; where they differ, the scheme tells a change from another version."""
    if not recorded:
        return Check("not checked", subject, f"{where} records no digest")
    found, scheme = model_digest(folder), read_object(folder / MANIFEST_NAME).get("digest_scheme")
    if recorded == found:
        return Check("ok", subject, f"digest {found[:12]} as in {where}")
    if (folder / MANIFEST_NAME).is_file() and scheme != DIGEST_SCHEME:
        by = "no digest scheme" if scheme is None else f"digest scheme {scheme}"
        words = f"another version wrote it ({MANIFEST_NAME} names {by}, this one has {DIGEST_SCHEME}): not compared"
        return Check("another version", subject, words)
    return Check("fail", subject, f"digest {found[:12]}, {where} has {str(recorded)[:12]}: model files changed")


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


def _manifest(final: Path) -> Check:
    """What compressor.json says of labels, shapes, tokens and so on against its digest in golden.json."""
    try:
        golden = read_golden(final)
    except InputError as error:
        return Check("fail", "manifest", str(error))
    if golden is None or golden.manifest is None:
        return Check("not checked", "manifest", f"{GOLDEN_NAME} keeps no digest of {MANIFEST_NAME}")
    if manifest_digest(final) != golden.manifest:
        return Check("fail", "manifest", f"{MANIFEST_NAME} changed since {GOLDEN_NAME} was written")
    return Check("ok", "manifest", f"as in {GOLDEN_NAME}, but for {', '.join(WRITTEN_LATER)}, which it cannot know")


def _timed_at(report: Report, stage: str) -> tuple[str, int | None] | None:
    """Target and threads that the report's ratio of a stage was taken at; None where it does not say."""
    rows = [row for subject in report.subjects if subject.name == stage for row in subject.latency]
    timing = dict(report.machine.get("timing") or {})
    target = next((row.target for row in rows if row.status == "measured"), next(iter(timing), None))
    if target is None:
        return None
    said = dict(timing.get(target) or {}).get("threads")
    return target, said or next((row.threads for row in rows if row.target == target), None)


def _timed(
    root: Path | None, final: Path, rows: DataSets | None, rounds: int, threads: int | None, progress: Progress
) -> Iterator[Check]:
    """Time beside the teacher, measured again, against the report's."""
    if root is None or rows is None:
        yield Check("not checked", "time", "needs a run with its rows, as time is held against the teacher's")
        return
    report, stage = run_report(root), str(read_object(final / MANIFEST_NAME).get("stage") or "")
    subjects = () if report is None else report.subjects
    was = next((row.versus_teacher for row in subjects if row.name == stage and row.versus_teacher), None)
    if report is None or was is None or was.latency_ratio is None:
        yield Check("not checked", "time", "the report has no time of the deployed stage beside the teacher")
        return
    places = [root / "stages" / "teacher" / name for name in ("onnx", "model")]
    teacher = next((place for place in places if place.is_dir()), None)
    if teacher is None:
        yield Check("not checked", "time", f"{places[1]} is gone, and time is held against the teacher's")
        return
    folders = {"teacher": teacher, "final": final}
    at = _timed_at(report, stage)
    rows_there = (one for row in subjects if row.name == stage for one in row.latency if at and one.target == at[0])
    engine = next((one.engine for one in rows_there if one.engine), "onnxruntime")
    if engine != "onnxruntime":
        yield Check("not checked", "time", f"the report's ratio is of engine {engine}; only onnxruntime is timed here")
        return
    threads = threads if threads is not None or at is None else at[1]
    seed = int(report.reproduce.get("seed", 17))
    again = measure(
        folders,
        data=rows,
        rounds=rounds,
        benchmark={"pytorch": False},
        threads=threads,
        seed=seed,
        changed=False,
        progress=progress,
    )
    versus = again.subject("final").versus_teacher
    now = versus.latency_ratio if versus is not None else None
    if now is None:
        yield Check("not checked", "time", versus.reason or "not timed" if versus else "not timed")
        return
    words = f"{ratio(now)} of the teacher's time, the report says {ratio(was.latency_ratio)}"
    told = {} if at is None else {"timing": {at[0]: {"threads": at[1]}}}
    elsewhere = same_machine({**report.machine, **told}, again.machine)
    if elsewhere:
        yield Check("not checked", "time", f"{words}, on another machine ({elsewhere[0]})")
        return
    if now.low > was.latency_ratio.high * SAME_BAND:
        yield Check("fail", "time", words)
    elif now.high > was.latency_ratio.high * NOISY:
        yield Check("not checked", "time", f"{words}: the machine is too noisy to tell, try when it is quiet")
    else:
        yield Check("ok", "time", words)
