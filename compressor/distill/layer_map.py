"""Which teacher layer teaches which student layer, for each term of `match`. Numbers only, nothing heavy."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compressor.distill.settings import (
    AttentionMatch,
    EmbeddingsMatch,
    HiddenMatch,
    LabelsMatch,
    LogitsMatch,
    RelationsMatch,
)
from compressor.errors import InputError

Pairs = tuple[tuple[int, int], ...]
"""(teacher layer, student layer), counted from 1; 0 is the embeddings' output."""
Term = LogitsMatch | LabelsMatch | HiddenMatch | AttentionMatch | RelationsMatch | EmbeddingsMatch
MIXTURE, RANDOM, NEAREST = "attention", "random", "nearest"
"""Maps whose pairs are not known from the two depths alone."""


def uniform(teacher: int, student: int) -> Pairs:
    """Student layer i learns from teacher layer i T / S, rounded down, as `init.layers: uniform` copies them.

    >>> uniform(6, 3), uniform(6, 4)
    (((2, 1), (4, 2), (6, 3)), ((1, 1), (3, 2), (4, 3), (6, 4)))
    """
    return tuple((layer * teacher // student, layer) for layer in range(1, student + 1))


def first(_teacher: int, student: int) -> Pairs:
    """Each from the layer of its own number.

    >>> first(6, 2)
    ((1, 1), (2, 2))
    """
    return tuple((layer, layer) for layer in range(1, student + 1))


def last(teacher: int, student: int) -> Pairs:
    """Each from the layer equally far from the top.

    >>> last(6, 2)
    ((5, 1), (6, 2))
    """
    return tuple((teacher - student + layer, layer) for layer in range(1, student + 1))


def drawn(teacher: int, student: int, *, seed: int, name: str, epoch: int) -> Pairs:
    """As many teacher layers as the student has, drawn anew for each epoch and sorted.

    Sorted, so that a higher student layer learns from a higher one, as in RAIL-KD (Haidar et al. 2022,
    https://arxiv.org/abs/2109.10164). Depends on the arguments alone.

    >>> drawn(6, 6, seed=1, name="hidden", epoch=0) == first(6, 6)
    True
    """
    layers = sorted(random.Random(f"{seed} {name} {epoch}").sample(range(1, teacher + 1), student))
    return tuple(zip(layers, range(1, student + 1), strict=True))


def nearest_pairs(similarity: Sequence[Sequence[float]]) -> Pairs:
    """Each student layer with a teacher layer, so that the sum of similarities is largest and no two pairs cross.

    Where the most similar teacher layers do not fall as the student's layers rise, it is exactly those. Pairs that
    cross would ask a later student layer to go back to what an earlier one has already left; similarities of
    neighbouring layers are often so close that noise alone decides.

    Args:
        similarity: (teacher layers, student layers), such as the linear CKA of `similarity.layer_similarity`.

    >>> nearest_pairs([[0.9, 0.2], [0.5, 0.6], [0.1, 0.3]])
    ((1, 1), (2, 2))
    """
    teacher, student = len(similarity), len(similarity[0])
    # best[t]: (sum, teacher layers) of the student's layers so far, the last of them learning from layer t or lower
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * teacher
    for column in range(student):
        here = [(best[t][0] + float(similarity[t][column]), (*best[t][1], t + 1)) for t in range(teacher)]
        for t in range(1, teacher):
            here[t] = max(here[t - 1], here[t], key=lambda found: found[0])
        best = here
    return tuple((layer, index) for index, layer in enumerate(best[-1][1], start=1))


def layer_pairs(layer_map: str, teacher_layers: int, student_layers: int) -> Pairs:
    """The pairs of a map that depends on the two depths alone.

    Args:
        layer_map: a name in LAYER_MAPS, or pairs teacher:student such as `"2:1 4:2 6:3"`.
        teacher_layers: transformer layers of the teacher.
        student_layers: transformer layers of the student.
    Raises: InputError for a layer that is not there, and for a named map to a deeper student.

    >>> layer_pairs("0:0 6:3", 6, 3)
    ((0, 0), (6, 3))
    """
    if layer_map in LAYER_MAPS:
        _check_depth(layer_map, teacher_layers, student_layers)
        return LAYER_MAPS[layer_map](teacher_layers, student_layers)
    try:
        pairs = tuple((int(a), int(b)) for a, b in (pair.split(":") for pair in layer_map.split()))
    except ValueError:
        pairs = ()
    if not pairs:
        raise InputError(
            f"map must be one of {', '.join((*LAYER_MAPS, RANDOM, MIXTURE, NEAREST))} or pairs teacher:student such as "
            f"'2:1 4:2' (got {layer_map!r})"
        )
    for teacher, student in pairs:
        for who, layer, count in (("teacher", teacher, teacher_layers), ("student", student, student_layers)):
            if not 0 <= layer <= count:
                raise InputError(
                    f"map {layer_map!r} names {who} layer {layer}, but the {who} has layers 1 to {count} "
                    "(0 is the embeddings)"
                )
    return pairs


def _check_depth(layer_map: str, teacher_layers: int, student_layers: int) -> None:
    if student_layers > teacher_layers:
        raise InputError(
            f"map {layer_map} needs a student of at most the teacher's {teacher_layers} layers "
            f"(got {student_layers}); write pairs teacher:student such as '{teacher_layers}:{student_layers}'"
        )


def term_names(match: Sequence[Term]) -> tuple[str, ...]:
    """What each term is called in steps.jsonl: what it is of, numbered from the second of a kind on.

    >>> term_names([LogitsMatch(), LabelsMatch(), LogitsMatch()])
    ('logits', 'labels', 'logits2')
    """
    kinds = [term.of for term in match]
    return tuple(
        kind if kinds[:index].count(kind) == 0 else f"{kind}{kinds[:index].count(kind) + 1}"
        for index, kind in enumerate(kinds)
    )


@dataclass(frozen=True)
class Pairing:
    """Which teacher layers teach which student layers, for each term that pairs layers, by the term's name."""

    teacher_layers: int
    student_layers: int
    seed: int
    epochs: int
    """Epochs that will be trained, begun ones included."""
    fixed: Mapping[str, Pairs]
    """Terms whose pairs stay as they are."""
    drawn: tuple[str, ...] = ()
    """Terms whose pairs are drawn anew each epoch."""
    mixed: tuple[str, ...] = ()
    """Terms in which each student layer learns from a learned mixture of all teacher layers."""
    probed: tuple[str, ...] = ()
    """Terms whose pairs a probe has yet to find; none where `pairings` was given them."""

    @property
    def names(self) -> tuple[str, ...]:
        """All terms that pair layers."""
        return (*self.fixed, *self.drawn, *self.mixed, *self.probed)

    def at(self, name: str, epoch: int) -> Pairs:
        """The pairs of a term in an epoch (from 0); of a mixture, all of them."""
        if name in self.fixed:
            return self.fixed[name]
        if name in self.drawn:
            return drawn(self.teacher_layers, self.student_layers, seed=self.seed, name=name, epoch=epoch)
        if name in self.mixed:
            students, teachers = range(1, self.student_layers + 1), range(1, self.teacher_layers + 1)
            return tuple((teacher, student) for student in students for teacher in teachers)
        raise ValueError(f"the pairs of {name} are not known before the probe")

    def taught_by(self, name: str) -> tuple[int, ...]:
        """Teacher layers of a term over all epochs, ascending; all of them where a probe has yet to choose."""
        if name in self.probed:
            return tuple(range(1, self.teacher_layers + 1))
        pairs = [self.at(name, epoch) for epoch in (range(max(1, self.epochs)) if name in self.drawn else (0,))]
        return tuple(sorted({teacher for each in pairs for teacher, _ in each}))

    def words(self) -> dict[str, str]:
        """Each term's map in words, for the plan and for what is logged.

        >>> pairings([HiddenMatch(), HiddenMatch(map="random")], teacher_layers=4, student_layers=2).words()
        {'hidden': '2:1 4:2', 'hidden2': 'drawn each epoch'}
        """
        said = {name: " ".join(f"{one}:{other}" for one, other in pairs) for name, pairs in self.fixed.items()}
        said |= dict.fromkeys(self.drawn, "drawn each epoch")
        said |= dict.fromkeys(self.mixed, f"learned mixture of layers 1 to {self.teacher_layers}")
        said |= dict.fromkeys(self.probed, "known after the probe")
        return {name: said[name] for name in self.names}


def pairings(
    match: Sequence[Term],
    *,
    teacher_layers: int,
    student_layers: int,
    nearest: Pairs | None = None,
    seed: int = 0,
    epochs: int = 1,
) -> Pairing:
    """The layers that each term pairs.

    Args:
        match: the terms; those of logits and labels pair nothing.
        teacher_layers, student_layers: transformer layers of the two.
        nearest: pairs that the probe found; None leaves terms of map `nearest` as known after the probe.
        seed: of the maps that are drawn.
        epochs: epochs that will be trained, for `needed_layers`.
    Raises: InputError that names the term, for a layer that is not there or has no attention, or a student too deep.
    """
    fixed: dict[str, Pairs] = {}
    others: dict[str, list[str]] = {RANDOM: [], MIXTURE: [], NEAREST: []}
    for name, term in zip(term_names(match), match, strict=True):
        if isinstance(term, LogitsMatch | LabelsMatch):
            continue
        try:
            found = _pairs_of(term, teacher_layers, student_layers, nearest)
        except InputError as error:
            raise InputError(f"match {name}: {error}") from error
        if found is None:
            assert not isinstance(term, EmbeddingsMatch)
            others[term.map].append(name)
        else:
            fixed[name] = found
    return Pairing(
        teacher_layers, student_layers, seed, epochs, fixed,
        drawn=tuple(others[RANDOM]), mixed=tuple(others[MIXTURE]), probed=tuple(others[NEAREST]),
    )  # fmt: skip


def _pairs_of(
    term: HiddenMatch | AttentionMatch | RelationsMatch | EmbeddingsMatch,
    teacher: int,
    student: int,
    nearest: Pairs | None,
) -> Pairs | None:
    """The pairs of one term; None where they change, are learned or are not known yet."""
    if isinstance(term, EmbeddingsMatch):
        return ((0, 0),)
    if term.map == NEAREST:
        return nearest
    if term.map == RANDOM:
        _check_depth(RANDOM, teacher, student)
    if term.map in (RANDOM, MIXTURE):
        return None
    if isinstance(term, RelationsMatch) and term.map == "last":
        return ((teacher, student),)
    pairs = layer_pairs(term.map, teacher, student)
    if not isinstance(term, HiddenMatch) and any(0 in pair for pair in pairs):
        raise InputError(f"map {term.map!r} names layer 0, but the embeddings have no attention; layers count from 1")
    return pairs


def needs_probe(match: Sequence[Term]) -> bool:
    """Whether a term's layers are paired by what a probe finds."""
    return any(
        not isinstance(term, LogitsMatch | LabelsMatch | EmbeddingsMatch) and term.map == NEAREST for term in match
    )


def needed_layers(match: Sequence[Term], pairing: Pairing) -> tuple[int, ...]:
    """Hidden states of the teacher that all planned epochs read, ascending; 0 is the embeddings' output.

    Queries, keys and values of a layer are linear in its input, so attention and relations read the layer below.

    >>> match = [HiddenMatch(map="4:2"), RelationsMatch()]
    >>> needed_layers(match, pairings(match, teacher_layers=6, student_layers=3))
    (4, 5)
    """
    needed: set[int] = set()
    for name, term in zip(term_names(match), match, strict=True):
        if isinstance(term, AttentionMatch | RelationsMatch):
            needed |= {layer - 1 for layer in pairing.taught_by(name)}
        elif isinstance(term, HiddenMatch | EmbeddingsMatch):
            needed |= set(pairing.taught_by(name))
    return tuple(sorted(needed))


def relation_heads(wanted: int | None, *, student_width: int, teacher_width: int, teacher_heads: int) -> int:
    """Into how many relation heads the queries, keys and values of both are cut.

    Args:
        wanted: `heads` of the term; None takes the largest count up to the teacher's heads that divides both widths.
        student_width, teacher_width: channels of all heads of a layer together.
    Raises: InputError where `wanted` does not divide a width.

    >>> relation_heads(None, student_width=224, teacher_width=384, teacher_heads=12)
    8
    """
    if wanted is None:
        both = range(max(teacher_heads, 1), 0, -1)
        return next(count for count in both if student_width % count == 0 and teacher_width % count == 0)
    for who, width in (("student", student_width), ("teacher", teacher_width)):
        if width % wanted:
            raise InputError(
                f"heads must divide the {who}'s {width} channels of queries (got {wanted}); "
                "leave it out to take the largest count that fits"
            )
    return wanted


LAYER_MAPS: dict[str, Callable[[int, int], Pairs]] = {"uniform": uniform, "first": first, "last": last}
"""Name to the pairs of (teacher's, student's) layer counts."""
