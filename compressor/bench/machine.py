"""What machine a figure was measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from compressor.device import cpu_flags, cpu_name, machine_id, usable_threads

FLAGS = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm"),
)
"""Processor features that change the speed of a model."""
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum", "torch-pruning"),
    *("accelerate", "datasets", "numpy", "evaluate", "scikit-learn"),
)


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


def stolen_seconds(path: Path = Path("/proc/stat")) -> float | None:
    """Seconds since the start that the host took from this virtual machine; None where the system does not say."""
    try:
        return int(path.read_text().split("\n", 1)[0].split()[8]) / 100.0
    except (OSError, ValueError, IndexError):
        return None


def throttled(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Count of slow-downs for heat since the start; None where the system does not say."""
    counts = []
    for counter in sorted(root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")):
        try:
            counts.append(int(counter.read_text()))
        except (OSError, ValueError):
            return None
    return sum(counts) if counts else None


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
        "load": load(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }
