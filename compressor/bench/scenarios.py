"""Work that comes in otherwise than one call after the other: all rows at once, and requests at random times."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compressor.bench.process import PLAIN, Command, Process, Work

REQUESTS = 1000
"""Requests of one trial of a rate, so that ten lie beyond its p99."""
ARRIVAL_SECONDS = 60.0
"""Longest search for one subject's rate; the trial that has begun is finished."""
ALONE_SECONDS = 3.0
"""Calls one after the other from which the first rate is computed; at least 100, at most REQUESTS."""
TRIALS = 4
"""Rates that are tried on the running model, from the one that its own times promise."""
RISE, FALL = 1.25, 2.0
"""What the next rate is multiplied by after one that kept the limit, or divided by after one that missed it, while the
other side is unknown: the first rate is promised by a computation that knows of no disturbance."""
OFFLINE_SECONDS = 1.0
"""Work of one turn of scenario offline."""
PASS_SECONDS = 10.0
"""Longest pass over the rows in scenario offline, about; fewer rows are taken where it would be longer."""
OFFLINE_TURNS = 3
"""Turns of scenario offline, of which the median counts."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """What one subject did in a scenario."""

    subject: str
    scenario: Literal["one core", "offline", "arrivals"]
    """One core only where it failed; its figures are a timing of their own."""
    threads: int
    """Of each process."""
    work: Work = PLAIN
    processes: int = 1
    rows_per_second: float | None = None
    """The best of offline's layouts, or the highest rate that was seen to keep the limit; None with a reason."""
    samples: int = 0
    """Rows that the figure rests on."""
    milliseconds: tuple[float, ...] = ()
    """Of arrivals: from each request's due time to its answer, at that rate."""
    limit_ms: float | None = None
    """The p99 that arrivals had to keep."""
    tried: tuple[tuple[str, float], ...] = ()
    """Each layout with its rows a second, or each rate with its p99 in milliseconds."""
    reason: str | None = None
    """Why there is no figure, or how it came about."""


def waits(service: Floats, gaps: Floats) -> Floats:
    """How long each request waits before it is served, one server, first come first served; the first does not.

    Lindley's recursion w[i+1] = max(0, w[i] + service[i] - gaps[i]) as a running minimum (Lindley 1952,
    https://doi.org/10.1017/S0305004100027638). `service` has shape (requests,); `gaps`, from each arrival to the next,
    (requests - 1,); one unit of time. Raises ValueError for other shapes.

    >>> waits(np.array([3.0, 3.0, 1.0]), np.array([1.0, 9.0])).tolist()
    [0.0, 2.0, 0.0]
    """
    if len(gaps) != len(service) - 1:
        raise ValueError(f"{len(service)} requests have {len(service) - 1} gaps between them (got {len(gaps)})")
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps)])
    answer: Floats = walk - np.minimum.accumulate(walk)
    return answer


def arrival_times(rate: float, count: int, *, seed: int) -> Floats:
    """Seconds at which `count` requests arrive, by a Poisson process of `rate` a second; the first at 0.

    At another rate and the same seed they are the same times stretched. Shape (count,), ascending.
    """
    gaps = np.random.default_rng(seed).exponential(1.0, size=max(0, count - 1)) / rate
    return np.concatenate([[0.0], np.cumsum(gaps)])


def p99_of(milliseconds: Sequence[float] | Floats) -> float:
    """The 99th percentile, in the unit given."""
    return float(np.quantile(np.asarray(milliseconds, dtype=np.float64), 0.99))


def promised_rate(service_ms: Sequence[float], limit_ms: float, *, seed: int, requests: int = 20_000) -> float | None:
    """Highest rate a second at which service times as measured would keep p99 (wait and service) within `limit_ms`.

    Computed in open loop from times drawn with replacement, by bisection: p99 only rises with the rate when the same
    arrivals come closer together. None where the service alone breaks the limit.
    """
    drawn = np.random.default_rng(seed).choice(np.asarray(service_ms, dtype=np.float64), size=requests)

    def keeps(rate: float) -> bool:
        gaps = np.diff(arrival_times(rate, requests, seed=seed + 1)) * 1e3
        return p99_of(waits(drawn, gaps) + drawn) <= limit_ms

    low, high = 0.0, 1e3 / float(drawn.mean())
    if p99_of(drawn) > limit_ms:
        return None
    for _halving in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low or None


def search_rate(
    start: float, trial: Callable[[float], float], limit: float, *, trials: int = TRIALS, more: Callable[[float], bool]
) -> float | None:
    """Highest rate tried whose p99 kept `limit`; None where none did.

    Args:
        start: first rate.
        trial: p99 at a rate.
        limit: in the unit of the p99.
        trials: most rates that are tried.
        more: whether there is time to try that rate; asked from the second on.
    """
    kept: float | None = None
    missed: float | None = None
    rate = start
    for number in range(trials):
        if number and not more(rate):
            break
        if trial(rate) <= limit:
            kept = rate
        else:
            missed = rate
        if kept is None:
            rate /= FALL
        elif missed is None:
            rate *= RISE
        else:
            rate = math.sqrt(kept * missed)
    return kept


