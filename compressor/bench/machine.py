"""What machine a figure was measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from compressor.bench.statistics import Interval, noise_floor
from compressor.device import cpu_flags, cpu_name, cpu_quota, machine_id, usable_threads

FLAGS = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm"),
)
"""Processor features that change the speed of a model."""
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum", "torch-pruning"),
    *("accelerate", "datasets", "numpy", "evaluate", "scikit-learn"),
)

SAVING = ("powersave", "ondemand", "conservative", "schedutil", "userspace")
"""Governors that change the clock while measuring; with intel_pstate and amd_pstate powersave is the usual one."""

Grade = Literal["good", "fair", "poor"]


@dataclass(frozen=True)
class Quality:
    """How far timings of a machine are to be trusted."""

    grade: Grade
    because: tuple[str, ...]
    """What was held against it, the worst first; of a good one, what spoke for it."""


def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed version of each library, without importing any; a library that is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the processors this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def siblings(cpu: int, root: Path = Path("/sys/devices/system/cpu")) -> str:
    """Name of the physical core that `cpu` belongs to; processors with the same name share one."""
    try:
        return (root / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def pick_cpus(threads: int, cpus: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Processors to pin a subject of `threads` threads to: one of each physical core first, ascending.

    >>> pick_cpus(2, (4, 5, 6))
    (4, 5)
    """
    cpus = usable_cpus() if cpus is None else cpus
    first_of_core = {siblings(cpu): cpu for cpu in reversed(cpus)}
    ordered = sorted(cpus, key=lambda cpu: (first_of_core[siblings(cpu)] != cpu, cpu))
    return tuple(sorted(ordered[: max(1, threads)]))


