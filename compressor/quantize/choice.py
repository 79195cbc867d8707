"""Which of several INT8 models is kept, and how long they take: each in a pinned process, in interleaved rounds."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.isolation import Command, Timing, time_in_turn
from compressor.bench.statistics import Interval, p50_by_round, ratio_interval
from compressor.data.rows import Text
from compressor.device import cpu_isa, machine_id, usable_threads
from compressor.quantize.settings import Choice, Scheme
from compressor.quantize.trials import Trial
from compressor.runtime.predictor import MODEL_FILE
from compressor.runtime.timed import timed_command, timed_environment, write_rows
from compressor.stage import Progress, silent

ROUNDS = 15
"""Slots of about 0.3 s that each candidate gets."""
ROWS_TIMED = 64
"""Rows of `select` that are timed."""
TIMES_FILE = "choice.json"
"""Times that a choice was made by, written before they are used and read again on resume."""


@dataclass(frozen=True)
class Candidate:
    """What came of one scheme."""

    scheme: Scheme
    trial: Trial | None
    """How it answers beside fp32; None where it could not be made."""
    bytes: int = 0
    """Size of model.onnx."""
    integer_products: int = 0
    """Products whose weights have 8 bits or fewer, counted as `products` are (audit.audit_int8)."""
    products: int = 0
    """All operators that multiply with weights."""
    kept_in_float: tuple[str, ...] = ()
    """Products left in float, in words."""
    reduce_range: bool = False
    refused: str = ""
    """Why it is not taken; empty where it may be."""
    p50_ms: float | None = None
    """Median milliseconds of a row; None where it was not timed."""

    @property
    def agreement(self) -> float:
        """Share of rows decided as fp32 does; 0 where there is no model."""
        return self.trial.agreement if self.trial is not None else 0.0

    def told(self) -> dict[str, Any]:
        """The candidate as one flat mapping, for a decision."""
        own = {name: value for name, value in asdict(self).items() if name not in ("trial", "refused")}
        own["kept_in_float"] = list(self.kept_in_float)
        beside = asdict(self.trial) if self.trial is not None else {"passed": False}
        return {**own, **beside, "because": self.refused or beside.get("because", "")}


@dataclass(frozen=True)
class Times:
    """Raw nanoseconds of each candidate by round."""

    rounds: Mapping[str, tuple[tuple[int, ...], ...]]
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each model.onnx."""
    machine: str = ""
    threads: int = 1

    def p50_ms(self, name: str) -> float:
        """Median of all samples, milliseconds."""
        return float(np.median(np.concatenate([np.asarray(one) for one in self.rounds[name]]))) / 1e6

    def ratio(self, name: str, reference: str) -> Interval:
        """Time of one over that of another, with its two-sided 95 % interval over the rounds."""
        subject, beside = (p50_by_round(dict(enumerate(self.rounds[one]))) for one in (name, reference))
        return ratio_interval(subject, beside)


def time_side_by_side(
    folders: Mapping[str, Path],
    texts: Sequence[Text],
    *,
    rounds: int = ROUNDS,
    seed: int = 17,
    progress: Progress = silent,
) -> Times:
    """Times of INT8 folders by name at batch 1 and the rows' own lengths, on all threads that may be used.

    Raises: StageError when a process fails.
    """
    threads = usable_threads()
    order = np.random.default_rng(seed).permutation(len(texts))[:ROWS_TIMED]
    with tempfile.TemporaryDirectory(prefix="compressor-rows-") as work:
        rows = write_rows(Path(work) / "rows.jsonl", [texts[int(place)] for place in order])
        commands = [
            Command(
                name,
                tuple(timed_command(folder, engine="onnxruntime", threads=threads, rows=rows)),
                timed_environment(threads),
            )
            for name, folder in folders.items()
        ]
        timing: Timing = time_in_turn(commands, rows=len(order), rounds=rounds, threads=threads, progress=progress)
    return Times(
        rounds={name: tuple(timing.rounds_of(name).values()) for name in folders},
        files=digests(folders),
        machine=machine_id(),
        threads=threads,
    )


def times_once(
    path: Path, folders: Mapping[str, Path], texts: Sequence[Text], *, seed: int, progress: Progress
) -> tuple[Times, bool]:
    """The times, and whether they are those of an earlier try: kept in `path` for the same files and machine."""
    kept = _read(path)
    if kept is not None and (kept.files, kept.machine, kept.threads) == (
        digests(folders),
        machine_id(),
        usable_threads(),
    ):
        return kept, True
    times = time_side_by_side(folders, texts, seed=seed, progress=progress)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(times)) + "\n", encoding="utf-8")
    partial.replace(path)
    return times, False


def timed_elsewhere(isa: str | None) -> str:
    """For a decision by times: that they hold for another processor than the model is made for; empty where not."""
    here = cpu_isa()
    return "" if isa in (None, here) else f" (timed on this CPU, which has {here}, not {isa})"


def _read(path: Path) -> Times | None:
    """Times that were kept; None where there are none or the file is torn."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rounds = {name: tuple(tuple(one) for one in each) for name, each in content["rounds"].items()}
        return Times(rounds, content["files"], content["machine"], content["threads"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def digests(folders: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each folder's model.onnx."""
    return {name: hashlib.sha256((path / MODEL_FILE).read_bytes()).hexdigest() for name, path in folders.items()}


def choose(tried: Sequence[Candidate], choice: Choice, times: Times | None = None) -> tuple[Candidate | None, str]:
    """The candidate kept of those that nothing refused, the earlier of equals, and why; None where all were refused.

    Args:
        times: of all that are not refused, by scheme; needed for `fastest` where there is more than one. One that is
            not shown to be slower than the fastest (the 95 % interval of their ratio reaches 1) counts as fast, and
            of all these the most accurate is taken.
    """
    left = [each for each in tried if not each.refused]
    if not left:
        return None, "no scheme passed"
    if len(tried) == 1:
        return left[0], "the only scheme to try"
    if len(left) == 1:
        return left[0], f"the only one of {len(tried)} that passed"
    if choice == "smallest":
        return min(left, key=lambda each: each.bytes), f"smallest of {len(left)}"
    best = max(left, key=lambda each: each.agreement)
    if choice == "most_accurate":
        return best, f"most accurate of {len(left)}"
    assert times is not None
    fastest = min(left, key=lambda each: times.p50_ms(each.scheme))
    as_fast = [each for each in left if each is fastest or times.ratio(each.scheme, fastest.scheme).low <= 1.0]
    kept = max(as_fast, key=lambda each: each.agreement)
    words = f"fastest of {len(left)}, {times.p50_ms(kept.scheme):.3g} ms a row on {times.threads} threads"
    if kept is not fastest:
        words = f"most accurate of {len(as_fast)} that are as fast as the fastest, {words.partition(', ')[2]}"
    return kept, words
