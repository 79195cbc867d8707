"""What a careful reader would hold against the figures, said beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compressor.bench.isolation import Timing
from compressor.bench.machine import quality
from compressor.bench.statistics import Interval, noise_floor
from compressor.bench.warmup import MOST_SHARE

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
    found += _of_machine(machine)
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
    late = [name for name, taken in timing.taken.items() if _never_warm(taken.first_calls, taken.warm_from)]
    if late:
        found.append(f"{', '.join(late)} became faster until the end of the first calls: the warm-up may be too short.")
    return found


def _never_warm(first_calls: tuple[int, ...], warm_from: int) -> bool:
    """Whether the warm-up took all that was allowed for it."""
    return bool(first_calls) and warm_from > 0 and warm_from >= int(len(first_calls) * MOST_SHARE)


def _of_machine(machine: Mapping[str, Any]) -> list[str]:
    found = []
    quota, usable, pressure = machine.get("quota"), machine.get("usable"), machine.get("pressure")
    if quota is not None and usable is not None and quota < usable:
        found.append(f"A quota of {quota:g} processors stops {usable} threads in every period.")
    if pressure is not None and pressure > BUSY:
        found.append(f"Something waited for a processor in {100 * pressure:.0f} % of the last minute.")
    return found


def machine_quality(
    machine: Mapping[str, Any], timings: Mapping[str, Timing] | str, noise: Interval | None
) -> dict[str, Any]:
    """`{grade, because}` of the machine for timing, as report.json has it; empty where nothing was timed.

    Args:
        machine: as bench.machine.fingerprint says.
        timings: raw samples by target, the first of which is looked at; or why there are none.
        noise: ratio of the reference to itself.
    """
    timing = None if isinstance(timings, str) else next(iter(timings.values()), None)
    if timing is None:
        return {}
    seconds = sum(sum(slot.nanoseconds) for slot in timing.slots) / 1e9
    processors = machine.get("processors") or 1
    stolen = None if timing.stolen_seconds is None or not seconds else timing.stolen_seconds / (seconds * processors)
    found = quality(
        machine,
        threads=timing.threads,
        busy_share=timing.busy_before,
        load=timing.load_before,
        stolen_share=stolen,
        throttled=timing.throttled,
        noise=noise,
    )
    return {**asdict(found), "because": list(found.because)}


def _of_noise(noise: Interval | None) -> list[str]:
    if noise is None:
        return ["The reference was not timed against itself, so the noise is not known."]
    shown = f"{noise.value:.3f} ({noise.low:.3f} to {noise.high:.3f})"
    if not noise.low <= 1.0 <= noise.high:
        return [f"The reference timed against itself gave {shown} instead of 1: trust no difference that small."]
    if noise.high / noise.low > 1 + 2 * NOISY:
        off = 100 * (1 - 1 / noise_floor(noise))
        return [
            f"The machine was noisy: the reference timed against itself gave {shown}, "
            f"so a model must be more than {off:.0f} % faster to be called so."
        ]
    return []
