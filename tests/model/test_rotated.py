import numpy as np
import pytest
import torch
from families import make
from transformers import PreTrainedModel

from compressor.model.encoders import model_logits
from compressor.model.parts import anatomy
from compressor.model.rotated import leading_directions
from compressor.model.settings import Init, Student
from compressor.model.states import record_hidden
from compressor.model.student import make_student

torch.set_num_threads(1)
INPUTS = {
    "input_ids": torch.arange(27).view(3, 9) + 5,
    "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5]),
}
SVD = Init(width="svd")


def narrow_teacher(width: int, *, heads: int = 4, family: str = "bert") -> PreTrainedModel:
    """A classifier, hidden 32, all of whose states lie in `width` directions, the all-ones one among them.

    Each head has inner rank `width / heads`, and as many neurons and pooler units as a student of that width work.
    """
    model = make(family)
    ones = torch.ones(32, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(32, width - 1, dtype=torch.float64)], dim=1)).Q
    span = (basis @ basis.T).float()
    rank = width // heads
    parts = anatomy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        norms = [parts.embedding_norm, *(norm for each in parts.layers for norm in (each.attention_norm, each.norm))]
        for table in parts.tables:
            table.weight.copy_(table.weight @ span)
        for norm in norms:
            norm.weight.fill_(1.7)
            norm.bias.copy_(span @ torch.randn(32))
        for layer in parts.layers:
            for part in (layer.query, layer.value):  # keys and outputs may be of full rank: the products are not
                assert part is not None
                turned = torch.linalg.qr(torch.randn(heads, 8, 8)).Q[:, :, :rank]
                within = torch.block_diag(*(turn @ turn.T for turn in turned))
                part.weight.copy_(within @ part.weight)
                part.bias.copy_(within @ part.bias)
            for writing in (layer.attention_output, layer.down):
                writing.weight.copy_(span @ writing.weight)
                writing.bias.copy_(span @ writing.bias)
        parts.classifier.weight[:, width:] = 0
    return model


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
@pytest.mark.parametrize(("width", "heads"), [(16, 4), (8, 4), (24, 4)])
def test_a_teacher_whose_states_fill_fewer_directions_is_reproduced(width: int, heads: int, family: str):
    teacher = narrow_teacher(width, heads=heads, family=family)
    student = make_student(teacher, Student(layers=3, hidden=width, heads=heads, init=SVD), seed=1)
    expected = model_logits(teacher, INPUTS)
    assert expected.std() > 0.1
    torch.testing.assert_close(model_logits(student, INPUTS), expected, atol=2e-5, rtol=1e-4)


def test_the_students_states_are_the_teachers_in_another_basis():
    teacher = narrow_teacher(16)
    student = make_student(teacher, Student(layers=3, hidden=16, heads=4, init=SVD), seed=1)
    seen = []
    for model in (teacher, student):
        with record_hidden(model, layers=[0, 1, 2, 3]) as states:
            model_logits(model, INPUTS)
        seen.append(states)
    real = INPUTS["attention_mask"] > 0
    for layer in (0, 1, 2, 3):
        theirs, own = (states[layer][real] for states in seen)
        torch.testing.assert_close(own @ own.T, theirs @ theirs.T, atol=1e-3, rtol=1e-4)


def test_fewer_whole_heads_are_the_ones_that_do_something():
    teacher = narrow_teacher(16)
    with torch.no_grad():
        for layer in anatomy(teacher).layers:
            assert layer.query is not None
            layer.attention_output.weight[:, 8:24] = 0
            layer.query.weight[8:24] = 0
            layer.query.bias[8:24] = 0
    student = make_student(teacher, Student(layers=3, hidden=16, heads=2, init=SVD), seed=1)
    torch.testing.assert_close(model_logits(student, INPUTS), model_logits(teacher, INPUTS), atol=2e-5, rtol=1e-4)


def test_leading_directions_span_what_numpys_svd_finds_and_the_all_ones_direction():
    table = np.random.default_rng(0).normal(size=(60, 12)) * np.linspace(3, 0.1, 12)
    centred = table - table.mean(1, keepdims=True)
    wanted = np.concatenate([np.ones((1, 12)) / 12**0.5, np.linalg.svd(centred)[2][:4]])
    for gain in (None, torch.linspace(0.5, 2, 12, dtype=torch.float64)):
        found = leading_directions(torch.from_numpy(table), 5, gain=gain).numpy()
        np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(found @ found.T, wanted.T @ wanted, atol=1e-10)
        np.testing.assert_allclose(found @ np.full(5, 5**-0.5), np.full(12, 12**-0.5), atol=1e-12)


def test_a_layer_norm_in_the_leading_directions_removes_the_same_mean():
    basis = leading_directions(torch.randn(50, 12, dtype=torch.float64), 5)
    inside = torch.randn(7, 5, dtype=torch.float64) @ basis.T
    norm = torch.nn.functional.layer_norm
    wide = norm(inside, [12], eps=0.0) @ basis
    narrow = norm(inside @ basis, [5], eps=0.0) * (12 / 5) ** 0.5
    torch.testing.assert_close(narrow, wide)


def test_turning_the_directions_brings_a_gain_nearer_to_its_diagonal():
    torch.manual_seed(0)
    table, gain = torch.randn(90, 32, dtype=torch.float64), torch.rand(32, dtype=torch.float64) + 0.5

    def off_diagonal(basis: torch.Tensor) -> float:
        full = basis.T @ (gain[:, None] * basis)
        return float((full - full.diag().diag()).square().sum())

    turned, plain = leading_directions(table, 16, gain=gain), leading_directions(table, 16)
    assert off_diagonal(turned) < 0.5 * off_diagonal(plain)
