"""The cuts of one pruning: score, cut, recover, judge, keep; gone on with after an interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor.data.rows import DataSets
from compressor.device import torch_device
from compressor.distill.teacher_cache import CACHE_FOLDER
from compressor.errors import GateError
from compressor.model.encoders import load_model
from compressor.model.footprint import macs, parameters
from compressor.model.importance import Scores
from compressor.model.parts import anatomy, shapes
from compressor.model.surgery import Kept, cut, keep_all
from compressor.prune.latency_table import LatencyTable
from compressor.prune.masked_training import Chosen, learn_masks
from compressor.prune.next_cut import Taken, next_taken, taken
from compressor.prune.plan import Plan, checked_share, prices_of
from compressor.prune.reconstruction import Fitting, draw_fitting
from compressor.prune.recovery import naming_layers, open_training
from compressor.prune.saving import save_pruned
from compressor.prune.schedule import Choice, kept_share
from compressor.prune.scoring import draw_sample, masked_loss, score_parts, scored_by
from compressor.prune.targets import (
    amount_left,
    amount_of,
    choose_parts,
    in_words,
    rounded_down,
)
from compressor.prune.timing import check_latency, kept_check, scene_of
from compressor.stage import Decision, Outcome
from compressor.train.finetune import digest_of
from compressor.train.fit import CHECKPOINT_FOLDER
from compressor.train.steps import STEPS_FILE

STATE_FILE = "cut.json"
CHECK_FILE = "latency.json"


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
    hidden = kept.hidden
    if hidden is not None and origin.hidden is not None:
        hidden = tuple(origin.hidden[channel] for channel in hidden)
    layers = tuple(origin.layers[place] for place in kept.layers)
    return Kept(tuple(heads), tuple(neurons), layers, origin.hidden if hidden is None else hidden)


class Run:
    """One `fit`: the input's figures, the rows, and the steps."""

    def __init__(self, plan: Plan, data: DataSets, model: PreTrainedModel, work: Path) -> None:
        self.plan, self.data, self.work = plan, data, work
        anatomy(model)  # refuses an encoder whose parts are not known before anything is measured
        self.model, self.sizes = model, shapes(model)
        self.quantity, _ = plan.until.target
        self.sample = draw_sample(
            data, plan.folder, teacher=plan.teacher, remove=plan.remove, seed=plan.seed, smoke=plan.smoke
        )
        self.fitting = draw_fitting(data, plan.folder, seed=plan.seed, smoke=plan.smoke) if plan.reconstruct else None
        self.scene = None if plan.place is None else scene_of(plan.folder, data, plan.place, seed=plan.seed)
        self.prices = prices_of(plan, model, self.scene, work)
        self.full = amount_left(self.prices, self.sizes)
        self.whole = self.full + amount_of(self.quantity, plan.spared)
        self.share = checked_share(plan, self.sizes, self.prices)
        self.key = plan.key(data)
        if isinstance(self.prices, LatencyTable):
            self.key = digest_of(self.key, json.dumps(asdict(self.prices)))
        self.said: list[Decision] = []
        """Decisions of the cut that is being made."""

    def _budget(self, share: float) -> float:
        return rounded_down(self.prices, share * self.full)

    def go(self) -> Standing:
        """The model after the last step that passes; goes on after the last finished step of an earlier run."""
        self._remove_others()
        standing = self._resume() or Standing(self.model, 0, keep_all(self.sizes), 0.0)
        while standing.step < self.plan.steps:
            following = self._step(standing)
            place = self._place(following.step) / "model"
            folder = save_pruned(following.model, place, source=self.plan.folder, data=self.data)
            outcome = None if self.plan.accept is None else self.plan.accept(folder)
            if outcome is not None and not outcome.passed:
                self._backtrack(standing, following, outcome)
                return standing
            self._keep(following)
            standing = following
        return standing

    def _step(self, standing: Standing) -> Standing:
        """One cut with its reconstruction and its recovery."""
        step, plan = standing.step + 1, self.plan
        self.said = []
        self._write_state(step, {})
        scores = score_parts(standing.model, plan.remove, self.sample, seed=plan.seed + step, progress=plan.progress)
        made = self._chosen(standing, scores) if plan.masks is None else self._learned(standing, scores)
        choice = made.choice
        model = cut(made.model, choice.kept)
        origin = renumber(standing.origin, choice.kept)
        following = Standing(model, step, origin, choice.lost)
        self._decide_step(standing, following, made)
        if self.fitting is not None:
            self._tell(self._reconstructed(self.fitting, standing, following, choice.kept))
        if plan.recover is not None and plan.masks is None:
            what = f"recover {step} of {plan.steps}"
            training = open_training(plan, self.data, model, step=step, what=what, decide=self._tell)
            with naming_layers(origin.layers, len(self.sizes.layers), step=step):
                following.model = training.train_model(model, self._place(step)).eval()
        return following

    def _chosen(self, standing: Standing, scores: Scores) -> Chosen:
        """What stays of the model by these scores."""
        plan = self.plan
        choice = choose_parts(
            shapes(standing.model),
            scores,
            remove=plan.kinds,
            prices=self.prices,
            budget=self._budget(kept_share(self.share, step=standing.step + 1, steps=plan.steps)),
            last=self._budget(self.share),
            loss_with=lambda kept: masked_loss(standing.model, kept, self.sample, progress=plan.progress),
        )
        return Chosen(standing.model, choice, scores, scored_by(plan.remove, self.sample))

    def _learned(self, standing: Standing, scores: Scores) -> Chosen:
        """What stays by masks that are learned in a training, which begins with the order of these scores."""
        return learn_masks(
            self.plan,
            self.data,
            standing.model,
            start=scores,
            order=scored_by(self.plan.remove, self.sample),
            prices=self.prices,
            share=self.share,
            work=self._place(standing.step + 1),
            decide=self._tell,
        )

    def _reconstructed(self, fitting: Fitting, standing: Standing, following: Standing, kept: Kept) -> Decision:
        """Fits the cut model to the stage's input, so that errors do not add up; after a recovery to what that made."""
        trained = self.plan.recover is not None
        return fitting.apply(
            following.model,
            standing.model if trained else self.model,
            kept.layers if trained else following.origin.layers,
            step=following.step,
            names=following.origin.layers,
            words="the model before this cut" if trained else "the stage's input",
            progress=self.plan.progress,
        )

    def _why(self, step: int, scored: str) -> str:
        """How the parts of that cut were chosen, and what may remain."""
        timed = isinstance(self.prices, LatencyTable)
        rule = "the shapes that keep most score in that time" if timed else f"least score per {self.quantity}"
        if "hidden" in self.plan.kinds:
            rule = "the channels of least score"
        most = in_words(self.prices, self._budget(kept_share(self.share, step=step, steps=self.plan.steps)))
        return f"{rule}, {scored}; at most {most} may remain"

    def _decide_step(self, standing: Standing, following: Standing, made: Chosen) -> None:
        choice, scores = made.choice, made.scores
        self._tell(
            Decision(
                kind="cut",
                chosen={
                    "step": following.step,
                    **self._parts_left(following.origin),
                    self.quantity: amount_left(self.prices, shapes(following.model)),
                },
                because=self._why(following.step, made.words),
                candidates=_score_table(standing.origin, scores),
                cost=self._costs(standing, following, choice, scores),
            )
        )
        for verdict in choice.layers:
            self._tell(
                Decision(
                    kind="layer",
                    chosen={
                        "step": following.step,
                        "layer": standing.origin.layers[verdict.layer],
                        "part": verdict.part,
                        "removed": verdict.removed,
                    },
                    because=verdict.because,
                    candidates={"score": verdict.score, "loss": verdict.loss, "units_loss": verdict.units_loss},
                )
            )

    def _costs(
        self, standing: Standing, following: Standing, choice: Choice, scores: Scores
    ) -> dict[str, dict[str, Any] | None]:
        """What this cut takes, and what the one after it would by the same scores; after the last, as much again."""
        plan, before = self.plan, shapes(standing.model)
        now = taken(before, choice.kept, self.prices, score=choice.lost)
        due: float = 0
        if following.step < plan.steps:
            share = kept_share(self.share, step=following.step + 1, steps=plan.steps)
            due = amount_left(self.prices, shapes(following.model)) - self._budget(share)
        amount = due if due > 0 else now.amount
        further = next_taken(before, choice.kept, scores, self.prices, remove=plan.kinds, amount=amount)
        return {"this cut": self._cost(now), "next cut": None if further is None else self._cost(further)}

    def _cost(self, one: Taken) -> dict[str, Any]:
        """The parts and the score of a cut, with what it takes of the quantity that is aimed at."""
        parts: dict[str, int] = {"heads": one.heads, "ffn": one.ffn, "layers": one.layers}
        if "hidden" in self.plan.kinds:
            parts = {"hidden": one.hidden}
        return {**parts, self.quantity: one.amount, "score": one.score}

    def _parts_left(self, origin: Kept) -> dict[str, Any]:
        """What is left of each layer; where the width is cut the number of channels besides."""
        width = {} if origin.hidden is None else {"hidden": len(origin.hidden)}
        return {"layers": _layer_table(origin), **width}

    def _tell(self, decision: Decision) -> None:
        self.said.append(decision)
        self.plan.decide(decision)

    def _backtrack(self, standing: Standing, refused: Standing, outcome: Outcome) -> None:
        """Say what was kept instead; GateError when not even the first cut passes."""
        if standing.step == 0:
            helps = "more steps, a higher target, or longer recovery"
            raise GateError(
                f"the gate refuses the first of {self.plan.steps} cuts ({outcome.because}); nothing was pruned: "
                f"take {helps if self.plan.masks is None else 'a higher target, or longer training'}"
            )
        self.plan.decide(
            Decision(
                kind="backtrack",
                chosen={"step": standing.step, **self._parts_left(standing.origin), "score": standing.lost,
                        self.quantity: amount_left(self.prices, shapes(standing.model))},
                because=f"step {refused.step} broke the gate: {outcome.because}",
                candidates={"step": refused.step, **self._parts_left(refused.origin), "score": refused.lost,
                            self.quantity: amount_left(self.prices, shapes(refused.model))},
                cost={name: list(value) for name, value in outcome.values.items()},
            )
        )  # fmt: skip

    def check_latency(self, standing: Standing) -> None:
        """Tell the time of what stands beside the input's, predicted and measured; nothing in a smoke run."""
        scene, table, plan = self.scene, self.prices, self.plan
        if scene is None or not isinstance(table, LatencyTable) or plan.smoke:
            return
        check = kept_check(
            self.work / CHECK_FILE,
            digest_of(self.key, standing.step),
            lambda: check_latency(self.model, standing.model, table, scene, progress=plan.progress),
        )
        for decision in check.decisions():
            plan.decide(decision)

    def summary(self, standing: Standing) -> Decision:
        """What is left of each layer of the input, for the report; of a model whose tokens have gone or not."""
        after = shapes(standing.model)
        tokens = self.whole - self.full if after.vocabulary == self.sizes.vocabulary else 0
        gone = sorted(set(range(len(self.sizes.layers))) - set(standing.origin.layers))
        remain = (
            f"{self.quantity} {in_words(self.prices, amount_left(self.prices, after) + tokens)} of "
            f"{in_words(self.prices, self.whole)} remain"
        )
        if tokens:
            quantity, text = self.plan.until.target
            remain += f"; until.{quantity} {text}, which counted on the tokens, is missed"
        return Decision(
            kind="pruned",
            chosen={
                "layers": _layer_table(standing.origin),
                "removed_layers": gone,
                "before": [{"heads": each.heads, "ffn": each.ffn} for each in self.sizes.layers],
                "hidden": {"kept": after.hidden, "before": self.sizes.hidden},
            },
            because=remain,
            cost={"macs": macs(after), "macs_before": macs(self.sizes), "parameters": parameters(standing.model)},
        )

    def _place(self, step: int) -> Path:
        return self.work / f"cut-{step}"

    def _state(self, place: Path) -> dict[str, Any]:
        """What a cut's folder says about itself; empty where it belongs to another pruning."""
        file = place / STATE_FILE
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return state if state.get("key") == self.key else {}

    def _write_state(self, step: int, state: dict[str, Any]) -> None:
        place = self._place(step)
        place.mkdir(parents=True, exist_ok=True)
        partial = place / f"{STATE_FILE}.partial"
        partial.write_text(json.dumps({"key": self.key, **state}), encoding="utf-8")
        partial.replace(place / STATE_FILE)

    def _remove_others(self) -> None:
        """Remove the cuts that another pruning left, finished or not."""
        for place in self.work.glob("cut-*"):
            if not self._state(place):
                shutil.rmtree(place)

    def _keep(self, following: Standing) -> None:
        """Mark a step as finished for an interrupted run, and remove what only its training needed."""
        said = [asdict(decision) for decision in self.said]
        self._write_state(
            following.step, {"kept": {"lost": following.lost, **asdict(following.origin)}, "decisions": said}
        )
        for name in (CACHE_FOLDER, CHECKPOINT_FOLDER):
            shutil.rmtree(self._place(following.step) / name, ignore_errors=True)

    def _resume(self) -> Standing | None:
        """Where an earlier run came to, with the decisions that led there told again; None where it kept no cut."""
        kept = None
        step = 0
        while "kept" in (state := self._state(self._place(step + 1))):
            kept = state["kept"]
            step += 1
            for decision in state["decisions"]:
                self.plan.decide(Decision(**decision))
        if kept is None:
            return None
        origin = Kept(
            heads=tuple(map(tuple, kept["heads"])),
            neurons=tuple(map(tuple, kept["neurons"])),
            layers=tuple(kept["layers"]),
            hidden=None if kept["hidden"] is None else tuple(kept["hidden"]),
        )
        model = load_model(self._place(step) / "model", labels=self.data.labels, make_head=False)
        return Standing(model.to(torch_device(self.plan.device)), step, origin, kept["lost"])

    def gather_steps(self) -> None:
        """Write the cuts' training logs to work / steps.jsonl, each line with the number of its cut."""
        logs = [(step, self._place(step) / STEPS_FILE) for step in range(1, self.plan.steps + 1)]
        lines = [
            json.dumps({**json.loads(line), "cut": step}) + "\n"
            for step, log in logs
            if log.is_file()
            for line in log.read_text(encoding="utf-8").splitlines()
        ]
        if lines:
            (self.work / STEPS_FILE).write_text("".join(lines), encoding="utf-8")