def load() -> float | None:
    """Average count of processes that wanted to run in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def busy_share(seconds: float = 0.5) -> float:
    """Share of all processors that was at work during the next `seconds`, 0 to 1; near 0 before a good measurement."""
    import psutil

    return round(float(psutil.cpu_percent(interval=seconds)) / 100.0, 3)


def stolen_seconds(cpus: Sequence[int] | None = None, path: Path = Path("/proc/stat")) -> float | None:
    """Seconds since the start that the host took from these processors of a virtual machine, summed.

    `cpus` None means all of them. None where the system does not say.
    """
    wanted = {"cpu"} if cpus is None else {f"cpu{one}" for one in cpus}
    try:
        lines = [line.split() for line in path.read_text().split("\n")]
        taken = [int(words[8]) for words in lines if words and words[0] in wanted]
    except (OSError, ValueError, IndexError):
        return None
    return sum(taken) / 100.0 if len(taken) == len(wanted) else None


def throttled(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Count of slow-downs for heat since the start; None where the system does not say."""
    counts = []
    for counter in sorted(root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")):
        try:
            counts.append(int(counter.read_text()))
        except (OSError, ValueError):
            return None
    return sum(counts) if counts else None


def pressure(path: Path = Path("/proc/pressure/cpu")) -> float | None:
    """Share of the last minute in which something waited for a processor, 0 to 1; None where not told."""
    try:
        found = re.search(r"^some .*avg60=([\d.]+)", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return round(float(found[1]) / 100.0, 4) if found else None


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def fingerprint() -> dict[str, object]:
    """Model, features, processors, memory, load, system and library versions; keys with None are not known here."""
    import psutil

    flags = cpu_flags()
    return {
        "cpu": cpu_name(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": psutil.cpu_count(logical=False),
        "processors": os.cpu_count(),
        "usable": usable_threads(),
        "id": machine_id(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "governor": _governor(),
        "virtual": "hypervisor" in flags,
        "throttled": throttled(),
        "quota": cpu_quota(),
        "load": load(),
        "pressure": pressure(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def quality(
    machine: Mapping[str, Any],
    *,
    threads: int,
    busy_share: float,
    load: float | None,
    stolen_share: float | None,
    throttled: int | None,
    noise: Interval | None,
) -> Quality:
    """Grade of the machine for timing: the worst that is held against it; `good` where nothing is.

    Args:
        machine: as `fingerprint` says; keys that are missing are not known.
        threads: of each timed model.
        busy_share: share of all processors at work before, 0 to 1.
        load: average count of processes that wanted to run in the minute before; None where not told.
        stolen_share: share of the timed seconds that the host took, 0 to 1; None where not told.
        throttled: slow-downs for heat meanwhile; None where not told.
        noise: ratio of the reference to itself; None where that was not timed.
    """
    found: list[tuple[Grade, str] | None] = [
        _graded(busy_share, 0.15, 0.5, f"other work kept {100 * busy_share:.0f} % of the processors busy"),
        _of_load(load, machine.get("usable")),
        _graded(machine.get("pressure"), 0.1, 0.5, "something waited for a processor in {:.0f} % of a minute"),
        _of_governor(machine.get("governor")),
        _graded(stolen_share, 0.005, 0.05, "the host took {:.1f} % of the time"),
        ("poor", f"heat slowed the processors {throttled} times") if throttled else None,
        _of_quota(machine.get("quota"), threads),
        ("fair", "a virtual machine, which other guests may slow unseen") if machine.get("virtual") else None,
        ("fair", "the reference was not timed against itself") if noise is None else None,
        None if noise is None else _of_noise(noise),
    ]
    held = [one for one in found if one is not None]
    for grade in ("poor", "fair"):
        if any(one[0] == grade for one in held):
            ordered = sorted(held, key=lambda one: one[0] != "poor")
            return Quality(grade, tuple(sentence for _, sentence in ordered))
    assert noise is not None
    return Quality("good", (f"quiet, and the reference beside itself within {100 * (noise_floor(noise) - 1):.1f} %",))


def _graded(value: float | None, fair: float, poor: float, sentence: str) -> tuple[Grade, str] | None:
    """What a share above `fair`, or above `poor`, holds against the machine; `sentence` takes it in percent."""
    if value is None or value <= fair:
        return None
    return "poor" if value > poor else "fair", sentence.format(100 * value)


def _of_load(load: float | None, usable: int | None) -> tuple[Grade, str] | None:
    """Work of this program itself, such as scoring just before, is in the load, so that it is never poor for it."""
    if load is None or load <= (usable or 1):
        return None
    return "fair", f"{load:.1f} processes wanted {usable or 1} processors in the minute before"


def _of_governor(governor: str | None) -> tuple[Grade, str] | None:
    return ("fair", f"the governor {governor} changes the clock") if governor in SAVING else None


def _of_quota(quota: float | None, threads: int) -> tuple[Grade, str] | None:
    if quota is None or quota >= threads:
        return None
    return "poor", f"a quota of {quota:g} processors stops {threads} threads in every period"


def _of_noise(noise: Interval) -> tuple[Grade, str] | None:
    floor = noise_floor(noise)
    return _graded(floor, 1.05, 1.15, f"the reference beside itself seemed up to {100 * (floor - 1):.0f} % off")


COMPARED = {
    "cpu": "processor",
    "flags": "processor features",
    "usable": "usable processors",
    "cores": "cores",
    "quota": "quota of processors",
    "virtual": "virtual machine",
    "governor": "governor",
    "system": "system",
    "id": "fingerprint",
}
"""Keys of a fingerprint that must agree for latencies to be compared, and their names in words."""


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Why latencies of two fingerprints (`machine` of two reports) must not be compared; empty where they may be.

    Library versions are not looked at: an upgrade of one is a thing to compare. Threads are, where timings say them:
    of targets of the same name, and of the two first targets, at which ratios are taken, whatever their names.

    >>> same_machine({"id": "a1", "cpu": "old"}, {"id": "b2", "cpu": "new"})
    ('processor: old here, new there',)
    """
    if not one.get("id") or not other.get("id"):
        return ("a run does not say what machine it was timed on",)
    found = [
        f"{words}: {_shown(one[key])} here, {_shown(other[key])} there"
        for key, words in COMPARED.items()
        if key in one and key in other and one[key] != other[key]
    ]
    found = [sentence for sentence in found if not sentence.startswith("fingerprint")] or found
    memory = [float(side.get("memory_bytes") or 0) for side in (one, other)]
    if min(memory) > 0 and max(memory) > 1.05 * min(memory):
        found.append(f"memory: {memory[0] / 1e9:.1f} GB here, {memory[1] / 1e9:.1f} GB there")
    ours, theirs = (dict(side.get("timing") or {}) for side in (one, other))
    for target in sorted(ours.keys() & theirs.keys()):
        threads = [side[target].get("threads") for side in (ours, theirs)]
        if threads[0] != threads[1]:
            found.append(f"threads at target {target}: {threads[0]} here, {threads[1]} there")
    first = [next(iter(side), None) for side in (ours, theirs)]
    if first[0] != first[1] and None not in first:
        threads = [side[str(name)].get("threads") for side, name in zip((ours, theirs), first, strict=True)]
        if threads[0] != threads[1]:
            found.append(f"threads: {threads[0]} at {first[0]} here, {threads[1]} at {first[1]} there")
    return tuple(found)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
