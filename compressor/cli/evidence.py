"""The verbs that measure and compare: bench, inspect, diff, verify, score, folds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.app import app
from compressor.cli.display import Display, complain, working
from compressor.cli.ending import Ending
from compressor.cli.options import benchmark_of, columns_by_option, targets_of
from compressor.cli.verbs import AsJson
from compressor.errors import CompressorError, GateError

if TYPE_CHECKING:
    from compressor.data.rows import DataSets

Quiet = Annotated[bool, typer.Option("--quiet", help="Show the result and errors only.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each model; all unless given.")]
Rounds = Annotated[int, typer.Option(min=3, max=1000, metavar="N", help="Slots of about 0.3 s that each model gets.")]
Text = Annotated[
    list[str] | None, typer.Option("--text", metavar="COLUMN", help="Column of the text; twice for a pair.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, run directory, hub id or pypi:// name.")]


@app.command("bench")
def bench_command(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Model folders, run directories, hub ids or pypi:// names.")
    ],
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Rows to time and, with labels, score.")
    ] = None,
    text: Text = None,
    label: Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="Column of the label.")] = None,
    train: Annotated[
        Path | None, typer.Option("--train", metavar="FILE", help="Labelled rows that baselines are made of.")
    ] = None,
    rounds: Rounds = 15,
    looks: Annotated[
        int, typer.Option(min=1, max=3, metavar="N", help="Lots of --rounds at most, while a verdict is undecided.")
    ] = 3,
    threads: Threads = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="WHERE",
            help="cpu, cpu/torch, cpu/openvino, gpu/onnxruntime, gpu/tensorrt, gpu/torch/fp16 ...; several times.",
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", metavar="NAME", help="'one core', offline or arrivals, too.")
    ] = None,
    p99_ms: Annotated[
        float | None, typer.Option("--p99-ms", metavar="MS", help="What 99 of 100 arrivals may take at most.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", metavar="N", help="Batches of so many rows, too.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", metavar="X", help="What this machine costs an hour.")
    ] = None,
    pytorch: Annotated[
        bool, typer.Option("--pytorch/--no-pytorch", help="Time the first model in PyTorch, too, where it can be.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the report's files.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time any text classifiers side by side.

    All are held against the first, and scored where the rows have labels. Models of other tools are exported first
    where they hold no ONNX. Without --rows a few built-in sentences are timed.
    """
    with Ending(out):
        from compressor.report.bench import bench

        with working(quiet=quiet, as_json=as_json) as display, columns_by_option(label):
            report = bench(
                paths,
                rows=rows,
                text=text or (),
                label=label,
                train=train,
                rounds=rounds,
                looks=looks,
                benchmark=benchmark_of(scenario or (), p99_ms, batch or (), price, pytorch=pytorch),
                targets=targets_of(target or ()),
                threads=threads,
                progress=display,
                out=out,
            )
        print(report.to_json() if as_json else report.table(), end="")
        if out is not None and not as_json:
            print(f"report: {out / 'index.html'}")


