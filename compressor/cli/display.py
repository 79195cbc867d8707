"""How progress is shown: live bars on a terminal, plain lines in a pipe, nothing where it is not wanted."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0


def complain(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def time_left(done: int, total: int | None, seconds: float) -> float | None:
    """Seconds that the rest takes at the speed so far; None where nothing is done yet or the end is not known.

    >>> time_left(10, 40, 20.0)
    60.0
    """
    return None if not total or not 0 < done <= total else (total - done) * seconds / done


def in_words(seconds: float) -> str:
    """A time as people say it.

    >>> in_words(9.4), in_words(312), in_words(7300)
    ('9 s', '5 min 12 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Lines:
    """Progress as plain lines on stderr: the start and end of a phase, and one every ten seconds between."""

    def __init__(self) -> None:
        self.what = ""
        self.begun = self.told = 0.0
        self.first = 0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self.what:
            self.close()
            self.what, self.begun, self.told, self.first = what, now, now, done
            complain(what)
        elif now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            left = time_left(done - self.first, total - self.first if total else None, now - self.begun)
            ahead = "" if left is None else f", {in_words(left)} left"
            complain(f"{what}: {done}{f' of {total}' if total else ''} after {in_words(now - self.begun)}{ahead}")

    def close(self) -> None:
        """Say that the phase ended, where it took long enough to have been wondered about."""
        seconds = time.monotonic() - self.begun
        if self.what and seconds >= 1.0:
            complain(f"{self.what}: done in {in_words(seconds)}")
        self.what = ""

    def say(self, line: str) -> None:
        """A line for the user."""
        print(line, flush=True)


class Bars:
    """Progress as one live bar on the terminal, with the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        name, left = TextColumn("{task.description}", markup=False), TextColumn("left")
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeftColumn(), left)
        console = Console(stderr=True)
        self.live = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        self.live.start()
        self.what = ""
        self.task: TaskID | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what != self.what or self.task is None:
            if self.task is not None:
                self.live.remove_task(self.task)
            self.what, self.task = what, self.live.add_task(what, total=total)
        self.live.update(self.task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        self.live.stop()

    def say(self, line: str) -> None:
        """A line for the user."""
        print(line, flush=True)


class Silence:
    """Progress that nobody wants to see."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing was opened."""

    def say(self, line: str) -> None:
        """Show nothing."""


Display = Lines | Bars | Silence


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Display]:
    """What shows progress here: live on a terminal, lines in a pipe, nothing when quiet."""
    display = Silence() if quiet else Bars() if sys.stderr.isatty() else Lines()
    try:
        yield display
    finally:
        display.close()


@contextlib.contextmanager
def working(*, quiet: bool, as_json: bool) -> Iterator[Display]:
    """What shows progress while a verb works; what libraries print lands on stderr, so that stdout is the result's."""
    with shown(quiet=quiet or as_json) as display:
        if isinstance(display, Silence):
            with contextlib.redirect_stdout(sys.stderr):
                yield display
        else:
            yield display
