"""The command itself: `compress RECIPE`, and how a verb is told from a recipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from compressor.cli.display import complain, working
from compressor.cli.ending import Ending
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.recipe.recipe import Recipe


class RecipeOrVerb(TyperGroup):
    """A group whose own argument is a recipe unless the first word is a verb."""

    allow_interspersed_args = True

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters for the command itself, its options alone for a verb, whose usage names no recipe."""
        found = super().get_params(ctx)
        return found if ctx.command is self else [one for one in found if one.param_type_name != "argument"]

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
        loaded.require_stages(redo or ())
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
    near = close_match(str(recipe), [*verbs(), *files])
    advice = f"did you mean {near}?" if near else f"give a recipe's file or one of {', '.join(verbs())}"
    raise InputError(f"{recipe} is neither a verb nor a file; {advice}")


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
    with Ending(folder, resumes=True):
        from compressor.runner.run import run

        with working(quiet=quiet, as_json=as_json) as display:
            result = run(recipe, folder, redo=redo, progress=display, say=display.say)
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


def verbs() -> tuple[str, ...]:
    """The words that may stand in a recipe's place."""
    return tuple(command.name for command in app.registered_commands if command.name)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="compress")
