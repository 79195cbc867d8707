"""The end of a run: scores on `test`, timings, the report and its verdict, and `final/` from the best candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.device import machine_id
from compressor.errors import GateError, UndecidedError
from compressor.model.digest import model_digest
from compressor.runner.baselines import with_baselines
from compressor.runner.chain import Chain, rows_digests, stages_of
from compressor.runner.deploy import Made, version, write_report_and_final
from compressor.runner.directory import RunDirectory, read_json, read_lines
from compressor.runner.keys import digest, library_versions
from compressor.runner.laid_out import layout_asked
from compressor.runner.prepare import Prepared, check_rows
from compressor.runner.pruned import pruning
from compressor.runner.scoring import answers, onnx_folder
from compressor.stage import Progress

if TYPE_CHECKING:
    from compressor.evaluate.gates import BudgetRow
    from compressor.evaluate.settings import Budget
    from compressor.report.assemble import Told
    from compressor.report.engines import Engines
    from compressor.report.model import BudgetLine, Quantization, Report
    from compressor.report.subjects import Subject


@dataclass(frozen=True)
class Stop:
    """The stage whose gate ended the run, the one before it, and why."""

    stage: str
    before: str | None
    because: str
    verdict: str


@dataclass(frozen=True)
class Ending:
    """Report, folder to deploy, exit code and what is said with it."""

    report: Report
    final: Path
    exit_code: int
    message: str | None


def finish(
    chain: Chain, prepared: Prepared, stop: Stop | None, *, progress: Progress, say: Callable[[str], None]
) -> Ending:
    """Report and `final/`; nothing is done again where both stand for the same stages, budgets and machine."""
    directory = chain.directory
    ids = [stage.id for stage in stages_of(chain.recipe) if stage.id in chain.keys]
    best = _best(ids, stop)
    key = _report_key(chain, ids, best)
    if _stands(directory, key):
        from compressor.report.model import Report

        report = Report.read(directory.report / "report.json")
        say("report and final: done already")
    else:
        made = _report(chain, ids, best, truncated=check_rows(prepared), progress=progress)
        write_report_and_final(chain, made, best, key)
        report = made.report
    return Ending(report, directory.final, *_exit(chain, report, stop))


def _exit(chain: Chain, report: Report, stop: Stop | None) -> tuple[int, str | None]:
    """Exit code and what the user is told when it is not 0."""
    if chain.smoke:
        return 0, None
    if stop is not None:
        code = UndecidedError.exit_code if stop.verdict == "undecided" else GateError.exit_code
        kept = f"final/ holds {stop.before}" if stop.before else "final/ holds the teacher as it is"
        return code, f"stage {stop.stage} broke its gate: {stop.because}; {kept}"
    return by_budget(report.verdict, report.budgets, chain.recipe.budget)


def by_budget(verdict: str, rows: Sequence[BudgetLine | BudgetRow], budget: Budget) -> tuple[int, str | None]:
    """Exit code and what is told with it where only the budget can have failed."""
    missed = "; ".join(f"{row.what} {row.limit}: {row.because}" for row in rows if row.verdict == verdict)
    if verdict == "fail":
        return GateError.exit_code, f"the budget is not kept: {missed}"
    if verdict == "undecided":
        return UndecidedError.exit_code if budget.undecided == "fail" else 0, f"the budget is undecided: {missed}"
    return 0, None


def _stands(directory: RunDirectory, key: str) -> bool:
    """True where report and `final/` were made under that key and every file of them is there."""
    record = read_json(directory.report / "key.json")
    if record is None or record.get("key") != key or not directory.final.is_dir():
        return False
    reports = all(
        (directory.report / name).is_file()
        for name in ("report.json", "report.md", "index.html", "answers.npz", "samples.json", "disagreements.jsonl")
    )
    return reports and record.get("final") == model_digest(directory.final)


def _best(ids: list[str], stop: Stop | None) -> str:
    """Id of the stage whose model is deployed: the last one, or the one before a broken gate."""
    if stop is None:
        return ids[-1]
    return stop.before or stop.stage


def _report_key(chain: Chain, ids: list[str], best: str) -> str:
    recipe = chain.recipe
    models = [(stage_id, chain.keys[stage_id], model_digest(chain.folder(stage_id) / "model")) for stage_id in ids]
    controls = [
        (stage_id, name, model_digest(home / "model"))
        for stage_id in ids
        for name, home in chain.directory.controls(stage_id).items()
    ]
    return digest(
        {
            "stages": models,
            "controls": controls,
            "best": best,
            "budget": recipe.budget.model_dump(mode="json"),
            "benchmark": recipe.benchmark.model_dump(mode="json"),
            "targets": {name: target.model_dump(mode="json") for name, target in recipe.targets.items()},
            "layout": layout_asked(recipe),
            "name": recipe.name,
            "rows": rows_digests(chain.data),
            "test": chain.data.test.digest() if chain.data.test else None,
            "counts": [dict(chain.data.removed), list(chain.data.notes)],
            "version": version(),
            "machine": machine_id(),
            "versions": library_versions(),
        }
    )


def _report(chain: Chain, ids: list[str], best: str, *, truncated: Mapping[str, int], progress: Progress) -> Made:
    """Score every stage on `test`, time it, and put the report together."""
    from compressor.bench.machine import fingerprint
    from compressor.report.assemble import Scored, assemble
    from compressor.report.depth import in_depth
    from compressor.report.engines import torch_subjects, with_engines
    from compressor.report.measure import worst_apart
    from compressor.report.subjects import score_subjects, time_subjects

    data, recipe = chain.data, chain.recipe
    part, rows = data.scored_part, data.scored
    machine = fingerprint()
    kept = [stage_id for stage_id in ids if stage_id not in chain.origin]
    subjects = [_subject(chain, stage_id, part, progress) for stage_id in ids]
    subjects += _controls(chain, kept, part, progress)
    deployed = next(one.folder for one in subjects if one.name == best)
    names = recipe.benchmark.targets
    asked = [] if chain.smoke else names
    engines = with_engines(recipe.targets, asked, deployed, rows.texts, seed=recipe.seed, progress=progress)
    targets = engines.targets
    homes = {stage_id: chain.folder(stage_id) / "model" for stage_id in ids}
    subjects += torch_subjects(homes, [targets[name] for name in names], base=chain.directory.root)
    subjects = list(score_subjects(subjects, rows.texts, threads=chain.threads, progress=progress))
    timings: Mapping[str, Any] | str = "a smoke run claims no time"
    if not chain.smoke:
        timings = time_subjects(
            subjects,
            rows.texts,
            benchmark=recipe.benchmark,
            targets=targets,
            seed=recipe.seed,
            progress=progress,
        )
    told = _told(chain, kept, machine, truncated, engines, best)
    held = recipe.budget if recipe.budget.scores or recipe.budget.latency or recipe.budget.size else None
    report = assemble(
        told,
        subjects,
        Scored(rows.labels, data.labels, part == "test", rows.texts),
        timings=timings,
        targets=targets,
        benchmark=recipe.benchmark,
        budget=held,
        best=best,
    )
    report = in_depth(
        report,
        subjects,
        data,
        tokenizer=subjects[0].folder,
        select=_select_answers(chain, ids, progress) if part == "test" else None,
        changed=() if chain.smoke else tuple(dict.fromkeys(("teacher", best))),
        threads=chain.threads,
        seed=recipe.seed,
        progress=progress,
    )
    report = with_baselines(report, chain, subjects, best, budget=held, progress=progress)
    again = {"command": f"compress {chain.directory.root / 'recipe.resolved.yaml'}", "seed": recipe.seed}
    report = report.model_copy(update={"reproduce": {**again, "versions": library_versions()}})
    engine = next((one.engine for name, one in engines.choices.items() if targets[name].device == "cpu"), None)
    return Made(report, timings, tuple(subjects), worst_apart(subjects, "teacher", best, data), engine)


def _told(
    chain: Chain,
    kept: list[str],
    machine: Mapping[str, Any],
    truncated: Mapping[str, int],
    engines: Engines,
    best: str,
) -> Told:
    """What the run says of itself beside scores and times; `kept` are the stages of its own, `best` was asked of."""
    from compressor.report.assemble import Told
    from compressor.report.engines import told_choices
    from compressor.report.measure import row_counts

    recipe, data, told = chain.recipe, chain.data, told_choices(engines.choices, best)
    return Told(
        name=recipe.name,
        task=recipe.task.model_dump(mode="json"),
        data=row_counts(data) | {"truncated": dict(truncated)},
        machine=machine,
        notes=data.notes + _notes(chain),
        pruning=tuple(cut for stage_id in kept if (cut := _pruning(chain, stage_id)) is not None),
        curves=_curves(chain, kept),
        quantization=tuple(one for stage_id in kept if (one := _quantization(chain, stage_id)) is not None),
        decisions=(*(line for one in kept for line in distilling(chain.directory.stage(one))), *told),
        unchosen=engines.unchosen,
    )


def _select_answers(chain: Chain, ids: list[str], progress: Progress) -> dict[str, Any]:
    """Stage to its model's logits on select, kept where its gate asked for them."""
    store, data = chain.directory.answers, chain.data
    return {
        stage_id: answers(
            chain.folder(stage_id), "select", data=data, threads=chain.threads, progress=progress, store=store
        )
        for stage_id in ids
    }


