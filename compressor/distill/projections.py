"""What is trained beside the student and dropped when it is saved: projections, mixtures of layers, running norms."""

# B rows, L tokens, D hidden, T teacher layers

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.distill.balance import Balance
from compressor.distill.layer_map import Pairing, Term, relation_heads, term_names
from compressor.distill.losses import SAME_WIDTH
from compressor.distill.settings import AttentionMatch, EmbeddingsMatch, HiddenMatch, RelationsMatch
from compressor.errors import InputError
from compressor.model.manifest import LayerShape
from compressor.model.parts import shapes

ANY = "any"
"""Stands for the teacher layer where a student layer has one projection for all that may teach it."""


class TeachingParts(nn.Module):
    """Projections, mixtures and running norms of the terms; a part of the checkpoint, not of the saved student.

    Args:
        projections: `TERM-TEACHER-STUDENT` to a Linear from the student's width to the teacher's.
        queries: `TERM-STUDENT` to the vector, of the teacher's width, that asks each teacher layer how much it counts.
        balance: running norms of the terms' gradients; None where one term stands alone.
    """

    def __init__(
        self, projections: dict[str, nn.Module], queries: dict[str, nn.Parameter], balance: Balance | None
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(projections)
        self.queries = nn.ParameterDict(queries)
        self.balance = balance

    def projected(self, states_BLD: Tensor, name: str, pair: tuple[int, int]) -> Tensor:
        """The student's states in the teacher's width; as they are where the term has no projection."""
        for key in (f"{name}-{pair[0]}-{pair[1]}", f"{name}-{ANY}-{pair[1]}"):
            if key in self.projections:
                projected: Tensor = self.projections[key](states_BLD)
                return projected
        return states_BLD

    def mixture(self, name: str, student: int, taught: Sequence[Tensor]) -> Tensor:
        """What a student layer learns from: a mean of all teacher layers, weighed anew at each token, (B, L, D), fp32.

        The weights are the softmax over layers of the product of a learned vector with the layer's states, over the
        root of their width; equal at first. States are layer-normalised before, so that the largest do not win by size.
        After ALP-KD (Passban et al. 2021, https://arxiv.org/abs/2012.14022), where the student's own state asks.

        Args:
            taught: all teacher layers from 1 on, each (B, L, D).
        """
        width = taught[0].shape[-1]
        states_BLTD = torch.stack([functional.layer_norm(each.float(), (width,)) for each in taught], dim=2)
        shares_BLT = (states_BLTD @ self.queries[f"{name}-{student}"].float() * width**-0.5).softmax(-1)
        return torch.einsum("blt,bltd->bld", shares_BLT, states_BLTD)


def make_parts(
    match: Sequence[Term], pairing: Pairing, student: PreTrainedModel, teacher: PreTrainedModel | None, *, seed: int
) -> TeachingParts | None:
    """What the terms need beside the student; None where that is nothing.

    A term that compares states channel by channel gets, where the widths differ, a Linear from the student's width to
    the teacher's for each pair; one for each student layer where its pairs are drawn or mixed, as a pair that is drawn
    in one epoch would never get a trained one. Two terms or more get running norms of their gradients.

    Args:
        teacher: the model that hidden states are of; None where no term reads them.
        seed: of the projections' first weights.
    Raises: InputError that names the term and layer where relation heads do not divide a width or a layer has no
        attention left.
    """
    projections: dict[str, nn.Module] = {}
    queries: dict[str, nn.Parameter] = {}
    names = list(zip(term_names(match), match, strict=True))
    if pairing.names:
        if teacher is None:
            raise InputError(f"match {pairing.names[0]} needs a teacher whose hidden states can be read; none is given")
        narrow, wide = shapes(student).hidden, shapes(teacher).hidden
        for name, term in names:
            if isinstance(term, AttentionMatch | RelationsMatch):
                _check_heads(name, term, pairing, shapes(student).layers, shapes(teacher).layers)
            elif isinstance(term, HiddenMatch | EmbeddingsMatch) and narrow != wide and term.loss in SAME_WIDTH:
                projections |= _projections(name, pairing, narrow, wide, seed=seed)
            if name in pairing.mixed:
                layers = range(1, pairing.student_layers + 1)
                queries |= {f"{name}-{layer}": nn.Parameter(torch.zeros(wide)) for layer in layers}
    balance = Balance({name: term.weight for name, term in names}) if len(match) > 1 else None
    if not projections and not queries and balance is None:
        return None
    return TeachingParts(projections, queries, balance)


def _projections(name: str, pairing: Pairing, narrow: int, wide: int, *, seed: int) -> dict[str, nn.Module]:
    students = range(1, pairing.student_layers + 1)
    shared = name in (*pairing.drawn, *pairing.mixed)
    pairs: Sequence[tuple[object, int]] = [(ANY, layer) for layer in students] if shared else pairing.at(name, 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {f"{name}-{teacher}-{layer}": nn.Linear(narrow, wide) for teacher, layer in pairs}


def _check_heads(
    name: str,
    term: AttentionMatch | RelationsMatch,
    pairing: Pairing,
    students: Sequence[LayerShape],
    teachers: Sequence[LayerShape],
) -> None:
    """Nothing, or InputError where a pair's attention cannot be compared."""
    epochs = range(max(1, pairing.epochs)) if name in pairing.drawn else (0,)
    for teacher, student in sorted({pair for epoch in epochs for pair in pairing.at(name, epoch)}):
        own, taught = students[student - 1], teachers[teacher - 1]
        for who, layer, shape in (("student", student, own), ("teacher", teacher, taught)):
            if not shape.heads:
                raise InputError(
                    f"match {name}: the {who}'s layer {layer} has no attention left; write pairs without it in map"
                )
        if isinstance(term, RelationsMatch):
            try:
                relation_heads(
                    term.heads,
                    student_width=own.heads * own.head_size,
                    teacher_width=taught.heads * taught.head_size,
                    teacher_heads=taught.heads,
                )
            except InputError as error:
                raise InputError(f"match {name}, layers {teacher}:{student}: {error}") from error
