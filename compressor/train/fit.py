"""The one training loop, on accelerate: any model, batches and loss; after a stop it goes on to the same bits."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compressor.device import seed_all
from compressor.errors import InputError
from compressor.model.states import set_dropout
from compressor.stage import Progress
from compressor.train.average import Weights, set_weights, update_average, using, weights_of
from compressor.train.checkpoints import (
    Standing,
    copy_into,
    module_tensors,
    optimizer_tensors,
    random_state,
    read_checkpoint,
    restore_optimizer,
    set_random_state,
    tensors_digest,
    write_checkpoint,
)
from compressor.train.precision import accelerator, resolve_precision
from compressor.train.row_updates import RowUpdates, large_tables
from compressor.train.schedules import planned_steps, rate_factor
from compressor.train.settings import Train
from compressor.train.steps import STEPS_FILE, StepLog, last_attempt

CHECKPOINT_FOLDER = "checkpoint"


class Movable(Protocol):
    """A batch: what can be put on a device."""

    def to(self, device: torch.device, /) -> Self:
        """The same batch on a device."""


Item = TypeVar("Item")
Made = TypeVar("Made", bound=Movable)
Made_co = TypeVar("Made_co", bound=Movable, covariant=True)


class Source(Protocol[Item, Made_co]):
    """Batches, epoch by epoch; the plan of an epoch depends on its number alone, so that a resume can repeat it."""

    def plan(self, epoch: int) -> Sequence[Item]:
        """The batches of that epoch, cheaply."""

    def make(self, item: Item, /) -> Made_co:
        """One of them, ready for a model."""


@dataclass(frozen=True)
class Loss:
    """What is minimised, and what the log says of it."""

    total: Tensor
    """Shape ()."""
    terms: dict[str, Tensor]
    """The unweighted terms by name, each (); those of this step."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """What terms are made of, each (), named such as `hidden 4:2`; read only to name the one that is not finite."""
    shares: dict[str, Tensor] = field(default_factory=dict)
    """Each term's share of the gradient, (), in steps where it was measured."""


@dataclass(frozen=True)
class Fitted:
    """How a training ended."""

    steps: int
    """Optimizer steps that led to the end."""
    epochs: float
    """Passes over the labelled rows."""
    seconds: float
    """Time in those steps over all attempts."""
    best_score: float | None
    """Score of the weights kept; None without early stopping."""
    stopped_early: bool
    """True where early stopping ended it before the last planned step."""
    attempts: int
    """Times it was started."""


def fit(
    model: nn.Module,
    source: Source[Item, Made],
    loss: Callable[[nn.Module, Made, float], Loss],
    *,
    train: Train,
    seed: int,
    device: str,
    work: Path,
    progress: Progress,
    what: str,
    score: Callable[[nn.Module], float] | None = None,
    extra: nn.Module | None = None,
    own: Mapping[nn.Module, Mapping[str, float]] | None = None,
    max_steps: int | None = None,
    key: str = "",
) -> Fitted:
    """How the training ended; `model` and `extra` are trained in place, and `model` is left in eval mode.

    With a checkpoint under `work / "checkpoint"` it goes on from there, and ends with the weights, to the bit, that
    it would have had without the stop (same machine and thread count). steps.jsonl in `work` gets a line a step.
    The last checkpoint is that of the last step: a finished training is found there and takes no step again.

    Args:
        model: on any device; moved to `device`. Starts from the same weights when it goes on from a checkpoint.
        source: batches of an epoch.
        loss: called with the model in train mode, a batch on the device and the share (0 to 1) of the steps done.
        train: length and speed.
        seed: of dropout, the same at every fresh start. The order of batches is the source's.
        device: `cpu` or `gpu`.
        work: folder of the checkpoint and steps.jsonl.
        progress: called after each step with (what, steps done, steps planned).
        what: the training in a few words, such as `distill`.
        score: score of a model on `select`, higher is better; needed where train.early_stop is set.
        extra: trained beside the model and in its checkpoint (projections).
        own: modules in `extra` with `lr` and `eps` of AdamW of their own, the same at every step; they neither decay
            nor count in the clipped norm.
        max_steps: most steps, for smoke runs; None for no limit.
        key: digest of what else decides the weights (rows, loss, own); a checkpoint of another key is refused.
    Raises: StageError at the first loss or gradient that is not finite, with the checkpoint before it kept; InputError
        when the checkpoint belongs to another training or early stopping has no score.
    """
    if train.early_stop is not None and score is None:
        raise InputError("train.early_stop needs a score: pass score=, or remove early_stop")
    total = planned_steps(train, lambda epoch: len(source.plan(epoch)), limit=max_steps)
    precision = resolve_precision(train.precision, device)
    everything = nn.ModuleDict({"model": model} | ({"extra": extra} if extra is not None else {}))
    full_key = _key(everything, train, seed=seed, total=total, precision=precision, key=key)
    log_path = work / STEPS_FILE
    found = read_checkpoint(work / CHECKPOINT_FOLDER, key=full_key)
    before = Standing(full_key, threads=torch.get_num_threads(), attempt=0) if found is None else found[0]
    attempt = max(last_attempt(log_path), before.attempt) + 1
    with (
        _threads(before.threads),
        accelerator(device, precision) as accel,
        _plain_forward(everything),
        _dropping(model, train.dropout),
    ):
        loop = _Loop(everything, train, accel, score, total=total, own=own or {})
        if found is None:
            seed_all(seed)
        else:
            loop.restore(found[1], over=before.stopped or before.step == total)
        log = StepLog(log_path, attempt=attempt, what=what)
        try:
            with loop.tables.attached():
                standing = loop.run(source, loss, before.with_(attempt=attempt), work, log, progress, what)
        finally:
            log.flush(check=False)
    model.eval()
    return _ended(standing, batches=len(source.plan(standing.epoch)), total=total)


