"""The small verbs: report, why, push, schema, init, doctor."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.app import app
from compressor.cli.ending import Ending
from compressor.errors import InputError

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, such as runs/NAME.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else, to stdout.")]


@app.command("report")
def report_command(run: RunFolder, as_json: AsJson = False) -> None:
    """Write RUN's report again from its report.json, and show its table."""
    with Ending():
        from compressor.report.model import Report

        folder = run / "report" if (run / "report" / "report.json").is_file() else run
        report = Report.read(folder / "report.json")
        (folder / "index.html").write_text(report.to_html(), encoding="utf-8")
        (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
        if as_json:
            print(report.to_json(), end="")
        else:
            print(report.table())
            print(f"report: {folder / 'index.html'}")


@app.command("why")
def why_command(
    run: RunFolder,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Id of a stage.")],
    as_json: AsJson = False,
) -> None:
    """Show what STAGE of RUN decided, and why."""
    with Ending():
        from compressor.recipe.merge import did_you_mean
        from compressor.runner.directory import RunDirectory, read_lines

        directory = RunDirectory(run)
        made = directory.made()
        if not made:
            raise InputError(f"{run} holds no stages; give a run directory such as runs/NAME")
        if stage not in made:
            raise InputError(f"{run} has no stage {stage}; {did_you_mean(stage, made)}")
        decisions = read_lines(directory.stage(stage) / "decisions.jsonl")
        if as_json:
            print(json.dumps(decisions, indent=2, ensure_ascii=False))
            return
        from compressor.report.why import why

        print(why(stage, decisions), end="")


@app.command("push")
def push_command(
    run: RunFolder,
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Model repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and upload nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Upload it although its budget failed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result and errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload RUN's final/ to the Hugging Face hub, by the hub's own login.

    Exit code 3 where its budget failed, unless forced.
    """
    with Ending():
        from compressor.runner.push import push

        pushed = push(run, repo, private=private, dry_run=dry_run, force=force, bars=sys.stderr.isatty() and not quiet)
        if as_json:
            print(json.dumps(asdict(pushed), indent=2, ensure_ascii=False))
            return
        for name, size in pushed.files:
            print(f"{size:>12,}  {name}")
        total = sum(size for _, size in pushed.files)
        done = f"is at {pushed.url}" if pushed.url else f"would go to {repo}; nothing was uploaded"
        print(f"{len(pushed.files)} files, {total / 1e6:.1f} MB: {done}")


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
        from compressor.stage import made_folder

        if path.exists():
            raise InputError(f"{path} exists; name another file or remove it")
        made_folder(path.parent)
        path.write_text(TEMPLATE, encoding="utf-8")
        print(f"wrote {path}; put your rows and model into it, then: compress {path} --plan")


@app.command("doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Check this machine and its libraries, without network."""
    with Ending():
        from compressor.runner.doctor import findings

        found = findings(folder=Path("runs").absolute())
        if as_json:
            print(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
        else:
            width = max(len(finding.subject) for finding in found)
            for finding in found:
                print(f"{finding.state:<4}  {finding.subject:<{width}}  {finding.words}")
        if any(finding.state == "fail" for finding in found):
            raise typer.Exit(InputError.exit_code)
