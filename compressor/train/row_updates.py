"""AdamW for large embedding tables at the cost of the rows that a batch uses, with the result of updating all of them.

A row without a gradient still moves under AdamW: it decays, and its momentum runs out. Both have a closed form over any
number of steps, so a row is brought up to date only when a batch is about to read it, and all rows at the end.
"""

# R rows brought up to date, D channels

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TABLE_ROWS = 4096
"""Tables with fewer rows are updated whole: a batch of usual size reads a good part of them."""
CHUNK_ROWS = 8192
"""Rows brought up to date at a time, so that temporary copies stay small."""
REACH = 700
"""Steps after which nothing is left of a momentum: 0.9 to this power is below 1e-30."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Those of torch's AdamW, which updates the other parameters."""


@dataclass
class _Past:
    """What the steps taken so far do to a row that had no gradient since step s, for every s at once.

    Its weight becomes kept[s] * weight - pulled[s] * m / (sqrt(v) + e), with the moments m, v it had at s.
    """

    steps: int = 0
    kept: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    """(steps + 1,) product of 1 - rate * decay over the steps after s."""
    pulled: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    """(steps + 1,) sum of the momentum's updates after s, per unit of m / sqrt(v)."""

    def add(self, rate: float, decay: float) -> None:
        """Take a step. With r = beta1 / sqrt(beta2), the one k steps after s pulls by a r^k, a the corrected rate."""
        self.steps += 1
        corrected = rate * np.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        ages = np.arange(min(self.steps, REACH), 0, -1, dtype=np.float64)
        self.kept = np.append((1 - rate * decay) * self.kept, 1.0)
        self.pulled = np.append((1 - rate * decay) * self.pulled, 0.0)
        self.pulled[-1 - len(ages) : -1] += corrected * (BETA1 / BETA2**0.5) ** ages


@dataclass
class _Table:
    weight: Tensor
    first: Tensor
    """First moments, shape of the weight, each row as it was at its own `last` step."""
    second: Tensor
    last: Tensor
    """(rows,) int64: the step, from 1, up to which a row is done; 0 at the start."""
    past: _Past = field(default_factory=_Past)
    gradient: Tensor | None = None
    """Coalesced rows of the gradient, from `gradients` to `step`."""


class RowUpdates:
    """AdamW of some embedding tables, row by row; equal to torch's but for rounding (and epsilon, see `_catch_up`).

    Args:
        tables: name to table; each is read through its module alone, never through its weight.
        weight_decay: decoupled decay of the rows.
    """

    def __init__(self, tables: Mapping[str, nn.Embedding], *, weight_decay: float) -> None:
        self.modules = dict(tables)
        self.weight_decay = weight_decay
        self._tables = {
            name: _Table(
                module.weight,
                torch.zeros_like(module.weight, requires_grad=False),
                torch.zeros_like(module.weight, requires_grad=False),
                torch.zeros(module.num_embeddings, dtype=torch.int64),
            )
            for name, module in tables.items()
        }

    @property
    def weights(self) -> set[Tensor]:
        """The parameters that are updated here."""
        return {table.weight for table in self._tables.values()}

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the tables' gradients are sparse and the rows of each batch are up to date before they are read."""
        before = {name: module.sparse for name, module in self.modules.items()}
        hooks = [
            module.register_forward_pre_hook(self._reader(self._tables[name])) for name, module in self.modules.items()
        ]
        for module in self.modules.values():
            module.sparse = True
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, module in self.modules.items():
                module.sparse = before[name]

    def gradients(self) -> list[nn.Parameter]:
        """The gradients that the backward pass found, as parameters whose `grad` may be clipped before `step`."""
        found = []
        for table in self._tables.values():
            sparse, table.weight.grad, table.gradient = table.weight.grad, None, None
            if sparse is None:
                continue
            assert sparse.is_sparse, "a table's weight was used outside its module"
            table.gradient = sparse.coalesce()
            values = nn.Parameter(table.gradient.values(), requires_grad=False)
            values.grad = table.gradient.values()
            found.append(values)
        return found

    def step(self, rate: float) -> None:
        """Update the rows that have a gradient, at learning rate `rate`; `gradients` comes first."""
        for table in self._tables.values():
            if table.gradient is not None:
                _update(table, table.gradient, rate, self.weight_decay)
            table.gradient = None

    def settle(self) -> None:
        """Bring every row up to date, so that the weights are those of AdamW."""
        for table in self._tables.values():
            for rows in torch.split(torch.arange(len(table.last)), CHUNK_ROWS):
                _catch_up(table, rows)

    def tensors(self) -> dict[str, Tensor]:
        """All of the state but the weights, for a checkpoint; empty without tables."""
        found: dict[str, Tensor] = {}
        for name, table in self._tables.items():
            found |= {f"{name}/first": table.first, f"{name}/second": table.second, f"{name}/last": table.last}
            found[f"{name}/kept"] = torch.from_numpy(table.past.kept)
            found[f"{name}/pulled"] = torch.from_numpy(table.past.pulled)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        for name, table in self._tables.items():
            table.first.copy_(tensors[f"{name}/first"])
            table.second.copy_(tensors[f"{name}/second"])
            table.last.copy_(tensors[f"{name}/last"])
            kept = tensors[f"{name}/kept"].numpy()
            table.past = _Past(len(kept) - 1, kept, tensors[f"{name}/pulled"].numpy())

    def _reader(self, table: _Table) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            _catch_up(table, torch.unique(inputs[0].detach()))

        return hook


