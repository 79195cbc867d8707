"""A recipe run once for each fold of its labelled rows, so that every row is answered by models that never saw it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.rows import DataSets, PoolPart, Rows
from compressor.data.settings import Data, SelectShare
from compressor.data.source_rows import Source, Text
from compressor.data.split import is_empty, stratified_share
from compressor.errors import GateError, InputError, UndecidedError
from compressor.evaluate.settings import Budget
from compressor.model.manifest import teacher_labels
from compressor.recipe.recipe import Recipe
from compressor.runner.directory import RunDirectory, read_json, write_json
from compressor.runner.prepare import Prepared, prepare
from compressor.runner.run import RunResult, run
from compressor.sources.settings import ModelSource
from compressor.stage import Progress, silent

if TYPE_CHECKING:
    from compressor.report.out_of_fold import FoldAnswers, OutOfFold

SELECT_AT_MOST = 0.5
"""Largest share of the other folds' rows that is set aside for decisions, whatever the recipe's own parts are."""
ROUNDS = 3
"""Rounds of timing in a fold's run, the fewest there are: nothing is told of them."""


@dataclass(frozen=True)
class FoldsResult:
    """The figures over all folds, and how the command ends."""

    found: OutOfFold
    folder: Path
    """Holds folds.json, folds.md, answers.jsonl and the run of each fold."""
    exit_code: int
    message: str | None
    """What failed or stayed undecided; None when all is well."""


def run_folds(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    k: int = 5,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _line: None,
) -> FoldsResult:
    """Teacher and final model on all labelled rows, each row answered by a run of the recipe without its fold.

    The rows of train, select and test are divided anew; in each run one fold is the test set, and the recipe's share of
    the others is `select`. Nothing is timed beyond the fewest rounds, and no baselines are made. Finished folds are
    skipped, so the same call resumes.

    Args:
        recipe: a loaded recipe or the path of one.
        out: folder of the result; `runs/<name>-folds` unless given. The fold N is run in `fold-N` there.
        k: number of folds.
        progress: told of every long phase.
        say: told of each stage in a line.
    Raises: InputError for fewer than two folds, fewer texts of a class than folds, or what `run` cannot use;
        StageError for a stage that cannot finish.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if k < 2:
        raise InputError(f"folds must be 2 or more (got {k}); 5 are usual")
    folder = Path(out) if out else Path("runs") / f"{recipe.name}-folds"
    if (folder / "stages").exists():
        raise InputError(f"{folder} is the directory of a run; give another one with --out")
    prepared = prepare(recipe, progress=progress)
    assert prepared is not None
    rows = labelled_rows(prepared.data)
    held = divide(rows, prepared.data.labels, k, seed=recipe.seed)
    with RunDirectory(folder).locked():
        (folder / "recipe.resolved.yaml").write_text(recipe.resolved(), encoding="utf-8")
        parts = []
        for number, places in enumerate(held, 1):
            part = _fold(recipe, prepared.data, rows, places, folder / f"fold-{number}", progress, say)
            parts.append(part)
        found = _figures(recipe, prepared, parts, rows, folder)
        _write(found, folder, _answered(rows, held, parts, prepared.data.labels))
    return FoldsResult(found, folder, *_exit(found, recipe.budget))


def labelled_rows(data: DataSets) -> Rows:
    """The rows of train, select and test, one after the other."""
    parts = [part for part in (data.train, data.select, data.test) if part is not None]
    return Rows(
        tuple(text for part in parts for text in part.texts), tuple(label for part in parts for label in part.labels)
    )


def divide(rows: Rows, labels: Sequence[str], k: int, *, seed: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of the rows in each of k folds, ascending; a text that repeats stays whole in one fold.

    The texts of a class, that of their first row, are spread evenly.

    Raises: InputError for a class with fewer different texts than folds.
    """
    from compressor.evaluate.folds import folds

    copies = _copies(rows)
    first = [rows.labels[places[0]] for places in copies]
    texts, every = Counter(first), Counter(rows.labels)
    for place, label in enumerate(labels):
        if 0 < every[place] and texts[place] < k:
            raise InputError(
                f"class {label!r} has {texts[place]} different texts in {every[place]} labelled rows, fewer than the {k} "
                "folds; take fewer folds or give it more rows"
            )
    held = folds(first, k, seed=seed)
    return tuple(tuple(sorted(place for group in fold for place in copies[int(group)])) for fold in held)


def _copies(rows: Rows) -> list[list[int]]:
    """Numbers of the rows of each different text."""
    found: dict[Text, list[int]] = {}
    for place, text in enumerate(rows.texts):
        found.setdefault(text, []).append(place)
    return list(found.values())


