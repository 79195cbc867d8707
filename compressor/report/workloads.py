"""What the benchmark of a recipe means for processes: which work and which scenarios each subject is timed at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from compressor.bench.isolation import Slot, Timing, time_in_turn
from compressor.bench.process import PLAIN, Command, Work
from compressor.bench.scenarios import Answered, arrivals, offline
from compressor.bench.settings import Benchmark, Target
from compressor.bench.statistics import LOOKS, p50_by_round, ratio_interval, speed_verdict
from compressor.device import usable_threads
from compressor.errors import CompressorError, InputError, StageError
from compressor.model.manifest import read_manifest
from compressor.runtime.engine import TENSORRT_ROWS
from compressor.stage import Progress

if TYPE_CHECKING:
    from compressor.report.subjects import Subject


@dataclass(frozen=True)
class Desk:
    """Subjects of one engine on the rows they are timed with, at one target."""

    subjects: Mapping[str, Subject]
    """Name of the process to the subject that it runs."""
    twin: str | None
    """Name of the process that runs the reference a second time, which does the plain work alone."""
    rows_file: Path
    """By runtime.timed.write_rows."""
    rows: int
    """How many the file holds."""
    target: Target
    benchmark: Benchmark
    seed: int
    progress: Progress
    looks: int = 1
    """How often at most a whole lot of rounds is timed, while a verdict on a subject is undecided."""
    pytorch: str | None = None
    """Name of the process that runs the reference in PyTorch, which does the plain work alone and is not judged."""

    @property
    def threads(self) -> int:
        """Threads each subject may use."""
        return self.target.threads or usable_threads()

    def command(self, name: str, threads: int) -> Command:
        """What starts a subject with so many threads."""
        from compressor.runtime.timed import timed_command, timed_environment

        line = timed_command(
            self.subjects[name].folder,
            engine="torch" if self.subjects[name].engine == "torch" else self.target.engine,
            threads=threads,
            rows=self.rows_file,
            device=self.target.device,
            precision=self.target.precision,
        )
        return Command(name, tuple(line), timed_environment(threads))

    def time(self, *, scenarios: bool) -> Timing:
        """Raw samples of all work asked for, and with `scenarios` of those too (on the processor alone)."""
        from compressor.runtime.timed import empty_command, timed_environment

        timing = time_in_turn(
            [self.command(name, self.threads) for name in self.subjects],
            rows=self.rows,
            rounds=self.benchmark.rounds,
            threads=self.threads,
            more=self.further_work(),
            empty=Command("nothing", tuple(empty_command(self.target.engine)), timed_environment(self.threads)),
            looks=1 if self.twin is None else self.looks,
            undecided=self.undecided,
            progress=self.progress,
        )
        asked = set(self.benchmark.scenarios) - {"single stream"}
        if not scenarios or not asked or self.target.device != "cpu":
            return timing
        one_core, failed = self._one_core() if "one core" in asked else (None, [])
        return replace(timing, one_core=one_core, answered=(*failed, *self._answered(timing)))

    def undecided(self, slots: Sequence[Slot]) -> bool:
        """Whether these slots leave open of a subject if it is faster or slower than the reference."""
        if self.twin is None:
            return False
        reference = next(name for name in self.names if self.subjects[name] is self.subjects[self.twin])
        medians = {
            name: p50_by_round({slot.round: slot.nanoseconds for slot in slots if slot.subject == name})
            for name in (*self.names, self.twin)
        }
        ratios = {
            name: ratio_interval(one, medians[reference], confidence=LOOKS[self.looks])
            for name, one in medians.items()
            if name != reference
        }
        noise = ratios.pop(self.twin)
        return any(speed_verdict(ratio, noise) == "undecided" for ratio in ratios.values())

    @property
    def names(self) -> list[str]:
        """The subjects that do all work."""
        return [name for name in self.subjects if name not in (self.twin, self.pytorch)]

    def further_work(self) -> dict[Work, list[str]]:
        """Work beside the plain one, with the subjects that can do it."""
        folders = {name: self.subjects[name].folder for name in self.names}
        return {
            work: [name for name, folder in folders.items() if too_large(folder, work, self.target) is None]
            for work in works_asked(self.benchmark, self.target)
        }

    def _one_core(self) -> tuple[Timing | None, list[Answered]]:
        """The timing, or None and why for every subject: they are timed in turn, so that one's end is that of all."""
        try:
            timing = time_in_turn(
                [self.command(name, 1) for name in self.subjects if name != self.pytorch],
                rows=self.rows,
                rounds=self.benchmark.rounds,
                threads=1,
                progress=lambda _what, done, total: self.progress("timing on one core", done, total),
            )
        except StageError as error:
            return None, [Answered(name, "one core", 1, reason=in_short(error)) for name in self.names]
        return timing, []

    def _answered(self, timing: Timing) -> list[Answered]:
        """Offline and arrivals of every subject, tokenizing included unless that was switched off."""
        found: list[Answered] = []
        work = Work(end_to_end=self.benchmark.end_to_end)
        for scenario in self.benchmark.scenarios:
            if scenario != "offline" and scenario != "arrivals":
                continue
            for number, name in enumerate(self.names):
                self.progress(scenario, number, len(self.names))
                samples = [nanoseconds for one in timing.rounds_of(name, work).values() for nanoseconds in one]
                seconds_per_row = sum(samples) / len(samples) / 1e9
                try:
                    if scenario == "offline":
                        found.append(self._offline(name, work, seconds_per_row, timing.cpus))
                    else:
                        found.append(self._arrivals(name, work, seconds_per_row, timing.cpus))
                except StageError as error:
                    limit = self.benchmark.p99_ms if scenario == "arrivals" else None
                    why = in_short(error)
                    found.append(Answered(name, scenario, self.threads, work, limit_ms=limit, reason=why))
            self.progress(scenario, len(self.names), len(self.names))
        return found

    def _offline(self, name: str, work: Work, seconds_per_row: float, cpus: tuple[int, ...] | None) -> Answered:
        return offline(
            lambda threads: self.command(name, threads),
            cpus=cpus,
            threads=self.threads,
            rows=self.rows,
            seconds_per_row=seconds_per_row,
            work=work,
        )

    def _arrivals(self, name: str, work: Work, seconds_per_row: float, cpus: tuple[int, ...] | None) -> Answered:
        assert self.benchmark.p99_ms is not None
        return arrivals(
            self.command(name, self.threads),
            cpus=cpus,
            threads=self.threads,
            rows=self.rows,
            seconds_per_row=seconds_per_row,
            limit_ms=self.benchmark.p99_ms,
            work=work,
            seed=self.seed,
        )


