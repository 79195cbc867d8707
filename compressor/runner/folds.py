"""A recipe run once for each fold of its labelled rows, so that every row is answered by models that never saw it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.rows import DataSets, Rows
from compressor.errors import InputError
from compressor.evaluate.settings import Budget
from compressor.model.manifest import read_config
from compressor.recipe.recipe import Recipe
from compressor.runner.chain import stages_of
from compressor.runner.directory import RunDirectory, read_json, write_json
from compressor.runner.finish import by_budget
from compressor.runner.fold_rows import copies_of, divide, fold_recipe, labelled_rows
from compressor.runner.prepare import Prepared, prepare
from compressor.runner.run import RunResult, run
from compressor.sources.settings import ModelSource
from compressor.stage import Progress, silent

if TYPE_CHECKING:
    from compressor.report.out_of_fold import FoldAnswers, OutOfFold


COUNT_FILE = "folds-asked.json"
"""Says into how many folds the rows of a folder are divided."""


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
    _require_same_count(folder, k)
    prepared = prepare(recipe, progress=progress)
    assert prepared is not None
    rows = labelled_rows(prepared.data)
    held = divide(rows, prepared.data.labels, k, seed=recipe.seed)
    with RunDirectory(folder).locked():
        (folder / "recipe.resolved.yaml").write_text(recipe.resolved(), encoding="utf-8")
        write_json(folder / COUNT_FILE, {"k": k})
        parts, codes = [], []
        for number, places in enumerate(held, 1):
            say(f"fold {number} of {k}")
            part, code = _fold(recipe, prepared.data, rows, places, folder / f"fold-{number}", progress, say)
            parts.append(part)
            codes.append(code)
        found = _figures(recipe, prepared, parts, rows, folder)
        _write(found, folder, _answered(rows, held, parts, prepared.data.labels))
    return FoldsResult(found, folder, *ending(found, codes, recipe.budget))


def _require_same_count(folder: Path, k: int) -> None:
    """InputError where the folder holds folds of another number, which divide the rows otherwise."""
    held = read_json(folder / COUNT_FILE)
    before = held.get("k") if isinstance(held, dict) else None
    if before not in (None, k):
        raise InputError(
            f"{folder} holds {before} folds, and --k {k} divides the rows otherwise; give another --out, or remove "
            "that folder"
        )


def _fold(
    recipe: Recipe,
    data: DataSets,
    rows: Rows,
    held: Sequence[int],
    root: Path,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[FoldAnswers, int]:
    """What the models of one fold's run answered to the rows held out, and the run's exit code."""
    result = run(
        fold_recipe(recipe, data, rows, held, root / "rows"),
        root,
        progress=lambda what, done, total: progress(f"{root.name}, {what}", done, total),
        say=say,
    )
    return _read(root, rows.take(held), result), result.exit_code


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


def _figures(recipe: Recipe, prepared: Prepared, parts: Sequence[FoldAnswers], rows: Rows, folder: Path) -> OutOfFold:
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
    elif _classifies(prepared.source):
        found.append(f"The teacher goes on from {path}, a classifier fine-tuned elsewhere, perhaps on these very rows.")
    for stage in stages_of(recipe):
        for role, source in stage.sources().items():
            if not isinstance(source, ModelSource):
                found.append(f"{stage.id} learns from {source.path}: whoever gave these answers may know these rows.")
            elif _classifies(prepared.sources[stage.id, role]):
                found.append(f"{stage.id} takes {source.path}, a classifier that may have been trained on these rows.")
    return found


def _classifies(folder: Path) -> bool:
    """Whether the model in a folder has a classifier on top."""
    architectures: Sequence[str] = read_config(folder).get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _repeats(rows: Rows) -> list[str]:
    """A sentence on rows whose text stands more than once."""
    copies = [places for places in copies_of(rows) if len(places) > 1]
    differing = sum(len({rows.labels[place] for place in places}) > 1 for places in copies)
    if not copies:
        return []
    texts = "1 text stands" if len(copies) == 1 else f"{len(copies)} texts stand"
    labels = f", {differing} with different labels" if differing else ""
    return [f"{texts} more than once{labels}; the rows of a text are all in one fold, and all are counted."]


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


def ending(found: OutOfFold, codes: Sequence[int], budget: Budget) -> tuple[int, str | None]:
    """Exit code and what is told with it: gates that ended a fold's run first, then the limits of scores."""
    ended = [f"{one.run}: {one.ended}" for one in found.folds if one.ended]
    if ended:
        return min(code for code in codes if code), "; ".join(ended)
    return by_budget(found.verdict, found.budgets, budget)
