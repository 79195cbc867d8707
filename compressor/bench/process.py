"""A subject in a pinned process of its own, which answers requests on its standard input.

It prints `{"ready": true, "start_seconds": s}` once it has loaded, then answers each line `{"round": r, "rows":
[indices], "warmup": n, "work": {"batch": b, "length": l, "end_to_end": e}}` with `{"ns": [...]}`, one number a row (of
a batch: its first), and ends at `{"quit": true}`. While one works the others wait in a read and use no processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

from compressor.bench.resources import peak_bytes
from compressor.errors import StageError

START_SECONDS = 120.0
"""Longest wait for a subject to load."""
ANSWER_SECONDS = 300.0
"""Longest wait for one answer."""


@dataclass(frozen=True)
class Command:
    """What is started for a subject: its name in the result, the command line, variables for its environment."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What one call does: rows at once, their length, whether tokenizing counts, whose clock is read.

    `data` pads to the longest of the batch, `padded` to the longest of all rows, a number cuts or repeats to so many.
    `wall` lasts until the answer is there; `event` is what lay between two marks in a GPU's own queue.
    """

    batch: int = 1
    length: Literal["data", "padded"] | int = "data"
    end_to_end: bool = False
    clock: Literal["wall", "event"] = "wall"


PLAIN = Work()
"""One row at its own length, tokenized beforehand: what ratios are taken from."""


class Process:
    """A running subject; every wait has an end, and a failure shows what the process wrote last."""

    def __init__(self, spec: Command, cpus: tuple[int, ...] | None) -> None:
        self.name = spec.name
        # closed in close()
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.started = time.monotonic()
        with _pinned(cpus):
            self._process = subprocess.Popen(
                list(spec.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **spec.env},
                text=True,
                encoding="utf-8",
            )

    def wait_ready(self) -> float:
        """Seconds that loading took, by the process's own clock."""
        ready = self._read(START_SECONDS, "loading")
        if ready.get("ready") is not True:
            raise StageError(f"timing {self.name}: expected a ready line, got {ready}")
        return float(ready.get("start_seconds", 0.0))

    def ask(self, number: int, rows: Sequence[int], warmup: int, work: Work = PLAIN) -> list[int]:
        """Nanoseconds of each row."""
        self.post(number, rows, warmup, work)
        return self.answers(number, rows)

    def post(self, number: int, rows: Sequence[int], warmup: int, work: Work = PLAIN) -> None:
        """Send a request; its answers are still to be read."""
        self._send({"round": number, "rows": list(rows), "warmup": warmup, "work": asdict(work)})

    def answers(self, number: int, rows: Sequence[int]) -> list[int]:
        """Nanoseconds of each row of a request that was posted."""
        return self._taken(self._read(ANSWER_SECONDS, f"round {number}"), number, rows)

    def respond(
        self, due: Sequence[float], rows: Sequence[int], work: Work = PLAIN, *, limit: float = ANSWER_SECONDS
    ) -> list[float]:
        """Milliseconds from the moment each request was due to its answer, the wait behind earlier ones included.

        Requests of one row each are sent `due` seconds from now (ascending), whether or not earlier ones are answered.
        Raises StageError when all is not answered in `limit` seconds.
        """
        start = time.perf_counter() + 0.05
        over = threading.Event()
        sender = threading.Thread(target=self._send_at, args=(start, due, rows, work, over), daemon=True)
        taken = []
        with self._watch(limit) as late:
            sender.start()
            try:
                for place, (moment, row) in enumerate(zip(due, rows, strict=True)):
                    answer = self._line(late, limit, f"request {place}")
                    taken.append(1e3 * (time.perf_counter() - start - moment))
                    self._taken(answer, place, [row])
            finally:
                over.set()
                sender.join()
        return taken

    def _send_at(
        self, start: float, due: Sequence[float], rows: Sequence[int], work: Work, over: threading.Event
    ) -> None:
        for place, (moment, row) in enumerate(zip(due, rows, strict=True)):
            wait = start + moment - time.perf_counter()
            if over.wait(wait) if wait > 0 else over.is_set():
                return
            self.post(place, [row], 0, work)

    def peak_bytes(self) -> int | None:
        """Highest resident memory so far; None where the system does not say."""
        return peak_bytes(self._process.pid)

    def close(self) -> None:
        """Ask it to end; end it if it does not."""
        self._send({"quit": True})
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    @contextlib.contextmanager
    def _watch(self, seconds: float) -> Iterator[threading.Event]:
        """While open, the process is ended once `seconds` are over, and the event says so."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        watch = threading.Timer(seconds, stop)
        watch.start()
        try:
            yield late
        finally:
            watch.cancel()

    def _read(self, seconds: float, doing: str) -> dict[str, Any]:
        with self._watch(seconds) as late:
            return self._line(late, seconds, doing)

    def _line(self, late: threading.Event, seconds: float, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            why = f"took more than {seconds:g} s" if late.is_set() else f"answered {line[:200]!r}"
            raise StageError(f"timing {self.name}: {doing} {why}; it wrote: {self._last_words()}")
        return answer

    def _taken(self, answer: Mapping[str, Any], number: int, rows: Sequence[int]) -> list[int]:
        taken = answer.get("ns")
        if not isinstance(taken, list) or len(taken) != len(rows):
            raise StageError(f"timing {self.name}: {len(rows)} rows of round {number} gave {str(taken)[:200]}")
        return [int(nanoseconds) for nanoseconds in taken]

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._errors.seek(0)
        return self._errors.read()[-1500:].strip() or "nothing"


@contextlib.contextmanager
def _pinned(cpus: tuple[int, ...] | None) -> Iterator[None]:
    """While open, a process started by this thread runs on `cpus` alone."""
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
