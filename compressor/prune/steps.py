"""The cuts of one pruning: score, cut, recover, judge, keep; gone on with after an interruption."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor.data.encode import open_encoder
from compressor.data.rows import DataSets
from compressor.device import torch_device
from compressor.distill.settings import DEFAULT_MATCH
from compressor.errors import GateError, InputError
from compressor.model.encoders import load_model, save_model, shapes
from compressor.model.footprint import macs, parameters
from compressor.model.importance import Scores
from compressor.model.manifest import read_manifest
from compressor.model.surgery import Kept, cut, keep_all
from compressor.prune.schedule import Choice, Kind, Prices, choose, floor, kept_share, prices_for
from compressor.prune.scoring import draw_sample, masked_loss, row_inputs, score_parts
from compressor.prune.settings import Recover, Remove, Until
from compressor.prune.targets import share_of_train
from compressor.settings import parse_kept_share
from compressor.stage import Decision, Outcome, Progress

PROBE_ROWS = 8
"""Rows on which a saved model is compared with itself."""
STATE_FILE = "cut.json"


@dataclass(frozen=True)
class Plan:
    """All that says what is pruned and how."""

    folder: Path
    """The input model."""
    teacher: Path | None
    """None where the input model teaches itself and importance is measured on labels alone."""
    remove: Remove
    kinds: frozenset[Kind]
    until: Until
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
        parts = [*settings, str(self.steps), str(self.seed), str(self.smoke), str(self.folder), str(self.teacher)]
        return hashlib.sha256("\0".join([*parts, data.train.digest(), data.unlabelled.digest()]).encode()).hexdigest()


@dataclass
class Standing:
    """The model after some cuts, with its parts in the numbering of the stage's input."""

    model: PreTrainedModel
    step: int
    origin: Kept
    lost: float


def renumber(origin: Kept, kept: Kept) -> Kept:
    """`kept`, which counts in a model that itself kept `origin`, in the numbering before both; gone layers keep none.

    `origin` has an entry a layer of the first model, `kept` one a layer of the second.
    """
    heads: list[tuple[int, ...]] = [() for _ in origin.heads]
    neurons: list[tuple[int, ...]] = [() for _ in origin.neurons]
    for place in kept.layers:
        layer = origin.layers[place]
        heads[layer] = tuple(origin.heads[layer][index] for index in kept.heads[place])
        neurons[layer] = tuple(origin.neurons[layer][index] for index in kept.neurons[place])
    return Kept(tuple(heads), tuple(neurons), tuple(origin.layers[place] for place in kept.layers))


