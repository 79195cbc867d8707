"""CPU and GPU behind one small protocol: place, synchronise, event, queue. Loads torch only to compute."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from compressor.errors import InputError

if TYPE_CHECKING:
    import torch


class Device(Protocol):
    """What the rest of the package may ask of the hardware it computes on."""

    name: str
    """`cpu` or `gpu`."""

    def place(self) -> torch.device:
        """Where tensors go."""

    def synchronise(self) -> None:
        """Wait until all work given to the device is done."""

    def event(self) -> Any:
        """A mark behind the work given to the device so far; does not wait for it."""

    def nanoseconds(self, start: Any, end: Any) -> int:
        """Time between two marks by the device's own clock; waits until the later one is reached."""

    def queue(self) -> AbstractContextManager[int | None]:
        """While open, work goes into a queue of its own, whose address is given; None where there are no queues."""


class Cpu:
    """The processor that Python runs on."""

    name = "cpu"

    def place(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def synchronise(self) -> None:
        """Nothing runs behind Python's back here."""

    def event(self) -> int:
        return time.perf_counter_ns()

    def nanoseconds(self, start: int, end: int) -> int:
        return end - start

    def queue(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class Gpu:
    """The first CUDA device."""

    name = "gpu"

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise InputError("device gpu was asked for, but torch sees no CUDA device here; use device cpu")

    def place(self) -> torch.device:
        import torch

        return torch.device("cuda", 0)

    def synchronise(self) -> None:
        import torch

        torch.cuda.synchronize()

    def event(self) -> Any:
        """A torch.cuda.Event, recorded in the queue that is open."""
        import torch

        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def nanoseconds(self, start: Any, end: Any) -> int:
        end.synchronize()
        return round(1e6 * float(start.elapsed_time(end)))

    @contextlib.contextmanager
    def queue(self) -> Iterator[int]:
        """A stream other than the default one, as CUDA graphs need; torch and onnxruntime both work in it."""
        import torch

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield int(stream.cuda_stream)


DEVICES: dict[str, type[Cpu] | type[Gpu]] = {"cpu": Cpu, "gpu": Gpu}


def open_device(name: str) -> Device:
    """The device of that name; InputError names the choices."""
    if name not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)} (got {name!r})")
    return DEVICES[name]()


def torch_device(name: str) -> torch.device:
    """Where tensors go on the device of that name."""
    return open_device(name).place()


def seed_all(seed: int) -> None:
    """Make torch's random numbers on every device those of `seed`."""
    import torch

    torch.manual_seed(seed)


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that control groups (v1 or v2) leave this process; None where there is no quota.

    The least of its own group and all groups above it, as a quota holds for everything below.
    """
    folders = [root, root / "cpu"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in (root / "cpu", root / controllers) if controllers else (root,):
            names = [name for name in path.split("/") if name and name != ".."]
            folders += [base.joinpath(*names[:depth]) for depth in range(1, len(names) + 1)]
    found = [quota for folder in dict.fromkeys(folders) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _quota_of(folder: Path) -> float | None:
    """Quota of one control group over its period; None where it has none or the folder is no group."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # cpu.max says "max" where there is no quota
        return None


def usable_threads() -> int:
    """Processors this process may use: the smaller of its affinity and the container's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(float(cores), cpu_quota() or math.inf)))


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.split(":", 1)[1] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(found, "").split())


@cache
def cpu_name() -> str:
    """Model of the processor in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))
    return next(found, platform.machine())


Isa = Literal["avx2", "avx512", "vnni", "amx", "arm64_dotprod", "arm64_i8mm"]
"""Instructions for products of bytes."""
ISA_FLAGS: dict[Isa, frozenset[str]] = {
    "amx": frozenset({"amx_int8"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "arm64_i8mm": frozenset({"i8mm"}),
    "arm64_dotprod": frozenset({"asimddp"}),
    "avx512": frozenset({"avx512bw"}),
    "avx2": frozenset({"avx2"}),
}
"""Instructions for products of bytes, the best first, to what Linux calls them."""
EXACT_SUMS: frozenset[Isa] = frozenset({"vnni", "amx", "arm64_dotprod", "arm64_i8mm"})
"""Where four u8 x s8 products are summed in 32 bits; elsewhere pairs are summed in 16 and can saturate."""
EXACT_FLAGS = frozenset[str]().union(*(ISA_FLAGS[name] for name in EXACT_SUMS))
"""What Linux calls those."""


def has_vnni() -> bool:
    """True where u8 x s8 products are summed without saturating."""
    return bool(cpu_flags() & EXACT_FLAGS)


def cpu_isa() -> Isa | None:
    """The instructions of this processor for products of bytes; None where none is known."""
    return next((name for name, flags in ISA_FLAGS.items() if cpu_flags() & flags), None)


def native_bf16(name: str = "cpu") -> bool:
    """True where the device multiplies bf16 itself; elsewhere bf16 is far slower than fp32."""
    if name == "cpu":
        return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def machine_id() -> str:
    """What must agree for two latencies to be compared: processor, instruction sets and thread count, hashed."""
    import hashlib

    text = "|".join([cpu_name(), " ".join(sorted(cpu_flags())), platform.system(), str(usable_threads())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_device() -> str:
    """`gpu` where an NVIDIA device is visible and torch is not a CPU build, else `cpu`; does not load torch."""
    import importlib.metadata

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = Path("/proc/driver/nvidia/version").exists() and Path("/dev/nvidiactl").exists() and not hidden
    return "gpu" if there and not importlib.metadata.version("torch").endswith("+cpu") else "cpu"
