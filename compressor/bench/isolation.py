"""Subjects timed one at a time, each in a pinned process of its own, in interleaved rounds; raw samples are kept.

A subject's process prints `{"ready": true, "start_seconds": s}` once it has loaded, then answers each line
`{"round": r, "rows": [indices], "warmup": n}` on its standard input with `{"ns": [...]}`, one number a row, and ends at
`{"quit": true}`. While one works the others wait in a read and use no processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from compressor.bench.machine import busy_share, load, pick_cpus, stolen_seconds, throttled
from compressor.bench.statistics import balanced_orders
from compressor.bench.timer import SLOT_SECONDS, plan_slots, rows_of_round
from compressor.errors import StageError

Progress = Callable[[str, int, int | None], None]
"""As in compressor.stage, which is of the same layer: what, how much is done, how much there is."""
START_SECONDS = 120.0
"""Longest wait for a subject to load."""
ANSWER_SECONDS = 300.0
"""Longest wait for one answer."""
WARMUP_ROWS = 3
"""Untimed calls before each slot, which bring the subject's weights back into the caches."""


@dataclass(frozen=True)
class Command:
    """What is started for a subject: its name in the result, the command line, variables for its environment."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """One subject's turn in one round: nanoseconds a call, `rows` in the order called."""

    subject: str
    round: int
    place: int
    rows: tuple[int, ...]
    nanoseconds: tuple[int, ...]


@dataclass(frozen=True)
class Timing:
    """All raw samples of one benchmark and the conditions they were taken in."""

    slots: tuple[Slot, ...]
    threads: int
    cpus: tuple[int, ...] | None
    """Processors that the subjects were pinned to; None where the system cannot pin."""
    start_seconds: Mapping[str, float]
    """Seconds each subject needed to load."""
    busy_before: float
    """Share of all processors at work just before, with every subject loaded and waiting; near 0 is quiet."""
    load_before: float | None
    """Average count of processes that wanted to run in the minute before, this program's own among them."""
    stolen_seconds: float | None
    """Seconds that the host took from this machine while it measured; None where not told."""
    throttled: int | None
    """Times that heat slowed the processors while it measured; None where not told."""

    def rounds_of(self, subject: str) -> dict[int, tuple[int, ...]]:
        """Round to nanoseconds, for one subject."""
        return {slot.round: slot.nanoseconds for slot in self.slots if slot.subject == subject}


class _Process:
    """A running subject; every wait has an end, and a failure shows what the process wrote last."""

    def __init__(self, spec: Command, cpus: tuple[int, ...] | None) -> None:
        self.name = spec.name
        # closed in close()
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
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

    def _read(self, seconds: float, doing: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        watch = threading.Timer(seconds, stop)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            why = f"took more than {seconds:g} s" if late.is_set() else f"answered {line[:200]!r}"
            raise StageError(f"timing {self.name}: {doing} {why}; it wrote: {self._last_words()}")
        return answer

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

    def wait_ready(self) -> float:
        """Seconds that loading took."""
        ready = self._read(START_SECONDS, "loading")
        if ready.get("ready") is not True:
            raise StageError(f"timing {self.name}: expected a ready line, got {ready}")
        return float(ready.get("start_seconds", 0.0))

    def ask(self, number: int, rows: Sequence[int], warmup: int) -> list[int]:
        """Nanoseconds of each row."""
        self._send({"round": number, "rows": list(rows), "warmup": warmup})
        taken = self._read(ANSWER_SECONDS, f"round {number}").get("ns")
        if not isinstance(taken, list) or len(taken) != len(rows):
            raise StageError(f"timing {self.name}: {len(rows)} rows of round {number} gave {str(taken)[:200]}")
        return [int(nanoseconds) for nanoseconds in taken]

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


def time_in_turn(
    commands: Sequence[Command],
    *,
    rows: int,
    rounds: int,
    threads: int,
    slot_seconds: float = SLOT_SECONDS,
    progress: Progress | None = None,
) -> Timing:
    """Raw samples of every subject: in each round all take one slot on the same rows, in a balanced order.

    The subjects hold `rows` rows and are asked for them by number; each gets `rounds` slots of `slot_seconds` and is
    pinned to `threads` processors (the count itself is part of its command).

    Raises: ValueError for no subjects, two of one name or no rows; StageError when a process fails or stays silent.
    """
    names = [command.name for command in commands]
    if not names or len(set(names)) != len(names) or rows < 1:
        raise ValueError(f"needs rows and subjects of different names (got {rows} rows, {names})")
    cpus = pick_cpus(threads) if hasattr(os, "sched_setaffinity") else None
    load_before, stolen, heat = load(), stolen_seconds(), throttled()
    with contextlib.ExitStack() as stack:
        running, started = [], {}
        for command in commands:
            process = _Process(command, cpus)
            stack.callback(process.close)
            started[process.name] = process.wait_ready()
            running.append(process)
        busy = busy_share()
        slots = _run_rounds(running, rows=rows, rounds=rounds, slot_seconds=slot_seconds, progress=progress)
    stolen_after, heat_after = stolen_seconds(), throttled()
    return Timing(
        slots=tuple(slots),
        threads=threads,
        cpus=cpus,
        start_seconds=started,
        busy_before=busy,
        load_before=load_before,
        stolen_seconds=None if stolen is None or stolen_after is None else round(stolen_after - stolen, 2),
        throttled=None if heat is None or heat_after is None else heat_after - heat,
    )


def _run_rounds(
    running: Sequence[_Process], *, rows: int, rounds: int, slot_seconds: float, progress: Progress | None
) -> list[Slot]:
    warm = []
    for process in running:
        first = process.ask(-1, rows_of_round(0, min(rows, 8), rows), WARMUP_ROWS)
        warm.append(sum(first) / len(first))
    plan = plan_slots(warm, rows, slot_seconds=slot_seconds)
    orders = balanced_orders(len(running))
    slots: list[Slot] = []
    for number in range(rounds):
        here = rows_of_round(number, plan.rows_per_round, rows)
        for place, which in enumerate(orders[number % len(orders)]):
            asked = here * plan.repeats[which]
            taken = running[which].ask(number, asked, WARMUP_ROWS)
            slots.append(Slot(running[which].name, number, place, tuple(asked), tuple(taken)))
        if progress is not None:
            progress("timing", number + 1, rounds)
    return slots
