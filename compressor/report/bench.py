"""`bench`: any models side by side, those of other tools too, on rows with labels, without, or none at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.settings import BASELINES, BaselineName, Benchmark, Target
from compressor.data.readers import format_of, head_names
from compressor.data.rows import DataSets, Rows, Text
from compressor.data.settings import Column, Data, Task
from compressor.data.source_rows import read_source
from compressor.data.split import is_empty
from compressor.errors import InputError
from compressor.evaluate.folds import folds
from compressor.report.foreign import Opened, as_given, class_ids, label_giver, names_of, open_model, relabelled
from compressor.report.measure import measure, write_report
from compressor.report.model import Report, SubjectRow
from compressor.report.sentences import SENTENCES
from compressor.report.subjects import ROWS_TIMED
from compressor.sources.rows_source import resolve_rows
from compressor.stage import Progress, made_folder, settings_of, silent

FEWEST_TRAIN = 50
"""Labelled rows below which no baseline is made."""
PROBE_ROWS = 32
"""Rows that exports are compared on."""


@dataclass(frozen=True)
class Given:
    """Rows to compare models on."""

    texts: tuple[Text, ...]
    labels: tuple[str | None, ...] | None
    """Class names; None where the file has no such column."""
    name: str
    note: str | None = None
    """What a reader should know of them."""


def bench(
    paths: Sequence[str],
    *,
    rows: str | Path | None = None,
    text: Sequence[Column] = (),
    label: Column | None = None,
    rounds: int | None = None,
    looks: int = 3,
    benchmark: Benchmark | Mapping[str, Any] | None = None,
    targets: Mapping[str, Target | Mapping[str, Any]] | None = None,
    train: str | Path | None = None,
    baselines: Sequence[BaselineName] = BASELINES,
    threads: int | None = None,
    base: Path | None = None,
    seed: int = 17,
    progress: Progress = silent,
    out: Path | None = None,
) -> Report:
    """A report of models beside the first of them: time in interleaved rounds, size, resources, agreement and score.

    Args:
        paths: folders, run directories, hub ids or pypi:// names; text classifiers of the same labels. Where a model
            calls them LABEL_0 and so on, the first model that has names gives them.
        rows: a file as `data.train` takes them; a few sentences of our own unless given.
        text: column of the text, or two of a pair; what the first model's manifest says unless given.
        label: column of the label; `label` where there is one. Without labels nothing is scored.
        rounds: slots each model gets; what `benchmark` says, or 15, unless given.
        looks: 1 to 3; how many lots of rounds are timed at most, the further ones while a verdict is undecided.
        benchmark: what is timed beside single rows, as in a recipe: grid, scenarios, price.
        targets: name to where models are timed, as for `measure`.
        train: labelled rows with the columns of `rows`, of which baselines are made; those among `rows` are left out,
            and a tenth is held out for choices. None makes no baselines.
        baselines: names of those simple models.
        threads: of each timed model; None takes all that this process may use.
        base: folder that relative paths start from; the current one unless given.
        seed: draws the rows that are timed.
        progress: called while it works.
        out: folder for the report's files; None writes none.
    Raises: InputError for models or rows that cannot be used, StageError where a timed process fails.
    """
    if not paths:
        raise InputError("bench needs one or more models: folders, run directories or hub names")
    named, out = names_of(paths), None if out is None else made_folder(out)
    with tempfile.TemporaryDirectory(prefix="compressor-bench-") as folder:
        work = Path(folder)
        opened = {
            name: open_model(path, work=work / "models", base=base, progress=progress) for name, path in named.items()
        }
        giver = label_giver(list(opened.values()))
        opened = {name: relabelled(one, giver, work=work / "models") for name, one in opened.items()}
        first = next(iter(opened.values()))
        given = read_given(rows, first, text=text, label=label, base=base)
        learned = (
            None if train is None else _train_rows(train, given, first, text=text, label=label, base=base, seed=seed)
        )
        with as_given({one.folder: one.given for one in opened.values()}):
            report = measure(
                {name: one.folder for name, one in opened.items()},
                data=_data(given, first, learned),
                baselines=() if learned is None else baselines,
                rounds=rounds,
                looks=looks,
                benchmark=benchmark,
                targets=targets,
                changed=given.labels is not None,
                threads=threads,
                name="bench",
                seed=seed,
                progress=progress,
                out=work / "report",
            )
        report = _as_given(report, opened, given, 0 if learned is None else len(learned[0]))
        if out is not None:
            write_report(report, out)
            kept = ["samples.json", "disagreements.jsonl"] if given.labels is not None else ["samples.json"]
            for name in kept:
                shutil.copyfile(work / "report" / name, out / name)
    return report


def read_given(
    rows: str | Path | None, first: Opened, *, text: Sequence[Column], label: Column | None, base: Path | None
) -> Given:
    """The rows of a file, blank ones left out, or our own sentences where no file is given."""
    if rows is None:
        if text or label is not None:
            raise InputError("--text and --label name columns of a file; give --rows FILE too")
        return _own_sentences(pairs=len(first.manifest.text) == 2)
    base = base or Path.cwd()
    columns = list(text or first.manifest.text)
    asked: dict[str, Any] = {"train": str(rows), "text": columns[0] if len(columns) == 1 else columns}
    if label is not None:
        asked["label"] = label
    data = settings_of(Data, asked, "bench")
    labelled = label is not None or _has_labels(data, base)
    found = read_source(data.train, data, base=base, bins=None, labelled=labelled)
    kept = [place for place, one in enumerate(found.texts) if not is_empty(one)]
    if not kept:
        raise InputError(f"{rows}: all {len(found)} rows are blank; look at the text column")
    blank = len(found) - len(kept)
    note = f"{blank} blank rows of {rows} were left out." if blank else None
    found = found.take(kept)
    labels = tuple(found.labels) if labelled and any(one is not None for one in found.labels) else None
    return Given(tuple(found.texts), labels, str(rows), note)


def _train_rows(
    train: str | Path,
    given: Given,
    first: Opened,
    *,
    text: Sequence[Column],
    label: Column | None,
    base: Path | None,
    seed: int,
) -> tuple[Rows, Rows]:
    """Rows to learn from and those held out for choices, without the texts that are scored.

    Raises: InputError where either file has no labels, or too few rows are left.
    """
    if given.labels is None:
        raise InputError(
            f"--train makes baselines, which are scored: {given.name} has no labels; name them with --label"
        )
    found = read_given(train, first, text=text, label=label, base=base)
    if found.labels is None:
        raise InputError(f"--train {train}: it has no labels to learn from; name their column with --label")
    ids = class_ids(found.labels, first.manifest.labels, where=str(train))
    scored = set(given.texts)
    kept = [place for place, one in enumerate(ids) if one is not None and found.texts[place] not in scored]
    if len(kept) < FEWEST_TRAIN:
        raise InputError(
            f"{train}: {len(kept)} labelled rows that are not scored; baselines need {FEWEST_TRAIN} or more"
        )
    rows = Rows(found.texts, tuple(ids)).take(kept)
    held = folds(rows.labels, 10, seed=seed)[0]
    return rows.take(np.setdiff1d(np.arange(len(rows)), held).tolist()), rows.take(held.tolist())


def _own_sentences(*, pairs: bool) -> Given:
    texts: tuple[Text, ...] = SENTENCES
    if pairs:
        texts = tuple(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))
    note = (
        f"The rows are {len(texts)} built-in sentences, English and Chinese, of 1 to some 70 words: times hold "
        "for their lengths and nothing is scored; give rows of your own with --rows FILE."
    )
    return Given(texts, None, "built-in sentences", note)


def _has_labels(data: Data, base: Path) -> bool:
    """Whether the file has the label column that `data` names by default."""
    path = resolve_rows(data.train, base)
    if format_of(data.train, path) == "txt":
        return False
    columns = data.text if isinstance(data.text, list) else [data.text]
    names = head_names(path, data.train, columns)
    return names is not None and data.label in names


def _data(given: Given, first: Opened, learned: tuple[Rows, Rows] | None) -> DataSets:
    """The rows as measure takes them; where there are no labels, the first model's answers stand in for them.

    `learned` are train rows and those held out of them, where baselines are made.
    """
    labels: Sequence[int | None]
    if given.labels is not None:
        labels = class_ids(given.labels, first.manifest.labels, where=given.name)
    else:
        from compressor.runtime.predictor import load

        answers = load(first.folder, spinning=False).logits(list(given.texts)).argmax(-1)
        labels = [int(one) for one in answers]
    rows = Rows(given.texts, tuple(labels))
    train, select = learned or (Rows((), ()), rows.head(PROBE_ROWS))
    columns = ("text_a", "text_b") if isinstance(given.texts[0], tuple) else ("text",)
    return DataSets(
        task=Task(),
        labels=first.manifest.labels,
        text_columns=first.manifest.text if len(first.manifest.text) == len(columns) else columns,
        max_tokens=first.manifest.max_tokens,
        train=train,
        select=select,
        test=rows,
        unlabelled=Rows((), ()),
    )


def _as_given(report: Report, opened: dict[str, Opened], given: Given, learned: int) -> Report:
    """The report with paths and precisions as asked for, and without scores where there are no labels."""
    subjects = []
    for row in report.subjects:
        one = opened[row.name.removesuffix("/aa")]
        subjects.append(row.model_copy(update={"path": one.given, "precision": one.precision}))
    rows = len(given.texts)
    notes: tuple[str, ...] = () if given.note is None else (given.note,)
    if given.labels is None and given.texts != SENTENCES:
        notes += (f"Nothing is scored: no column of labels of {given.name} was found or named; name one with --label.",)
    if rows < ROWS_TIMED:
        notes += (f"Times rest on {rows} different rows; {ROWS_TIMED} are usual.",)
    report = report.model_copy(
        update={
            "subjects": tuple(subjects),
            "doubts": (*report.doubts, *notes),
            "data": {"train": learned, "select": 0, "test": rows, "unlabelled": 0, "rows": given.name, "removed": {}},
            "label_counts": {name: one for name, one in report.label_counts.items() if name == "test"},
            "histogram": _of_test(report.histogram),
        }
    )
    return report if given.labels is not None else without_scores(report)


def _of_test(histogram: Mapping[str, Any]) -> dict[str, Any]:
    """The lengths of the rows alone; those that exports are compared on are among them."""
    counts = {name: one for name, one in histogram.get("counts", {}).items() if name == "test"}
    return {**histogram, "counts": counts} if counts else {}


def without_scores(report: Report) -> Report:
    """The report without what rests on labels; agreement and divergence stay."""
    doubts = tuple(one for one in report.doubts if not one.startswith("Scores rest on"))
    steps = tuple(step.model_copy(update={"drop": None}) for step in report.ladder)
    rows = tuple(_without_score(row) for row in report.subjects)
    return report.model_copy(update={"subjects": rows, "ladder": steps, "doubts": doubts, "label_counts": {}})


def _without_score(row: SubjectRow) -> SubjectRow:
    versus = row.versus_teacher
    if versus is not None:
        reason = "; ".join(part for part in (versus.reason, "the rows have no labels, so nothing is scored") if part)
        gone = {"drop": None, "flips": None, "mcnemar_p": None, "reason": reason}
        versus = versus.model_copy(update=gone)
    scores: dict[str, object] = {
        "metric": None,
        "metrics": {},
        "classes": (),
        "lengths": (),
        "calibration": None,
        "perturbed": (),
    }
    return row.model_copy(update={**scores, "versus_teacher": versus})
