"""What is said when a command ends badly, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import typer

from compressor.cli.display import complain
from compressor.errors import CompressorError, RecipeError

INTERRUPTED = 130
OUR_BUG = 1
DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)


class Ending(contextlib.AbstractContextManager["Ending"]):
    """Turns what went wrong inside into a message on stderr and the exit code that goes with it.

    Args:
        out: folder of the result; a trace is written there.
        resumes: whether the same command goes on where it was interrupted.
    """

    def __init__(self, out: Path | None = None, *, resumes: bool = False) -> None:
        self.out, self.resumes = out, resumes
        self._before: Any = None

    def __enter__(self) -> Ending:
        """Let a request to end (SIGTERM) interrupt as Ctrl-C does, so that processes end and folders are removed."""
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if error is None or isinstance(error, SystemExit | typer.Exit | BrokenPipeError):
            return
        if isinstance(error, RecipeError):
            complain(str(error))
            count = len(error.problems)
            complain(f"{count} problem{'s' if count > 1 else ''} to solve; nothing was run")
            raise typer.Exit(error.exit_code)
        if isinstance(error, CompressorError):
            complain(str(error))
            raise typer.Exit(error.exit_code)
        if isinstance(error, KeyboardInterrupt):
            complain(f"interrupted; the same command {'goes on from here' if self.resumes else 'starts anew'}")
            raise typer.Exit(INTERRUPTED)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            where = error.filename or self.out or "disk"
            complain(f"{where}: {error.strerror}; make room or give access, then run it again")
            raise typer.Exit(CompressorError.exit_code)
        if isinstance(error, Exception) and not type(error).__module__.startswith(("click.", "typer.")):
            log = _write_trace(error, self.out)
            first = next(iter(str(error).splitlines()), "")
            complain(f"compress has a bug: {type(error).__name__}: {first}; the trace is in {log}: please report it")
            raise typer.Exit(OUR_BUG)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write_trace(error: BaseException, out: Path | None) -> Path:
    """Where the trace was written: `<out>/error.log`, or a file in the temporary folder."""
    version = "(not installed)"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("bert-compressor")
    trace = "".join(traceback.format_exception(error))
    text = f"bert-compressor {version}, python {sys.version.split()[0]}, {' '.join(sys.argv)}\n{trace}"
    for folder in (out, Path(tempfile.gettempdir())):
        if folder is None:
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / ("error.log" if folder == out else "compress-error.log")
            log.write_text(text, encoding="utf-8")
            return log
    return Path("(nowhere: the disk cannot be written)")
