"""The teacher's answers: computed once for all rows, and read from disk at every step."""

# B rows of a batch, L tokens, D hidden, C classes, N rows of all pools together

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.data.augment import Views
from compressor.data.batches import Batch, Pool
from compressor.distill.answers import Answers, LiveTeacher, Teacher, recorded, wanted_layers
from compressor.distill.cache_files import CacheFiles, Contents
from compressor.distill.cache_plan import CachePlan, cache_plan
from compressor.distill.settings import Cache
from compressor.distill.teacher_pass import TeacherPass
from compressor.distill.together import Teachers, device_of
from compressor.errors import InputError
from compressor.model.parts import shapes
from compressor.model.states import continue_layers
from compressor.stage import Decision, Progress, silent

__all__ = [
    "CACHE_FOLDER",
    "Answers",
    "CachedTeacher",
    "LiveTeacher",
    "Teacher",
    "live_teacher",
    "open_cache",
    "pool_logits",
    "recorded",
]

CACHE_FOLDER = "cache"
CONFIDENCE_FOLDER = "confidence"
"""Beside the cache, for logits of rows that training may never draw."""
DAMAGED = "teacher's answers on disk are damaged, computing them anew"


@dataclass(frozen=True)
class CachedTeacher:
    """Answers read from disk; layers that did not fit are computed from the nearest one below that did."""

    teachers: Teachers
    live: Teacher
    files: CacheFiles
    layers: tuple[int, ...]
    """Teacher layers that may be asked for."""
    labelled_rows: int
    """Rows of the unlabelled pool come after so many."""
    plan: CachePlan

    @property
    def logits(self) -> NDArray[np.float32]:
        """(views, N, C), NaN for rows that were not computed or that nobody answers."""
        return cast("NDArray[np.float32]", self.files.logits)

    def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
        """Looked up by `batch.rows` and `batch.view`."""
        device = batch.rows.device
        places = (batch.rows + batch.unlabelled * self.labelled_rows).cpu().numpy()
        logits = torch.from_numpy(self.files.lookup(batch.view, places)).to(device)
        wanted = wanted_layers(self.layers, hidden)
        kept = [layer for layer in wanted if layer in self.files.contents.layers]
        length = batch.inputs["attention_mask"].shape[1]
        states = {layer: self.files.states(layer, batch.view, places, length, device) for layer in kept}
        missing = [layer for layer in wanted if layer not in states]
        if missing:
            states |= self._computed(batch, missing, states, places)
        return Answers(logits, states)

    def _computed(
        self, batch: Batch, missing: Sequence[int], states: dict[int, Tensor], places: NDArray[np.int64]
    ) -> dict[int, Tensor]:
        """States of layers that are not on disk."""
        below = [layer for layer in self.files.contents.layers if layer < min(missing)]
        if not below or self.teachers.encoder is None:
            return self.live.answers(batch, hidden=missing).hidden
        start, mask_BL, short = max(below), batch.inputs["attention_mask"], self.files.contents.precision == "bf16"
        given = states.get(start)
        if given is None:
            given = self.files.states(start, batch.view, places, mask_BL.shape[1], mask_BL.device)
        model = self.teachers.encoder.model.eval()
        own = torch.autocast(mask_BL.device.type, dtype=torch.bfloat16, enabled=short)
        with own, torch.inference_mode():
            found = continue_layers(model, given, mask_BL, start=start, layers=missing)
        return {layer: state.float().clone() for layer, state in found.items()}


@dataclass(frozen=True)
class _Need:
    """What a cache is to hold."""

    used: Sequence[NDArray[np.int64]]
    """Positions in each pool, ascending."""
    layers: tuple[int, ...]
    """Teacher layers, ascending."""
    views: int


