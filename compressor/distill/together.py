"""One teacher of several: their answers to a batch, put together."""

# B rows of a batch, L tokens, D hidden, C classes, N rows

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compressor.data.batches import Batch, Pool
from compressor.data.rows import Rows
from compressor.distill.answers import Answers, Teacher, wanted_layers
from compressor.distill.members import Classifier, Member, Precision
from compressor.errors import StageError
from compressor.stage import Progress, silent

POOL_NAMES = ("data.train", "data.unlabelled")
PASS_TOKENS = 4096
"""Tokens a batch, padding included, where the teacher's answers are not taken while training."""


@dataclass(frozen=True)
class Teachers:
    """All teachers of a student; opened by `open_teachers`."""

    members: tuple[Member, ...]
    classes: int
    combine: str
    """mean of the probabilities, or the row's most_confident teacher."""
    encoder: Classifier | None
    """The classifier whose hidden states are matched; None where no classifier's tokens align."""
    encoder_teacher: PreTrainedModel | None
    """The first torch classifier, whether or not its tokens align; in eval mode, without gradients."""
    pools: tuple[Rows, ...]
    """The labelled rows, then the unlabelled ones, by which an error quotes a text; () where they are not known."""
    digest: str
    """Of everything that decides the answers: weights, tokenizers, files, and the rows."""
    kind: str
    """What answers, in a word or two, for messages."""
    device: torch.device
    """Where the models of torch are, and so where batches have to be."""
    names: tuple[str, ...] = POOL_NAMES
    """Of the pools."""

    @property
    def computes(self) -> bool:
        """Whether any model has to run; False for files of answers alone."""
        return any(member.computes for member in self.members)

    def live(self, layers: Sequence[int], *, precision: Precision = "fp32") -> Teacher:
        """Their answers, computed anew for every batch, with the hidden states of these layers."""
        return Together(self, tuple(sorted(set(layers))), precision)

    def answered(
        self, rows: Rows, pool: Pool, *, name: str = "data.select", progress: Progress = silent
    ) -> NDArray[np.float32]:
        """Logits of rows of their own, shape (N, C), NaN where nobody answered; see `answered_each`."""
        return self.together(self.answered_each(rows, pool, name=name, progress=progress))

    def together(self, each_TNC: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answers of all members as one, shape (N, C)."""
        weights = [member.weight for member in self.members]
        combined: NDArray[np.float32] = COMBINATIONS[self.combine](list(torch.from_numpy(each_TNC)), weights).numpy()
        return combined

    def answered_each(
        self, rows: Rows, pool: Pool, *, name: str = "data.select", progress: Progress = silent
    ) -> NDArray[np.float32]:
        """Logits of each member, shape (T, N, C), NaN where it said nothing.

        Args:
            rows: the texts.
            pool: the same rows in the student's tokens.
            name: of the rows, for errors.
        """
        bound = replace(
            self, members=tuple(member.bound((rows,)) for member in self.members), pools=(rows,), names=(name,)
        )
        live = Together(bound, ())
        logits = np.empty((len(self.members), len(pool), self.classes), dtype=np.float32)
        done = 0
        for batch in pool.in_order(batch_tokens=PASS_TOKENS):
            for number, said in enumerate(live.each(batch.to(self.device), ())[0]):
                logits[number, batch.rows.numpy()] = said.cpu().numpy()
            done += len(batch)
            progress("teacher's score", done, len(pool))
        return logits


@dataclass(frozen=True)
class Together:
    """A Teacher made of all members; one member's own logits where there is but one."""

    teachers: Teachers
    layers: tuple[int, ...]
    precision: Precision = "fp32"

    def answers(self, batch: Batch, *, hidden: bool | Collection[int]) -> Answers:
        """Computed now; StageError naming the row where a model's logits are not finite."""
        logits, states = self.each(batch, wanted_layers(self.layers, hidden))
        weights = [member.weight for member in self.teachers.members]
        return Answers(COMBINATIONS[self.teachers.combine](logits, weights), states)

    def each(self, batch: Batch, layers: Sequence[int]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Logits of each member, (B, C), and the hidden states of these layers."""
        states: dict[int, Tensor] = {}
        logits: list[Tensor] = []
        for member in self.teachers.members:
            wanted = layers if member is self.teachers.encoder else ()
            said = member.answers(batch, layers=wanted, precision=self.precision)
            states |= said.hidden
            logits.append(_finite(said.logits, member, batch, self.teachers) if member.computes else said.logits)
        return logits, states


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Logarithm of the weighted mean of probabilities over those who answered a row; one teacher's own logits.

    Args:
        logits: of each teacher, (B, C), NaN rows where it said nothing.
        weights: of each teacher, positive.
    Returns: (B, C) fp32; NaN rows where nobody answered, infinite ones where a teacher's logits are.
    """
    if len(logits) == 1:
        return logits[0]
    given_TBC = torch.stack(list(logits)).float()
    each_TBC = given_TBC.log_softmax(-1)
    said_TB = ~each_TBC.isnan().any(-1)
    shares_TB = torch.tensor(weights, device=each_TBC.device)[:, None] * said_TB
    shares_TB = shares_TB / shares_TB.sum(0)
    parts_TBC = each_TBC.masked_fill(~said_TB[..., None], 0.0) + shares_TB.log()[..., None]
    mean_BC = torch.where(said_TB.any(0)[:, None], parts_TBC.logsumexp(0), torch.nan)
    return _with_broken(mean_BC, given_TBC)


def most_confident_logits(logits: Sequence[Tensor], _weights: Sequence[float]) -> Tensor:
    """Of each row the logits of the teacher whose first class has the highest probability; the earlier of equals.

    Returns: (B, C) fp32; NaN rows where nobody answered, infinite ones where a teacher's logits are.
    """
    each_TBC = torch.stack(list(logits)).float()
    sure_TB = each_TBC.softmax(-1).amax(-1).nan_to_num(nan=-1.0)
    surest_BC = each_TBC[sure_TB.argmax(0), torch.arange(each_TBC.shape[1], device=each_TBC.device)]
    return _with_broken(surest_BC, each_TBC)


def _with_broken(together_BC: Tensor, each_TBC: Tensor) -> Tensor:
    """The rows put together, infinite where one teacher's logits are: it is broken, which the others must not hide."""
    return together_BC.masked_fill(each_TBC.isinf().any(-1).any(0)[:, None], torch.inf)


COMBINATIONS: dict[str, Callable[[Sequence[Tensor], Sequence[float]], Tensor]] = {
    "mean": mean_logits,
    "most_confident": most_confident_logits,
}
"""Name to what makes one row of logits of several."""


def teachers_of(model: PreTrainedModel, *, digest: str = "") -> Teachers:
    """One classifier in hand that reads the student's own tokens.

    Args:
        digest: of its weights and of the rows; caches of another digest are not used.
    """
    model.requires_grad_(False).eval()
    only = Classifier("teacher", 1.0, model, None)
    device = next(model.parameters()).device
    return Teachers((only,), int(model.config.num_labels), "mean", only, model, (), digest, "one model", device)


def device_of(teachers: Teachers) -> torch.device:
    """Where batches for the teachers have to be."""
    return teachers.device


def _finite(logits: Tensor, member: Member, batch: Batch, teachers: Teachers) -> Tensor:
    """The logits, where all of them are finite.

    On other devices than the CPU a look would hold up every step, so there they become infinite, which the loop finds
    in the loss: NaN means that nobody answered.
    """
    if logits.device.type != "cpu":
        return torch.where(logits.isfinite(), logits, torch.inf)
    good = logits.isfinite().all(-1)
    if bool(good.all()):
        return logits
    raise not_finite(member.name, batch, int((~good).nonzero()[0]), teachers)


def not_finite(name: str, batch: Batch, place: int, teachers: Teachers) -> StageError:
    """The error for a row of a batch whose answer is NaN or infinite."""
    row, number = int(batch.rows[place]), int(batch.unlabelled[place])
    text = f", {teachers.pools[number].texts[row]!r:.60}," if number < len(teachers.pools) else ""
    return StageError(
        f"the teacher {name} answers row {row} (from 0) of {teachers.names[number]}{text} with numbers that are not "
        "finite; its weights are damaged or overflow: score it by itself, or set cache.precision: fp32"
    )