def _fold(
    recipe: Recipe,
    data: DataSets,
    rows: Rows,
    held: Sequence[int],
    root: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> FoldAnswers:
    """One fold's run, and what its models answered to the rows held out."""
    result = run(
        fold_recipe(recipe, data, rows, held, root / "rows"),
        root,
        progress=lambda what, done, total: progress(f"{root.name}, {what}", done, total),
        say=lambda line: say(f"{root.name}, {line}"),
    )
    return _read(root, rows.take(held), result)


def fold_recipe(recipe: Recipe, data: DataSets, rows: Rows, held: Sequence[int], folder: Path) -> Recipe:
    """The recipe on other rows: those of `held` are its test set, the others its train and select.

    The rows are written below `folder`; of a text that repeats outside the fold the first row alone is trained on, as
    in every run, and blank ones are not.
    """
    out = set(held)
    others = [copies[0] for copies in _copies(rows) if copies[0] not in out]
    others = [place for place in others if not is_empty(rows.texts[place])]
    names = [None if rows.labels[place] is None else data.labels[rows.labels[place] or 0] for place in others]
    source = Source("rows", [rows.texts[place] for place in others], names, others)
    chosen, left = stratified_share(source, min(SELECT_AT_MOST, _select_share(recipe, data)))
    label = next(name for name in ("label", "class", "label of the row") if name not in data.text_columns)

    def written(name: str, part: Rows) -> str:
        return _write_rows(folder / f"{name}.jsonl", part, data, label)

    asked = {
        "train": written("train", rows.take([others[place] for place in left])),
        "select": {"path": written("select", rows.take([others[place] for place in chosen]))},
        "test": written("test", rows.take(held)),
        "unlabelled": [
            {"path": written(f"unlabelled-{number}", part), "share": share}
            for number, (part, share) in enumerate(_pools(data, {rows.texts[place] for place in held}), 1)
        ],
        "text": data.text_columns[0] if len(data.text_columns) == 1 else list(data.text_columns),
        "label": label,
        "labels": list(data.labels),
        "max_tokens": data.max_tokens,
    }
    return replace(_untimed(recipe), data=Data.model_validate(asked), budget=Budget())


def _select_share(recipe: Recipe, data: DataSets) -> float:
    """Share of the rows that are not tested on which the recipe decides."""
    if isinstance(recipe.data.select, SelectShare) and recipe.data.split is None:
        return recipe.data.select.share
    return len(data.select) / (len(data.select) + len(data.train))


def _pools(data: DataSets, tested: set[Text]) -> list[tuple[Rows, float | None]]:
    """The sources of the unlabelled pool that have rows, less the texts that are tested, each with its share."""
    parts = data.pools or (PoolPart("unlabelled", len(data.unlabelled), None),)
    starts = accumulate((part.rows for part in parts), initial=0)
    found = []
    for part, start in zip(parts, starts, strict=False):
        kept = [place for place in range(start, start + part.rows) if data.unlabelled.texts[place] not in tested]
        if kept:
            found.append((data.unlabelled.take(kept), part.share))
    return found


def _untimed(recipe: Recipe) -> Recipe:
    """The recipe with as little timing as there can be and no baselines.

    The first processor among its targets is timed, or else its first target, as these say what INT8 is made for.
    """
    asked = recipe.benchmark
    name = next((name for name in asked.targets if recipe.targets[name].device == "cpu"), asked.targets[0])
    least: dict[str, Any] = {"workload": None}
    if recipe.targets[name].device == "cpu":
        least["engine"] = "onnxruntime"
    few = {"targets": [name], "rounds": ROUNDS, "grid": None, "scenarios": ["single stream"], "p99_ms": None}
    return replace(
        recipe,
        benchmark=asked.model_copy(update={**few, "end_to_end": False, "price": None, "baselines": []}),
        targets={**recipe.targets, name: recipe.targets[name].model_copy(update=least)},
    )


def _write_rows(path: Path, rows: Rows, data: DataSets, label: str) -> str:
    """Rows as jsonl, written where they are not there already; the path, absolute."""
    lines = []
    for text, place in zip(rows.texts, rows.labels, strict=True):
        texts = (text,) if isinstance(text, str) else text
        row = dict(zip(data.text_columns, texts, strict=True)) | ({} if place is None else {label: data.labels[place]})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    content = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)
    return str(path.resolve())


