"""steps.jsonl: one line a step, written without waiting for the device at every step."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compressor.train.guards import refuse_not_finite

STEPS_FILE = "steps.jsonl"
READ_EVERY = 10
"""Steps between two reads of the losses from the device."""


@dataclass(frozen=True)
class _Step:
    step: int
    epoch: float
    learning_rate: float
    seconds: float
    names: tuple[str, ...]
    values: Tensor


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
        self, *, step: int, epoch: float, learning_rate: float, total: Tensor, terms: dict[str, Tensor], norm: Tensor
    ) -> None:
        """Note a step (numbered from 1); every READ_EVERY of them are written. Raises as `flush` does."""
        names = (*terms, "loss", "gradient")
        values = torch.stack([value.detach().float().reshape(()) for value in (*terms.values(), total, norm)])
        self._waiting.append(_Step(step, epoch, learning_rate, self.seconds, names, values))
        if len(self._waiting) >= READ_EVERY:
            self.flush()

    def flush(self, *, check: bool = True) -> None:
        """Write what waits; raises StageError with term and step where a number is not finite, if `check`."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        numbers = [dict(zip(step.names, step.values.tolist(), strict=True)) for step in waiting]
        with self.path.open("a", encoding="utf-8") as file:
            for step, values in zip(waiting, numbers, strict=True):
                file.write(json.dumps(self._line(step, values)) + "\n")
        if check:
            refuse_not_finite(
                ((step.step, values) for step, values in zip(waiting, numbers, strict=True)), what=self.what
            )

    def _line(self, step: _Step, values: dict[str, float]) -> dict[str, object]:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        loss = finite.pop("loss")
        finite.pop("gradient")
        return {
            "attempt": self.attempt,
            "step": step.step,
            "epoch": round(step.epoch, 4),
            "loss": loss,
            "terms": finite,
            "learning_rate": step.learning_rate,
            "seconds": round(step.seconds, 4),
        }
