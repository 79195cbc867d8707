import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import accelerate
import pytest
import torch
from torch import Tensor, nn

from compressor.device import native_bf16
from compressor.errors import InputError, StageError
from compressor.stage import silent
from compressor.train.average import update_average, weights_of
from compressor.train.fit import Fitted, Loss, fit
from compressor.train.precision import accelerator, resolve_precision
from compressor.train.settings import EarlyStop, Train


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ROWS, BATCHES = 24, 6


@dataclass(frozen=True)
class Few:
    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> "Few":
        return Few(self.x.to(device), self.y.to(device))


class Toy:
    """Six batches an epoch, in an order that the epoch decides."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(ROWS, 5, generator=random)
        self.y = (self.x.sum(1) > 0).long()
        self.made = 0

    def plan(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[i::BATCHES] for i in range(BATCHES)]

    def make(self, item: list[int]) -> Few:
        self.made += 1
        return Few(self.x[item], self.y[item])


def toy_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))


def toy_loss(model: nn.Module, batch: Few, _progress: float) -> Loss:
    value = nn.functional.cross_entropy(model(batch.x).float(), batch.y)
    return Loss(value, {"labels": value})


def toy_score(model: nn.Module) -> float:
    assert not model.training
    toy = Toy()
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(model(toy.x), toy.y))


class Kill(BaseException):
    """Stands for a kill: nothing of the package may catch it."""


def killed_at(step: int) -> Callable[[str, int, int | None], None]:
    def progress(_what: str, done: int, _total: int | None) -> None:
        if done == step:
            raise Kill

    return progress


def train_toy(
    work: Path, train: Train, *, progress: Callable[[str, int, int | None], None] = silent, seed: int = 5
) -> tuple[nn.Module, Fitted]:
    model = toy_model()
    score = toy_score if train.early_stop else None
    fitted = fit(
        model,
        Toy(),
        toy_loss,
        train=train,
        seed=seed,
        device="cpu",
        work=work,
        progress=progress,
        what="toy",
        score=score,
    )
    return model, fitted


def lines(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "steps.jsonl").read_text().splitlines()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


PLAIN = Train(epochs=2.5, learning_rate=0.05, checkpoint=4, precision="fp32")
KINDS = {
    "plain": PLAIN,
    "average": PLAIN.model_copy(update={"average": 0.9}),
    "early_stop": PLAIN.model_copy(update={"early_stop": EarlyStop(patience=1), "learning_rate": 2.0, "epochs": 5.0}),
    "both": PLAIN.model_copy(update={"average": 0.5, "early_stop": EarlyStop(patience=2)}),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_training_killed_at_any_step_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    train = KINDS[kind]
    whole, fitted = train_toy(tmp_path / "whole", train)
    assert fitted.attempts == 1
    for step in range(1, fitted.steps + 1):
        work = tmp_path / f"killed{step}"
        with pytest.raises(Kill):
            train_toy(work, train, progress=killed_at(step))
        torch.manual_seed(step)  # a fresh process has other random numbers
        resumed, again = train_toy(work, train)
        assert same(whole, resumed), f"killed at step {step}"
        assert (again.steps, again.epochs, again.best_score) == (fitted.steps, fitted.epochs, fitted.best_score)
        assert again.attempts == 2


@pytest.mark.parametrize("kind", ["plain", "both"])
def test_a_training_killed_twice_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole, fitted = train_toy(tmp_path / "whole", KINDS[kind])
    for first, second in itertools.combinations(range(1, fitted.steps), 2):
        if (first * second) % 14:
            continue
        work = tmp_path / f"killed{first}-{second}"
        for step in (first, second):
            with pytest.raises(Kill):
                train_toy(work, KINDS[kind], progress=killed_at(step))
        resumed, again = train_toy(work, KINDS[kind])
        assert same(whole, resumed)
        assert again.attempts == 3


def test_steps_repeated_after_a_kill_are_fewer_than_a_checkpoint_interval(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        train_toy(tmp_path, PLAIN, progress=killed_at(11))
    train_toy(tmp_path, PLAIN)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [*range(1, 12), *range(9, 16)]
    assert [row["attempt"] for row in rows] == [1] * 11 + [2] * 7
    twice = {row["step"]: row["loss"] for row in rows if row["attempt"] == 1}
    assert all(twice[row["step"]] == row["loss"] for row in rows[11:] if row["step"] in twice)


def test_a_killed_process_resumes_with_the_same_bits(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import torch
        torch.set_num_threads(1)
        import test_fit
        from pathlib import Path
        def progress(what, done, total):
            if done == 10:
                os.kill(os.getpid(), signal.SIGKILL)
        test_fit.train_toy(Path(sys.argv[2]), test_fit.PLAIN, progress=progress)
        """
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "killed")]
    ended = subprocess.run(command, check=False, capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, _ = train_toy(tmp_path / "whole", PLAIN)
        resumed, fitted = train_toy(tmp_path / "killed", PLAIN)
    finally:
        torch.set_num_threads(threads)
    assert fitted.attempts == 2
    assert same(whole, resumed)


def test_checkpoints_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    train_toy(tmp_path, KINDS["both"])
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["checkpoint.json", "step-15.safetensors"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path, PLAIN)
    with pytest.raises(InputError, match=r"another training .* delete it to train from the start"):
        train_toy(tmp_path, PLAIN.model_copy(update={"learning_rate": 0.1}))
    with pytest.raises(InputError, match="another training"):
        train_toy(tmp_path, PLAIN, seed=6)


def test_a_checkpoint_of_other_first_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_toy(tmp_path, PLAIN)
    other = toy_model()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    monkeypatch.setattr(sys.modules[__name__], "toy_model", lambda: other)
    with pytest.raises(InputError, match="another training"):
        train_toy(tmp_path, PLAIN)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_finished_training_run_again_takes_no_step_and_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole, fitted = train_toy(tmp_path, KINDS[kind])
    steps = lines(tmp_path)
    torch.manual_seed(99)
    again, refitted = train_toy(tmp_path, KINDS[kind], progress=killed_at(fitted.steps))
    assert same(whole, again)
    assert lines(tmp_path) == steps
    assert (refitted.steps, refitted.best_score) == (fitted.steps, fitted.best_score)
    assert refitted.stopped_early == fitted.stopped_early


def test_a_checkpoint_cut_short_is_named(tmp_path: Path) -> None:
    train_toy(tmp_path, PLAIN)
    path = tmp_path / "checkpoint" / "step-15.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=r"step-15\.safetensors cannot be read"):
        train_toy(tmp_path, PLAIN)


def test_another_checkpoint_interval_goes_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path / "whole", PLAIN)
    with pytest.raises(Kill):
        train_toy(tmp_path / "killed", PLAIN, progress=killed_at(9))
    resumed, _ = train_toy(tmp_path / "killed", PLAIN.model_copy(update={"checkpoint": 3}))
    assert same(whole, resumed)