def works_asked(benchmark: Benchmark, target: Target) -> tuple[Work, ...]:
    """Work beside the plain one: with tokenizing (on the processor alone), what the target is for, and the grid.

    On a GPU each is done once more by the device's own clock.

    >>> works_asked(Benchmark(), Target())
    (Work(batch=1, length='data', end_to_end=True, clock='wall'),)
    """
    whole = [Work(end_to_end=True)] if benchmark.end_to_end and target.device == "cpu" else []
    grid = benchmark.grid
    sizes = [] if target.workload is None else [Work(target.workload.batch, target.workload.length)]
    sizes += [] if grid is None else [Work(batch, length) for batch in grid.batch for length in grid.length]
    marked = [replace(work, clock="event") for work in (PLAIN, *sizes)] if target.device == "gpu" else []
    return tuple(dict.fromkeys(work for work in whole + sizes + marked if work != PLAIN))


def opens(target: Target) -> str:
    """The engine of the subjects that are timed at a target: torch weights, or an ONNX file that others read, too."""
    return "torch" if target.engine == "torch" else "onnxruntime"


def ratio_target(names: Iterable[str], targets: Mapping[str, Target]) -> str | None:
    """The target that ratios are taken at: the first of onnxruntime, else the first that reads ONNX, else the first.

    None where there is none.

    >>> ratio_target(["a", "b"], {"a": Target(engine="torch"), "b": Target()})
    'b'
    """

    def rank(name: str) -> int:
        target = targets.get(name, Target())
        return 0 if target.engine == "onnxruntime" else 1 if opens(target) == "onnxruntime" else 2

    return min(names, key=rank, default=None)


def in_short(error: CompressorError) -> str:
    r"""What went wrong, on one line of at most 300 characters: a process may have written pages.

    >>> in_short(StageError("timing slim: loading took more than 120 s; it wrote:\n  nothing"))
    'timing slim: loading took more than 120 s; it wrote: nothing'
    """
    return shorten(str(error), 300, placeholder=" ...")


def too_large(folder: Path, work: Work, target: Target) -> str | None:
    """Why the model in the folder cannot do the work at a target: too many rows or too long ones; None where it can."""
    if target.engine == "tensorrt" and work.batch > TENSORRT_ROWS:
        return f"TensorRT makes kernels for {TENSORRT_ROWS} rows in one call at most"
    if not isinstance(work.length, int):
        return None
    most = read_manifest(folder).max_tokens
    return None if work.length <= most else f"the model reads {most} tokens a row at most"


def skipped(target: Target) -> str | None:
    """Why nothing is timed at a target here; None where it can be."""
    from compressor.runtime.choose import not_here

    return not_here(target)


def runs(folder: Path, target: Target) -> bool:
    """Whether the model in the folder can run at a target; asked of engines that read not every file alone."""
    from compressor.runtime.choose import why_not

    always = target.engine == "torch" or (target.device, target.engine) == ("cpu", "onnxruntime")
    return always or why_not(folder, target) is None


def check_targets(benchmark: Benchmark, targets: Mapping[str, Target]) -> None:
    """Nothing, where every target asked for is defined; InputError else."""
    for name in benchmark.targets:
        if name not in targets:
            raise InputError(f"benchmark.targets: no target {name!r}; there are {', '.join(targets)}")
