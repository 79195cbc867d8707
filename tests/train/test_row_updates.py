import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compressor.train import row_updates
from compressor.train.fit import Loss, fit
from compressor.train.row_updates import RowUpdates, large_tables
from compressor.train.settings import EarlyStop, Train

WORDS, WIDTH = 60, 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Reader(nn.Module):
    """Reads a few words, of which the first is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.places = nn.Embedding(5, WIDTH)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.drop(torch.tanh(states)).mean(1))


def reader() -> Reader:
    torch.manual_seed(3)
    return Reader()


@dataclass(frozen=True)
class Words:
    ids: Tensor
    y: Tensor

    def to(self, device: torch.device) -> "Words":
        return Words(self.ids.to(device), self.y.to(device))


class Texts:
    """Eight batches an epoch of rare and frequent words."""

    def plan(self, epoch: int) -> list[int]:
        return [epoch * 8 + place for place in range(8)]

    def make(self, item: int) -> Words:
        random = torch.Generator().manual_seed(item)
        ids = (torch.rand(4, 5, generator=random) ** 4 * WORDS).long()
        return Words(ids, ids.sum(1) % 2)


def loss(model: nn.Module, batch: Words, _progress: float) -> Loss:
    value = nn.functional.cross_entropy(model(batch.ids), batch.y)
    return Loss(value, {"labels": value})


class Kill(BaseException):
    pass


def train(
    work: Path, settings: Train, *, score: bool = False, stop: int | None = None, model: nn.Module | None = None
) -> nn.Module:
    def progress(_what: str, done: int, _total: int | None) -> None:
        if done == stop:
            raise Kill

    def scored(model: nn.Module) -> float:
        with torch.no_grad():
            return -float(loss(model, Texts().make(999), 0.0).total)

    model = reader() if model is None else model
    fit(
        model, Texts(), loss, train=settings, seed=5, device="cpu", work=work, progress=progress, what="toy",
        score=scored if score else None,
    )  # fmt: skip
    return model


SETTINGS = Train(
    epochs=5, learning_rate=0.02, weight_decay=0.3, clip=0.1, schedule="cosine", checkpoint=7, precision="fp32"
)


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the tiny table of these tests is updated row by row."""
    monkeypatch.setattr(row_updates, "TABLE_ROWS", WORDS)


def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Train) -> tuple[nn.Module, nn.Module]:
    """The model trained with the table updated whole, and row by row."""
    whole = train(tmp_path / "whole", settings)
    monkeypatch.setattr(row_updates, "TABLE_ROWS", WORDS)
    return whole, train(tmp_path / "rows", settings)


def assert_close(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip": None}, {"weight_decay": 0.0}, {"schedule": "constant", "warmup": 0.0}, {"epochs": 1}],
    ids=str,
)
def test_updates_by_row_give_the_weights_of_adamw_on_the_whole_table(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows = both(tmp_path, monkeypatch, SETTINGS.model_copy(update=changes))
    assert_close(whole, rows, 2e-3)  # steps of 0.02 in which rounding decides the sign of the smallest gradients
    assert not torch.allclose(whole.words.weight, reader().words.weight, atol=1e-2)  # type: ignore[union-attr,arg-type]


def test_a_row_that_waits_moves_as_torch_moves_it_without_a_gradient() -> None:
    table = nn.Embedding(3, 4)
    plain = nn.Parameter(table.weight.detach().clone())
    adamw = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.2)
    updates = RowUpdates({"t": table}, weight_decay=0.2)
    with updates.attached():
        for step in range(40):
            rate = 0.1 * math.cos(step / 40)
            ids = torch.tensor([0, 1] if step in (0, 3) else [0])
            factors = torch.randn(len(ids), 4)
            (table(ids) * factors).sum().backward()
            updates.gradients()
            updates.step(rate)
            plain.grad = torch.zeros_like(plain).index_add(0, ids, factors)
            adamw.param_groups[0]["lr"] = rate
            adamw.step()
        assert not torch.allclose(table.weight[1], plain[1], atol=1e-2)
        updates.settle()
    torch.testing.assert_close(table.weight, plain, atol=1e-6, rtol=1e-6)


