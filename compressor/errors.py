"""Every way in which compressor says that something went wrong, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CompressorError(Exception):
    """A problem the user can act on: what is wrong, where, the value given, what to do. Exit code 5 unless told."""

    exit_code = 5


class InputError(CompressorError):
    """A recipe, a model or rows that cannot be used as given."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: `where` is file:line:column, `key` the dotted path, `message` what to do."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.where, self.key, self.message) if part)


class RecipeError(InputError):
    """All problems of a recipe at once, one per cause."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class GateError(CompressorError):
    """A gate, budget, `expect` or verify that failed; the best candidate so far is kept."""

    exit_code = 3


class UndecidedError(CompressorError):
    """Too few rows to decide, where the recipe made that fatal."""

    exit_code = 4


class StageError(CompressorError):
    """A stage that could not finish; what it had made is kept for a rerun."""

    exit_code = 5