def _read(root: Path, rows: Rows, result: RunResult) -> FoldAnswers:
    """What the models of a finished fold answered, from the answers kept with its report."""
    from compressor.report.kept import read_answers
    from compressor.report.out_of_fold import FoldAnswers

    kept = read_answers(root / "report")
    assert kept is not None
    assert kept.rows == rows.digest()
    return FoldAnswers(
        run=root.name,
        train_rows=result.report["data"]["train"],
        select_rows=result.report["data"]["select"],
        stage=(read_json(root / "final" / "compressor.json") or {})["stage"],
        ended=result.message,
        references=kept.references,
        answers={name: logits.argmax(-1) for name, logits in kept.logits.items()},
    )


def _figures(
    recipe: Recipe, prepared: Prepared, parts: Sequence[FoldAnswers], rows: Rows, folder: Path
) -> OutOfFold:
    from compressor.report.out_of_fold import out_of_fold_report

    words = ["compress", "folds", str(folder / "recipe.resolved.yaml"), "--k", str(len(parts)), "--out", str(folder)]
    return out_of_fold_report(
        recipe.name,
        parts,
        prepared.data.labels,
        metric=recipe.task.metric,
        budget=recipe.budget,
        doubts=(*seen_elsewhere(recipe, prepared), *_repeats(rows)),
        command=shlex.join(words),
    )


def seen_elsewhere(recipe: Recipe, prepared: Prepared) -> list[str]:
    """Doubts about models and answers from outside the recipe, which may know the rows that a fold leaves out."""
    found = []
    path = recipe.teacher.model.path
    if recipe.teacher.finetune is None:
        found.append(
            f"The teacher was not fine-tuned in this recipe: {path} may have been trained on these very rows, and then "
            "neither its answers nor those of the students it taught are out of sample. Give teacher.finetune and a "
            "pretrained encoder to have a teacher trained for each fold."
        )
    elif teacher_labels(prepared.source) is not None:
        found.append(f"The teacher goes on from {path}, a classifier fine-tuned elsewhere, perhaps on these very rows.")
    for stage in recipe.stages:
        for role, source in stage.sources().items():
            here = prepared.sources[stage.id, role]
            if not isinstance(source, ModelSource):
                found.append(f"{stage.id} learns from {source.path}: whoever gave these answers may know these rows.")
            elif teacher_labels(here) is not None:
                found.append(f"{stage.id} takes {source.path}, a classifier that may have been trained on these rows.")
    return found


def _repeats(rows: Rows) -> list[str]:
    """A sentence on rows whose text stands more than once."""
    copies = [places for places in _copies(rows) if len(places) > 1]
    differing = sum(len({rows.labels[place] for place in places}) > 1 for places in copies)
    if not copies:
        return []
    labels = f", {differing} of them with different labels" if differing else ""
    return [f"{len(copies)} texts stand more than once{labels}; all rows of a text are in one fold and are counted."]


def _answered(
    rows: Rows, held: Sequence[Sequence[int]], parts: Sequence[FoldAnswers], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Each labelled row with its fold and what teacher and final model answered, as class names."""
    found: dict[int, dict[str, Any]] = {}
    for number, (places, part) in enumerate(zip(held, parts, strict=True), 1):
        answers = zip(places, part.references, part.answers["teacher"], part.answers[part.stage], strict=True)
        for place, label, teacher, final in answers:
            said = {"label": labels[label], "teacher": labels[teacher], "final": labels[final]}
            found[place] = {"fold": number, "text": rows.texts[place], **said}
    return [found[place] for place in range(len(rows))]


def _write(found: OutOfFold, folder: Path, answered: Sequence[dict[str, Any]]) -> None:
    """folds.json, folds.md and answers.jsonl."""
    write_json(folder / "folds.json", found.to_dict())
    (folder / "folds.md").write_text(found.to_markdown(), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answered]
    (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")


def _exit(found: OutOfFold, budget: Budget) -> tuple[int, str | None]:
    """Exit code and what is told with it: gates that ended a fold's run first, then the limits of scores."""
    ended = [f"{one.run}: {one.ended}" for one in found.folds if one.ended]
    if ended:
        return GateError.exit_code, "; ".join(ended)
    missed = [f"{row.what} {row.limit}: {row.because}" for row in found.budgets if row.verdict == found.verdict]
    if found.verdict == "fail":
        return GateError.exit_code, f"the budget is not kept: {'; '.join(missed)}"
    if found.verdict == "undecided":
        code = UndecidedError.exit_code if budget.undecided == "fail" else 0
        return code, f"the budget is undecided: {'; '.join(missed)}"
    return 0, None