@app.command("inspect")
def inspect_command(model: Model, threads: Threads = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Show what MODEL is made of, and what its parts take.

    Heads, neurons, parameters, multiply-adds, bytes and measured time of embeddings, layers and classifier.
    """
    with Ending(), tempfile.TemporaryDirectory(prefix="compressor-inspect-") as work:
        from compressor.report.foreign import open_model
        from compressor.report.inspect import inspect_model

        with working(quiet=quiet, as_json=as_json) as display:
            opened = open_model(model, work=Path(work) / "models", progress=display)
            found = inspect_model(
                opened.folder, threads=threads, name=model, precision=opened.precision, progress=display
            )
        print(_as_json(found.to_dict()) if as_json else found.table(), end="")


@app.command("diff")
def diff_command(
    one: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a report.json.")],
    other: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    across: Annotated[
        bool, typer.Option("--across-machines", help="Show times although they are of different machines.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how two runs differ.

    Recipe, environment, scores (paired where both kept their answers) and, of one machine, times.
    """
    with Ending():
        from compressor.report.diff import diff

        found = diff(one, other, across_machines=across)
        print(_as_json(found.to_dict()) if as_json else found.text(), end="")


@app.command("verify")
def verify_command(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|FINAL", help="Run directory, or the folder of a deployed model.")
    ],
    time: Annotated[bool, typer.Option("--time", help="Measure it beside the teacher again, too.")] = False,
    rounds: Rounds = 15,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check that a model is still what its report says.

    Looks at hashes, opens the model, asks it what it was asked when it was made, and scores it on the run's rows again.
    Exit code 3 where something differs.
    """
    with Ending():
        from compressor.report.verify import verify

        with working(quiet=quiet, as_json=as_json) as display:
            rows = _rows_of(path, display)
            found = verify(path, rows=rows, time=time, rounds=rounds, threads=threads, progress=display)
        if as_json:
            print(_as_json(found.to_dict()), end="")
        else:
            width = max(len(check.subject) for check in found.checks)
            states = max(len("not checked"), *(len(check.state) for check in found.checks))
            for check in found.checks:
                print(f"{check.state:<{states}}  {check.subject:<{width}}  {check.words}")
        if not found.passed:
            raise GateError(found.sentence())


def _rows_of(run: Path, display: Display) -> DataSets | None:
    """The rows of a run's recipe, without network; None where they are not here any more, which is said."""
    recipe = run / "recipe.resolved.yaml"
    if not recipe.is_file():
        return None
    from compressor.recipe.recipe import Recipe
    from compressor.runner.prepare import prepare

    try:
        prepared = prepare(Recipe.load(recipe), progress=display, offline=True)
    except CompressorError as error:
        complain(f"the run's rows are not here: {next(iter(str(error).splitlines()), '')}")
        return None
    return None if prepared is None else prepared.data


@app.command("score")
def score_command(
    model: Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows without labels.")],
    against: Annotated[str, typer.Option("--against", metavar="TEACHER", help="The model it is to answer like.")],
    drift: Annotated[
        str | None, typer.Option("--drift", metavar="FILE2", help="Other rows: do they look like those of FILE?")
    ] = None,
    text: Text = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Hold MODEL against its teacher without labels.

    Agreement, divergence, expected accuracy and, with a second file, drift.
    """
    with Ending(), tempfile.TemporaryDirectory(prefix="compressor-score-") as work:
        from compressor.report.foreign import as_given, label_giver, open_model, relabelled, unnamed
        from compressor.report.score import score

        with working(quiet=quiet, as_json=as_json) as display, columns_by_option():
            models = Path(work) / "models"
            opened = [open_model(one, work=models, progress=display) for one in (model, against)]
            giver = label_giver(opened)
            ours, theirs = (relabelled(one, giver, work=models) if unnamed(one) else one for one in opened)
            with as_given({one.folder: one.given for one in (ours, theirs)}):
                found = score(
                    ours.folder, theirs.folder, file, drift=drift, text=text, threads=threads, progress=display
                )
        named = _named(found.to_dict(), model, against)
        if as_json:
            print(_as_json(named), end="")
        else:
            for line in found.sentences():
                print(line.replace(str(ours.folder), model).replace(str(theirs.folder), against))


def _named(found: dict[str, Any], model: str, against: str) -> dict[str, Any]:
    """The score with the models called as they were asked for."""
    return {**found, "model": model, "against": against}


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@app.command("folds")
def folds_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    k: Annotated[int, typer.Option("--k", metavar="K", help="Number of folds; each is a run of the recipe.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the result; runs/<name>-folds unless given.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score RECIPE on all its labelled rows, where they are few.

    The rows are divided into folds, and each is answered by a run of the recipe on the others. Finished folds are
    skipped. Exit code 3 where a gate or the budget's scores failed.
    """
    with Ending(out, resumes=True):
        from compressor.recipe.recipe import Recipe
        from compressor.runner.folds import run_folds

        with working(quiet=quiet, as_json=as_json) as display:
            result = run_folds(Recipe.load(recipe, sets or ()), out, k=k, progress=display, say=display.say)
        if as_json:
            print(_as_json(result.found.to_dict()), end="")
        else:
            print(result.found.text(), end="")
            print(f"folds: {result.folder / 'folds.md'}")
        if result.message:
            complain(result.message)
    raise typer.Exit(result.exit_code)