def test_two_trainings_with_one_seed_are_equal_and_with_another_differ(tmp_path: Path) -> None:
    one, _ = train_toy(tmp_path / "a", PLAIN)
    torch.manual_seed(99)
    two, _ = train_toy(tmp_path / "b", PLAIN)
    three, _ = train_toy(tmp_path / "c", PLAIN, seed=6)
    assert same(one, two)
    assert not same(one, three)


def test_the_same_loop_written_by_hand_gives_the_same_weights(tmp_path: Path) -> None:
    train = Train(epochs=2, learning_rate=0.05, precision="fp32", clip=0.5, weight_decay=0.1, schedule="cosine")
    ours, _ = train_toy(tmp_path, train)
    model, toy = toy_model(), Toy()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
    torch.manual_seed(5)
    model.train()
    for step in range(12):
        rising = 2
        factor = (step + 1) / rising if step < rising else (1 + math.cos(math.pi * (step - rising) / 10)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * factor
        batch = toy.make(toy.plan(step // 6)[step % 6])
        optimizer.zero_grad()
        toy_loss(model, batch, 0.0).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for a, b in zip(model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


OPTIONS: dict[str, object] = {
    "epochs": 1.5,
    "steps": 3,
    "learning_rate": 0.01,
    "schedule": "constant",
    "warmup": 0.9,
    "clip": 0.001,
    "weight_decay": 0.9,
    "dropout": 0.9,
    "average": 0.9,
    "precision": "bf16",
    "early_stop": EarlyStop(patience=1),
    "checkpoint": 2,
    "batch_tokens": 64,
    "batch_rows": 4,
}


def test_every_option_of_train_is_listed_here() -> None:
    assert set(OPTIONS) == set(Train.model_fields)


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - {"checkpoint", "batch_tokens", "batch_rows"}))
def test_every_option_of_train_changes_the_weights(option: str, tmp_path: Path) -> None:
    before = Train(epochs=2, learning_rate=0.5, precision="fp32")
    if option == "precision" and not native_bf16():
        before = before.model_copy(update={"epochs": 0.5})
    changes = {"epochs": None, "steps": 3} if option == "steps" else {option: OPTIONS[option]}
    one, _ = train_toy(tmp_path / "a", before)
    two, _ = train_toy(tmp_path / "b", before.model_copy(update=changes))
    assert not same(one, two)


def test_checkpoint_option_says_how_often(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        train_toy(tmp_path, PLAIN.model_copy(update={"checkpoint": 7}), progress=killed_at(14))
    assert (tmp_path / "checkpoint" / "step-14.safetensors").exists()


def test_accelerate_runs_the_backward_pass_and_the_clipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"backward": 0, "clip_grad_norm_": 0, "prepare_model": 0, "prepare_optimizer": 0}
    for name in calls:
        original = getattr(accelerate.Accelerator, name)

        def counted(self, *args, _original=original, _name=name, **kwargs):  # type: ignore[no-untyped-def]
            calls[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(accelerate.Accelerator, name, counted)
    _, fitted = train_toy(tmp_path, PLAIN)
    assert calls == {"backward": 15, "clip_grad_norm_": 15, "prepare_model": 1, "prepare_optimizer": 1}
    assert fitted.steps == 15


def test_precisions_follow_each_other_in_one_process_and_leave_others_alone(tmp_path: Path) -> None:
    mine = accelerate.Accelerator(cpu=True)
    train = Train(steps=2, learning_rate=0.1)
    for number, precision in enumerate(("bf16", "fp32", "bf16")):
        model, _ = train_toy(tmp_path / str(number), train.model_copy(update={"precision": precision}))
        assert "forward" not in model.__dict__
        assert next(model.parameters()).dtype == torch.float32
    assert mine.mixed_precision == "no"
    with accelerator("cpu", "bf16") as inner:
        assert inner.mixed_precision == "bf16"
    assert accelerate.Accelerator(cpu=True).mixed_precision == "no"


def test_auto_precision_is_bf16_only_where_it_is_native() -> None:
    assert resolve_precision("auto", "cpu") == ("bf16" if native_bf16() else "fp32")
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


def test_steps_jsonl_has_a_line_a_step_with_its_rate_and_terms(tmp_path: Path) -> None:
    train_toy(tmp_path, Train(epochs=2, learning_rate=0.5, warmup=0.5, precision="fp32"))
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(set(row) == {"attempt", "step", "epoch", "loss", "terms", "learning_rate", "seconds"} for row in rows)
    assert rows[5]["epoch"] == 1.0
    assert [row["learning_rate"] for row in rows[:6]] == pytest.approx([0.5 * (i + 1) / 6 for i in range(6)])
    assert all(row["terms"] == {"labels": row["loss"]} for row in rows)


def test_shares_of_the_gradient_are_logged_in_the_steps_that_measured_them(tmp_path: Path) -> None:
    seen = itertools.count(1)

    def loss(model: nn.Module, batch: Few, progress: float) -> Loss:
        found = toy_loss(model, batch, progress)
        shares = {"labels": torch.tensor(0.25)} if next(seen) % 5 == 0 else {}
        return Loss(found.total, found.terms, {"labels a": found.total * 2}, shares)

    fit(toy_model(), Toy(), loss, train=PLAIN, seed=5, device="cpu", work=tmp_path, progress=silent, what="toy")
    rows = lines(tmp_path)
    assert [row.get("shares") for row in rows] == [{"labels": 0.25} if i % 5 == 0 else None for i in range(1, 16)]
    assert all(row["terms"] == {"labels": row["loss"]} for row in rows)


def test_dropout_of_train_holds_while_training_alone(tmp_path: Path) -> None:
    model = toy_model()
    seen: set[float] = set()

    def loss(model: nn.Module, batch: Few, progress: float) -> Loss:
        seen.update(module.p for module in model.modules() if isinstance(module, nn.Dropout))
        return toy_loss(model, batch, progress)

    fit(
        model, Toy(), loss, train=PLAIN.model_copy(update={"dropout": 0.0}), seed=5, device="cpu", work=tmp_path,
        progress=silent, what="toy",
    )  # fmt: skip
    assert seen == {0.0}
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.3]


def test_a_line_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        train_toy(tmp_path, PLAIN, progress=killed_at(5))
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"attempt": 1, "st')
    train_toy(tmp_path, PLAIN)
    assert lines(tmp_path)[-1]["attempt"] == 2


def test_losses_are_read_from_the_device_every_ten_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    for name in ("item", "tolist", "cpu"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *a, _o=original, _n=name: (reads.append((_n, self.shape)), _o(self, *a))[1]
        )

    class Planned(Toy):
        plans = [Toy().plan(epoch) for epoch in range(5)]

        def plan(self, epoch: int) -> list[list[int]]:
            return self.plans[epoch]

    model = toy_model()
    reads.clear()
    shown: list[int] = []
    fit(
        model, Planned(), toy_loss, train=Train(steps=20, precision="fp32"), seed=1, device="cpu", work=tmp_path,
        progress=lambda _w, _d, _t: shown.append(len(reads)), what="toy",
    )  # fmt: skip
    assert len(shown) == 20
    assert shown[8] == shown[0]
    assert shown[18] == shown[9]


def nan_at(step: int, where: str) -> Callable[[nn.Module, Few, float], Loss]:
    seen = itertools.count(1)

    def loss(model: nn.Module, batch: Few, progress: float) -> Loss:
        found = toy_loss(model, batch, progress)
        bad = found.total * (float("nan") if next(seen) == step else 1.0)
        return Loss(found.total + bad, {"labels": found.total, where: bad})

    return loss


def test_a_loss_that_is_not_finite_stops_with_term_and_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"toy: hidden became nan at step 7; .*learning_rate"):
        fit(
            toy_model(), Toy(), nan_at(7, "hidden"), train=PLAIN, seed=5, device="cpu", work=tmp_path, progress=silent,
            what="toy",
        )  # fmt: skip
    assert (tmp_path / "checkpoint" / "step-4.safetensors").exists()
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2
    bad = next(row for row in lines(tmp_path) if row["step"] == 7)
    assert bad["loss"] is None
    assert bad["terms"]["hidden"] is None  # type: ignore[index]
    assert bad["terms"]["labels"] is not None  # type: ignore[index]


def test_layers_and_rows_of_a_loss_that_is_not_finite_are_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Placed(Few):
        rows: Tensor
        unlabelled: Tensor

        def to(self, device: torch.device) -> "Placed":
            return self

    class Pools(Toy):
        def make(self, item: list[int]) -> Placed:
            few = super().make(item)
            return Placed(few.x, few.y, torch.tensor(item), torch.tensor(item) >= 12)

    seen = itertools.count(1)

    def loss(model: nn.Module, batch: Few, progress: float) -> Loss:
        value = toy_loss(model, batch, progress).total
        bad = value * (float("inf") if next(seen) == 3 else 1.0)
        parts = {"labels": value, "hidden2 2:1": value, "hidden 2:1": value, "hidden 4:2": bad, "hidden 6:3": bad}
        return Loss(value + bad, {"labels": value, "hidden": bad}, parts)

    item = Toy().plan(0)[2]
    near, far = ([str(row) for row in item if (row >= 12) is high] for high in (False, True))
    with pytest.raises(StageError) as caught:
        fit(toy_model(), Pools(), loss, train=PLAIN, seed=5, device="cpu", work=tmp_path, progress=silent, what="toy")
    held = f"labelled rows {', '.join(near)} and unlabelled rows {', '.join(far)}"
    assert str(caught.value) == (
        f"toy: hidden (first in hidden 4:2) became inf at step 3, a batch of {held}; the last checkpoint before it is "
        "kept. Lower train.learning_rate, set train.clip, or look at these rows."
    )


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Few, _progress: float) -> Loss:
        value = (model(batch.x) * 0).sum().sqrt()
        return Loss(value, {"labels": value})

    with pytest.raises(StageError, match="gradient became nan at step 1"):
        fit(toy_model(), Toy(), loss, train=PLAIN, seed=5, device="cpu", work=tmp_path, progress=silent, what="toy")