def test_a_step_writes_no_row_that_the_batch_does_not_use(by_rows: None) -> None:
    model = reader()
    updates = RowUpdates(large_tables(model), weight_decay=0.1)
    before = model.words.weight.detach().clone()
    with updates.attached():
        model(torch.tensor([[7, 9, 7, 0]])).sum().backward()
        assert model.words.weight.grad is not None
        assert model.words.weight.grad.is_sparse
        updates.gradients()
        updates.step(0.1)
    changed = (model.words.weight != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [7, 9]
    assert not model.words.sparse


def test_clipping_counts_a_word_once_however_often_it_stands_in_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    original = torch.nn.utils.clip_grad_norm_

    def noted(*args: object, **kwargs: object) -> Tensor:
        norms.append(float(original(*args, **kwargs)))  # type: ignore[arg-type]
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    both(tmp_path, monkeypatch, SETTINGS.model_copy(update={"epochs": 1}))
    assert len(norms) == 16
    assert norms[:8] == pytest.approx(norms[8:], rel=1e-3)


def test_a_training_by_rows_killed_at_any_step_ends_with_the_same_bits(tmp_path: Path, by_rows: None) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 2})
    whole = train(tmp_path / "whole", settings)
    for step in range(1, 17):
        with pytest.raises(Kill):
            train(tmp_path / str(step), settings, stop=step)
        assert same(whole, train(tmp_path / str(step), settings)), f"killed at step {step}"
    again = train(tmp_path / "whole", settings)
    assert same(whole, again)
    other = train(tmp_path / "other", settings.model_copy(update={"checkpoint": 3}))
    assert same(whole, other)


def test_early_stopping_by_rows_keeps_the_weights_it_scored(tmp_path: Path, by_rows: None) -> None:
    settings = SETTINGS.model_copy(update={"early_stop": EarlyStop(patience=2), "epochs": 6})
    whole = train(tmp_path / "whole", settings, score=True)
    for step in (9, 20):
        with pytest.raises(Kill):
            train(tmp_path / str(step), settings, score=True, stop=step)
        assert same(whole, train(tmp_path / str(step), settings, score=True))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(row_updates, "TABLE_ROWS", 10**6)
    assert_close(whole, train(tmp_path / "dense", settings, score=True), 2e-3)
    monkey.undo()


def test_an_average_is_that_of_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows = both(tmp_path, monkeypatch, SETTINGS.model_copy(update={"average": 0.9, "epochs": 3}))
    assert same(whole, rows)


def test_only_large_trained_tables_that_one_module_reads_are_updated_by_rows(by_rows: None) -> None:
    assert list(large_tables(reader())) == ["words.weight"]
    frozen = reader()
    frozen.words.weight.requires_grad_(False)
    tied = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False))
    tied[1].weight = tied[0].weight
    changed: list[Callable[[], nn.Module]] = [
        lambda: frozen,
        lambda: tied,
        lambda: nn.Embedding(WORDS, WIDTH, max_norm=1.0),
        lambda: nn.Embedding(WORDS, WIDTH, scale_grad_by_freq=True),
        lambda: nn.Embedding(WORDS - 1, WIDTH),
        lambda: nn.Embedding(WORDS, WIDTH, dtype=torch.float64),
    ]
    assert [large_tables(nn.ModuleDict({"m": make()})) for make in changed] == [{}] * len(changed)


def test_the_table_of_a_model_is_as_before_after_training(tmp_path: Path, by_rows: None) -> None:
    model = train(tmp_path, SETTINGS.model_copy(update={"epochs": 1}))
    assert isinstance(model, Reader)
    assert not model.words.sparse
    assert not model.words._forward_pre_hooks
    assert [model.drop.p] == [0.2]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = reader().eval()
    updates = RowUpdates(large_tables(model, least_rows=WORDS), weight_decay=0.1)
    others = [parameter for parameter in model.parameters() if parameter not in updates.weights]
    adamw = torch.optim.AdamW(others, lr=0.05, weight_decay=0.1)
    with updates.attached():
        wrapped = DistributedDataParallel(model)
        for step in range(12):
            batch = Texts().make(step)
            half = replace(batch, ids=batch.ids[rank * 2 : rank * 2 + 2], y=batch.y[rank * 2 : rank * 2 + 2])
            loss(wrapped, half, 0.0).total.backward()
            nn.utils.clip_grad_norm_([*others, *updates.gradients()], 0.1)
            adamw.step()
            adamw.zero_grad()
            updates.step(0.05)
        updates.settle()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_of_half_a_batch_end_as_one_of_the_whole(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = reader().eval()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for step in range(12):
        loss(model, Texts().make(step), 0.0).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        adamw.step()
        adamw.zero_grad()
    for name, value in model.state_dict().items():
        if name != "words.weight":
            assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one[name], value, atol=2e-3, rtol=2e-3)


def test_nothing_is_left_out_of_the_state(by_rows: None) -> None:
    updates = RowUpdates(large_tables(reader()), weight_decay=0.1)
    assert set(updates.tensors()) == {f"words.weight/{slot}" for slot in ("first", "second", "last", "kept", "pulled")}
    assert RowUpdates({}, weight_decay=0.1).tensors() == {}
