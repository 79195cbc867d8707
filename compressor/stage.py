"""What a stage is: one frozen schema that knows how to run, the gate behind it, and the job it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from compressor.errors import InputError
from compressor.settings import LimitText, Settings, Word, mistakes
from compressor.sources.settings import ModelSource, RowFile

Schema = TypeVar("Schema")

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""What the id of a stage looks like."""

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, how much is done, how much there is or None); must return quickly."""


def silent(_what: str, _done: int, _total: int | None) -> None:
    """A Progress that shows nothing."""


def settings_of(schema: type[Schema] | TypeAdapter[Schema], value: object, name: str) -> Schema:
    """The settings, from themselves or a mapping as in a recipe; InputError with one line for each mistake.

    Args:
        name: what the settings are called in the message, such as `train`.
    """
    try:
        return (schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)).validate_python(value)
    except ValidationError as problem:
        raise InputError(mistakes(problem, name)) from problem


def made_folder(path: str | Path) -> Path:
    """The folder, made if need be before the work that fills it; InputError where a file stands there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder, as a file is in its place; give another one") from error
    return path


class ScoreLimit(Settings):
    """How far a score may fall below that of another output, on the same rows."""

    drop: LimitText
    """Largest fall, such as '<= 0.8pp' (absolute points) or '<= 1%' (relative)."""
    vs: Word | None = None
    """Id of the stage compared with, or `teacher`; a gate's default is the stage's input, a budget's the teacher."""


class Gate(Settings):
    """What a stage must keep: metric names with limits, decided on `select`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ScoreLimit | LimitText]

    otherwise: Literal["fail", "backtrack", "fallback", "skip", "warn"] = Field("fail", alias="else")
    """What happens when it is broken; fail ends the run with exit code 3."""
    confidence: Annotated[float, Field(strict=True, gt=0.5, lt=1)] | None = None
    """Makes the gate a one-sided non-inferiority test at this confidence; null decides on the point estimate."""
    undecided: Literal["pass", "fail"] = "pass"
    """What counts when the test cannot decide."""

    def model_post_init(self, _context: object) -> None:
        if not self.limits:
            raise ValueError("needs a limit such as accuracy: {drop: '<= 0.8pp'}")

    @property
    def limits(self) -> dict[str, ScoreLimit | str]:
        """Metric name, or METRIC@CLASS, to its limit."""
        return dict(self.__pydantic_extra__ or {})


@dataclass(frozen=True)
class Outcome:
    """How a gate ended: its verdict, and for each limit the value with its 95 % interval (fractions)."""

    verdict: Literal["pass", "fail", "undecided"]
    passed: bool
    because: str
    values: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Decision:
    """One line of decisions.jsonl: what was chosen among what, why, and what it cost."""

    kind: str
    chosen: Any
    because: str
    candidates: Any = None
    cost: Any = None


@dataclass(frozen=True)
class Job:
    """All that a stage may use: its inputs, the rows, the seed, the places to write and to speak."""

    out: Path
    """The folder being made; the model goes to `out / "model"`, checkpoints to `out / "checkpoint"`."""
    inputs: Mapping[str, Path]
    """Role (`model`, `teacher`, `teacher2`, `student`) to model folder, or to the file of a teacher's answers."""
    data: Any
    """data.rows.DataSets."""
    seed: int
    device: str
    """`cpu` or `gpu`."""
    threads: int
    progress: Progress
    decide: Callable[[Decision], None]
    gate: Callable[[Path], Outcome] | None
    """Scores a model folder on `select` and holds it against this stage's gate; None without a gate."""
    smoke: bool = False


class Stage(Settings):
    """A verb of the recipe. Its fields are what may be said about it; `run` does it."""

    revision: ClassVar[int] = 1
    """Raised when the same settings would give another output."""
    verb: ClassVar[str]
    rows_read: ClassVar[tuple[str, ...]] = ("train", "select", "unlabelled")
    """Parts of the rows that decide the output, beside the texts of test, which are kept out of all others."""
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    """What `run` promises to leave under `job.out`."""
    trains: ClassVar[bool] = False
    """True when an interrupted run goes on from its checkpoint; else it starts again."""
    gate_actions: ClassVar[tuple[str, ...]] = ("fail", "skip", "warn")
    """What may happen when the gate is broken."""

    id: Annotated[str, Field(strict=True, pattern=ID_PATTERN)]
    """Name of the stage, unique in the recipe; its folder's name."""
    from_: Word | None = Field(None, alias="from")
    """Id of the stage whose output is the input; the stage before unless given."""
    gate: Gate | None = None
    """What the result must keep."""

    def references(self) -> Mapping[str, str | None]:
        """Role to the id it reads; None means the stage before (role `model`) or the teacher (role `teacher`)."""
        return {"model": self.from_}

    def sources(self) -> Mapping[str, ModelSource | RowFile]:
        """Role to what it reads from outside the recipe's stages; fetched before the first stage runs."""
        return {}

    def promised(self) -> tuple[str, ...]:
        """Paths that `run` leaves under `job.out` with these settings."""
        return self.outputs

    def key_settings(self) -> dict[str, Any]:
        """The settings without what its neighbours decide: id, from, gate, and where inputs lie."""
        inputs = {"teacher", "model"} & set(type(self).model_fields)
        return self.model_dump(mode="json", by_alias=True, exclude={"id", "from_", "gate", *inputs})

    def resumes(self) -> bool:
        """Whether an interrupted run goes on from what its last try left, with these settings."""
        return self.trains

    def conditions(self, _device: str) -> Mapping[str, object]:
        """What of the machine decides the output; a part of the key."""
        return {}

    def filled(self, _earlier: Sequence[Stage]) -> Stage:
        """The stage with the settings it takes from earlier ones written in; what the key is made of."""
        return self

    def run(self, job: Job) -> None:
        """Read `job.inputs`, write under `job.out`."""
        raise AssertionError(f"stage {type(self).__name__} defines no run")