def _update(table: _Table, gradient: Tensor, rate: float, decay: float) -> None:
    """One step of AdamW for the rows of a coalesced gradient; the others wait."""
    rows, values_RD = gradient.indices()[0], gradient.values()
    _catch_up(table, rows)  # with several processes, some were read by another one alone
    table.past.add(rate, decay)
    steps = table.past.steps
    with torch.no_grad():
        weight_RD, first_RD, second_RD = _taken(table, rows)
        first_RD.lerp_(values_RD, 1 - BETA1)
        second_RD.mul_(BETA2).addcmul_(values_RD, values_RD, value=1 - BETA2)
        divisor_RD = (second_RD / (1 - BETA2**steps)).sqrt_().add_(EPSILON)
        weight_RD.mul_(1 - rate * decay).addcdiv_(first_RD, divisor_RD, value=-rate / (1 - BETA1**steps))
        _put(table, rows, weight_RD, first_RD, second_RD)


def _catch_up(table: _Table, rows: Tensor) -> None:
    """Bring those of the distinct `rows` up to date that are not.

    The one liberty: epsilon, of 1e-8, is corrected for the first of the missed steps and kept for the others.
    """
    last = table.last[rows]
    behind = last < table.past.steps
    if not behind.any():
        return
    rows, last_R = rows[behind], last[behind]
    missed_R1 = (table.past.steps - last_R).float()[:, None]
    kept_R1 = torch.from_numpy(table.past.kept[last_R.numpy()]).float()[:, None]
    pulled_R1 = torch.from_numpy(table.past.pulled[last_R.numpy()]).float()[:, None]
    epsilon_R1 = EPSILON * (1 - BETA2 ** (last_R.float() + 1))[:, None].sqrt()
    with torch.no_grad():
        weight_RD, first_RD, second_RD = _taken(table, rows)
        update_RD = second_RD.sqrt().add_(epsilon_R1).reciprocal_().mul_(first_RD).mul_(pulled_R1)
        weight_RD.mul_(kept_R1).sub_(update_RD)
        _put(table, rows, weight_RD, first_RD.mul_(BETA1**missed_R1), second_RD.mul_(BETA2**missed_R1))


def _taken(table: _Table, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the rows' weights and moments."""
    return table.weight.index_select(0, rows), table.first.index_select(0, rows), table.second.index_select(0, rows)


def _put(table: _Table, rows: Tensor, weight_RD: Tensor, first_RD: Tensor, second_RD: Tensor) -> None:
    """Put the distinct rows back as they are after the steps so far."""
    table.weight.index_copy_(0, rows, weight_RD)
    table.first.index_copy_(0, rows, first_RD)
    table.second.index_copy_(0, rows, second_RD)
    table.last.index_fill_(0, rows, table.past.steps)


def large_tables(module: nn.Module, *, least_rows: int | None = None) -> dict[str, nn.Embedding]:
    """Embedding tables of `module` by their weight's name, where row-by-row updates are right and pay.

    Those on a CPU (elsewhere a sparse gradient makes the device wait at every step, and updating all rows takes a
    tenth of a millisecond), in fp32, trained, of at least `least_rows` (TABLE_ROWS unless given) rows, and whose weight
    no other module uses.
    """
    least = TABLE_ROWS if least_rows is None else least_rows
    users: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        users[id(parameter)] = users.get(id(parameter), 0) + 1
    return {
        f"{name}.weight": part
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding)
        and part.num_embeddings >= least
        and part.max_norm is None
        and not part.scale_grad_by_freq
        and part.weight.requires_grad
        and part.weight.device.type == "cpu"
        and part.weight.dtype == torch.float32
        and users[id(part.weight)] == 1
    }
