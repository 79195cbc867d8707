import json
import subprocess
import sys
import typing

import pytest

from compressor.distill.layer_map import (
    LAYER_MAPS,
    MIXTURE,
    NEAREST,
    RANDOM,
    Pairs,
    Term,
    drawn,
    layer_pairs,
    nearest_pairs,
    needed_layers,
    needs_probe,
    pairings,
    relation_heads,
    term_names,
)
from compressor.distill.settings import LAYER_MAPS as NAMED
from compressor.distill.settings import (
    RELATION_MAPS,
    AttentionMatch,
    EmbeddingsMatch,
    HiddenMatch,
    LabelsMatch,
    LogitsMatch,
    RelationsMatch,
)
from compressor.errors import InputError
from compressor.model.settings import Init
from compressor.model.student import LAYER_CHOICES

COPIED = sorted(set(typing.get_args(Init.model_fields["layers"].annotation)) & set(LAYER_MAPS))


def test_table_and_settings_name_the_same_maps() -> None:
    assert NAMED
    assert set(NAMED) == {*LAYER_MAPS, RANDOM, MIXTURE, NEAREST}
    assert set(RELATION_MAPS) == set(NAMED) - {MIXTURE}
    assert set(COPIED) == set(LAYER_MAPS)


@pytest.mark.parametrize("name", COPIED)
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
        (
            "best",
            "map must be one of uniform, first, last, random, attention, nearest or pairs teacher:student such as "
            "'2:1 4:2' .got 'best'",
        ),
        ("", "map must be one of"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer_pairs(text, 6, 3)


def test_a_named_map_to_a_deeper_student_is_refused() -> None:
    with pytest.raises(InputError, match=r"at most the teacher's 2 layers \(got 3\); write pairs"):
        layer_pairs("uniform", 2, 3)


def test_random_pairs_are_drawn_anew_each_epoch_and_again_the_same() -> None:
    epochs = [drawn(12, 4, seed=3, name="hidden", epoch=epoch) for epoch in range(20)]
    assert epochs == [drawn(12, 4, seed=3, name="hidden", epoch=epoch) for epoch in range(20)]
    assert len(set(epochs)) > 15
    assert epochs[0] != drawn(12, 4, seed=4, name="hidden", epoch=0)
    assert epochs[:5] != [drawn(12, 4, seed=3, name="hidden2", epoch=epoch) for epoch in range(5)]
    assert {teacher for pairs in epochs for teacher, _ in pairs} == set(range(1, 13))


def test_random_pairs_rise_together_and_never_share_a_layer() -> None:
    for epoch in range(30):
        pairs = drawn(12, 5, seed=1, name="hidden", epoch=epoch)
        assert [student for _, student in pairs] == [1, 2, 3, 4, 5]
        assert len({teacher for teacher, _ in pairs}) == 5
        assert list(pairs) == sorted(pairs)


def test_random_pairs_are_the_same_in_every_process() -> None:
    code = "from compressor.distill.layer_map import drawn; print(drawn(12, 4, seed=3, name='hidden', epoch=7))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(drawn(12, 4, seed=3, name="hidden", epoch=7))


def test_nearest_is_the_most_similar_layer_where_pairs_do_not_cross() -> None:
    similarity = [[0.9, 0.2, 0.1], [0.5, 0.3, 0.2], [0.4, 0.8, 0.7], [0.1, 0.6, 0.9]]
    assert nearest_pairs(similarity) == ((1, 1), (3, 2), (4, 3))
    assert nearest_pairs([[1.0, 1.0], [0.0, 0.0]]) == ((1, 1), (1, 2))


def test_nearest_pairs_that_would_cross_give_way_to_the_best_that_do_not() -> None:
    from itertools import combinations_with_replacement

    import numpy as np

    random = np.random.default_rng(0)
    for _ in range(50):
        similarity = random.random((5, 3))
        best = max(
            combinations_with_replacement(range(5), 3),
            key=lambda rows: sum(similarity[row, place] for place, row in enumerate(rows)),
        )
        assert nearest_pairs(similarity.tolist()) == tuple((row + 1, place + 1) for place, row in enumerate(best))


ALL: list[Term] = [
    LogitsMatch(),
    LabelsMatch(),
    HiddenMatch(),
    HiddenMatch(map="random"),
    HiddenMatch(map="attention"),
    AttentionMatch(map="6:3 4:2"),
    RelationsMatch(),
    RelationsMatch(map="nearest"),
    EmbeddingsMatch(),
]


def test_every_term_that_pairs_layers_is_paired() -> None:
    nearest: Pairs = ((2, 1), (2, 2), (5, 3))
    found = pairings(ALL, teacher_layers=6, student_layers=3, nearest=nearest, seed=1, epochs=4)
    assert set(found.names) == set(term_names(ALL)) - {"logits", "labels"}
    assert found.at("hidden", 0) == ((2, 1), (4, 2), (6, 3)) == found.at("hidden", 3)
    assert found.at("hidden2", 2) == drawn(6, 3, seed=1, name="hidden2", epoch=2)
    assert found.at("hidden3", 0)[:7] == ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (1, 2))
    assert found.at("attention", 0) == ((6, 3), (4, 2))
    assert found.at("relations", 0) == ((6, 3),)
    assert found.at("relations2", 0) == nearest
    assert found.at("embeddings", 0) == ((0, 0),)
    assert found.words() == {
        "hidden": "2:1 4:2 6:3",
        "attention": "6:3 4:2",
        "relations": "6:3",
        "relations2": "2:1 2:2 5:3",
        "embeddings": "0:0",
        "hidden2": "drawn each epoch",
        "hidden3": "learned mixture of layers 1 to 6",
    }


