"""Subjects timed one at a time, each in a pinned process of its own, in interleaved rounds; raw samples are kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.bench.machine import busy_share, load, pick_cpus, stolen_seconds, throttled
from compressor.bench.process import PLAIN, Command, Process, Work
from compressor.bench.resources import Energy, Taken
from compressor.bench.scenarios import Answered
from compressor.bench.statistics import LOOKS, orders_of_rounds
from compressor.bench.timer import FEWEST_ROWS, SLOT_SECONDS, SlotPlan, plan_slots, rows_of_round
from compressor.bench.warmup import warm_from

__all__ = ["Command", "Slot", "Timing", "Work", "time_in_turn"]

Progress = Callable[[str, int, int | None], None]
"""As in compressor.stage, which is of the same layer: what, how much is done, how much there is."""
WARMUP_ROWS = 3
"""Untimed calls before each slot, which bring the subject's weights back into the caches."""
FIRST_CALLS, FIRST_SECONDS = 16, 0.2
"""First calls of a process that are watched for its warm-up: so many at least, and what fits into so many seconds."""
MOST_FIRST_CALLS = 200
"""More tell nothing of a warm-up that ten times fewer show."""
MORE_ROUNDS, MORE_SLOT_SECONDS, MORE_ROWS = 5, 0.1, 4
"""Rounds, length and fewest calls of the slots of further work, of which no ratio is taken: 20 calls or more."""


@dataclass(frozen=True)
class Slot:
    """One subject's turn in one round: nanoseconds a call, `rows` in the order called."""

    subject: str
    round: int
    place: int
    rows: tuple[int, ...]
    nanoseconds: tuple[int, ...]
    work: Work = PLAIN


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
    """Seconds that the host took from those processors (from all where none are pinned) while it measured, summed; None
    where not told."""
    throttled: int | None
    """Times that heat slowed the processors while it measured; None where not told."""
    taken: Mapping[str, Taken] = field(default_factory=dict)
    """What each subject's process took beside time, and its warm-up."""
    energy_reason: str | None = None
    """Why energy was not counted; None where it was."""
    one_core: Timing | None = None
    """The same subjects, each with one thread on one processor; None where that was not asked for."""
    answered: tuple[Answered, ...] = ()
    """What subjects did in the scenarios offline and arrivals."""
    looks: int = 1
    """How often at most it was looked at whether more rounds are needed; verdicts allow for that (statistics.LOOKS)."""
    rounds_a_look: int | None = None
    """Rounds timed before each look; None in timings of earlier versions."""
    wall_seconds: float | None = None
    """From before the first subject was loaded to the last sample, in which `stolen_seconds` were counted; None in
    timings of earlier versions."""

    def rounds_of(self, subject: str, work: Work = PLAIN) -> dict[int, tuple[int, ...]]:
        """Round to nanoseconds, for one subject and one kind of work."""
        return {slot.round: slot.nanoseconds for slot in self.slots if slot.subject == subject and slot.work == work}

    def works_of(self, subject: str) -> tuple[Work, ...]:
        """The kinds of work that a subject was timed at, in the order they were asked for."""
        return tuple(dict.fromkeys(slot.work for slot in self.slots if slot.subject == subject))


def time_in_turn(
    commands: Sequence[Command],
    *,
    rows: int,
    rounds: int,
    threads: int,
    slot_seconds: float = SLOT_SECONDS,
    more: Mapping[Work, Sequence[str]] | None = None,
    empty: Command | None = None,
    looks: int = 1,
    undecided: Callable[[Sequence[Slot]], bool] | None = None,
    progress: Progress | None = None,
) -> Timing:
    """Raw samples of every subject: in each round all take one slot on the same rows, in a balanced order.

    Args:
        commands: the subjects; they hold `rows` rows and are asked for them by number.
        rows: how many rows there are.
        rounds: slots each subject gets.
        threads: processors each subject is pinned to (the count itself is part of its command).
        slot_seconds: length of a slot.
        more: further work, each with the names of the subjects that do it, timed after that in MORE_ROUNDS short ones.
        empty: a process that loads the engine and no model, whose memory is taken off; None leaves memory unmeasured.
        looks: how often at most so many `rounds` are timed, 1 to 3.
        undecided: given all slots so far, whether another lot of rounds is wanted; None never goes on.
        progress: called after every round.
    Raises: ValueError for no subjects, two of one name, no rows or other looks; StageError when a process fails or
    stays silent.
    """
    names = [command.name for command in commands]
    if not names or len(set(names)) != len(names) or rows < 1:
        raise ValueError(f"needs rows and subjects of different names (got {rows} rows, {names})")
    if looks not in LOOKS:
        raise ValueError(f"looks must be 1 to {max(LOOKS)} (got {looks})")
    cpus = pick_cpus(threads) if hasattr(os, "sched_setaffinity") else None
    began, load_before, stolen, heat = time.monotonic(), load(), stolen_seconds(cpus), throttled()
    unused = None if empty is None else _memory_of_nothing(empty, cpus)
    with contextlib.ExitStack() as stack:
        running = [_begin(stack, command, cpus) for command in commands]
        energy = Energy()
        busy = energy.idle(busy_share)
        measure = _Rounds(running, _plan(running, rows, slot_seconds, fewest=FEWEST_ROWS), rows, rounds * looks)
        slots = measure.timed(0, rounds, energy, progress)
        for look in range(1, looks):
            if undecided is None or not undecided(slots):
                break
            slots += measure.timed(look * rounds, (look + 1) * rounds, energy, progress)
        taken = {one.process.name: one.taken(unused, energy) for one in running}
        for work, doing in (more or {}).items():
            chosen = [one for one in running if one.process.name in doing]
            slots += _run_more(chosen, work, rows=rows, rounds=min(rounds, MORE_ROUNDS), tell=progress)
    stolen_after, heat_after = stolen_seconds(cpus), throttled()
    return Timing(
        slots=tuple(slots),
        threads=threads,
        cpus=cpus,
        start_seconds={one.process.name: one.start_seconds for one in running},
        busy_before=busy,
        load_before=load_before,
        stolen_seconds=None if stolen is None or stolen_after is None else round(stolen_after - stolen, 2),
        throttled=None if heat is None or heat_after is None else heat_after - heat,
        taken=taken,
        energy_reason=energy.reason,
        looks=looks,
        rounds_a_look=rounds,
        wall_seconds=round(time.monotonic() - began, 3),
    )