def test_average_follows_its_formula() -> None:
    model = toy_model()
    average = weights_of(model)
    expected = {name: value.clone() for name, value in average.items()}
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * step)
        update_average(average, model, decay=0.6, step=step)
        decay = min(0.6, step / (10 + step))
        expected = {n: decay * expected[n] + (1 - decay) * p.detach() for n, p in model.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value)


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    train = KINDS["early_stop"]
    model, fitted = train_toy(tmp_path, train)
    assert fitted.best_score is not None
    assert toy_score(model) == fitted.best_score
    assert fitted.stopped_early
    assert fitted.steps < 30


def test_early_stopping_without_a_score_is_refused(tmp_path: Path) -> None:
    train = KINDS["early_stop"]
    with pytest.raises(InputError, match="early_stop needs a score"):
        fit(toy_model(), Toy(), toy_loss, train=train, seed=5, device="cpu", work=tmp_path, progress=silent, what="toy")


def test_extra_modules_are_trained_clipped_and_resumed(tmp_path: Path) -> None:
    def run(work: Path, progress: Callable[[str, int, int | None], None] = silent) -> tuple[nn.Module, nn.Module]:
        model = toy_model()
        extra = nn.ModuleDict({"pair": nn.Linear(2, 2)})

        def loss(model: nn.Module, batch: Few, _progress: float) -> Loss:
            value = nn.functional.cross_entropy(extra["pair"](model(batch.x)), batch.y)
            return Loss(value, {"labels": value})

        fit(
            model, Toy(), loss, train=PLAIN, seed=5, device="cpu", work=work, progress=progress, what="toy", extra=extra
        )
        return model, extra

    whole, extra = run(tmp_path / "whole")
    torch.manual_seed(3)
    untrained = (toy_model(), nn.Linear(2, 2))[1]
    assert not torch.equal(extra["pair"].weight, untrained.weight)  # type: ignore[index,union-attr]
    with pytest.raises(Kill):
        run(tmp_path / "killed", killed_at(10))
    resumed, extra_resumed = run(tmp_path / "killed")
    assert same(whole, resumed)
    assert same(extra, extra_resumed)