def arrivals(
    command: Command,
    *,
    cpus: tuple[int, ...] | None,
    threads: int,
    rows: int,
    seconds_per_row: float,
    limit_ms: float,
    work: Work = PLAIN,
    seed: int = 17,
    clock: Callable[[], float] = time.monotonic,
) -> Answered:
    """The highest rate of requests at random times that one process of the subject serves with p99 within `limit_ms`.

    Requests really are sent at their times, over and over the same `rows` rows. Calls one after the other are timed
    first, for ALONE_SECONDS by `seconds_per_row`; the first rate is the one that these promise. Of each trial there are
    REQUESTS; a rate that would take longer than ARRIVAL_SECONDS is not tried, and the answer says so.
    """
    told = Answered(command.name, "arrivals", threads, work, limit_ms=limit_ms)
    asked = [number % rows for number in range(REQUESTS)]
    seen: dict[float, list[float]] = {}
    with contextlib.ExitStack() as stack:
        process = _start(stack, command, cpus, work, rows)
        calls = asked[: max(100, math.ceil(ALONE_SECONDS / max(seconds_per_row, 1e-6)))]
        alone = [nanoseconds / 1e6 for nanoseconds in process.ask(0, calls, 0, work)]
        start = promised_rate(alone, limit_ms, seed=seed)
        if start is None:
            many = f"of {len(alone)} calls one after the other more than one in a hundred took over {limit_ms:g} ms"
            return replace(told, reason=many)
        if start * ARRIVAL_SECONDS < REQUESTS:
            needed = f"p99 needs {REQUESTS:,} requests: {REQUESTS / start:.0f} s at {start:.1f} a second"
            return replace(told, reason=f"{needed}, and {ARRIVAL_SECONDS:g} s are given")
        began = clock()

        def trial(rate: float) -> float:
            seen[rate] = process.respond(arrival_times(rate, REQUESTS, seed=seed).tolist(), asked, work)
            return p99_of(seen[rate])

        best = search_rate(
            start, trial, limit_ms, more=lambda rate: clock() - began + REQUESTS / rate <= ARRIVAL_SECONDS
        )
    told = replace(told, tried=tuple((f"{rate:.2f}/s", p99_of(taken)) for rate, taken in seen.items()))
    if best is None:
        return replace(told, reason=f"no rate down to {min(seen):.1f} a second kept p99 within {limit_ms:g} ms")
    return replace(told, rows_per_second=best, samples=REQUESTS, milliseconds=tuple(seen[best]))


def offline(
    command_of: Callable[[int], Command],
    *,
    cpus: Sequence[int] | None,
    threads: int,
    rows: int,
    seconds_per_row: float,
    work: Work = PLAIN,
) -> Answered:
    """Most rows a second when all are there at once: `threads` processes of one thread, or one process of `threads`.

    Args:
        command_of: the subject's command for a number of threads a process may use.
        cpus: processors to pin to; None where the system cannot pin.
        threads: in all.
        rows: how many rows the subject holds; they are taken one a call, in whole passes over all of them, or over
            fewer, spread evenly, where a pass on one thread would take longer than PASS_SECONDS.
        seconds_per_row: of one call of a process of `threads`, from which the work of a turn is planned.
        work: what a call does; a batch of several rows counts as so many.
    """
    seen: dict[tuple[int, int], float] = {}
    rows_done: dict[tuple[int, int], int] = {}
    taken = rows_of_pass(rows, threads * seconds_per_row)
    passes = OFFLINE_SECONDS / (len(taken) * max(seconds_per_row, 1e-6))
    for processes, each in dict.fromkeys([(threads, 1), (1, threads)]):
        asked = taken * max(1, round(passes / processes))
        with contextlib.ExitStack() as stack:
            running = [
                _start(stack, command_of(each), None if cpus is None else _share(cpus, place, each), work, rows)
                for place in range(processes)
            ]
            seen[processes, each] = _turns(running, asked, work)
        rows_done[processes, each] = OFFLINE_TURNS * len(asked) * processes * work.batch
    best = max(seen, key=lambda layout: seen[layout])
    layouts = {layout: f"{layout[0]} x {layout[1]} threads" for layout in seen}
    return Answered(
        command_of(best[1]).name,
        "offline",
        threads=best[1],
        work=work,
        processes=best[0],
        rows_per_second=seen[best],
        samples=rows_done[best],
        tried=tuple((layouts[layout], rate) for layout, rate in seen.items()),
        reason=f"{len(taken)} of {rows} rows, which take long" if len(taken) < rows else None,
    )


def rows_of_pass(rows: int, seconds_per_row: float) -> list[int]:
    """The rows of a pass, all of them or as many as fit into PASS_SECONDS, spread evenly; at least one.

    >>> rows_of_pass(8, 0.1), rows_of_pass(8, 2.5), rows_of_pass(8, 60.0)
    ([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6], [0])
    """
    most = min(rows, max(1, int(PASS_SECONDS / max(seconds_per_row, 1e-6))))
    return [place * rows // most for place in range(most)]


def _share(cpus: Sequence[int], place: int, each: int) -> tuple[int, ...]:
    """The processors of process number `place` when each has `each`, from the start again where they run out.

    >>> _share((4, 5), 1, 1)
    (5,)
    """
    return tuple(cpus[(place * each + step) % len(cpus)] for step in range(min(each, len(cpus))))


def _start(
    stack: contextlib.ExitStack, command: Command, cpus: tuple[int, ...] | None, work: Work, rows: int
) -> Process:
    """The process, loaded and warm; closed with the stack."""
    process = Process(command, cpus)
    stack.callback(process.close)
    process.wait_ready()
    process.ask(-1, [number % rows for number in range(8)], 3, work)
    return process


def _turns(running: Sequence[Process], asked: Sequence[int], work: Work) -> float:
    """Median over turns of the rows a second of all processes together, each doing `asked`, until the last is done."""
    rates = []
    for turn in range(OFFLINE_TURNS):
        began = time.perf_counter()
        for process in running:
            process.post(turn, asked, 0, work)
        for process in running:
            process.answers(turn, asked)
        rates.append(len(running) * len(asked) * work.batch / (time.perf_counter() - began))
    return float(np.median(rates))