@dataclass(frozen=True)
class _Running:
    """A loaded subject with what its start showed."""

    process: Process
    start_seconds: float
    cold_seconds: float
    first_calls: tuple[int, ...]

    def taken(self, unused: int | None, energy: Energy) -> Taken:
        """What its process took until now."""
        peak = self.process.peak_bytes()
        return Taken(
            cold_seconds=round(self.cold_seconds, 3),
            first_calls=self.first_calls,
            warm_from=warm_from(self.first_calls),
            peak_bytes=None if peak is None or unused is None else max(0, peak - unused),
            joules=energy.per_call(self.process.name),
        )


def _begin(stack: contextlib.ExitStack, command: Command, cpus: tuple[int, ...] | None) -> _Running:
    """The subject, started and called until it is warm; closed with the stack."""
    process = Process(command, cpus)
    stack.callback(process.close)
    start_seconds = process.wait_ready()
    calls = process.ask(-1, [0], 0)
    cold_seconds = time.monotonic() - process.started
    calls += process.ask(-1, [0] * FIRST_CALLS, 0)
    left = FIRST_SECONDS * 1e9 - sum(calls)
    further = int(min(left / max(1.0, calls[-1]), MOST_FIRST_CALLS))
    if further > 0:
        calls += process.ask(-1, [0] * further, 0)
    return _Running(process, start_seconds, cold_seconds, tuple(calls))


def _memory_of_nothing(empty: Command, cpus: tuple[int, ...] | None) -> int | None:
    """Highest resident memory of a process that loads no model."""
    process = Process(empty, cpus)
    try:
        process.wait_ready()
        return process.peak_bytes()
    finally:
        process.close()


def _plan(running: Sequence[_Running], rows: int, seconds: float, *, work: Work = PLAIN, fewest: int) -> SlotPlan:
    """Rows and repeats of a slot, from a few calls of each subject."""
    mean_ns = []
    for one in running:
        calls = one.process.ask(-1, rows_of_round(0, min(rows, fewest), rows), WARMUP_ROWS, work)
        mean_ns.append(sum(calls) / len(calls))
    return plan_slots(mean_ns, rows, slot_seconds=seconds, fewest=fewest)


@dataclass(frozen=True)
class _Rounds:
    """The slots that ratios are taken from, of which more may be wanted."""

    running: Sequence[_Running]
    plan: SlotPlan
    rows: int
    most: int
    """Rounds at most; their orders are whole designs one after the other, wherever it stops."""

    def timed(self, start: int, end: int, energy: Energy, tell: Progress | None) -> list[Slot]:
        """Slots of the rounds from `start` up to `end`."""

        def ask(process: Process, number: int, asked: list[int]) -> list[int]:
            calls = len(asked) + WARMUP_ROWS
            return energy.of(process.name, calls, lambda: process.ask(number, asked, WARMUP_ROWS))

        orders = orders_of_rounds(len(self.running), self.most)[start:end]
        what = "timing" if start == 0 else "timing, still undecided"
        return _slots(
            self.running,
            self.plan,
            rows=self.rows,
            orders=orders,
            first=start,
            work=PLAIN,
            ask=ask,
            tell=tell,
            what=what,
        )


def _run_more(running: Sequence[_Running], work: Work, *, rows: int, rounds: int, tell: Progress | None) -> list[Slot]:
    """The slots of further work."""
    if not running:
        return []
    plan = _plan(running, rows, MORE_SLOT_SECONDS, work=work, fewest=MORE_ROWS)

    def ask(process: Process, number: int, asked: list[int]) -> list[int]:
        return process.ask(number, asked, 1, work)

    length = work.length if isinstance(work.length, str) else f"{work.length} tokens"
    what = "timing with tokenizing" if work.end_to_end else f"timing batch {work.batch}, {length}"
    orders = orders_of_rounds(len(running), rounds)
    return _slots(running, plan, rows=rows, orders=orders, work=work, ask=ask, tell=tell, what=what)


def _slots(
    running: Sequence[_Running],
    plan: SlotPlan,
    *,
    rows: int,
    orders: Sequence[Sequence[int]],
    work: Work,
    ask: Callable[[Process, int, list[int]], list[int]],
    tell: Progress | None,
    what: str,
    first: int = 0,
) -> list[Slot]:
    """One slot of every subject in each round, in that round's order; `first` is the number of the first round."""
    slots: list[Slot] = []
    for number, order in enumerate(orders, first):
        here = rows_of_round(number, plan.rows_per_round, rows)
        for place, which in enumerate(order):
            asked = here * plan.repeats[which]
            process = running[which].process
            taken = ask(process, number, asked)
            slots.append(Slot(process.name, number, place, tuple(asked), tuple(taken), work))
        if tell is not None:
            tell(what, number + 1 - first, len(orders))
    return slots
