"""The command line: the only file that prints or exits."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from compressor.errors import CompressorError, InputError, RecipeError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from compressor.recipe.recipe import Recipe
    from compressor.runner.run import RunResult

INTERRUPTED = 130
OUR_BUG = 1
DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)
SECONDS_BETWEEN_LINES = 10.0


class RecipeOrVerb(TyperGroup):
    """A group whose own argument is a recipe unless the first word is a verb."""

    allow_interspersed_args = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the first word for a verb if it is one, else all words for those of a recipe."""
        if not args:
            args = ["--help"]
        if args[0] not in self.commands:
            super().parse_args(ctx, args)
            extra = [*ctx._protected_args, *ctx.args]
            if extra:
                ctx.fail(f"takes one recipe (got {' '.join(extra)} too); a verb comes first: compress VERB ...")
            return []
        super().parse_args(ctx, [])
        ctx._protected_args, ctx.args = args[:1], args[1:]
        return list(ctx.args)


app = typer.Typer(
    cls=RecipeOrVerb,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    subcommand_metavar="| VERB ...",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, such as runs/NAME.")]


class Ending(contextlib.AbstractContextManager["Ending"]):
    """Turns what went wrong inside into a message on stderr and the exit code that goes with it."""

    def __init__(self, out: Path | None = None) -> None:
        self.out = out

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            complain("interrupted; the same command goes on from here")
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


def complain(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


class Lines:
    """Progress as plain lines on stderr: the start and end of a phase, and one every ten seconds between."""

    def __init__(self) -> None:
        self.what = ""
        self.begun = self.told = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self.what:
            self.close()
            self.what, self.begun, self.told = what, now, now
            complain(what)
        elif now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            complain(f"{what}: {done}{f' of {total}' if total else ''} after {now - self.begun:.0f} s")

    def close(self) -> None:
        """Say that the phase ended, where it took long enough to have been wondered about."""
        seconds = time.monotonic() - self.begun
        if self.what and seconds >= 1.0:
            complain(f"{self.what}: done in {seconds:.0f} s")
        self.what = ""

    def say(self, line: str) -> None:
        """A line for the user."""
        print(line, flush=True)


class Bars:
    """Progress as one live bar on the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
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


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[Lines | Bars | Silence]:
    """What shows progress here: live on a terminal, lines in a pipe, nothing when quiet."""
    display = Silence() if quiet else Bars() if sys.stderr.isatty() else Lines()
    try:
        yield display
    finally:
        display.close()


@app.callback()
def recipe_command(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; runs/<name> unless given.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: --set stages.slim.prune.steps=4."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done, and do nothing.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Try every stage in a minute with a tiny model.")] = False,
    redo: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Make this stage again although it is done.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result and errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write report.json, and nothing else, to stdout.")] = False,
) -> None:
    """Distil, prune and quantize a fine-tuned BERT as RECIPE says, and prove what it is worth.

    Finished stages are skipped and interrupted ones go on, so the same command resumes a run.
    Exit codes: 0 done, 2 recipe or input wrong, 3 a gate or budget failed, 4 undecided where that was made fatal,
    5 a stage failed, 130 interrupted, 1 a bug of ours.
    """
    if context.invoked_subcommand is not None:
        return
    if recipe is None:
        context.fail("names no recipe; write compress RECIPE, such as compress recipe.yaml --plan")
    with Ending():
        _refuse_no_recipe(recipe)
        from compressor.recipe.recipe import Recipe

        loaded = Recipe.load(recipe, sets or ())
        _refuse_unknown_stages(loaded, redo or ())
        from compressor.runner.run import default_out

        if smoke:
            loaded = loaded.smoke()
        folder = default_out(loaded) if out is None else _smoky(out) if smoke else out
    if plan:
        with Ending():
            _show_plan(loaded, folder, redo or (), as_json=as_json)
        return
    _run(loaded, folder, redo or (), quiet=quiet, as_json=as_json)


def _smoky(out: Path) -> Path:
    """The directory of a smoke run, beside that of the real one."""
    real = out.resolve() if out.name in ("", "..") else out
    return real.with_name(f"{real.name}-smoke")


def _refuse_no_recipe(recipe: Path) -> None:
    """InputError with a suggestion where the first word is neither a verb nor a file."""
    from compressor.recipe.merge import close_match

    with contextlib.suppress(OSError):  # a name too long for a file is none
        if recipe.exists():
            return

    folder = recipe.parent
    files = [str(path.relative_to(".") if folder == Path() else path) for path in folder.glob("*.y*ml")]
    near = close_match(str(recipe), [*VERBS, *files])
    advice = f"did you mean {near}?" if near else f"give a recipe's file or one of {', '.join(VERBS)}"
    raise InputError(f"{recipe} is neither a verb nor a file; {advice}")


def _refuse_unknown_stages(recipe: Recipe, redo: Sequence[str]) -> None:
    from compressor.recipe.merge import did_you_mean

    known = ["teacher", *(stage.id for stage in recipe.stages)]
    for name in redo:
        if name not in known:
            raise InputError(f"--redo {name}: no such stage; {did_you_mean(name, known)}")


def _show_plan(recipe: Recipe, folder: Path, redo: Sequence[str], *, as_json: bool) -> None:
    from compressor.runner.plan import plan

    lines = plan(recipe, folder, redo=redo)
    if as_json:
        content = [
            {"stage": line.stage, "verb": line.verb, "status": line.status, "reason": line.reason}
            | {"details": list(line.details)}
            for line in lines
        ]
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    width = max(len(f"{line.stage} ({line.verb})") for line in lines)
    print(f"{recipe.name} in {folder}")
    for line in lines:
        name = f"{line.stage} ({line.verb})"
        print(f"  {name:<{width}}  {line.status}: {line.reason}")
        for detail in line.details:
            print(f"  {'':<{width}}  {detail}")


def _run(recipe: Recipe, folder: Path, redo: Sequence[str], *, quiet: bool, as_json: bool) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    with Ending(folder):
        with shown(quiet=quiet or as_json) as display:
            result = _made(recipe, folder, redo, display)
        if as_json:
            print(json.dumps(result.report, indent=2, ensure_ascii=False))
        else:
            print(result.table)
            print(f"report: {folder / 'report' / 'index.html'}")
            if result.final is not None:
                print(f"model:  {result.final}")
        if result.message:
            complain(result.message)
    raise typer.Exit(result.exit_code)


def _made(recipe: Recipe, folder: Path, redo: Sequence[str], display: Lines | Bars | Silence) -> RunResult:
    from compressor.runner.run import run

    if not isinstance(display, Silence):
        return run(recipe, folder, redo=redo, progress=display, say=display.say)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not land in the JSON
        return run(recipe, folder, redo=redo, progress=display, say=display.say)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@app.command("report")
def report_command(run: RunFolder) -> None:
    """Write RUN's report again from its report.json, and show its table."""
    with Ending():
        from compressor.report.model import Report

        folder = run / "report" if (run / "report" / "report.json").is_file() else run
        report = Report.read(folder / "report.json")
        (folder / "index.html").write_text(report.to_html(), encoding="utf-8")
        (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
        print(report.table())
        print(f"report: {folder / 'index.html'}")


@app.command("why")
def why_command(run: RunFolder, stage: Annotated[str, typer.Argument(metavar="STAGE", help="Id of a stage.")]) -> None:
    """Show what STAGE of RUN decided, and why."""
    with Ending():
        from compressor.recipe.merge import did_you_mean
        from compressor.runner.directory import RunDirectory, read_lines

        directory = RunDirectory(run)
        made = [path.name for path in sorted(directory.stages.glob("*")) if path.is_dir()]
        if not made:
            raise InputError(f"{run} holds no stages; give a run directory such as runs/NAME")
        if stage not in made:
            raise InputError(f"{run} has no stage {stage}; {did_you_mean(stage, made)}")
        decisions = read_lines(directory.stage(stage) / "decisions.jsonl")
        if not decisions:
            print(f"{stage} decided nothing: it did as the recipe says")
        for decision in decisions:
            print(f"{decision['kind']}: {_words(decision['chosen'])} because {decision['because']}")
            for name in ("candidates", "cost"):
                if decision.get(name) is not None:
                    print(f"    {name}: {_words(decision[name])}")


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@app.command("schema")
def schema_command() -> None:
    """Write the JSON schema of recipes to stdout, for editors."""
    with Ending():
        from compressor.recipe.recipe import schema

        print(json.dumps(schema(), indent=2, ensure_ascii=False))


@app.command("init")
def init_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from."""
    with Ending():
        from compressor.recipe.template import TEMPLATE

        if path.exists():
            raise InputError(f"{path} exists; name another file or remove it")
        path.write_text(TEMPLATE, encoding="utf-8")
        print(f"wrote {path}; put your rows and model into it, then: compress {path} --plan")


@app.command("doctor")
def doctor_command() -> None:
    """Check this machine and its libraries, without network."""
    with Ending():
        from compressor.runner.doctor import findings

        found = findings(folder=Path("runs").absolute())
        width = max(len(finding.subject) for finding in found)
        for finding in found:
            print(f"{finding.state:<4}  {finding.subject:<{width}}  {finding.words}")
        if any(finding.state == "fail" for finding in found):
            raise typer.Exit(InputError.exit_code)


VERBS = tuple(command.name for command in app.registered_commands if command.name)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="compress")