def _layer_table(origin: Kept) -> list[dict[str, Any]]:
    """One entry a layer that stays, in the input's numbering from 0: which heads, how many neurons."""
    return [
        {"layer": index, "heads": list(origin.heads[index]), "ffn": len(origin.neurons[index])}
        for index in origin.layers
    ]


def _score_table(origin: Kept, scores: Scores) -> list[dict[str, Any]]:
    """One entry a layer of the model that is cut: each head's score, the least and the mean of its neurons' scores.

    Where channels of the hidden states were scored, one entry a channel instead.
    """
    if len(scores.hidden):
        channels = range(len(scores.hidden)) if origin.hidden is None else origin.hidden
        return [
            {"channel": channel, "score": float(f"{score:.4g}")}
            for channel, score in zip(channels, scores.hidden.tolist(), strict=True)
        ]
    table: list[dict[str, Any]] = []
    for place, layer in enumerate(origin.layers):
        neurons = scores.neurons[place]
        least, mean = (float(neurons.min()), float(neurons.mean())) if len(neurons) else (None, None)
        heads = [float(f"{score:.4g}") for score in scores.heads[place].tolist()]
        whole = float(scores.layers[place])
        table.append({"layer": layer, "score": whole, "heads": heads, "ffn_least": least, "ffn_mean": mean})
    return table
