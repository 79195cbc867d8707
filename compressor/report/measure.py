"""`measure`: model folders in, a report out; and the writing of a report's files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.bench.isolation import Timing
from compressor.bench.machine import fingerprint
from compressor.bench.settings import BASELINES, BaselineName, Benchmark, Target
from compressor.bench.statistics import LOOKS
from compressor.data.labels import require_labels
from compressor.data.rows import DataSets, Text
from compressor.data.settings import Data
from compressor.device import training_device
from compressor.errors import InputError
from compressor.evaluate.settings import Budget
from compressor.model.graph_file import model_file
from compressor.model.manifest import read_manifest
from compressor.report.assemble import Scored, Told, assemble
from compressor.report.baselines import Held, make_baselines
from compressor.report.compare import open_rows, scored_rows
from compressor.report.depth import in_depth
from compressor.report.disagreements import disagreements, write_disagreements
from compressor.report.engines import told_choices, torch_subjects, with_engines
from compressor.report.model import Report
from compressor.report.subjects import Subject, score_subjects, time_subjects
from compressor.stage import Progress, made_folder, settings_of, silent


def measure(
    folders: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    data: DataSets | Data | Mapping[str, Any],
    budget: Budget | Mapping[str, Any] | None = None,
    rounds: int | None = None,
    looks: int = 1,
    benchmark: Benchmark | Mapping[str, Any] | None = None,
    targets: Mapping[str, Target | Mapping[str, Any]] | None = None,
    threads: int | None = None,
    timing: bool = True,
    changed: bool = True,
    baselines: Sequence[BaselineName] = (),
    name: str = "measure",
    base: Path | None = None,
    seed: int = 17,
    progress: Progress = silent,
    out: Path | None = None,
) -> Report:
    """A report of model folders on the test rows of `data`; the first is the one the others are compared with.

    Args:
        folders: name to folder, or folders alone (named after themselves); one without model.onnx is exported first.
        data: rows; where it has no test rows, select is used and the report says so.
        budget: limits for the last folder; `vs: teacher` is the first.
        rounds: slots each model gets in the timing, 3 or more; what `benchmark` says, or 15, unless given.
        looks: 1 to 3; how many such lots of rounds are timed at most, while a model is neither faster, slower nor the
            same; verdicts then allow for the looks taken.
        benchmark: what is timed beside single rows: grid, scenarios, price; its targets and baselines are a recipe's.
        targets: name to where models are timed, as a recipe's `targets`; onnxruntime on the CPU unless given. Ratios
            are taken at the first of onnxruntime; engine torch times the folders that hold torch weights.
        threads: of each timed model where its target says nothing; None takes all that this process may use.
        timing: False leaves latency out.
        changed: False leaves out what small changes of the texts, and saturating sums of INT8, do.
        baselines: names of simple models (tfidf, static, small) made of the train rows of `data`, beside which the last
            folder is held; static and small are made of the first folder's torch weights.
        name: of the report.
        base: folder that relative paths in `data` start from.
        seed: draws the rows that are timed.
        progress: called while it works.
        out: folder for the report's files; None writes none.
    Raises: InputError for folders, rows or a budget that cannot be used, StageError where a timed process fails.
    """
    named, out = _named(folders), None if out is None else made_folder(out)
    if looks not in LOOKS:
        raise InputError(f"looks must be 1 to {max(LOOKS)} lots of rounds (got {looks})")
    limits = None if budget is None else settings_of(Budget, budget, "budget")
    rows = open_rows(data, next(iter(named.values())), base=base)
    texts, references, on_test = scored_rows(rows)
    _check_baselines(baselines, rows)
    places = _targets(targets, threads)
    settings = _timed_as(benchmark, rounds).model_copy(update={"targets": list(places)})
    timings: dict[str, Timing] | str = "timing was switched off"
    machine = fingerprint()
    with tempfile.TemporaryDirectory(prefix="compressor-measure-") as work:
        subjects = [_subject(one, folder, Path(work), rows, progress) for one, folder in named.items()]
        asked = list(places) if timing else []
        judged = subjects[-1]
        engines = with_engines(places, asked, judged.folder, texts, seed=seed, path=judged.path, progress=progress)
        places = engines.targets
        subjects += torch_subjects(named, places.values())
        scored = score_subjects(subjects, texts, threads=threads, progress=progress)
        first, last = scored[0].name, scored[len(named) - 1]
        if timing:
            timings = time_subjects(
                scored,
                texts,
                benchmark=settings,
                targets=places,
                reference=first,
                seed=seed,
                looks=looks,
                progress=progress,
            )
        report = assemble(
            Told(
                name=name,
                task=rows.task.model_dump(mode="json"),
                data=row_counts(rows),
                machine=machine,
                decisions=tuple(told_choices(engines.choices, last.name)),
                unchosen=engines.unchosen,
            ),
            scored,
            Scored(references, rows.labels, on_test, texts),
            timings=timings,
            targets=places,
            benchmark=settings,
            budget=limits,
            reference=first,
        )
        report = in_depth(
            report,
            scored,
            rows,
            tokenizer=scored[0].folder,
            reference=first,
            changed=tuple(dict.fromkeys((first, last.name))) if changed else (),
            threads=threads,
            seed=seed,
            progress=progress,
        )
        if baselines:
            made = make_baselines(
                baselines,
                rows,
                next(iter(named.values())),
                _held(scored[: len(named)], texts, references, limits),
                work=Path(work) / "baselines",
                threads=threads,
                device=training_device(),
                seed=seed,
                timing=timing,
                progress=progress,
            )
            report = report.model_copy(update={"baselines": made.made, "doubts": (*report.doubts, *made.doubts)})
        apart = worst_apart(scored, first, last.name, rows)
    if out is not None:
        write_report(report, out, timings, apart)
    return report


def _held(
    scored: Sequence[Subject], texts: Sequence[Text], references: Sequence[int | None], budget: Budget | None
) -> Held:
    """What simple models are held against: the last model, with the first as its teacher."""
    return Held(
        texts=texts,
        references=references,
        logits={one.name: one.logits for one in scored if one.logits is not None},
        deployed=scored[-1].name,
        teacher=scored[0].name,
        budget=budget,
    )


def _timed_as(benchmark: Benchmark | Mapping[str, Any] | None, rounds: int | None) -> Benchmark:
    """What is timed beside single rows; InputError for what only a recipe may say there."""
    settings = settings_of(Benchmark, benchmark or {}, "benchmark")
    for key in sorted({"targets", "baselines"} & settings.model_fields_set):
        advice = f"give {key}= beside it"
        raise InputError(f"benchmark.{key} is for recipes: {advice}")
    return settings if rounds is None else settings.model_copy(update={"rounds": rounds})


def _targets(targets: Mapping[str, Target | Mapping[str, Any]] | None, threads: int | None) -> dict[str, Target]:
    """Where models are timed; the CPU unless given, with `threads` where a target on it names none."""
    found = {name: settings_of(Target, one, f"targets.{name}") for name, one in (targets or {"cpu": {}}).items()}
    return {
        name: one.model_copy(update={"threads": threads}) if one.threads is None and one.device == "cpu" else one
        for name, one in found.items()
    }


def _check_baselines(names: Sequence[str], rows: DataSets) -> None:
    """InputError for a baseline that there is not, or no labelled rows to make one of."""
    odd = [one for one in names if one not in BASELINES]
    if odd:
        raise InputError(f"no baseline {odd[0]!r}; there are {', '.join(BASELINES)}")
    if names and not any(one is not None for one in rows.train.labels):
        raise InputError(
            "baselines learn from labelled train rows and there are none; give data.train, or no baselines"
        )


def row_counts(rows: DataSets) -> dict[str, Any]:
    """The `data` part of report.json."""
    return {
        "train": len(rows.train),
        "select": len(rows.select),
        "test": len(rows.test) if rows.test is not None else 0,
        "unlabelled": len(rows.unlabelled),
        "removed": dict(rows.removed),
    }


def worst_apart(subjects: Sequence[Subject], reference: str, best: str, data: DataSets) -> list[dict[str, Any]]:
    """The rows on which the deployed model answers otherwise than the reference, the widest apart first."""
    texts, references, _ = scored_rows(data)
    logits = {one.key: one.logits for one in subjects if one.logits is not None}
    if best not in logits or reference not in logits:
        return []
    return disagreements(texts, references, data.labels, teacher=logits[reference], subject=logits[best])


def write_report(
    report: Report,
    folder: Path,
    timings: Mapping[str, Timing] | str = "nothing was timed",
    apart: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """The folder, holding report.json, report.md, index.html and samples.json (raw times, or why there are none).

    `apart` holds the rows of disagreements.jsonl; None writes no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = not isinstance(timings, str)
    samples: dict[str, Any] = {"schema": 1, "unit": "ns", "reason": None if measured else timings, "targets": {}}
    if not isinstance(timings, str):
        samples["targets"] = {target: asdict(timing) for target, timing in timings.items()}
    contents = {
        "report.json": report.to_json(),
        "report.md": report.to_markdown() + "\n",
        "index.html": report.to_html(),
        "samples.json": json.dumps(samples) + "\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    if apart is not None:
        write_disagreements(folder / "disagreements.jsonl", apart)
    return folder


def read_curve(path: Path, *, most: int = 200) -> list[dict[str, float]]:
    """Step and loss of a steps.jsonl, of the last attempt where a step stands twice, thinned to `most` points.

    The trainings after several cuts, whose steps begin again, follow one another.
    """
    found: dict[tuple[int, int], float] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            entry = json.loads(line)
            found[int(entry.get("cut", 0)), int(entry["step"])] = float(entry["loss"])
    points = [{"step": step, "loss": found[place]} for step, place in enumerate(sorted(found), 1)]
    return points[:: max(1, -(-len(points) // most))]


def _named(folders: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    """Name to folder; a folder called `model` is named after the one it lies in."""
    if isinstance(folders, str | Path):
        folders = [folders]
    if isinstance(folders, Mapping):
        named = {name: Path(folder) for name, folder in folders.items()}
    else:
        named = {}
        for given in folders:
            path = Path(given).resolve()
            name = path.parent.name if path.name == "model" else path.name
            if name in named:
                raise InputError(f"two folders are called {name!r}; give a mapping of names to folders")
            named[name] = path
    if not named:
        raise InputError("measure needs one or more model folders")
    return named


def _subject(name: str, folder: Path, work: Path, rows: DataSets, progress: Progress) -> Subject:
    """The subject on onnxruntime; exported into `work` where the folder has no model.onnx."""
    manifest = read_manifest(folder)
    require_labels(folder, manifest.labels, rows.labels)
    place = folder
    if model_file(folder) is None:
        from compressor.export.exporter import Exporter

        place = Path(Exporter(folder, data=rows, progress=progress).export(work / str(len(list(work.iterdir())))))
    torch_folder = folder if any(folder.glob("*.safetensors")) else None
    return Subject(name, place, precision=manifest.precision, path=str(folder), torch_folder=torch_folder)
