"""Masks that are learned: their formulas beside references, what they leave, and what they find."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from compressor.data.rows import DataSets
from compressor.errors import GateError, InputError
from compressor.model.encoders import load_model
from compressor.model.footprint import heads, macs, neurons, parameters
from compressor.model.gates import gated
from compressor.model.importance import Scores
from compressor.model.manifest import LayerShape, Shapes, read_manifest
from compressor.model.parts import shapes
from compressor.model.surgery import Kept, kept_shapes
from compressor.prune import masked_training
from compressor.prune.goal import Goal
from compressor.prune.latency_table import LatencyTable, Place, key_of
from compressor.prune.masked_training import MaskedLoss, Timetable
from compressor.prune.masks import (
    MASKS,
    HardConcreteMasks,
    LearnedMasks,
    MovementMasks,
    evened,
    hard_concrete,
    open_probability,
    straight_through,
)
from compressor.prune.pruner import Pruner
from compressor.prune.schedule import prices_for
from compressor.prune.settings import Masks, Remove, check_masks
from compressor.recipe.recipe import Recipe
from compressor.runner.plan import plan
from compressor.stage import Decision, Job, Outcome, silent
from compressor.stages.prune import Prune
from compressor.train.fit import Loss

TAYLOR = {"heads": "taylor", "ffn": "taylor"}
SIZES = Shapes(hidden=32, layers=(LayerShape(4, 8, 16),) * 3, vocabulary=50)
TRAIN = {"steps": 12, "learning_rate": 1e-3, "batch_rows": 16}


def small_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).eval()


def table(sizes: Shapes = SIZES) -> LatencyTable:
    """A table that is not straight: the first head and the first neurons cost most."""
    return LatencyTable(
        key=key_of(sizes, Place(), [5, 9], activation="gelu"),
        rest_ms=0.5,
        heads=(0, 1, 4),
        attention_ms=(0.1, 0.5, 1.1),
        neurons=(0, 4, 16),
        ffn_ms=(0.0, 0.4, 1.0),
    )


def random_scores(sizes: Shapes, seed: int = 0) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    each_head = tuple(torch.rand(each.heads, generator=draw, dtype=torch.float64) for each in sizes.layers)
    each_neuron = tuple(torch.rand(each.ffn, generator=draw, dtype=torch.float64) for each in sizes.layers)
    return Scores(each_head, each_neuron, torch.ones(len(sizes.layers), dtype=torch.float64))


def goal_of(sizes: Shapes = SIZES, *, share: float = 0.5, timed: bool = False) -> Goal:
    prices = table(sizes) if timed else prices_for("macs", sizes, parameters=10**6)
    return Goal(sizes, ("heads", "ffn"), prices, share)


def of_model(kind: str, model: nn.Module, *, share: float = 0.5) -> LearnedMasks:
    sizes = shapes(model)
    return MASKS[kind](goal_of(sizes, share=share), random_scores(sizes))


def inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 60, (6, 12), generator=torch.Generator().manual_seed(1))}


def logits_loss(model: nn.Module, _batch: object, _progress: float) -> Loss:
    value = model(**inputs()).logits.square().sum()
    return Loss(value, {"logits": value})


def test_a_hard_concrete_gate_is_open_as_often_as_its_formula_says():
    log_alpha = torch.tensor([-3.0, -1.6, 0.0, 2.0, 4.0])
    uniform = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(0))
    drawn = hard_concrete(log_alpha, uniform)
    assert torch.allclose((drawn > 0).float().mean(0), open_probability(log_alpha), atol=5e-3)
    assert float(drawn.min()) == 0.0
    assert float(drawn.max()) == 1.0
    by_hand = 1 / (1 + (-(log_alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1)))).exp())
    assert torch.allclose(open_probability(log_alpha), by_hand)


@pytest.mark.parametrize("timed", [False, True])
def test_the_expected_share_of_certain_parts_is_that_of_the_model_that_keeps_them(timed: bool):
    goal, draw = goal_of(timed=timed), torch.Generator().manual_seed(2)
    stay = {"heads": torch.rand(12, generator=draw) > 0.4, "ffn": torch.rand(48, generator=draw) > 0.4}
    kept = Kept(
        heads=tuple(tuple(part.nonzero().flatten().tolist()) for part in stay["heads"].split(4)),
        neurons=tuple(tuple(part.nonzero().flatten().tolist()) for part in stay["ffn"].split(16)),
        layers=(0, 1, 2),
    )
    left = goal.prices.total(kept_shapes(SIZES, kept).layers)
    found = goal.expected_share({kind: each.float() for kind, each in stay.items()})
    assert float(found) == pytest.approx(left / goal.full, abs=1e-4)


def test_the_expected_share_is_the_mean_over_drawn_models():
    goal, draw = goal_of(), torch.Generator().manual_seed(3)
    probabilities = {"heads": torch.rand(12, generator=draw), "ffn": torch.rand(48, generator=draw)}
    amounts = []
    for _ in range(3000):
        stay = {kind: torch.rand(len(each), generator=draw) < each for kind, each in probabilities.items()}
        per_layer = zip(stay["heads"].split(4), stay["ffn"].split(16), strict=True)
        left = [LayerShape(int(some.sum()), 8, int(others.sum())) for some, others in per_layer]
        amounts.append(goal.prices.total(left) / goal.full)
    assert float(goal.expected_share(probabilities)) == pytest.approx(sum(amounts) / 3000, rel=0.01)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("share", [0.99, 0.6, 0.3])
def test_gates_are_shifted_until_as_much_is_expected_as_may_remain(timed: bool, share: float):
    masks = HardConcreteMasks(goal_of(timed=timed), random_scores(SIZES))
    with torch.no_grad():
        shifted = {kind: masks.learned[kind].double() - masks.shift(share) for kind in ("heads", "ffn")}
        likely = {kind: open_probability(each) for kind, each in shifted.items()}
    assert float(masks.goal.expected_share(likely)) == pytest.approx(share, abs=1e-6)
    draw = torch.Generator().manual_seed(5)
    uniform = {kind: torch.rand(5000, len(each), generator=draw) for kind, each in shifted.items()}
    drawn = {kind: (hard_concrete(each, uniform[kind]) > 0).double().mean(0) for kind, each in shifted.items()}
    assert float(masks.goal.expected_share(drawn)) == pytest.approx(share, abs=0.01)


def test_the_gradient_of_gates_is_that_along_the_constraint():
    masks = HardConcreteMasks(goal_of(), random_scores(SIZES)).double()
    draw = torch.Generator().manual_seed(4)
    weights = {kind: torch.rand(len(each), generator=draw, dtype=torch.float64) for kind, each in masks.learned.items()}

    def value() -> Tensor:
        shift = masks.shift(0.6)
        return sum(((masks.learned[kind] - shift).tanh() * weights[kind]).sum() for kind in weights)

    value().backward()
    for kind, index in (("heads", 2), ("ffn", 0), ("ffn", 40)):
        found, values = float(masks.learned[kind].grad[index]), []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                masks.learned[kind][index] += change
                values.append(float(value()))
                masks.learned[kind][index] -= change
        assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("kind", ["movement", "l0"])
def test_with_all_that_may_remain_the_masked_model_is_the_plain_one(kind: str):
    model = small_bert()
    masks = of_model(kind, model)
    masks.refresh(1.0)
    plain = model(**inputs()).logits
    for share in (None, 1.0) if kind == "movement" else (None,):
        some, others = masks.gates(share)
        with gated(model, heads=some, neurons=others, layers=[torch.ones(())] * 3):
            assert torch.equal(model(**inputs()).logits, plain)


def test_the_gradient_of_scores_is_the_slope_at_their_gates_also_behind_a_mask():
    model = small_bert().double()
    masks = of_model("movement", model).double()
    masks.refresh(0.5)
    loss = MaskedLoss(logits_loss, masks, Timetable(steps=100, hold=0.3, share=0.5))
    loss(model, None, 0.01).total.backward()

    def value(changed: dict[str, Tensor]) -> Tensor:
        gates = {"heads": changed["heads"].split(4), "neurons": changed["ffn"].split(64)}
        with gated(model, **gates, layers=[torch.ones(())] * 3):
            return logits_loss(model, None, 0.0).total

    leaves = {kind: masks.mask(kind).clone().requires_grad_() for kind in ("heads", "ffn")}
    slopes = dict(zip(leaves, torch.autograd.grad(value(leaves), list(leaves.values())), strict=True))
    for kind, slope in slopes.items():
        mask, (step,) = masks.mask(kind), torch.eye(len(slope), dtype=torch.float64)[[1]] * 1e-5
        assert 0 < int(mask.sum()) < len(mask)
        assert torch.allclose(masks.learned[kind].grad, slope / slope.square().mean().sqrt(), rtol=1e-6)
        with torch.no_grad():
            plain = {name: masks.mask(name) for name in leaves}
            rises = [value({**plain, kind: mask + sign * step}) for sign in (1, -1)]
        assert float(slope[1]) == pytest.approx(float(rises[0] - rises[1]) / 2e-5, rel=1e-4)


def test_evening_leaves_a_gradient_of_nothing_as_it_is():
    values = torch.ones(3, requires_grad=True)
    evened(values).sum().mul(0.0).backward()
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


def test_straight_through_hands_the_gradient_on_as_it_is():
    some, mask = torch.randn(5, requires_grad=True), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    through, slope = straight_through(some, mask), torch.arange(5.0)
    (through * slope).sum().backward()
    assert torch.equal(through.detach(), mask)
    assert torch.equal(some.grad, slope)


@pytest.mark.parametrize("kind", ["movement", "l0"])
def test_masks_begin_with_the_order_of_the_criterion(kind: str):
    goal, start = goal_of(), random_scores(SIZES)
    masks = MASKS[kind](goal, start)
    for share in (0.9, 0.5, 0.3):
        assert masks.choice(share).kept == goal.choose(start, share).kept
    found = masks.scores()
    assert min(float(part.min()) for part in (*found.heads, *found.neurons)) >= 0


def test_what_remains_falls_cubically_to_the_target_and_then_stands():
    times = Timetable(steps=100, hold=0.3, share=0.4)
    assert (times.held_from, times.share_at(0)) == (70, 1.0)
    assert times.share_at(35) == pytest.approx(0.4 + 0.6 * 0.5**3)
    assert {times.share_at(step) for step in range(70, 100)} == {0.4}
    falling = [times.share_at(step) for step in range(71)]
    assert falling == sorted(falling, reverse=True)
    for steps in (1, 2, 3):
        assert Timetable(steps, hold=0.01, share=0.4).held_from == steps - 1


@pytest.mark.parametrize("kind", ["movement", "l0"])
@pytest.mark.parametrize("step", [0, 10, 69, 70, 95])
def test_masks_stand_still_at_the_end_and_learn_nothing_more(kind: str, step: int):
    model = small_bert()
    masks = of_model(kind, model)
    found = MaskedLoss(logits_loss, masks, Timetable(100, hold=0.3, share=0.5))(model, None, step / 100)
    found.total.backward()
    assert all((each.grad is None) == (step >= 70) for each in masks.parameters())


@pytest.mark.parametrize("kind", ["movement", "l0"])
@pytest.mark.parametrize(
    ("remove", "until", "measure", "least"),
    [
        (TAYLOR, {"macs": "0.5x"}, lambda model: macs(shapes(model)), 45_000),
        ({"heads": "magnitude", "ffn": "random"}, {"parameters": "0.7x"}, parameters, 1100),
        ({"heads": "random"}, {"heads": "0.5x"}, lambda model: heads(shapes(model)), 1),
        ({"ffn": "activation"}, {"ffn": "0.25x"}, lambda model: neurons(shapes(model)), 1),
    ],
)
def test_the_target_is_met_to_within_one_part(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, kind, remove, until, measure, least
):
    settings = {"data": rows, "remove": remove, "until": until, "recover": {"train": TRAIN}, "masks": {"kind": kind}}
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "pruned")
    most = float(next(iter(until.values()))[:-1]) * measure(load_model(tiny_classifier))
    assert most - least < measure(load_model(out)) <= most


@pytest.mark.parametrize("kind", ["movement", "l0"])
def test_the_cut_is_the_mask_of_the_last_steps_and_says_how_it_was_learned(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch, kind: str
):
    said, masked, folded = list[Decision](), list[dict[str, Tensor]](), list[LearnedMasks]()
    refresh = LearnedMasks.refresh

    def noted(masks: LearnedMasks, share: float) -> None:
        refresh(masks, share)
        masked.append({name: masks.mask(name).clone() for name in ("heads", "ffn")})
        folded[:] = [masks]

    monkeypatch.setattr(LearnedMasks, "refresh", noted)
    recover = {"train": {**TRAIN, "steps": 30}}
    settings = {"remove": TAYLOR, "until": {"macs": "0.5x"}, "recover": recover, "masks": {"kind": kind}}
    Pruner(tiny_classifier, data=rows, **settings, decide=said.append).fit(tmp_path / "pruned", work=tmp_path / "work")
    (cut,) = [each for each in said if each.kind == "cut"]
    assert len(masked) == (4 if kind == "movement" else 1)
    assert [each["heads"] for each in cut.chosen["layers"]] == [
        part.nonzero().flatten().tolist() for part in masked[-1]["heads"].split(4)
    ]
    assert [each["ffn"] for each in cut.chosen["layers"]] == [int(part.sum()) for part in masked[-1]["ffn"].split(64)]
    assert f"{kind} masks learned in 30 steps, begun with heads by taylor" in cut.because
    assert [each.kind for each in said if each.kind in ("cut", "pruned")] == ["cut", "pruned"]
    json.dumps([vars(each) for each in said], allow_nan=False)
    assert sorted(path.name for path in (tmp_path / "work" / "cut-1").iterdir()) == ["cut.json", "model", "steps.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "work" / "steps.jsonl").read_text().splitlines()]
    assert [line["cut"] for line in lines] == [1] * 30


@pytest.mark.parametrize("kind", ["movement", "l0"])
def test_the_cut_model_answers_as_the_trained_one_behind_its_gates(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, monkeypatch: pytest.MonkeyPatch, kind: str
):
    answers, fold = list[Tensor](), masked_training.fold
    ids = {"input_ids": torch.randint(5, 25, (6, 12), generator=torch.Generator().manual_seed(1))}

    def noted(model, *, heads, neurons) -> None:
        with torch.inference_mode(), gated(model, heads=heads, neurons=neurons, layers=[torch.ones(())] * 2):
            answers.append(model(**ids).logits)
        fold(model, heads=heads, neurons=neurons)

    monkeypatch.setattr(masked_training, "fold", noted)
    settings = {"until": {"macs": "0.5x"}, "recover": {"train": TRAIN}, "masks": {"kind": kind, "rate": 0.5}}
    out = Pruner(tiny_classifier, data=rows, remove=TAYLOR, **settings).fit(tmp_path / "pruned")
    with torch.inference_mode():
        assert float((load_model(out)(**ids).logits - answers[0]).abs().max()) < 1e-5


def plant(folder: Path, out: Path, *, noise: bool) -> Path:
    """A classifier that needs head 1 of layer 0; no other head writes anything, or head 2 of layer 1 noise."""
    shutil.copytree(folder, out)
    model, draw = load_model(folder), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
        for number, head, there in ((0, 1, True), (1, 2, noise)):
            attention, channels = model.bert.encoder.layer[number].attention, slice(8 * head, 8 * head + 8)
            attention.output.dense.weight[:, channels] = there * 0.5 * torch.randn(32, 8, generator=draw)
            attention.self.value.weight[channels] *= 25
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("kind", ["movement", "l0"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_planted_harmful_head_goes_and_one_that_the_answer_needs_stays(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, kind: str, seed: int
):
    teacher = plant(tiny_classifier, tmp_path / "teacher", noise=False)
    student = plant(tiny_classifier, tmp_path / "student", noise=True)
    said = list[Decision]()
    Pruner(
        student,
        teacher=teacher,
        data=rows,
        remove={"heads": "random"},
        until={"heads": "0.4x"},
        recover={"train": {"steps": 100, "learning_rate": 1e-6, "batch_rows": 16}},
        masks={"kind": kind, "rate": 0.05 if kind == "movement" else 0.2},
        seed=seed,
        decide=said.append,
    ).fit(tmp_path / "pruned")
    (cut,) = [each for each in said if each.kind == "cut"]
    left = {each["layer"]: each["heads"] for each in cut.chosen["layers"]}
    assert 1 in left[0]
    assert 2 not in left[1]


@pytest.mark.parametrize("kind", ["movement", "l0"])
@pytest.mark.parametrize("stop_at", [5, 9])
def test_a_training_stopped_with_moving_or_standing_masks_ends_as_if_it_had_not_been(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets, kind: str, stop_at: int
):
    recover = {"train": {**TRAIN, "checkpoint": 2}}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "recover": recover, "masks": {"kind": kind}}
    whole = Pruner(tiny_classifier, **settings).fit(tmp_path / "whole")

    def stop(what: str, done: int, _total: int | None) -> None:
        if what == f"learn {kind} masks" and done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(tiny_classifier, **settings, progress=stop).fit(tmp_path / "stopped")
    assert (tmp_path / "stopped.partial" / "cut-1" / "checkpoint").is_dir()
    torch.manual_seed(7)  # a fresh process has other random numbers
    out = Pruner(tiny_classifier, **settings).fit(tmp_path / "stopped")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_other_masks_do_not_take_up_what_an_interrupted_training_left(
    tmp_path: Path, tiny_classifier: Path, rows: DataSets
):
    recover = {"train": {**TRAIN, "checkpoint": 2}}
    settings = {"data": rows, "remove": TAYLOR, "until": {"macs": "0.5x"}, "recover": recover}

    def stop(what: str, done: int, _total: int | None) -> None:
        if what.startswith("learn") and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruner(tiny_classifier, **settings, masks={"kind": "movement"}, progress=stop).fit(tmp_path / "one")
    done = list[int]()

    def note(what: str, steps: int, _total: int | None) -> None:
        if what.startswith("learn"):
            done.append(steps)

    masks = {"kind": "movement", "hold": 0.5}
    Pruner(tiny_classifier, **settings, masks=masks, progress=note).fit(tmp_path / "one")
    assert done == list(range(1, 13))


def test_a_gate_that_refuses_the_cut_is_an_error(tmp_path: Path, tiny_classifier: Path, rows: DataSets):
    settings = {"until": {"macs": "0.5x"}, "recover": {"train": TRAIN}, "masks": {"kind": "movement"}}
    refusal = Outcome("fail", False, "accuracy fell by 9pp", {"accuracy": (0.09, 0.05, 0.13)})
    with pytest.raises(GateError, match=r"accuracy fell by 9pp.*take a higher target, or longer training"):
        Pruner(tiny_classifier, data=rows, remove=TAYLOR, **settings).fit(
            tmp_path / "pruned", accept=lambda _folder: refusal
        )


@pytest.mark.parametrize("kind", ["movement", "l0"])
def test_a_smoke_run_of_the_stage_learns_masks_to_a_time(tmp_path: Path, tiny_classifier: Path, rows: DataSets, kind):
    said = list[Decision]()
    job = Job(
        out=tmp_path / "out",
        inputs={"model": tiny_classifier, "teacher": tiny_classifier},
        data=rows,
        seed=3,
        device="cpu",
        threads=1,
        progress=silent,
        decide=said.append,
        gate=None,
        smoke=True,
    )
    settings = {"until": {"latency": "0.8x"}, "engine": "onnxruntime", "threads": 1, "recover": {}}
    Prune.model_validate({"id": "slim", **settings, "masks": {"kind": kind}}).run(job)
    assert [each.kind for each in said if each.kind in ("latency table", "cut", "pruned")] == [
        "latency table",
        "cut",
        "pruned",
    ]
    (cut,) = [each for each in said if each.kind == "cut"]
    assert cut.because.startswith(f"the shapes that keep most score in that time, {kind} masks learned in 2 steps")
    assert cut.chosen["latency"] <= 0.8 * (cut.chosen["latency"] + cut.cost["this cut"]["latency"])
    before, after = (read_manifest(folder).shapes for folder in (tiny_classifier, tmp_path / "out" / "model"))
    assert macs(after) < macs(before)


def test_a_recipe_plans_masks_and_they_decide_its_key(desk: Path):
    text = "\n".join(
        [
            "version: 1",
            "name: small",
            "data: {train: reviews.csv, text: review, label: stars}",
            "teacher: {model: ./my-bert, finetune: {}}",
            "stages:",
            "  - {id: slim, prune: {until: {macs: 0.5x}, recover: {train: {steps: 9}}, masks: {kind: l0}}}",
        ]
    )
    (desk / "recipe.yaml").write_text(text)
    words = plan(Recipe.load(desk / "recipe.yaml"), desk / "run")[1].details
    assert words[0] == (
        "0.5x of the macs of teacher; layers' shapes known after slim; l0 masks are learned while it trains"
    )
    keys = [
        Prune.model_validate({"id": "slim", "recover": {}, "masks": masks}).key_settings()["masks"]
        for masks in (None, {"kind": "l0"}, {"kind": "movement"}, {"kind": "l0", "hold": 0.5})
    ]
    assert len({json.dumps(key) for key in keys}) == 4


REFUSED = [
    ({"recover": None}, "has masks, which are learned while the model trains, and no training; add recover: {}"),
    ({"steps": 2}, r"cut once, at its end \(got steps 2\); leave steps out"),
    ({"reconstruct": True}, "has reconstruct, which fits to the model before its training"),
    ({"remove": {**TAYLOR, "layers": "taylor"}}, "for heads and ffn alone, and remove names layers; write remove"),
    ({"remove": {"halves": "taylor"}}, "for heads and ffn alone, and remove names halves"),
    ({"remove": {"vocabulary": "unseen"}, "until": None, "recover": None}, "and remove names neither"),
    ({"recover": {"train": {"early_stop": {}}}}, "has masks and recover.train.early_stop"),
    ({"recover": {"train": {"average": 0.99}}}, "has masks and recover.train.average"),
    ({"masks": {"kind": "l0", "hold": 1.0}}, "hold"),
    ({"masks": {"kind": "l0", "rate": 0.0}}, "rate"),
    ({"masks": {"kind": "magnitude"}}, "kind"),
]


@pytest.mark.parametrize(("change", "problem"), REFUSED)
def test_masks_beside_what_they_cannot_go_with_are_refused(
    tiny_classifier: Path, rows: DataSets, change: dict, problem: str
):
    said = {"remove": TAYLOR, "until": {"macs": "0.5x"}, "recover": {}, "masks": {"kind": "l0"}, **change}
    with pytest.raises(ValidationError, match=problem):
        Prune.model_validate({"id": "slim", **said})
    with pytest.raises(InputError, match=problem):
        Pruner(tiny_classifier, data=rows, **said)


def test_without_masks_nothing_is_refused_and_rates_are_those_of_the_kind():
    check_masks(None, Remove(layers="taylor"), steps=9, reconstruct=True, recover=None)
    assert (Masks(kind="movement").learning_rate, Masks(kind="l0").learning_rate) == (0.01, 0.1)
    assert Masks(kind="l0", rate=0.3).learning_rate == 0.3
    assert isinstance(MASKS["movement"](goal_of(), random_scores(SIZES)), MovementMasks)
