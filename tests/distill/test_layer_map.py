import typing

import pytest

from compressor.distill.layer_map import LAYER_MAPS, layer_pairs
from compressor.distill.settings import LAYER_MAPS as NAMED
from compressor.errors import InputError
from compressor.model.settings import Init
from compressor.model.student import LAYER_CHOICES


def test_table_and_settings_name_the_same_maps() -> None:
    assert NAMED
    assert set(NAMED) == set(LAYER_MAPS)


@pytest.mark.parametrize("name", typing.get_args(Init.model_fields["layers"].annotation))
@pytest.mark.parametrize(("teacher", "student"), [(6, 3), (6, 4), (12, 4), (12, 5), (3, 3), (4, 1)])
def test_a_student_layer_learns_from_the_layer_it_was_copied_from(name: str, teacher: int, student: int) -> None:
    copied = [layer + 1 for layer in LAYER_CHOICES[name](teacher, student)]
    assert layer_pairs(name, teacher, student) == tuple(zip(copied, range(1, student + 1), strict=True))


@pytest.mark.parametrize("name", sorted(LAYER_MAPS))
def test_equal_depths_pair_equal_layers(name: str) -> None:
    assert layer_pairs(name, 4, 4) == ((1, 1), (2, 2), (3, 3), (4, 4))


def test_uniform_and_last_end_at_the_last_layer() -> None:
    for teacher in range(1, 13):
        for student in range(1, teacher + 1):
            for name in ("uniform", "last"):
                assert layer_pairs(name, teacher, student)[-1] == (teacher, student)


def test_pairs_are_taken_as_written() -> None:
    assert layer_pairs(" 0:0  4:1 12:3 ", 12, 3) == ((0, 0), (4, 1), (12, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7:1", "map '7:1' names teacher layer 7, but the teacher has layers 1 to 6"),
        ("6:4", "names student layer 4, but the student has layers 1 to 3"),
        ("best", "map must be one of uniform, first, last or pairs teacher:student such as '2:1 4:2' .got 'best'"),
        ("", "map must be one of"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_pairs(text, 6, 3)


def test_a_named_map_to_a_deeper_student_is_refused() -> None:
    with pytest.raises(InputError, match=r"at most the teacher's 2 layers \(got 3\); write pairs"):
        layer_pairs("uniform", 2, 3)
