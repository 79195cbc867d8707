from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_terms import batch_of, folder, pools  # noqa: F401 - fixtures
from torch import Tensor, nn

from compressor.data.batches import Batch, Pool
from compressor.distill.answers import LiveTeacher
from compressor.distill.layer_map import nearest_pairs
from compressor.distill.similarity import layer_similarity
from compressor.model.encoders import load_model
from compressor.model.settings import Student
from compressor.model.states import record_hidden
from compressor.model.student import make_student


def cka(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Linear CKA by Gram matrices of tokens (Kornblith et al. 2019, equation 4)."""
    count = len(one)
    centre = np.eye(count) - 1 / count
    a, b = (centre @ (each @ each.T) @ centre for each in (one, other))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def states_of(model: nn.Module, batches: list[Batch], layer: int) -> NDArray[np.float64]:
    found = []
    for batch in batches:
        with torch.no_grad(), record_hidden(model, layers=[layer]) as states:
            model(**batch.inputs)
        found.append(states[layer][batch.inputs["attention_mask"].bool()])
    return torch.cat(found).double().numpy()


@pytest.fixture
def batches(pools: tuple[Pool, Pool]) -> list[Batch]:  # noqa: F811
    return [batch_of(pools, [0, 1, 2, 3], []), batch_of(pools, [4, 5], [1, 2, 3]), batch_of(pools, [], [9, 8])]


def test_similarity_is_linear_cka_of_the_tokens_that_are_not_padding(folder: Path, batches: list[Batch]) -> None:  # noqa: F811
    teacher = load_model(folder)
    student = make_student(teacher, Student(layers=2, hidden=16), seed=1).eval()
    live = LiveTeacher(teacher, (1, 2, 3, 4))

    def taught(batch: Batch) -> Mapping[int, Tensor]:
        return live.answers(batch, hidden=True).hidden

    found = layer_similarity(student, taught, batches, layers=4)
    expected = [
        [cka(states_of(teacher, batches, t), states_of(student, batches, s)) for s in (1, 2)] for t in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_student_copied_whole_is_most_like_the_layers_it_was_copied_from(folder: Path, batches: list[Batch]) -> None:  # noqa: F811
    teacher, student = load_model(folder), load_model(folder)
    live = LiveTeacher(teacher, (1, 2, 3, 4))
    student.train()
    found = layer_similarity(student, lambda batch: live.answers(batch, hidden=True).hidden, batches, layers=4)
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-5)
    assert (found <= 1 + 1e-6).all()
    assert student.training
    assert nearest_pairs(found.tolist()) == ((1, 1), (2, 2), (3, 3), (4, 4))


def test_a_large_mean_does_not_blur_the_similarity(folder: Path, batches: list[Batch]) -> None:  # noqa: F811
    teacher = load_model(folder)
    student = make_student(teacher, Student(layers=2), seed=1).eval()
    live = LiveTeacher(teacher, (1, 2, 3, 4))
    shift = torch.zeros(32)
    shift[7] = 300.0
    plain, shifted = (
        layer_similarity(
            student,
            lambda batch, offset=offset: {n: h + offset for n, h in live.answers(batch, hidden=True).hidden.items()},
            batches,
            layers=4,
        )
        for offset in (torch.zeros(32), shift)
    )
    np.testing.assert_allclose(plain, shifted, rtol=1e-3)
