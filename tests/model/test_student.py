from dataclasses import dataclass
from itertools import product
from typing import get_args

import pytest
import torch
from families import make
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

from compressor.errors import InputError
from compressor.model.encoders import model_logits
from compressor.model.families import FAMILIES
from compressor.model.parts import anatomy, shapes
from compressor.model.settings import Init, Student
from compressor.model.student import LAYER_CHOICES, label_loss, make_student
from compressor.model.surgery import Kept, cut

torch.set_num_threads(1)
INPUTS = {"input_ids": torch.arange(18).view(2, 9) + 5}


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, Tensor]
    targets: Tensor


def make_probe(teacher: PreTrainedModel) -> list[Batch]:
    """Two batches with the labels that the teacher finds least likely, so that its loss has a slope."""
    ids = (torch.arange(12 * 7).view(12, 7) * 5) % 54 + 5
    targets = model_logits(teacher, {"input_ids": ids}).argmin(-1)
    return [Batch({"input_ids": ids[:7]}, targets[:7]), Batch({"input_ids": ids[7:]}, targets[7:])]


def make_teacher(layers: int = 6) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64
    )
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize(("init", "chosen"), [("uniform", [1, 3, 5]), ("first", [0, 1, 2]), ("last", [3, 4, 5])])
def test_a_student_of_the_same_width_is_the_chosen_layers_of_the_teacher(init: str, chosen: list[int]):
    teacher = make_teacher()
    student = make_student(teacher, Student(layers=3, init=Init(layers=init)), seed=1)
    every = tuple(tuple(range(4)) for _ in range(6)), tuple(tuple(range(64)) for _ in range(6))
    cut_teacher = cut(teacher, Kept(*every, tuple(chosen)))
    assert torch.equal(model_logits(student, INPUTS), model_logits(cut_teacher, INPUTS))


def test_a_student_as_deep_as_the_teacher_answers_as_it_does():
    teacher = make_teacher()
    student = make_student(teacher, Student(layers=6), seed=1)
    assert torch.equal(model_logits(student, INPUTS), model_logits(teacher, INPUTS))


def test_half_the_layers_are_the_default():
    assert len(shapes(make_student(make_teacher(), Student(), seed=1)).layers) == 3


@pytest.mark.parametrize(
    "wanted",
    [
        Student(layers=2, hidden=16),
        Student(layers=1, hidden=16, heads=2, ffn=10),
        Student(layers=2, heads=8),
        Student(layers=2, heads=2),
    ],
)
def test_a_narrower_student_has_the_asked_shape_and_finite_answers(wanted: Student):
    student = make_student(make_teacher(), wanted, seed=1)
    sizes = shapes(student)
    assert type(student) is BertForSequenceClassification
    assert sizes.hidden == (wanted.hidden or 32)
    assert sizes.layers[0].heads == (wanted.heads or 4)
    assert sizes.layers[0].ffn == (wanted.ffn or 64)
    assert bool(torch.isfinite(model_logits(student, INPUTS)).all())


def test_channels_and_neurons_that_hold_nothing_are_the_ones_left_out():
    teacher = make_teacher(2)
    parts = anatomy(teacher)
    silent = [channel for channel in range(32) if channel % 2]
    with torch.no_grad():
        for table in parts.tables:
            table.weight[:, silent] = 0
        for layer in parts.layers:
            layer.attention_output.weight[silent] = 0
            layer.down.weight[silent] = 0
            layer.up.weight[32:] = 0
    student = anatomy(make_student(teacher, Student(layers=2, hidden=16, ffn=32), seed=1))
    assert torch.equal(student.tables[0].weight, parts.tables[0].weight[:, ::2])
    assert torch.equal(student.layers[1].up.weight, parts.layers[1].up.weight[:32, ::2])
    assert torch.equal(student.classifier.weight, parts.classifier.weight[:, ::2])


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (Student(layers=7), "student.layers must be at most the teacher's 6 (got 7)"),
        (Student(hidden=64), "student.hidden must be at most the teacher's 32 (got 64)"),
        (Student(ffn=128), "student.ffn must be at most the teacher's 64 (got 128)"),
        (Student(hidden=30), "its heads (got hidden 30, heads 4 as the teacher); heads that fit: 1, 2, 3, 5, 6"),
    ],
)
def test_a_student_that_cannot_be_copied_is_refused(wanted: Student, text: str):
    with pytest.raises(InputError) as error:
        make_student(make_teacher(), wanted, seed=1)
    assert text in str(error.value)


