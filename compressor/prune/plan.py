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
from compressor.prune.settings import KINDS, Kind, Masks, Recover, Remove, Until
from compressor.prune.targets import (
    Amounts,
    amount_left,
    amount_of,
    counted_prices,
    in_words,
    least_left,
    priced_by_width,
    rounded_down,
    share_left,
)
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
    reconstruct: bool
    """Whether outputs are fitted to the uncut model after each cut."""
    recover: Recover | None
    masks: Masks | None
    """How masks are learned while recovering; None where the criteria alone decide."""
    seed: int
    device: str
    smoke: bool
    progress: Progress
    decide: Callable[[Decision], None]
    accept: Callable[[Path], Outcome] | None
    """Judges a step's model folder; None keeps every step."""
    spared: int = 0
    """Parameters that go with tokens after the cuts; they count towards until.parameters and until.bytes."""

    def key(self, data: DataSets) -> str:
        """Digest of what the cuts depend on, so that leftovers of another pruning are not taken up."""
        said = (self.remove, self.until, self.recover, self.masks)
        settings = [each.model_dump_json() for each in said if each is not None]
        folders = [self.folder] if self.teacher is None else [self.folder, self.teacher]
        return digest_of(
            settings,
            [self.steps, self.reconstruct, self.seed, self.device, self.smoke],
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
    if "hidden" in plan.kinds:
        return priced_by_width(plan.until, model)
    if quantity != "latency":
        return counted_prices(quantity, model, spared=plan.spared)
    assert scene is not None
    key = scene.key(model)
    if plan.smoke:
        table = made_up(key)
    else:
        table = kept_table(key, work / TABLE_FILE, lambda: measure_table(model, scene, progress=plan.progress))
    plan.decide(table_decision(table))
    return table


def checked_share(plan: Plan, sizes: Shapes, prices: Amounts) -> float:
    """The share that shall remain of what the cuts see, which is without the tokens that go after them.

    Raises: InputError, with the least that can remain, where the target lies below that, and where tokens reach it.
    """
    (quantity, text), full = plan.until.target, amount_left(prices, sizes)
    whole = full + amount_of(quantity, plan.spared)
    share = share_left(plan.until, whole, smoke=plan.smoke) * (whole / full)
    if share >= 1:
        raise InputError(
            f"until.{quantity} {text} is reached by remove.vocabulary alone: {in_words(prices, full)} of "
            f"{in_words(prices, whole)} remain without unseen tokens; write less than {full / whole:.3f}x, or leave "
            f"until and {' and '.join(sorted(plan.kinds))} out"
        )
    least = least_left(sizes, prices, plan.kinds)
    lowest = math.ceil(1000 * least / whole) / 1000
    if plan.smoke:  # a smoke run's model is so small that a share of the real one may lie below its floor
        return max(share, lowest)
    if rounded_down(prices, share * full) < least:
        raise InputError(
            f"until.{quantity} {text} is below the floor: removing {', '.join(sorted(plan.kinds))} leaves at least "
            f"{in_words(prices, least)} of {in_words(prices, whole)}{_bottom(plan.kinds)}; "
            f"{_what_helps(plan, sizes, prices, lowest)}"
        )
    return share


def _bottom(kinds: frozenset[Kind]) -> str:
    """What each layer keeps where neither layers nor halves may go."""
    if kinds & {"layers", "halves", "hidden"}:
        return ""
    words = {"heads": "a head", "ffn": "a neuron"}
    return f", {' and '.join(word for kind, word in words.items() if kind in kinds)} in each layer"


def _what_helps(plan: Plan, sizes: Shapes, prices: Amounts, lowest: float) -> str:
    """What to write where the target is below the floor, whose share is `lowest`."""
    if lowest < 1:
        return f"write {lowest:g}x or more, or let more kinds go in remove"
    now = least_left(sizes, prices, plan.kinds)
    others = [kind for kind in KINDS if least_left(sizes, prices, plan.kinds | {kind}) < now]
    words = " or ".join([", ".join(others[:-1]), *others[-1:]][-min(2, len(others)) :])
    helps = f"let {words} go in remove" if others else "leave the stage out"
    return f"nothing that counts of {' and '.join(sorted(plan.kinds))} can go; {helps}"
