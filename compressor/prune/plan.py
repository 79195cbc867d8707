"""All that says what is pruned and how, and what its target amounts to for the model at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from compressor.data.rows import DataSets
from compressor.errors import InputError
from compressor.model.digest import model_digest
from compressor.model.manifest import Shapes
from compressor.prune.latency_table import Place, kept_table, made_up
from compressor.prune.settings import Kind, Recover, Remove, Until
from compressor.prune.targets import Amounts, counted_prices, in_words, least_left, rounded_down, share_left
from compressor.prune.timing import Scene, measure_table, table_decision
from compressor.stage import Decision, Outcome, Progress
from compressor.train.finetune import digest_of

TABLE_FILE = "latency_table.json"


@dataclass(frozen=True)
class Plan:
    """All that says what is pruned and how."""

    folder: Path
    """The input model."""
    teacher: Path | None
    """None where the input model teaches itself."""
    remove: Remove
    kinds: frozenset[Kind]
    until: Until
    place: Place | None
    """Where latency is measured; None where the target is another quantity."""
    steps: int
    recover: Recover | None
    seed: int
    device: str
    smoke: bool
    progress: Progress
    decide: Callable[[Decision], None]
    accept: Callable[[Path], Outcome] | None
    """Judges a step's model folder; None keeps every step."""

    def key(self, data: DataSets) -> str:
        """Digest of what the cuts depend on, so that leftovers of another pruning are not taken up."""
        settings = [each.model_dump_json() for each in (self.remove, self.until, self.recover) if each is not None]
        folders = [self.folder] if self.teacher is None else [self.folder, self.teacher]
        return digest_of(
            settings,
            [self.steps, self.seed, self.device, self.smoke],
            [model_digest(folder) for folder in folders],
            [rows.digest() for rows in (data.train, data.unlabelled, data.select)],
            [data.task.metric, *data.labels],
            [[part.rows, part.share] for part in data.pools],
            data.max_tokens,
        )


def prices_of(plan: Plan, model: PreTrainedModel, scene: Scene | None, work: Path) -> Amounts:
    """What remains is counted in: the parts, or milliseconds by a table that is read or measured now, and told of.

    Args:
        scene: what a table is measured on; needed for a target of latency alone.
        work: where a run keeps the table that it began with.
    """
    quantity, _ = plan.until.target
    if quantity != "latency":
        return counted_prices(quantity, model)
    assert scene is not None
    key = scene.key(model)
    if plan.smoke:
        table = made_up(key)
    else:
        table = kept_table(key, work / TABLE_FILE, lambda: measure_table(model, scene, progress=plan.progress))
    plan.decide(table_decision(table))
    return table


def checked_share(plan: Plan, sizes: Shapes, prices: Amounts) -> float:
    """The share that shall remain; InputError, with the least that can, where it lies below that."""
    (quantity, text), full = plan.until.target, prices.total(sizes.layers)
    share = share_left(plan.until, full, smoke=plan.smoke)
    least = least_left(sizes, prices, plan.kinds)
    lowest = math.ceil(1000 * least / full) / 1000
    if plan.smoke:  # a smoke run's model is so small that a share of the real one may lie below its floor
        return max(share, lowest)
    if rounded_down(prices, share * full) < least:
        raise InputError(
            f"until.{quantity} {text} is below the floor: removing {', '.join(sorted(plan.kinds))} leaves at least "
            f"{in_words(prices, least)} of {in_words(prices, full)}; {_what_helps(plan, sizes, prices, lowest)}"
        )
    return share


def _what_helps(plan: Plan, sizes: Shapes, prices: Amounts, lowest: float) -> str:
    """What to write where the target is below the floor, whose share is `lowest`."""
    if lowest < 1:
        return f"write {lowest:g}x or more, or let more kinds go in remove"
    every: tuple[Kind, ...] = ("heads", "ffn", "layers")
    now = least_left(sizes, prices, plan.kinds)
    others = [kind for kind in every if least_left(sizes, prices, plan.kinds | {kind}) < now]
    helps = f"let {' or '.join(others)} go in remove" if others else "leave the stage out"
    return f"nothing that counts of {' and '.join(sorted(plan.kinds))} can go; {helps}"
