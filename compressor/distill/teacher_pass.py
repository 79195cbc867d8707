"""The one pass of the teacher over the rows: by length, in large batches, in bf16 where that agrees with fp32."""

# B rows of a batch, T tokens without padding, D hidden, N rows of all pools together

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.data.augment import Views, view_batch
from compressor.data.batches import Batch, Pool, bucketed
from compressor.device import native_bf16
from compressor.distill.answers import Answers, Teacher
from compressor.distill.cache_files import CacheFiles
from compressor.distill.members import Precision
from compressor.distill.state_codes import Channels
from compressor.distill.together import PASS_TOKENS, Teachers, device_of, not_finite
from compressor.stage import Decision, Progress

PROBE_ROWS = 64
"""Rows on which bf16 is compared with fp32, and from which the channels of int8 are known."""
LOGITS_AGREE, STATES_AGREE = 0.01, 0.01
"""Largest difference of a probability, and largest share of the states' norm, at which bf16 agrees with fp32."""
COMMIT_SECONDS = 20.0
"""A killed pass repeats at most so much."""


@dataclass(frozen=True)
class TeacherPass:
    """Teachers, and the rows they are asked about."""

    teachers: Teachers
    pools: Sequence[Pool]
    """Labelled rows, then the unlabelled ones where there are any, in the student's tokens."""
    views: Views | None
    progress: Progress

    def batches(self, rows: Sequence[NDArray[np.int64]], *, view: int = 0) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """(places among all rows, batch on the device) of these rows of each pool, each pool from short to long."""
        start, device = 0, device_of(self.teachers)
        for number, (pool, chosen) in enumerate(zip(self.pools, rows, strict=True)):
            for indices in bucketed(pool.lengths[chosen], batch_tokens=PASS_TOKENS, shuffle=False):
                batch = view_batch(pool, chosen[indices].tolist(), self.views, number, view)
                yield chosen[indices] + start, batch.to(device)
            start += len(pool)

    def missing(self, files: CacheFiles, used: Sequence[NDArray[np.int64]], *, view: int) -> list[NDArray[np.int64]]:
        """Those of the used rows of each pool that have no answers yet."""
        done, start, found = files.done(view), 0, []
        for pool, rows in zip(self.pools, used, strict=True):
            found.append(rows[~done[rows + start]])
            start += len(pool)
        return found

    def fill(self, files: CacheFiles, used: Sequence[NDArray[np.int64]], *, view_count: int) -> None:
        """Compute what `files` does not hold of the used rows, in each of the first `view_count` views."""
        rows = [self.missing(files, used, view=view) for view in range(view_count)]
        total, done = sum(len(each) for parts in rows for each in parts), 0
        if files.complete and not total:
            return
        layers = files.contents.layers
        live = self.teachers.live(layers, precision="bf16" if files.contents.precision == "bf16" else "fp32")
        writer = files.writer()
        committed = time.monotonic()
        try:
            for view in range(view_count):
                for places, batch in self.batches(rows[view], view=view):
                    answers = live.answers(batch, hidden=layers)
                    self._check(answers, batch)
                    lengths = batch.inputs["attention_mask"].sum(1).cpu().numpy()
                    writer.add(view, places, answers.logits, lengths, _unpadded(answers, batch))
                    done += len(places)
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        writer.commit()
                        committed = time.monotonic()
                    self.progress("teacher's answers", done, total)
        finally:
            writer.close()
        writer.finish()

    def probe(self, used: Sequence[NDArray[np.int64]]) -> list[Batch]:
        """Some of the used rows from all over each pool, in batches on the device."""
        chosen = [rows[:: max(1, -(-len(rows) * len(used) // PROBE_ROWS))] for rows in used]
        return [batch for _, batch in self.batches(chosen)]

    def channels(
        self, used: Sequence[NDArray[np.int64]], layers: Sequence[int], precision: Precision
    ) -> dict[int, Channels]:
        """Where the channels of each layer lie on a probe of the rows."""
        states = _states(self.teachers.live(layers, precision=precision), self.probe(used))
        return {layer: Channels.of(states_TD) for layer, states_TD in states.items()}

    def precision(
        self,
        asked: str,
        used: Sequence[NDArray[np.int64]],
        layers: Sequence[int],
        decide: Callable[[Decision], None] | None,
    ) -> Precision:
        """The arithmetic of the pass; auto is bf16 where the device has it and a probe of the rows agrees with fp32."""
        if asked != "auto":
            return "bf16" if asked == "bf16" else "fp32"
        if not native_bf16("cpu" if device_of(self.teachers).type == "cpu" else "gpu"):
            return "fp32"
        found = self._agreement(self.probe(used), layers)
        if decide is not None:
            decide(Decision("teacher precision", *found))
        return found[0]

    def _agreement(self, probe: Sequence[Batch], layers: Sequence[int]) -> tuple[Precision, str]:
        """The precision, and how far bf16 is from fp32."""
        plain, short = (self.teachers.live(layers, precision=each) for each in ("fp32", "bf16"))
        pairs = [(plain.answers(batch, hidden=True), short.answers(batch, hidden=True)) for batch in probe]
        ours, theirs = (torch.cat([pair[side].logits for pair in pairs]).softmax(-1) for side in (0, 1))
        same = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
        apart = float((ours - theirs).abs().nan_to_num().max())
        lost = 0.0
        for layer in layers:
            parts = [
                (_rows(one, batch, layer), _rows(two, batch, layer))
                for (one, two), batch in zip(pairs, probe, strict=True)
            ]
            ours, theirs = (torch.cat([part[side] for part in parts]) for side in (0, 1))
            lost = max(lost, float((ours - theirs).norm() / ours.norm()))
        count = sum(map(len, probe))
        told = f"on {count} rows bf16 and fp32 decide alike in {same:.1%}, probabilities differ by at most {apart:.2g}"
        if layers:
            told += f", hidden states by at most {lost:.2%} of their norm"
        good = same == 1.0 and apart <= LOGITS_AGREE and lost <= STATES_AGREE
        return ("bf16" if good else "fp32"), told

    def _check(self, answers: Answers, batch: Batch) -> None:
        """StageError where a model's answer is infinite, which off the CPU nobody has looked at yet."""
        wrong = answers.logits.isinf().any(-1)
        if bool(wrong.any()):
            raise not_finite(self.teachers.kind, batch, int(wrong.nonzero()[0]), self.teachers)


def _unpadded(answers: Answers, batch: Batch) -> dict[int, Tensor]:
    """Layer to the states of the batch's own tokens, one row after the other, (T, D)."""
    return {layer: _rows(answers, batch, layer) for layer in answers.hidden}


def _rows(answers: Answers, batch: Batch, layer: int) -> Tensor:
    return answers.hidden[layer][batch.inputs["attention_mask"].bool()]


def _states(teacher: Teacher, probe: Sequence[Batch]) -> dict[int, Tensor]:
    """Layer to the states of all tokens of the probe, (T, D)."""
    found = [_unpadded(teacher.answers(batch, hidden=True), batch) for batch in probe]
    return {layer: torch.cat([each[layer] for each in found]) for layer in (found[0] if found else ())}
