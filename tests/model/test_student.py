from typing import get_args

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import anatomy, model_logits, shapes
from compressor.model.settings import Init, Student
from compressor.model.student import LAYER_CHOICES, make_student
from compressor.model.surgery import Kept, cut

torch.set_num_threads(1)
INPUTS = {"input_ids": torch.arange(18).view(2, 9) + 5}


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


def test_the_table_of_layer_choices_holds_what_a_recipe_may_say():
    assert set(LAYER_CHOICES) == set(get_args(Init.model_fields["layers"].annotation))