def test_a_pruned_model_has_no_student():
    pruned = cut(make_teacher(2), Kept(((0,), (1, 2)), (tuple(range(64)), (3,)), (0, 1)))
    with pytest.raises(InputError, match="pruned model"):
        make_student(pruned, Student(), seed=1)


def test_the_table_of_layer_choices_and_importance_are_what_a_recipe_may_say():
    assert {*LAYER_CHOICES, "importance"} == set(get_args(Init.model_fields["layers"].annotation))


@pytest.mark.parametrize("width", ["norm", "importance", "svd"])
def test_every_choice_of_width_copies_exactly_where_nothing_is_narrower(width: str):
    teacher = make_teacher(2)
    student = make_student(teacher, Student(layers=2, init=Init(width=width)), seed=1, probe=make_probe(teacher))
    assert torch.allclose(model_logits(student, INPUTS), model_logits(teacher, INPUTS), atol=1e-6)


@pytest.mark.parametrize("width", ["importance", "svd"])
@pytest.mark.parametrize(
    "wanted", [{"hidden": 16}, {"hidden": 20, "heads": 2, "ffn": 10}, {"heads": 8}, {"heads": 2, "ffn": 9}]
)
def test_every_choice_of_width_gives_the_asked_shape_and_finite_answers(width: str, wanted: dict[str, int]):
    teacher = make_teacher(2)
    student = make_student(teacher, Student(**wanted, init=Init(width=width)), seed=1, probe=make_probe(teacher))
    sizes = shapes(student)
    assert (sizes.hidden, sizes.layers[0].heads, sizes.layers[0].ffn) == (
        wanted.get("hidden", 32),
        wanted.get("heads", 4),
        wanted.get("ffn", 64),
    )
    assert bool(torch.isfinite(model_logits(student, INPUTS)).all())


def test_the_layers_without_which_the_loss_changes_least_are_left_out():
    teacher = make_teacher()
    with torch.no_grad():
        for index in (0, 2, 5):  # a layer that adds nothing, between norms that agree
            layer = anatomy(teacher).layers[index]
            for part in (layer.attention_output, layer.down):
                part.weight.mul_(1e-4)
    init = Init(layers="importance")
    student = make_student(teacher, Student(layers=3, init=init), seed=1, probe=make_probe(teacher))
    kept = [layer.query.weight for layer in anatomy(student).layers if layer.query is not None]
    theirs = [layer.query.weight for layer in anatomy(teacher).layers if layer.query is not None]
    assert [next(place for place, one in enumerate(theirs) if torch.equal(one, own)) for own in kept] == [1, 3, 4]


def test_channels_that_the_loss_does_not_feel_are_left_out_however_large():
    teacher = make_teacher(2)
    with torch.no_grad():
        for layer in anatomy(teacher).layers:
            assert layer.up is not None
            layer.up.weight[::2] *= 5
            layer.down.weight[:, ::2] = 0
            layer.down.weight[:, 1::2] *= 0.1
            layer.up.weight[::2] *= 5
    student = make_student(
        teacher, Student(layers=2, ffn=32, init=Init(width="importance")), seed=1, probe=make_probe(teacher)
    )
    assert torch.allclose(model_logits(student, INPUTS), model_logits(teacher, INPUTS), atol=1e-6)


@pytest.mark.parametrize("init", [Init(layers="importance"), Init(width="importance")])
def test_importance_without_rows_is_refused(init: Init):
    name = "layers" if init.layers == "importance" else "width"
    with pytest.raises(InputError, match=f"student.init.{name}: importance is measured on rows, and there are none"):
        make_student(make_teacher(2), Student(init=init), seed=1)
    with pytest.raises(InputError, match="needs rows"):
        make_student(make_teacher(2), Student(init=init), seed=1, probe=[])