def test_max_steps_limits_a_smoke_run(tmp_path: Path) -> None:
    fitted = fit(
        toy_model(), Toy(), toy_loss, train=PLAIN, seed=5, device="cpu", work=tmp_path, progress=silent, what="toy",
        max_steps=2,
    )  # fmt: skip
    assert fitted.steps == 2


def test_planned_steps_are_executed_steps(tmp_path: Path) -> None:
    _, fitted = train_toy(tmp_path, Train(epochs=2.5, precision="fp32"))
    assert fitted.steps == 15 == len(lines(tmp_path))
    assert fitted.epochs == 2.5


class Beside(nn.Module):
    """A number whose gradient is the same at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))


def train_beside(work: Path, *, slope: float, lr: float = 0.25, steps: int = 8) -> tuple[nn.Module, float]:
    """The toy model, and a module with a learning rate of its own, whose gradient is `slope`."""
    model, beside = toy_model(), Beside()

    def loss(trained: nn.Module, batch: Few, progress: float) -> Loss:
        found = toy_loss(trained, batch, progress)
        return Loss(found.total + slope * beside.number.sum(), found.terms)

    fit(
        model,
        Toy(),
        loss,
        train=PLAIN.model_copy(update={"epochs": None, "steps": steps, "weight_decay": 0.5, "clip": 0.1}),
        seed=5,
        device="cpu",
        work=work,
        progress=silent,
        what="toy",
        extra=nn.ModuleDict({"beside": beside}),
        own={beside: {"lr": lr, "eps": 1e-8}},
    )
    return model, beside.number.item()


def test_a_module_with_a_rate_of_its_own_moves_by_it_at_every_step(tmp_path: Path) -> None:
    assert train_beside(tmp_path, slope=-3.0)[1] == pytest.approx(8 * 0.25, rel=1e-4)  # AdamW's step is its rate


def test_a_module_with_a_rate_of_its_own_changes_nothing_for_the_model(tmp_path: Path) -> None:
    small, _ = train_beside(tmp_path / "small", slope=1e-3)
    large, _ = train_beside(tmp_path / "large", slope=1e6, lr=0.5)
    assert same(small, large)