class Run:
    """One `fit`: the input's figures, the rows, and the steps."""

    def __init__(self, plan: Plan, data: DataSets, model: PreTrainedModel, work: Path) -> None:
        self.plan, self.data, self.work = plan, data, work
        self.model, self.sizes = model, shapes(model)
        self.quantity, text = plan.until.target
        self.share = parse_kept_share(text)
        self.prices: Prices = prices_for(self.quantity, self.sizes, parameters=parameters(model))
        self.full = self.prices.total(self.sizes.layers)
        least = floor(self.sizes, self.prices, plan.kinds)
        if self._budget(self.share) < least:
            share = math.ceil(1000 * least / self.full) / 1000
            raise InputError(
                f"until.{self.quantity} {text} is below the floor: removing {', '.join(sorted(plan.kinds))} leaves at "
                f"least {least} of {self.full}; write {share:g}x or more, or let more kinds go in remove"
            )
        self.key = plan.key(data)
        self.sample = draw_sample(data, plan.folder, teacher=plan.teacher, seed=plan.seed, smoke=plan.smoke)

    def _budget(self, share: float) -> int:
        return math.floor(share * self.full + 1e-9)

    def go(self) -> Standing:
        """The model after the last step that passes; goes on after the last finished step of an earlier run."""
        standing = self._resume() or Standing(self.model, 0, keep_all(self.sizes), 0.0)
        while standing.step < self.plan.steps:
            following = self._step(standing)
            folder = self.save(following.model, self._place(following.step) / "model")
            outcome = None if self.plan.accept is None else self.plan.accept(folder)
            if outcome is not None and not outcome.passed:
                self._backtrack(standing, following, outcome)
                return standing
            self._keep(following)
            standing = following
        return standing

    def _step(self, standing: Standing) -> Standing:
        """One cut with its recovery."""
        step, plan = standing.step + 1, self.plan
        share = kept_share(self.share, step=step, steps=plan.steps)
        before = shapes(standing.model)
        scores = score_parts(standing.model, plan.remove, self.sample, seed=plan.seed + step, progress=plan.progress)
        choice = choose(
            before,
            scores,
            remove=plan.kinds,
            prices=self.prices,
            budget=self._budget(share),
            last=self._budget(self.share),
            loss_with=lambda kept: masked_loss(standing.model, kept, self.sample, progress=plan.progress),
        )
        model = cut(standing.model, choice.kept)
        origin = renumber(standing.origin, choice.kept)
        following = Standing(model, step, origin, choice.lost)
        self._decide_step(standing, following, choice, scores)
        if plan.recover is not None:
            following.model = self._recovered(model, step)
        return following

    def _decide_step(self, standing: Standing, following: Standing, choice: Choice, scores: Scores) -> None:
        after = shapes(following.model)
        criteria = {kind: getattr(self.plan.remove, kind) for kind in sorted(self.plan.kinds)}
        self.plan.decide(
            Decision(
                kind="cut",
                chosen={
                    "step": following.step,
                    "layers": _layer_table(following.origin),
                    self.quantity: self.prices.total(after.layers),
                },
                because=f"least score per {self.quantity} by {criteria}, {self.sample.source}; at most "
                f"{self._budget(kept_share(self.share, step=following.step, steps=self.plan.steps))} may remain",
                candidates=_score_table(standing.origin.layers, scores),
                cost={"score": choice.lost},
            )
        )
        for verdict in choice.layers:
            self.plan.decide(
                Decision(
                    kind="layer",
                    chosen={
                        "step": following.step,
                        "layer": standing.origin.layers[verdict.layer],
                        "removed": verdict.removed,
                    },
                    because=verdict.because,
                    candidates={"score": verdict.score, "loss": verdict.loss, "units_loss": verdict.units_loss},
                )
            )

    def _recovered(self, model: PreTrainedModel, step: int) -> PreTrainedModel:
        from compressor.distill.distiller import Distiller

        plan, recover = self.plan, self.plan.recover
        assert recover is not None
        distiller = Distiller(
            plan.teacher or plan.folder,
            model,
            data=self.data,
            match=list(recover.match or DEFAULT_MATCH),
            mix=recover.mix,
            train=share_of_train(recover.train, plan.steps),
            seed=plan.seed + step,
            device=plan.device,
            progress=plan.progress,
            decide=plan.decide,
            smoke=plan.smoke,
            what=f"recover {step} of {plan.steps}",
        )
        place = self._place(step)
        place.mkdir(parents=True, exist_ok=True)
        return distiller.train_model(model, place).eval()

    def _backtrack(self, standing: Standing, refused: Standing, outcome: Outcome) -> None:
        """Say what was kept instead; GateError when not even the first cut passes."""
        if standing.step == 0:
            raise GateError(
                f"the gate refuses the first of {self.plan.steps} cuts ({outcome.because}); nothing was pruned: "
                "take more steps, a higher target, or longer recovery"
            )
        self.plan.decide(
            Decision(
                kind="backtrack",
                chosen={"step": standing.step, "layers": _layer_table(standing.origin),
                        self.quantity: self.prices.total(shapes(standing.model).layers)},
                because=f"step {refused.step} broke the gate: {outcome.because}",
                candidates={"step": refused.step, "layers": _layer_table(refused.origin),
                            self.quantity: self.prices.total(shapes(refused.model).layers)},
                cost={name: list(value) for name, value in outcome.values.items()},
            )
        )  # fmt: skip

    def summary(self, standing: Standing) -> Decision:
        """What is left of each layer of the input, for the report."""
        after = shapes(standing.model)
        gone = sorted(set(range(len(self.sizes.layers))) - set(standing.origin.layers))
        return Decision(
            kind="pruned",
            chosen={
                "layers": _layer_table(standing.origin),
                "removed_layers": gone,
                "before": [{"heads": each.heads, "ffn": each.ffn} for each in self.sizes.layers],
            },
            because=f"{self.quantity} {self.prices.total(after.layers)} of {self.full} remain",
            cost={"macs": macs(after), "macs_before": macs(self.sizes), "parameters": parameters(standing.model)},
        )

    def save(self, model: PreTrainedModel, out: Path) -> Path:
        """`out`, holding `model` after its reload was checked on rows of `select`."""
        encoder = open_encoder(self.plan.folder, self.data.max_tokens)
        rows = self.data.select if len(self.data.select) else self.data.train
        encoded = encoder.encode(rows.head(PROBE_ROWS).texts)
        manifest = replace(
            read_manifest(self.plan.folder),
            labels=self.data.labels,
            metric=self.data.task.metric,
            text=self.data.text_columns,
            max_tokens=self.data.max_tokens,
        )
        probe = row_inputs(encoded, range(len(encoded)), encoder.pad_id)
        return save_model(model, out, tokenizer_from=self.plan.folder, manifest=manifest, probe=probe)

    def _place(self, step: int) -> Path:
        return self.work / f"cut-{step}"

    def _keep(self, following: Standing) -> None:
        """Mark a step as finished for an interrupted run."""
        place = self._place(following.step)
        origin = following.origin
        state = {"key": self.key, "lost": following.lost, **asdict(origin)}
        partial = place / f"{STATE_FILE}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(place / STATE_FILE)

    def _resume(self) -> Standing | None:
        found = None
        for step in range(1, self.plan.steps + 1):
            file = self._place(step) / STATE_FILE
            state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if state.get("key") != self.key:
                break
            found = step, state
        if found is None:
            return None
        step, state = found
        origin = Kept(
            heads=tuple(map(tuple, state["heads"])),
            neurons=tuple(map(tuple, state["neurons"])),
            layers=tuple(state["layers"]),
        )
        model = load_model(self._place(step) / "model", labels=self.data.labels, make_head=False)
        return Standing(model.to(torch_device(self.plan.device)), step, origin, state["lost"])

    def clean(self, *, own: bool) -> None:
        """Gather the steps' training logs in work / steps.jsonl and remove what only an interrupted run needs."""
        lines: list[str] = []
        for step in range(1, self.plan.steps + 1):
            log = self._place(step) / "steps.jsonl"
            if log.is_file():
                written = log.read_text(encoding="utf-8").splitlines()
                lines += [json.dumps({**json.loads(line), "cut": step}) for line in written]
            shutil.rmtree(self._place(step), ignore_errors=True)
        if own:
            shutil.rmtree(self.work)
        elif lines:
            (self.work / "steps.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _layer_table(origin: Kept) -> list[dict[str, Any]]:
    """One entry a layer that stays, in the input's numbering from 0: which heads, how many neurons."""
    return [
        {"layer": index, "heads": list(origin.heads[index]), "ffn": len(origin.neurons[index])}
        for index in origin.layers
    ]


def _score_table(layers: Sequence[int], scores: Scores) -> list[dict[str, Any]]:
    """One entry a layer of the model that is cut: each head's score, the least and the mean of its neurons' scores."""
    table: list[dict[str, Any]] = []
    for place, layer in enumerate(layers):
        neurons = scores.neurons[place]
        least, mean = (float(neurons.min()), float(neurons.mean())) if len(neurons) else (None, None)
        heads = [float(f"{score:.4g}") for score in scores.heads[place].tolist()]
        whole = float(scores.layers[place])
        table.append({"layer": layer, "score": whole, "heads": heads, "ffn_least": least, "ffn_mean": mean})
    return table
