"""The simple models of a run: kept under a key of what decides them, and old ones go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.data.rows import DataSets, Rows
from compressor.data.settings import Task
from compressor.runner import baselines
from compressor.runner.directory import RunDirectory


def chain_of(root: Path, source: Path, *, test: tuple[str, ...] = ("good", "bad"), seed: int = 1) -> Any:
    rows = Rows(("a b", "b c"), (0, 1))
    data = DataSets(
        Task(), ("no", "yes"), ("text",), 16,
        train=rows, select=rows, test=Rows(test, (0, 1)), unlabelled=Rows((), ()),
    )  # fmt: skip
    recipe = SimpleNamespace(
        seed=seed, teacher=SimpleNamespace(finetune={}), stages=(), benchmark=SimpleNamespace(baselines=["tfidf"])
    )
    return SimpleNamespace(
        recipe=recipe, data=data, source=source, directory=RunDirectory(root), keys={}, threads=1, device="cpu",
        smoke=False, folder=lambda _stage: root / "teacher",
    )  # fmt: skip


def test_test_texts_do_not_decide_the_small_model_and_seed_and_start_do(
    tmp_path: Path, tiny_classifier: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "stages_of", lambda _recipe: ())
    first = baselines._key(chain_of(tmp_path, tiny_classifier))
    assert baselines._key(chain_of(tmp_path, tiny_classifier, test=("other", "texts"))) == first
    assert baselines._key(chain_of(tmp_path, tiny_classifier, seed=2)) != first
    assert baselines._key(chain_of(tmp_path, tiny_bert)) != first


def test_what_another_key_left_is_removed(
    tmp_path: Path, tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "stages_of", lambda _recipe: ())
    chain = chain_of(tmp_path, tiny_classifier)
    (tmp_path / "baselines" / "old").mkdir(parents=True)
    kept = tmp_path / "baselines" / baselines._key(chain)[:16]
    kept.mkdir()
    subject: Any = SimpleNamespace(name="teacher", engine="onnxruntime", logits=np.eye(2, dtype=np.float32))
    report: Any = SimpleNamespace(doubts=("one",), model_copy=lambda update: update)
    found: Any = baselines.with_baselines(report, chain, [subject], "teacher", budget=None, progress=lambda *_: None)
    assert [path.name for path in (tmp_path / "baselines").iterdir()] == [kept.name]
    assert [one.name for one in found["baselines"]] + list(found["doubts"][1:]) != []
    assert found["doubts"][0] == "one"