def open_cache(
    teachers: Teachers,
    pools: Sequence[Pool],
    used: Sequence[NDArray[np.int64]],
    *,
    layers: Sequence[int],
    folder: Path,
    cache: Cache,
    views: Views | None = None,
    view_count: int = 1,
    progress: Progress = silent,
    decide: Callable[[Decision], None] | None = None,
) -> Teacher:
    """A teacher whose answers to the used rows are on disk; those that `folder` does not hold yet are computed.

    An interrupted pass goes on where it was; files that are not as they were written are made anew. Files of answers
    alone are not copied: such teachers answer directly.

    Args:
        teachers: as opened for these rows.
        pools: labelled rows, then the unlabelled ones where there are any, in the student's tokens.
        used: positions in each pool that training will draw, ascending.
        layers: teacher layers that the terms need, 0 the embeddings.
        folder: made if missing. A cache of other teachers, rows, changes or precision in it is removed; one of the same
            is widened to what both it and this call want, and gives way only where the budget does not hold both.
        cache: budget, how states are written, and the arithmetic of the pass.
        views: changes to the rows that come back, with `augment.views` set; None leaves them as they are.
        view_count: views that will be drawn, from 0.
        progress: called as `teacher's answers`.
        decide: told the arithmetic of the pass, and what is on disk and what is computed at every step.
    Raises: InputError for changes without `views` or mixed rows, which are never seen twice; StageError for an answer
        that is not finite, naming the row.
    """
    if views is not None and (views.augment.mixup or (views.changes_tokens and views.augment.views is None)):
        raise InputError("mixup and changes without mix.augment.views never come back, so their answers are not kept")
    if not teachers.computes:
        return teachers.live(layers)
    work = TeacherPass(teachers, pools, views, progress)
    wanted = tuple(sorted(set(layers)))
    files, need, plan = _found_or_made(work, _Need(used, wanted, view_count), folder, cache, decide)
    work.fill(files, need.used, view_count=need.views)
    cached = tuple(layer for layer in wanted if layer in files.contents.layers)
    plan = replace(plan, cached=cached, live=tuple(layer for layer in wanted if layer not in cached))
    if decide is not None and wanted:
        decide(Decision("cache", "logits and hidden states" if cached else "logits", plan.sentence()))
    live = teachers.live(wanted, precision="bf16" if files.contents.precision == "bf16" else "fp32")
    return CachedTeacher(teachers, live, files, wanted, len(pools[0]), plan)


def live_teacher(
    teachers: Teachers,
    layers: Sequence[int],
    *,
    cache: Cache,
    pools: Sequence[Pool],
    used: Sequence[NDArray[np.int64]],
    progress: Progress = silent,
    decide: Callable[[Decision], None] | None = None,
) -> Teacher:
    """A teacher that answers every batch anew, in the arithmetic that a pass over these rows would have.

    Args:
        layers: teacher layers that may be asked for, 0 the embeddings.
        cache: its `precision` alone counts: fp32, bf16, or auto, which is bf16 where the device has it and a probe of
            the rows agrees with fp32.
        pools: as of `open_cache`.
        used: positions in each pool that training will draw, from which the probe is taken.
        decide: told the arithmetic where there was a choice.
    """
    if not teachers.computes:
        return teachers.live(layers)
    work = TeacherPass(teachers, pools, None, progress)
    return teachers.live(layers, precision=work.precision(cache.precision, used, tuple(sorted(set(layers))), decide))


def pool_logits(
    teachers: Teachers,
    pools: Sequence[Pool],
    place: int,
    *,
    layers: Sequence[int] | None,
    folder: Path,
    cache: Cache,
    changed: bool = False,
    progress: Progress = silent,
    decide: Callable[[Decision], None] | None = None,
) -> NDArray[np.float32]:
    """Logits of every row of one pool as it is, shape (rows, classes), for choosing rows before training.

    The answers are those of the cache that `open_cache` opens in the same folder, with hidden states where those of the
    whole pool fit in the budget, so that no row is answered twice; else, where rows are `changed` by augmentation, and
    where the layers are not known yet, logits alone are kept beside it.

    Args:
        place: of the pool in `pools`.
        layers: as `open_cache` will be given; None where they are not known yet.
        changed: whether training sees other views of the rows.
    """
    work = TeacherPass(teachers, pools, None, progress)
    everything = [np.arange(len(pool)) for pool in pools]
    wanted = tuple(sorted(set(layers or ())))
    shared = layers is not None and not changed and not _planned(work, _Need(everything, wanted, 1), cache).live
    used = [rows if number == place else rows[:0] for number, rows in enumerate(everything)]
    taught = open_cache(
        teachers, pools, used, layers=wanted if shared else (), folder=folder if shared else folder / CONFIDENCE_FOLDER,
        cache=cache, progress=progress, decide=decide,
    )  # fmt: skip
    start = sum(map(len, pools[:place]))
    if isinstance(taught, CachedTeacher):
        return np.array(taught.logits[0, start : start + len(pools[place])])
    logits = np.full((len(pools[place]), teachers.classes), np.nan, dtype=np.float32)
    for places, batch in work.batches(used):
        logits[places - start] = taught.answers(batch, hidden=False).logits.cpu().numpy()
    return logits


def _known(folder: Path, progress: Progress) -> CacheFiles | None:
    """The cache in the folder; None where there is none, or one that is damaged."""
    try:
        return CacheFiles.found(folder)
    except ValueError as problem:
        progress(f"{DAMAGED} ({problem})", 0, None)
        return None


