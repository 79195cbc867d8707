"""What a careful reader would hold against the figures, said beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.bench.isolation import Timing
from compressor.bench.statistics import Interval

FEW_ROWS, FEW_ROUNDS, BUSY, NOISY = 500, 10, 0.15, 0.05


def doubts(
    *, on_test: bool, rows: int, timings: Mapping[str, Timing] | str, noise: Interval | None, machine: Mapping[str, Any]
) -> list[str]:
    """One sentence for each doubt, the scores' first; empty where there is nothing to say.

    `timings` is the reason in words where nothing was timed; `noise` the ratio of the reference to itself.
    """
    found = []
    if not on_test:
        found.append("There is no test set: scores are on select, the rows that decisions were made on.")
    if rows < FEW_ROWS:
        found.append(f"Scores rest on {rows} rows, so their intervals are wide.")
    if isinstance(timings, str):
        return [*found, f"Latency was not measured: {timings}."]
    for target, timing in timings.items():
        found += [f"{target}: {sentence}" for sentence in _of_timing(timing)]
    found += _of_noise(noise)
    if machine.get("virtual"):
        found.append("This is a virtual machine: other guests may slow it without being seen.")
    int8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
    if not int8 & set(machine.get("flags") or ()):
        found.append("This processor has no INT8 dot products (VNNI): INT8 models gain more on one that has.")
    return found


def _of_timing(timing: Timing) -> list[str]:
    found = []
    rounds = 1 + max((slot.round for slot in timing.slots), default=-1)
    if rounds < FEW_ROUNDS:
        found.append(f"latency rests on {rounds} rounds; {FEW_ROUNDS} or more are usual.")
    if timing.busy_before > BUSY:
        found.append(f"other work kept {100 * timing.busy_before:.0f} % of the processors busy when timing began.")
    if timing.cpus is None:
        found.append("this system cannot pin processes to processors.")
    if timing.stolen_seconds:
        found.append(f"the host took {timing.stolen_seconds:g} s of processor time while timing.")
    if timing.throttled is None:
        found.append("whether heat slowed the processors is not known here.")
    elif timing.throttled:
        found.append(f"heat slowed the processors {timing.throttled} times while timing.")
    return found


def _of_noise(noise: Interval | None) -> list[str]:
    if noise is None:
        return ["The reference was not timed against itself, so the noise is not known."]
    shown = f"{noise.value:.3f} ({noise.low:.3f} to {noise.high:.3f})"
    if not noise.low <= 1.0 <= noise.high:
        return [f"The reference timed against itself gave {shown} instead of 1: trust no difference that small."]
    if noise.high / noise.low > 1 + 2 * NOISY:
        return [f"The machine was noisy: the reference timed against itself gave {shown}."]
    return []
