"""How long calls take, one by one, in nanoseconds: the clock, the warm-up, and how many calls fill a slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SLOT_SECONDS = 0.3
"""Length of a slot: long enough for a median, short enough that neighbours see the same machine."""
FEWEST_ROWS = 8
"""Rows in a round at least, however slow the slowest subject is."""
MOST_CALLS = 2000
"""Calls in a slot at most; more tell a median nothing new."""


def time_calls(
    call: Callable[[int], object],
    rows: Sequence[int],
    *,
    warmup: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[int]:
    """Nanoseconds of `call(row)` for each row in turn, after `warmup` untimed calls on the first rows.

    >>> ticks = iter([0, 5, 10, 18])
    >>> time_calls(lambda row: row, [3, 4], clock=lambda: next(ticks))
    [5, 8]
    """
    for place in range(warmup if rows else 0):
        call(rows[place % len(rows)])
    taken = []
    for row in rows:
        start = clock()
        call(row)
        taken.append(clock() - start)
    return taken


@dataclass(frozen=True)
class SlotPlan:
    """What a slot holds: `rows_per_round` rows, the same for every subject, each called `repeats[subject]` times."""

    rows_per_round: int
    repeats: tuple[int, ...]


def plan_slots(
    mean_ns: Sequence[float], rows: int, *, slot_seconds: float = SLOT_SECONDS, fewest: int = FEWEST_ROWS
) -> SlotPlan:
    """Rows a round such that the slowest subject fills its slot, and repeats such that the fast ones do too.

    `mean_ns` holds each subject's nanoseconds a row, from the warm-up; `rows` is how many rows there are,
    `fewest` how many a slot holds at least, however slow they are.

    >>> plan_slots([20e6, 1e6], 64)
    SlotPlan(rows_per_round=15, repeats=(1, 20))
    """
    slot_ns = slot_seconds * 1e9
    fitting = int(slot_ns / max(*mean_ns, 1.0))
    in_round = min(rows, max(fewest, fitting))
    most = max(1, MOST_CALLS // in_round)
    repeats = tuple(min(most, max(1, round(slot_ns / (in_round * max(ns, 1.0))))) for ns in mean_ns)
    return SlotPlan(in_round, repeats)


def rows_of_round(number: int, in_round: int, rows: int) -> list[int]:
    """Rows of round `number`: the next `in_round` of them, starting again at the end, so that all take part.

    >>> rows_of_round(1, 3, 5)
    [3, 4, 0]
    """
    return [(number * in_round + place) % rows for place in range(in_round)]