def _planned(work: TeacherPass, need: _Need, cache: Cache) -> CachePlan:
    """What of it is kept."""
    return cache_plan(
        rows=sum(map(len, work.pools)),
        tokens=sum(int(pool.lengths[rows].sum()) for pool, rows in zip(work.pools, need.used, strict=True)),
        classes=work.teachers.classes,
        layers=need.layers,
        hidden=_width(work.teachers),
        cache=cache,
        views=need.views,
    )


def _found_or_made(
    work: TeacherPass, need: _Need, folder: Path, cache: Cache, decide: Callable[[Decision], None] | None
) -> tuple[CacheFiles, _Need, CachePlan]:
    """The cache, what of it is to be there once it is filled, and its plan.

    One of the same answers is kept as it is where it has the layers and views, and made anew with what it held and what
    is needed where it lacks some. Where the budget does not hold both, the need alone counts.
    """
    alone, known = _planned(work, need, cache), _known(folder, work.progress)
    if known is None or (known.contents.key, known.contents.asked) != (_key(work), cache.precision):
        return _empty(work, alone, need, folder, cache, decide), need, alone
    held, both = known.contents, _with_held(work, known, need)
    wide = _planned(work, both, cache)
    if not wide.live and (not held.layers or wide.states in (held.states, alone.states)):
        same = (both.layers, both.views) == (held.layers, held.views)
        if same and (not held.layers or wide.states == held.states):
            return known, need, wide
        return _empty(work, wide, both, folder, cache, decide), both, wide
    kept = _planned(work, replace(both, layers=need.layers, views=need.views), cache)
    if _serves(work, known, kept, need):
        return known, need, kept
    return _empty(work, alone, need, folder, cache, decide), need, alone


def _with_held(work: TeacherPass, known: CacheFiles, need: _Need) -> _Need:
    """What is needed, and what a cache of the same answers holds already."""
    held, start, used = known.contents, 0, []
    done = np.logical_or.reduce([known.done(view) for view in range(held.views)])
    for pool, rows in zip(work.pools, need.used, strict=True):
        used.append(np.union1d(rows, np.flatnonzero(done[start : start + len(pool)])))
        start += len(pool)
    return _Need(used, tuple(sorted({*need.layers, *held.layers})), max(need.views, held.views))


def _serves(work: TeacherPass, known: CacheFiles, plan: CachePlan, need: _Need) -> bool:
    """Whether a cache of the same answers has what is planned; rows are added only to one of these very layers."""
    held = known.contents
    if held.views < need.views:
        return False
    if plan.cached and (held.states != plan.states or not set(plan.cached) <= set(held.layers)):
        return False
    missing = (rows for view in range(need.views) for rows in work.missing(known, need.used, view=view))
    return set(plan.cached) == set(held.layers) or not any(len(rows) for rows in missing)


def _empty(
    work: TeacherPass,
    plan: CachePlan,
    need: _Need,
    folder: Path,
    cache: Cache,
    decide: Callable[[Decision], None] | None,
) -> CacheFiles:
    """A new cache for the plan."""
    precision = work.precision(cache.precision, need.used, plan.cached, decide)
    contents = Contents(
        key=_key(work),
        asked=cache.precision,
        precision=precision,
        states=plan.states,
        layers=plan.cached,
        rows=sum(map(len, work.pools)),
        views=need.views,
        classes=work.teachers.classes,
        hidden=_width(work.teachers) if plan.cached else 0,
    )
    int8 = plan.states == "int8" and bool(plan.cached)
    return CacheFiles.made(folder, contents, work.channels(need.used, plan.cached, precision) if int8 else {})


def _key(work: TeacherPass) -> str:
    """Digest of what decides the answers beside precision and form."""
    views = None
    if work.views is not None and work.views.changes_tokens:
        shares = work.views.augment.model_dump(mode="json", exclude={"views"})
        continues = None if work.views.continues is None else hashlib.sha256(work.views.continues.tobytes()).hexdigest()
        views = [shares, work.views.mask_id, sorted(work.views.special_ids), work.views.seed, continues]
    rows = hashlib.sha256()
    for pool in work.pools:
        rows.update(pool.encoded.ids.tobytes())
        rows.update(pool.encoded.offsets.tobytes())
    device = device_of(work.teachers).type
    parts = [work.teachers.digest, views, rows.hexdigest(), device, torch.__version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _width(teachers: Teachers) -> int:
    """Channels of the hidden states; 0 where no teacher gives any."""
    return 0 if teachers.encoder is None else shapes(teachers.encoder.model).hidden