def test_the_loss_of_importance_is_the_callers():
    teacher = make_teacher()
    probe = make_probe(teacher)
    asked: list[int] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        asked.append(len(logits))
        return logits[:, 0]

    make_student(teacher, Student(init=Init(layers="importance")), seed=1, probe=iter(probe), loss_per_row=loss)
    assert asked == [len(batch.targets) for batch in probe]


def test_rows_without_a_label_have_no_loss():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    losses = label_loss(logits, torch.tensor([1, -100]))
    assert losses.tolist() == pytest.approx([float(torch.log1p(torch.tensor(2.0).exp())), 0.0], rel=1e-6)


def test_a_student_of_another_checkpoint_takes_all_its_layers_and_widths():
    start = make_teacher(3)
    init = Init.model_validate({"from": "small/bert"})
    student = make_student(start, Student(init=init), seed=1)
    assert torch.equal(model_logits(student, INPUTS), model_logits(start, INPUTS))
    with pytest.raises(InputError, match=r"student.layers must be at most student.init.from small/bert's 3 \(got 4\)"):
        make_student(start, Student(layers=4, init=init), seed=1)


def test_a_student_of_another_kind_of_model_is_refused():
    config = AlbertConfig(hidden_size=32, num_attention_heads=4, vocab_size=50, embedding_size=8, intermediate_size=64)
    known = "give one of bert, roberta, distilbert, electra, mpnet as student.init"
    with pytest.raises(InputError, match=f"made of the teacher, a model of type 'albert'; {known}"):
        make_student(AlbertForSequenceClassification(config), Student(), seed=1)


@pytest.mark.parametrize(
    ("family", "width"),
    [pair for pair in product(FAMILIES, ("norm", "importance", "svd")) if pair != ("electra", "svd")],
)
def test_a_student_of_any_family_and_the_same_width_is_the_chosen_layers_of_the_teacher(family: str, width: str):
    teacher = make(family)
    init = Init(layers="last", width=width)
    student = make_student(teacher, Student(layers=2, init=init), seed=1, probe=make_probe(teacher))
    every = tuple(tuple(range(4)) for _ in range(3)), tuple(tuple(range(64)) for _ in range(3))
    expected = model_logits(cut(teacher, Kept(*every, (1, 2))), INPUTS)
    assert type(student) is type(teacher)
    torch.testing.assert_close(model_logits(student, INPUTS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_and_neurons_that_hold_nothing_are_left_out_of_a_narrower_student_of_any_family(family: str):
    teacher = make(family)
    parts, silent = anatomy(teacher), list(range(1, 32, 2))
    with torch.no_grad():
        for table in parts.tables:
            if parts.projection is None:
                table.weight[:, silent] = 0
        for layer in parts.layers:
            for writing in (layer.attention_output, layer.down):
                writing.weight[silent] = 0
            layer.up.weight[32:] = 0
        if parts.projection is not None:
            parts.projection.weight[silent] = 0
    made = make_student(teacher, Student(layers=3, hidden=20, ffn=32), seed=1)
    student, kept = anatomy(made), sorted([*range(0, 32, 2), 1, 3, 5, 7])  # of equals the first
    assert torch.equal(student.classifier.weight, parts.classifier.weight[:, kept])
    assert torch.equal(student.layers[1].up.weight, parts.layers[1].up.weight[:32, kept])
    assert type(made) is type(teacher)
    assert bool(torch.isfinite(model_logits(made, INPUTS)).all())


def test_a_student_whose_projected_embeddings_cannot_be_copied_is_refused():
    with pytest.raises(InputError, match=r"student.hidden must not be the width of the source's embeddings, 16, which"):
        make_student(make("electra"), Student(hidden=16), seed=1)
    with pytest.raises(InputError, match=r"init.width svd .* the source have 16, which are projected to its 32; write"):
        make_student(make("electra"), Student(hidden=20, init=Init(width="svd")), seed=1)


@pytest.mark.parametrize("heads", [2, 8])
def test_a_student_of_other_heads_than_the_bias_by_distance_has_is_refused(heads: int):
    with pytest.raises(InputError, match=rf"student.heads must be the source's 4, as all layers .* \(got {heads}\)"):
        make_student(make("mpnet"), Student(heads=heads), seed=1)
