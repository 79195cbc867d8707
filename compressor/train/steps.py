"""steps.jsonl: one line a step, written without waiting for the device at every step."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compressor.train.guards import Numbers, refuse_not_finite, rows_in_words

STEPS_FILE = "steps.jsonl"
READ_EVERY = 10
"""Steps between two reads of the losses from the device."""


class Measured(Protocol):
    """What a step found; train.fit.Loss is one. Every tensor has shape ()."""

    @property
    def total(self) -> Tensor:
        """What was minimised."""

    @property
    def terms(self) -> dict[str, Tensor]:
        """The unweighted terms by name."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """What terms are made of, such as `hidden 4:2`."""

    @property
    def shares(self) -> dict[str, Tensor]:
        """Each term's share of the gradient, where it was measured."""


@dataclass(frozen=True)
class _Step:
    step: int
    epoch: float
    learning_rate: float
    seconds: float
    sizes: tuple[int, int, int]
    """How many terms, parts and shares there are."""
    names: tuple[str, ...]
    """Those of the terms, loss, gradient, parts and shares."""
    values: Tensor
    batch: object
    """Read where a number is not finite."""

    def numbers(self) -> Numbers:
        """The step's numbers, read from the device."""
        pairs = list(zip(self.names, self.values.tolist(), strict=True))
        main, parts = self.sizes[0] + 2, self.sizes[1]
        return Numbers(self.step, dict(pairs[:main]), dict(pairs[main : main + parts]), dict(pairs[main + parts :]))


def last_attempt(path: Path) -> int:
    """Highest attempt in steps.jsonl, 0 without one; a last line cut short by a kill is removed."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return max((int(json.loads(line)["attempt"]) for line in whole.split(b"\n") if line), default=0)


class StepLog:
    """Losses of the last few steps, kept on the device until they are read together and written."""

    def __init__(self, path: Path, *, attempt: int, what: str) -> None:
        self.path = path
        self.attempt = attempt
        self.what = what
        self._waiting: list[_Step] = []
        self._started = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        """Since this attempt started."""
        return time.perf_counter() - self._started

    def add(
        self, *, step: int, epoch: float, learning_rate: float, found: Measured, norm: Tensor, batch: object = None
    ) -> None:
        """Note a step (numbered from 1); every READ_EVERY of them are written. Raises as `flush` does.

        Args:
            found: its loss, terms and what else is known of them.
            norm: of the gradient before clipping, 0 without clipping.
            batch: where it has `rows`, they are named when a number is not finite.
        """
        terms, parts, shares = found.terms, found.parts, found.shares
        names = (*terms, "loss", "gradient", *parts, *shares)
        tensors = (*terms.values(), found.total, norm, *parts.values(), *shares.values())
        values = torch.stack([value.detach().float().reshape(()).to(norm.device) for value in tensors])
        sizes = (len(terms), len(parts), len(shares))
        self._waiting.append(_Step(step, epoch, learning_rate, self.seconds, sizes, names, values, batch))
        if len(self._waiting) >= READ_EVERY:
            self.flush()

    def flush(self, *, check: bool = True) -> None:
        """Write what waits; raises StageError with term, rows and step where a number is not finite, if `check`."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        numbers = [step.numbers() for step in waiting]
        with self.path.open("a", encoding="utf-8") as file:
            for step, found in zip(waiting, numbers, strict=True):
                file.write(json.dumps(self._line(step, found)) + "\n")
        if check:
            for step, found in zip(waiting, numbers, strict=True):
                refuse_not_finite(found, what=self.what, rows=partial(rows_in_words, step.batch))

    def _line(self, step: _Step, numbers: Numbers) -> dict[str, object]:
        terms = dict(numbers.main)
        loss = terms.pop("loss")
        terms.pop("gradient")
        line: dict[str, object] = {
            "attempt": self.attempt,
            "step": step.step,
            "epoch": round(step.epoch, 4),
            "loss": _finite(loss),
            "terms": {name: _finite(value) for name, value in terms.items()},
            "learning_rate": step.learning_rate,
            "seconds": round(step.seconds, 4),
        }
        if numbers.shares:
            line["shares"] = {name: _finite(value) for name, value in numbers.shares.items()}
        return line


def _finite(value: float) -> float | None:
    """The number as JSON can say it: None where it is not finite."""
    return value if math.isfinite(value) else None
