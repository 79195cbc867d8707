"""What a process takes beside time: memory, and energy where the processor counts it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from compressor.errors import InputError

Answer = TypeVar("Answer")

POWERCAP = Path("/sys/class/powercap")
NO_COUNTERS = "this machine has no energy counters (RAPL) that it shows; an estimate would be a guess"


@dataclass(frozen=True)
class Taken:
    """What one subject's process took."""

    cold_seconds: float
    """From starting the process to its first answer, the model's files in the page cache."""
    first_calls: tuple[int, ...]
    """Nanoseconds of its first calls, all of one row; they count in no other figure."""
    warm_from: int
    """Number of the first of them that was as fast as the later ones."""
    peak_bytes: int | None
    """Highest resident memory after all rounds, less that of a process that loads the engine and no model."""
    joules: float | None
    """Energy of one call less what the machine takes when idle; None where it is not counted."""


def peak_bytes(process: int, root: Path = Path("/proc")) -> int | None:
    """Highest resident memory of a process so far (VmHWM); None where the system does not say."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (root / str(process) / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class EnergyMeter:
    """Joules that the processor packages took since the meter was made, by their own counters (RAPL).

    A counter that starts again at its end is followed, if it is read more often than that (about a minute at least).
    """

    def __init__(self, domains: Sequence[Path]) -> None:
        self._domains = tuple(domains)
        self._ranges = [_number(domain / "max_energy_range_uj") for domain in self._domains]
        self._last = self._counters()
        self._microjoules = 0

    def joules(self) -> float:
        """Energy so far."""
        now = self._counters()
        for last, current, end in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += current - last if current >= last else current + end - last
        self._last = now
        return self._microjoules / 1e6

    def _counters(self) -> list[int]:
        return [_number(domain / "energy_uj") for domain in self._domains]


def open_meter(root: Path = POWERCAP) -> EnergyMeter:
    """A meter of all processor packages; InputError says why there is none.

    Parts of a package (cores, memory) have counters of their own and are left out, as the package's holds them.
    """
    domains = sorted(domain for domain in root.glob("intel-rapl:*") if domain.name.count(":") == 1)
    if not domains:
        raise InputError(NO_COUNTERS)
    try:
        return EnergyMeter(domains)
    except (OSError, ValueError) as error:
        raise InputError(f"the energy counters may not be read here: {error}; run as root to have them") from error


class Energy:
    """Joules of each subject's calls by the machine's counters, less what it takes when all wait."""

    def __init__(self, root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason: str | None = None
        """Why there is none; None where it is counted."""
        self._meter: EnergyMeter | None = None
        try:
            self._meter = open_meter(root)
        except InputError as error:
            self.reason = str(error)
        self._clock = clock
        self._idle_watts = 0.0
        self._joules: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    def idle(self, wait: Callable[[], Answer]) -> Answer:
        """What `wait` gives; the power while it waits is taken for that of the idle machine."""
        answer, joules, seconds = self._around(wait)
        self._idle_watts = joules / seconds if seconds > 0 else 0.0
        return answer

    def of(self, subject: str, calls: int, work: Callable[[], Answer]) -> Answer:
        """What `work` gives; its energy counts for so many calls of the subject."""
        answer, joules, seconds = self._around(work)
        self._joules[subject] = self._joules.get(subject, 0.0) + joules - self._idle_watts * seconds
        self._calls[subject] = self._calls.get(subject, 0) + calls
        return answer

    def per_call(self, subject: str) -> float | None:
        """Joules of one call; None without counters, or where they do not rise above those of the idle machine."""
        if self._meter is None or self._joules.get(subject, 0.0) <= 0:
            return None
        return self._joules[subject] / self._calls[subject]

    def _around(self, work: Callable[[], Answer]) -> tuple[Answer, float, float]:
        """The answer, joules and seconds that passed."""
        joules, began = self._so_far(), self._clock()
        answer = work()
        return answer, self._so_far() - joules, self._clock() - began

    def _so_far(self) -> float:
        return 0.0 if self._meter is None else self._meter.joules()


def _number(path: Path) -> int:
    return int(path.read_text())