def _subject(chain: Chain, stage_id: str, part: str, progress: Progress) -> Subject:
    """A stage's model on onnxruntime, with its answers on the scored rows."""
    return _scored(chain, stage_id, chain.folder(stage_id), part, progress)


def _controls(chain: Chain, ids: list[str], part: str, progress: Progress) -> list[Subject]:
    """The students that distill stages trained without a teacher or without unlabelled rows; scored, not timed."""
    return [
        replace(_scored(chain, f"{stage_id}/{name}", home, part, progress), untimed=f"same shape as {stage_id}")
        for stage_id in ids
        for name, home in chain.directory.controls(stage_id).items()
    ]


def _scored(chain: Chain, name: str, home: Path, part: str, progress: Progress) -> Subject:
    """The model in a folder on onnxruntime, with its answers on the scored rows."""
    from compressor.model.manifest import read_manifest
    from compressor.report.subjects import Subject, count_parameters

    store = chain.directory.answers
    logits = answers(home, part, data=chain.data, threads=chain.threads, progress=progress, store=store)
    folder = onnx_folder(home, data=chain.data, progress=progress)
    torch_weights = any((home / "model").glob("*.safetensors"))
    trained = Subject(name, home / "model", engine="torch") if torch_weights else None
    return Subject(
        name=name,
        folder=folder,
        precision=read_manifest(folder).precision,
        path=str(folder.relative_to(chain.directory.root)),
        parameters=count_parameters(trained) if trained else None,
        logits=logits,
        torch_folder=home / "model" if torch_weights else None,
    )


