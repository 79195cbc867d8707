"""A recipe: what is made of which model and rows, and what it must reach; read from YAML with every problem at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field
from pydantic.json_schema import models_json_schema

from compressor.bench.settings import TARGETS, Benchmark, Target
from compressor.data.settings import Data, Task
from compressor.errors import InputError, Problem, RecipeError
from compressor.evaluate.settings import Budget
from compressor.recipe.chain import default_stages, read_stages, reference_problems
from compressor.recipe.document import Entry, Fields, Node, Scalar, plain, resolve_scalar
from compressor.recipe.files import data_problems, label_problems, model_problems, place_of, written_labels
from compressor.recipe.limits import BUDGET_KEYS, fitting_limits
from compressor.recipe.merge import Loader, close_match, did_you_mean, is_file
from compressor.recipe.problems import checked
from compressor.recipe.smoke import SMOKE_ROWS, smoke_scale, smoke_settings, smoke_stage
from compressor.recipe.teachers import teacher_problems
from compressor.settings import Integer, LimitText, Settings, Word
from compressor.sources.models import peek_model
from compressor.sources.settings import ModelFrom
from compressor.stage import Stage
from compressor.stages.verbs import VERBS
from compressor.train.settings import Finetune


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(
            f"must be usable as a folder's name (got {text!r}); use letters, digits, '.', '_', '-', at most 64"
        )
    return text


class TeacherSettings(Settings):
    """The model that everything is measured against."""

    model: ModelFrom
    """A folder, a hub id or `pypi://PACKAGE==VERSION/folder`."""
    finetune: Finetune | None = None
    """How to make the teacher from a pretrained encoder; null takes the model as it is."""
    expect: dict[str, LimitText] = {}
    """Metric name, or METRIC@CLASS, to the least score on `select`; a broken teacher stops the run with exit code 3."""


class RecipeKeys(Settings):
    """The top-level keys of a recipe; stages are described by their verbs."""

    version: Literal[1] = 1
    """Version of the recipe language."""
    name: Annotated[Word, AfterValidator(_file_name)] = "recipe"
    """Name of the run directory; the file's name unless given."""
    extends: list[Word] | Word = []
    """Recipes that this one is laid over: files, or `builtin:NAME`."""
    vars: dict[str, Any] = {}
    """Names to values that '${name}' stands for; the value keeps its type."""
    base: Word | None = None
    """Folder that relative paths start from; the recipe's own unless given."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 17
    """Decides every random choice; the same seed on the same machine gives the same bits."""
    task: Task = Task()
    """What the model decides."""
    data: Data
    """Where the rows are and how to read them."""
    teacher: TeacherSettings
    """The model that everything is measured against."""
    stages: list[Any] = []
    """What is done to the model, one verb each; those of the builtin recipe of the task unless given."""
    budget: Budget = Budget()
    """What the finished model must reach on `test`."""
    benchmark: Benchmark = Benchmark()
    """How latency is measured."""
    targets: dict[Word, Target] = {}
    """Targets of the benchmark beside the predefined ones."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked. Two are equal when they ask for the same, wherever they were read from."""

    name: str
    base: Path
    """Folder that relative paths start from, absolute."""
    seed: int
    task: Task
    data: Data
    teacher: TeacherSettings
    stages: tuple[Stage, ...]
    budget: Budget
    benchmark: Benchmark
    targets: dict[str, Target]
    """Every target by name, the predefined ones among them."""
    path: Path = field(compare=False)
    """The file it was read from."""
    smoke_rows: int | None = None
    """Rows a split in a smoke run; None in a real one."""

    @staticmethod
    def load(path: str | Path, sets: Sequence[str] = ()) -> Recipe:
        """The recipe in a YAML file, with each `KEY=VALUE` of `sets` put into it; reads no row and no network.

        Raises: RecipeError with all problems, one per cause, in the order of the file.
        """
        return _load(Path(path), sets)

    def resolved(self) -> str:
        """The recipe as YAML with every default written out; it loads again, from anywhere, to an equal recipe."""
        head = {"version": 1, "name": self.name, "base": str(self.base), "seed": self.seed}
        parts = {
            name: getattr(self, name).model_dump(mode="json", by_alias=True)
            for name in ("task", "data", "teacher", "budget", "benchmark")
        }
        stages = [_stage_keys(stage) for stage in self.stages]
        targets = {name: target.model_dump(mode="json", by_alias=True) for name, target in self.targets.items()}
        order = {**head, **parts, "targets": targets, "stages": stages}
        text = yaml.dump(order, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        note = "# The recipe as it was understood, with every default.\n"
        small = "" if self.smoke_rows is None else "# Made for --smoke: tiny, and good for nothing else.\n"
        return note + small + text

    def require_stages(self, redo: Sequence[str]) -> None:
        """InputError for a name that no stage has."""
        known = ["teacher", *(stage.id for stage in self.stages)]
        for name in redo:
            if name not in known:
                raise InputError(f"--redo {name}: no such stage; {did_you_mean(name, known)}")

    def smoke(self) -> Recipe:
        """The same recipe at a size that runs in a minute: same depth, width 32, two steps a phase, lenient gates."""
        folder = peek_model(self.teacher.model, base=self.base)
        scale = smoke_scale(folder, self.stages)
        return Recipe(
            name=self.name,
            base=self.base,
            seed=self.seed,
            task=self.task,
            data=self.data,
            teacher=smoke_settings(self.teacher),
            stages=tuple(smoke_stage(stage, scale, self.base) for stage in self.stages),
            budget=self.budget.model_copy(update={"undecided": "warn"}),
            benchmark=self.benchmark.model_copy(update={"rounds": min(3, self.benchmark.rounds)}),
            targets=self.targets,
            path=self.path,
            smoke_rows=SMOKE_ROWS,
        )


class _Dumper(yaml.SafeDumper):
    """Writes texts so that the recipe's own rules read them as texts again."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain_text = isinstance(resolve_scalar(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain_text else "'")


_Dumper.add_representer(str, _text_node)


def _stage_keys(stage: Stage) -> dict[str, Any]:
    """A stage as the recipe writes it."""
    every = stage.model_dump(mode="json", by_alias=True)
    beside = {key: every.pop(key) for key in ("id", "from", "gate")}
    return {key: value for key, value in beside.items() if value is not None} | {stage.verb: every}


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors; sizes such as `0.5x` and references are checked on loading only."""
    models: list[Any] = [(model, "validation") for model in (RecipeKeys, *VERBS.values())]
    references, definitions = models_json_schema(models, by_alias=True)
    shared = definitions["$defs"]
    keys = shared.pop("RecipeKeys")
    beside: dict[str, Any] = {}
    verbs: dict[str, Any] = {}
    for verb, model in VERBS.items():
        name = references[(model, "validation")]["$ref"].rpartition("/")[2]
        properties = shared[name]["properties"]
        beside = {key: properties.pop(key) for key in ("id", "from", "gate")}
        shared[name]["required"] = [key for key in shared[name].get("required", []) if key not in beside]
        verbs[verb] = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
    stage = {
        "type": "object",
        "description": "A stage: its id and exactly one verb; or id and drop, to remove an inherited stage.",
        "properties": {**beside, "drop": {"const": True}, **verbs},
        "required": ["id"],
        "additionalProperties": False,
    }
    keys["properties"]["stages"]["items"] = stage
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **keys, "$defs": shared}


