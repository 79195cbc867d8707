"""What a careful reader would hold against the figures, said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from compressor.bench.isolation import Timing
from compressor.bench.machine import quality
from compressor.bench.statistics import LOOKS, Interval, noise_floor
from compressor.bench.warmup import MOST_SHARE
from compressor.device import EXACT_FLAGS
from compressor.evaluate.proportions import wilson

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
    if EXACT_FLAGS.isdisjoint(machine.get("flags") or ()):
        found.append("This processor has no INT8 dot products (VNNI): INT8 models gain more on one that has.")
    return found


def _of_timing(timing: Timing) -> list[str]:
    found = []
    rounds = 1 + max((slot.round for slot in timing.slots), default=-1)
    if rounds < FEW_ROUNDS:
        found.append(f"latency rests on {rounds} rounds; {FEW_ROUNDS} or more are usual.")
    if timing.looks > 1 and timing.rounds_a_look is not None and rounds > timing.rounds_a_look:
        found.append(
            f"{timing.rounds_a_look} rounds left a verdict undecided, so {rounds} were timed; verdicts are at "
            f"{100 * LOOKS[timing.looks]:.1f} % confidence for each of {timing.looks} looks."
        )
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
    found = quality(
        machine,
        threads=timing.threads,
        busy_share=timing.busy_before,
        load=timing.load_before,
        stolen_share=stolen_share(timing, machine.get("processors")),
        throttled=timing.throttled,
        noise=noise,
    )
    return {**asdict(found), "because": list(found.because)}


def stolen_share(timing: Timing, processors: int | None) -> float | None:
    """Share of the pinned processors' time that the host took, 0 to 1; None where that or the time is not known.

    `processors` are those of the machine, which counts where the subjects are pinned to none.
    """
    counted = processors if timing.cpus is None else len(timing.cpus)
    if timing.stolen_seconds is None or not timing.wall_seconds or not counted:
        return None
    return timing.stolen_seconds / (timing.wall_seconds * counted)


def of_reference(
    name: str, predictions: np.ndarray, references: Sequence[int | None], labels: Sequence[str], *, part: str
) -> list[str]:
    """A sentence where the model that others are held against is no better than chance, or never answers a class.

    Args:
        name: of that model.
        predictions: its class ids, shape (rows,).
        references: the rows' own class ids, None where unlabelled.
        labels: class names in the order of their ids.
        part: of the data that the rows are: select or test.
    """
    known = np.array([one is not None for one in references], dtype=bool)
    wanted = np.array([one for one in references if one is not None], dtype=np.int64)
    answered = np.asarray(predictions)[known]
    if len(np.unique(wanted)) < 2:
        return []
    counts, found = np.bincount(wanted, minlength=len(labels)), []
    right, most = float(np.mean(answered == wanted)), int(counts.argmax())
    always = counts[most] / len(wanted)
    if wilson(right, len(wanted)).low <= always:
        found.append(
            f"{name} is right on {100 * right:.1f} % of the {len(wanted):,} rows of {part}, not shown to be more than "
            f"the {100 * always:.1f} % of always answering {labels[most]}: little follows from being like it."
        )
    silent = [one for one in range(len(labels)) if counts[one] and not np.any(answered == one)]
    return [
        *found,
        *(f"{name} never answers {labels[one]}, which {counts[one]:,} rows of {part} are." for one in silent),
    ]


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