def test_pairs_are_not_known_before_the_probe() -> None:
    found = pairings(ALL, teacher_layers=6, student_layers=3)
    assert needs_probe(ALL)
    assert not needs_probe(ALL[:7])
    assert found.words()["relations2"] == "known after the probe"
    assert needed_layers([RelationsMatch(map="nearest")], pairings([RelationsMatch(map="nearest")], teacher_layers=4,
                         student_layers=2)) == (0, 1, 2, 3)  # fmt: skip
    with pytest.raises(ValueError, match="pairs of relations2 are not known before the probe"):
        found.at("relations2", 0)


@pytest.mark.parametrize(
    ("term", "layers"),
    [
        (LogitsMatch(), ()),
        (LabelsMatch(), ()),
        (EmbeddingsMatch(), (0,)),
        (HiddenMatch(map="0:0 6:3"), (0, 6)),
        (HiddenMatch(map="attention"), (1, 2, 3, 4, 5, 6)),
        (AttentionMatch(map="1:1 6:3"), (0, 5)),
        (RelationsMatch(), (5,)),
        (RelationsMatch(map="uniform"), (1, 3, 5)),
    ],
)
def test_needed_layers_are_those_whose_states_are_read(term: Term, layers: tuple[int, ...]) -> None:
    assert needed_layers([term], pairings([term], teacher_layers=6, student_layers=3)) == layers


def test_needed_layers_cover_all_planned_epochs_of_a_random_map() -> None:
    term = HiddenMatch(map="random")
    for epochs in (1, 2, 9):
        plan = pairings([term], teacher_layers=12, student_layers=3, seed=5, epochs=epochs)
        used = {teacher for epoch in range(epochs) for teacher, _ in plan.at("hidden", epoch)}
        assert needed_layers([term], plan) == tuple(sorted(used))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (HiddenMatch(map="7:1"), r"^match hidden: map '7:1' names teacher layer 7, but the teacher has layers 1 to 6"),
        (AttentionMatch(map="6:4"), r"^match attention: map '6:4' names student layer 4"),
        (RelationsMatch(map="0:1"), r"^match relations: map '0:1' names layer 0, but the embeddings have no attention"),
    ],
)
def test_a_wrong_layer_is_refused_with_the_terms_name(term: Term, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pairings([LogitsMatch(), term], teacher_layers=6, student_layers=3)


def test_the_second_term_of_a_kind_is_named_as_such() -> None:
    with pytest.raises(InputError, match=r"^match hidden2: map '9:1'"):
        pairings([HiddenMatch(), HiddenMatch(map="9:1")], teacher_layers=6, student_layers=3)


def test_a_deeper_student_cannot_be_paired_at_random_but_by_a_mixture_or_a_probe() -> None:
    with pytest.raises(InputError, match=r"match hidden: map random needs a student of at most the teacher's 2 layers"):
        pairings([HiddenMatch(map="random")], teacher_layers=2, student_layers=3)
    mixed = pairings([HiddenMatch(map="attention"), RelationsMatch()], teacher_layers=2, student_layers=3)
    assert len(mixed.at("hidden", 0)) == 6
    assert mixed.at("relations", 0) == ((2, 3),)


@pytest.mark.parametrize(
    ("student", "teacher", "heads", "expected"),
    [(384, 384, 12, 12), (224, 384, 12, 8), (312, 768, 12, 12), (32, 384, 12, 8), (7, 384, 12, 1)],
)
def test_relation_heads_are_the_most_that_divide_both_up_to_the_teachers(
    student: int, teacher: int, heads: int, expected: int
) -> None:
    assert relation_heads(None, student_width=student, teacher_width=teacher, teacher_heads=heads) == expected


def test_relation_heads_that_do_not_divide_are_refused() -> None:
    assert relation_heads(48, student_width=384, teacher_width=768, teacher_heads=12) == 48
    with pytest.raises(InputError, match=r"heads must divide the student's 312 channels of queries \(got 48\)"):
        relation_heads(48, student_width=312, teacher_width=768, teacher_heads=12)


def test_a_pairing_says_itself_in_json() -> None:
    assert json.loads(json.dumps(pairings(ALL, teacher_layers=6, student_layers=3).words()))["hidden"] == "2:1 4:2 6:3"