# Reading


def _load(path: Path, sets: Sequence[str]) -> Recipe:
    if not is_file(path):
        raise RecipeError([_no_file(path)])
    loader = Loader()
    root = loader.file(path, name=str(path))
    if root is None:
        raise RecipeError(_ordered(loader.problems))
    if root.get("stages") is None and any(assignment.startswith("stages.") for assignment in sets):
        root = root.with_entry("stages", Entry(default_stages("text-classification"), root.mark))
    for assignment in sets:
        root = loader.set_value(root, assignment)
    root = loader.substitute(root)
    recipe, problems = _check(root, path, loader.problems)
    if problems or recipe is None:
        raise RecipeError(_ordered(problems))
    return recipe


def _no_file(path: Path) -> Problem:
    if path.is_dir():
        return Problem(str(path), "", "is a folder; give the path of a recipe such as recipe.yaml")
    around = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = close_match(path.name, around)
    return Problem(str(path), "", "is no file; " + (f"did you mean {path.parent / near}?" if near else "give a recipe"))


def _check(root: Fields, path: Path, problems: list[Problem]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe in a merged tree, and all that is wrong with it; `problems` were found on the way."""
    problems = list(problems)
    root = Fields({key: entry for key, entry in root.entries.items() if not _is_null(entry.node)}, root.mark)
    if "sweep" in root.entries:
        message = "is not available in this version; write one recipe and vary it with --set KEY=VALUE"
        problems.append(Problem(str(root.entries["sweep"].mark), "sweep", message))
    names = written_labels(root.get("data"))
    labels = names[1] if names else None
    root = _with_fitting_limits(root, labels, problems)
    keys, errors = checked(RecipeKeys, root.without("sweep", "stages"))
    problems += errors
    stages_node = root.get("stages")
    if stages_node is None or (plain(stages_node) == [] and any(each.key.startswith("stages.") for each in problems)):
        stages_node = default_stages(keys.task.kind if keys else "text-classification")
    written, errors = read_stages(stages_node, labels)
    budget = root.get("budget")
    problems += errors + reference_problems(written, budget if isinstance(budget, Fields) else None)
    base = path.parent.resolve()
    if keys is not None:
        base = (base / keys.base).resolve() if keys.base else base
    problems += _news(teacher_problems(written, base), problems)
    if keys is not None:
        problems += _file_problems(keys, base, root, names, problems)
        problems += _target_problems(keys, root)
    else:
        problems += _partial_file_problems(root, base, names, problems)
    stages = [stage.stage for stage in written if stage.stage is not None]
    if keys is None or problems or len(stages) < len(written):
        return None, problems
    return _recipe(keys, base, stages, path, named="name" in root.entries), problems


def _recipe(keys: RecipeKeys, base: Path, stages: Sequence[Stage], path: Path, *, named: bool) -> Recipe:
    return Recipe(
        name=keys.name if named else re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:64] or "recipe",
        base=base,
        seed=keys.seed,
        task=keys.task,
        data=keys.data,
        teacher=keys.teacher,
        stages=tuple(stages),
        budget=keys.budget,
        benchmark=keys.benchmark,
        targets={**TARGETS, **keys.targets},
        path=path.resolve(),
    )


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None and not node.unknown


def _with_fitting_limits(root: Fields, labels: Sequence[str] | None, problems: list[Problem]) -> Fields:
    """The tree less the limits of budget and `expect` that are noted as wrong."""
    if isinstance(budget := root.get("budget"), Fields):
        entry = root.entries["budget"]
        fitting = fitting_limits(budget, BUDGET_KEYS, "budget", labels, problems)
        root = root.with_entry("budget", type(entry)(fitting, entry.mark))
    teacher = root.get("teacher")
    expect = teacher.get("expect") if isinstance(teacher, Fields) else None
    if isinstance(teacher, Fields) and isinstance(expect, Fields):
        entry, inner = root.entries["teacher"], teacher.entries["expect"]
        fitting = fitting_limits(expect, (), "teacher.expect", labels, problems)
        changed = teacher.with_entry("expect", type(inner)(fitting, inner.mark))
        root = root.with_entry("teacher", type(entry)(changed, entry.mark))
    return root


def _file_problems(
    keys: RecipeKeys,
    base: Path,
    root: Fields,
    names: tuple[str, tuple[str, ...]] | None,
    noted: Sequence[Problem],
) -> list[Problem]:
    """What is wrong with the files, less what is noted about the same keys already."""
    found = data_problems(keys.data, base, root)
    folder, errors = model_problems(keys.teacher.model, base, root)
    found += errors
    if folder is not None and keys.teacher.finetune is None:
        found += label_problems(keys.data, names, folder, root)
    return _news(found, noted)


def _partial_file_problems(
    root: Fields, base: Path, names: tuple[str, tuple[str, ...]] | None, noted: Sequence[Problem]
) -> list[Problem]:
    """What is wrong with the files, where the recipe as a whole is unusable but its `data` or `teacher` stands."""
    found: list[Problem] = []
    data_node, teacher_node = root.get("data"), root.get("teacher")
    data = checked(Data, data_node)[0] if isinstance(data_node, Fields) else None
    teacher = checked(TeacherSettings, teacher_node)[0] if isinstance(teacher_node, Fields) else None
    if data is not None:
        found += data_problems(data, base, root)
    if teacher is not None:
        folder, errors = model_problems(teacher.model, base, root)
        found += errors
        if folder is not None and data is not None and teacher.finetune is None:
            found += label_problems(data, names, folder, root)
    return _news(found, noted)


def _news(found: Sequence[Problem], noted: Sequence[Problem]) -> list[Problem]:
    """The problems whose key, or a key around or inside it, or the columns it is looked for in, is not noted yet."""
    keys = [problem.key for problem in noted if problem.key and "is written twice" not in problem.message]
    if any(".columns" in key for key in keys):
        keys += ["data.text", "data.label"]
    return [
        problem
        for problem in found
        if not any(f"{problem.key}.".startswith(f"{key}.") or f"{key}.".startswith(f"{problem.key}.") for key in keys)
    ]


def _target_problems(keys: RecipeKeys, root: Fields) -> list[Problem]:
    """Names in benchmark.targets that no target has."""
    known = [*TARGETS, *keys.targets]
    return [
        Problem(
            str(place_of(root, f"benchmark.targets.{place}")),
            f"benchmark.targets.{place}",
            f"names no target (got {name}); {did_you_mean(name, known)}",
        )
        for place, name in enumerate(keys.benchmark.targets)
        if name not in known
    ]


def _ordered(problems: Sequence[Problem]) -> list[Problem]:
    """Problems by file, line and column, those of the command line last; one and the same only once."""
    files: list[str] = []

    def order(problem: Problem) -> tuple[int, int, int]:
        found = re.fullmatch(r"(.*):(\d+):(\d+)", problem.where)
        if found is None:
            return (10**6, 0, 0)
        if found[1] not in files:
            files.append(found[1])
        return (files.index(found[1]), int(found[2]), int(found[3]))

    return sorted(dict.fromkeys(problems), key=order)