def _quantization(chain: Chain, stage_id: str) -> Quantization | None:
    """What a quantize stage tried and kept, and what its file is made of; None for another verb."""
    from compressor.report.int8 import quantization

    folder = chain.directory.stage(stage_id)
    return quantization(stage_id, read_lines(folder / "decisions.jsonl"), folder / "model")


def _pruning(chain: Chain, stage_id: str) -> dict[str, Any] | None:
    """What a prune stage left of each layer of its input and why; None for another verb."""
    return pruning(stage_id, read_lines(chain.directory.stage(stage_id) / "decisions.jsonl"))


def distilling(folder: Path) -> list[dict[str, Any]]:
    """What a distill stage found and chose, its gate and its warnings left out; empty for another verb."""
    if (read_json(folder / "stage.json") or {}).get("verb") != "distill":
        return []
    keys = ("stage", "kind", "chosen", "because")
    every = read_lines(folder / "decisions.jsonl")
    lines = [line for line in every if line["kind"] != "gate" and line["chosen"] is not None]
    return [{**{key: line[key] for key in keys}, "stage": folder.name} for line in lines]


def _curves(chain: Chain, ids: list[str]) -> dict[str, Any]:
    """Loss over the steps of every stage that trained."""
    from compressor.report.measure import read_curve

    logs = {stage_id: chain.directory.stage(stage_id) / "steps.jsonl" for stage_id in ids}
    return {stage_id: read_curve(path) for stage_id, path in logs.items() if path.is_file()}


def _notes(chain: Chain) -> tuple[str, ...]:
    """Doubts that the recipe gives rise to, and what stages warned of, such as a term without effect."""
    found = []
    model = chain.recipe.teacher.model
    if model.path.startswith("pypi://") and model.sha256 is None:
        found.append(f"{model.path} is not pinned by sha256.")
    for stage_id in chain.keys:
        lines = read_lines(chain.directory.stage(stage_id) / "decisions.jsonl")
        found += [f"{stage_id}: {line['because']}." for line in lines if line["chosen"] is None]
    for skipped, stands_for in chain.origin.items():
        found.append(f"Stage {skipped} broke its gate and was skipped: {stands_for} stands for it.")
    if chain.smoke:
        found.append("This was a smoke run: random weights and few rows; its figures mean nothing.")
    return tuple(found)