def _ended(standing: Standing, *, batches: int, total: int) -> Fitted:
    """How a training ended that stands there, in an epoch of so many batches, of so many planned steps."""
    return Fitted(
        steps=standing.step,
        epochs=standing.epoch + standing.position / max(1, batches),
        seconds=standing.seconds,
        best_score=standing.best_score,
        stopped_early=standing.stopped and standing.step < total,
        attempts=standing.attempt,
    )


class _Loop:
    """The state of one training: weights, optimizer, average, best weights."""

    def __init__(
        self,
        everything: nn.ModuleDict,
        train: Train,
        accel: Accelerator,
        score: Callable[[nn.Module], float] | None,
        *,
        total: int,
        own: Mapping[nn.Module, Mapping[str, float]],
    ) -> None:
        self.train, self.accel, self.total = train, accel, total
        self.score = score if train.early_stop is not None else None
        for name in everything:
            everything[name] = accel.prepare_model(everything[name])
        self.everything = everything
        self.model: nn.Module = everything["model"]
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in everything.named_parameters() if parameter.requires_grad
        }
        # an average moves every row at every step, so that there is nothing to save
        tables = large_tables(everything) if train.average is None else {}
        self.tables = RowUpdates(tables, weight_decay=train.weight_decay)
        elsewhere = {parameter for module in own for parameter in module.parameters()} | self.tables.weights
        self.dense = [parameter for parameter in self.names if parameter not in elsewhere]
        self.raw_optimizer = _adamw(self.dense, train)
        for module, settings in own.items():
            members = {"params": list(module.parameters()), "weight_decay": 0.0, "own": True}
            self.raw_optimizer.add_param_group({**members, **settings})
        self.optimizer = accel.prepare_optimizer(self.raw_optimizer)
        self.average: Weights | None = weights_of(self.model) if train.average is not None else None
        self.best: Weights | None = None

    def restore(self, groups: dict[str, dict[str, Tensor]], *, over: bool) -> None:
        """Take up what a checkpoint holds; that of a training that is over has no moments."""
        copy_into(module_tensors(self.everything), groups["weights"], what="checkpoint")
        if not over:
            restore_optimizer(self.raw_optimizer, self.names, groups.get("optimizer", {}))
            self.tables.restore(groups.get("rows", {}))
        if self.average is not None:
            copy_into(self.average, groups["average"], what="checkpoint's average")
        if "best" in groups:
            self.best = weights_of(self.model)
            copy_into(self.best, groups["best"], what="checkpoint's best weights")
        set_random_state(groups["random"])

    def save(self, folder: Path, standing: Standing, *, over: bool) -> None:
        """Write all that the next steps need, and after the last one the weights alone."""
        if over:
            self.tables.settle()
        write_checkpoint(
            folder,
            standing,
            {
                "weights": module_tensors(self.everything),
                "optimizer": {} if over else optimizer_tensors(self.raw_optimizer, self.names),
                "rows": {} if over else self.tables.tensors(),
                "average": self.average or {},
                "best": self.best or {},
                "random": random_state(),
            },
        )

    def run(
        self,
        source: Source[Item, Made],
        loss: Callable[[nn.Module, Made, float], Loss],
        start: Standing,
        work: Path,
        log: StepLog,
        progress: Progress,
        what: str,
    ) -> Standing:
        """Where it stands after the last step, with the weights to keep in the model."""
        standing = start
        self.everything.train()
        while standing.step < self.total and not standing.stopped:
            plan = source.plan(standing.epoch)
            for item in plan[standing.position :]:
                batch = source.make(item).to(self.accel.device)
                self.step(loss, batch, standing, len(plan), log)
                position = standing.position + 1
                ended = position == len(plan)
                standing = standing.with_(
                    step=standing.step + 1,
                    epoch=standing.epoch + ended,
                    position=0 if ended else position,
                    seconds=start.seconds + log.seconds,
                )
                if self.score is not None and (ended or standing.step == self.total):
                    standing = self.judged(standing)
                over = standing.stopped or standing.step == self.total
                if over or standing.step % self.train.checkpoint == 0:
                    log.flush()
                    self.save(work / CHECKPOINT_FOLDER, standing, over=over)
                progress(what, standing.step, self.total)
                if over:
                    break
        self.tables.settle()
        kept = self.best if self.best is not None else self.average
        if kept is not None:
            set_weights(self.model, kept)
        return standing

    def step(
        self,
        loss: Callable[[nn.Module, Made, float], Loss],
        batch: Made,
        standing: Standing,
        batches: int,
        log: StepLog,
    ) -> None:
        """One optimizer step."""
        rate = self.train.learning_rate * rate_factor(
            self.train.schedule, standing.step, self.total, warmup=self.train.warmup
        )
        for group in self.raw_optimizer.param_groups:
            if "own" not in group:
                group["lr"] = rate
        with self.accel.autocast():
            found = loss(self.model, batch, standing.step / self.total)
        self.accel.backward(found.total)
        found_rows = self.tables.gradients()
        norm = torch.zeros(())
        if self.train.clip is not None:
            norm = self.accel.clip_grad_norm_([*self.dense, *found_rows], self.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tables.step(rate)
        if self.average is not None and self.train.average is not None:
            update_average(self.average, self.model, decay=self.train.average, step=standing.step + 1)
        log.add(
            step=standing.step + 1,
            epoch=standing.epoch + (standing.position + 1) / batches,
            learning_rate=rate,
            found=found,
            norm=norm.to(found.total.device),
            batch=batch,
        )

    def judged(self, standing: Standing) -> Standing:
        """The same place after scoring the weights that would be kept."""
        assert self.score is not None
        assert self.train.early_stop is not None
        random = random_state()
        self.tables.settle()
        with using(self.model, self.average):
            self.model.eval()
            value = self.score(self.model)
            if standing.best_score is None or value > standing.best_score:
                self.best = weights_of(self.model)
                standing = standing.with_(best_score=value, best_step=standing.step, waited=0)
            else:
                standing = standing.with_(waited=standing.waited + 1)
        self.model.train()
        set_random_state(random)
        return standing.with_(stopped=standing.waited >= self.train.early_stop.patience)


def _adamw(names: Iterable[Tensor], train: Train) -> torch.optim.AdamW:
    """AdamW in one kernel for all parameters; matrices decay, biases and norms do not."""
    parameters = list(names)
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    split = ((matrices, train.weight_decay), (vectors, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in split if members]
    return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)


def _key(everything: nn.Module, train: Train, *, seed: int, total: int, precision: str, key: str) -> str:
    """Digest of what decides the weights as far as the loop knows it."""
    settings = train.model_dump(mode="json", exclude={"checkpoint"})
    start = tensors_digest(everything)
    text = json.dumps([settings, seed, total, precision, start, key, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, torch uses as many threads as the checkpoint was made with: sums of another order differ in last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _plain_forward(everything: nn.ModuleDict) -> Iterator[None]:
    """Takes off, at the end, the autocast that accelerate writes over a module's `forward`."""
    try:
        yield
    finally:
        for module in everything.values():
            if module.__dict__.pop("_original_forward", None) is not None:
                module.__dict__.pop("forward", None)


@contextlib.contextmanager
def _dropping(model: nn.Module, share: float | None) -> Iterator[None]:
    """Inside, every dropout of `model` drops `share`; None leaves each as it is."""
    before = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    if share is not None:
        set_dropout(model, share)
    try:
        yield
    finally:
        for module, own in before.items():
            module.p = own
