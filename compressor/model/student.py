"""A smaller model that starts from the teacher's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.families import FAMILIES, family_of
from compressor.model.importance import Examples, LossPerRow, channel_norms, channel_taylor, taylor
from compressor.model.narrow import copy_channels, largest
from compressor.model.parts import Anatomy, anatomy, shapes
from compressor.model.rotated import copy_rotated
from compressor.model.settings import Init, Student
from compressor.model.student_shapes import student_shapes
from compressor.model.surgery import fresh_model


def uniform_layers(teacher: int, student: int) -> list[int]:
    """Every (teacher / student)-th layer, from 0, the last one included.

    >>> uniform_layers(12, 3), uniform_layers(6, 4)
    ([3, 7, 11], [0, 2, 3, 5])
    """
    return [(index + 1) * teacher // student - 1 for index in range(student)]


def first_layers(_teacher: int, student: int) -> list[int]:
    """The layers next to the embeddings.

    >>> first_layers(6, 2)
    [0, 1]
    """
    return list(range(student))


def last_layers(teacher: int, student: int) -> list[int]:
    """The layers next to the classifier.

    >>> last_layers(6, 2)
    [4, 5]
    """
    return list(range(teacher - student, teacher))


LAYER_CHOICES: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": uniform_layers,
    "first": first_layers,
    "last": last_layers,
}
"""Name of `init.layers` to the function of (teacher's, student's layer count) that gives the copied layers from 0; the
choice by importance, which is not among them, is `important_layers`."""


def important_layers(scores: Tensor, student: int) -> list[int]:
    """The `student` layers of the largest score, shape (layers,), in the order of depth; ties go to the lower layer.

    >>> important_layers(torch.tensor([0.5, 0.1, 0.9]), 2)
    [0, 2]
    """
    found: list[int] = largest(scores, student).tolist()
    return found


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row, (B,); 0 for a row without a label (-100)."""
    return functional.cross_entropy(logits, targets, reduction="none")


def make_student(
    source: PreTrainedModel,
    student: Student,
    *,
    seed: int,
    probe: Iterable[Examples] | None = None,
    loss_per_row: LossPerRow = label_loss,
) -> PreTrainedModel:
    """A new model of the student's shapes, in eval mode on the source's device, started from the source's weights.

    Layers are those that `student.init.layers` names. Where the student is narrower, `student.init.width` says how: the
    hidden channels, heads and neurons of largest norm, or that matter most to the loss, are kept in the source's order;
    or the stream is rotated into the leading directions of the embeddings (`rotated.copy_rotated` says what that keeps
    exact). With nothing narrower the copied layers are exact under all three.

    Args:
        source: the teacher, or the open checkpoint of `student.init.from`, with a classifier of the student's classes.
        probe: batches on which importance is measured; some hundred labelled rows do. None where nothing asks for it.
        loss_per_row: (logits (B, C), targets) to the loss of each row, (B,), of which importance is measured.
    Raises: InputError as `student_shapes` does, for a source of a family whose parts are not known, for importance
        without a probe, and for what the family cannot be copied into.
    """
    init = student.init
    if family_of(source.config.model_type) is None:
        raise InputError(
            f"a student cannot be made of {'the teacher' if init.from_ is None else init.from_.path}, a model of type "
            f"{source.config.model_type!r}; give one of {', '.join(FAMILIES)} as student.init.from, or a student of "
            "your own"
        )
    target = student_shapes(shapes(source), student)
    batches = _probe(init, probe)
    made = fresh_model(source, target, seed=seed)
    _check_projection(anatomy(source), anatomy(made), init)
    _check_relative(anatomy(source), anatomy(made))
    chosen = _chosen_layers(source, init, len(target.layers), batches, loss_per_row)
    by_loss = channel_taylor(source, batches, loss_per_row) if init.width == "importance" else None
    with torch.no_grad():
        if init.width == "svd":
            copy_rotated(anatomy(source), anatomy(made), chosen)
        else:
            copy_channels(anatomy(source), anatomy(made), chosen, by_loss or channel_norms(source, chosen))
    return made.eval()


def _check_projection(source: Anatomy, made: Anatomy, init: Init) -> None:
    """InputError where a source that projects narrow embeddings to its width (ELECTRA) cannot be copied as asked."""
    if source.projection is None:
        return
    width = f"{source.projection.in_features}, which are projected to its {source.projection.out_features}"
    if made.projection is None:
        raise InputError(f"student.hidden must not be the width of the source's embeddings, {width}; write another")
    if init.width == "svd":
        raise InputError(
            f"student.init.width svd takes its directions from the embeddings, but those of the source have {width}; "
            "write norm or importance"
        )


def _check_relative(source: Anatomy, made: Anatomy) -> None:
    """InputError for other heads than those of a source that has a bias by distance, one for each head (MPNet)."""
    wanted = made.layers[0].bias_heads
    if any(layer.bias_heads != wanted for layer in source.layers):
        raise InputError(
            f"student.heads must be the source's {source.layers[0].heads}, as all layers share one bias by distance "
            f"with a column for each of them (got {made.layers[0].heads}); leave heads out"
        )


def _probe(init: Init, probe: Iterable[Examples] | None) -> list[Examples]:
    """The batches, to be read twice; none where importance is not asked for."""
    asked = [f"student.init.{name}" for name in ("layers", "width") if getattr(init, name) == "importance"]
    if not asked:
        return []
    if probe is None:
        raise InputError(
            f"{asked[0]}: importance is measured on rows, and there are none; choose another, or give a probe"
        )
    return list(probe)


def _chosen_layers(
    source: PreTrainedModel, init: Init, count: int, batches: Sequence[Examples], loss_per_row: LossPerRow
) -> list[int]:
    """Which of the source's layers, from 0, the student starts from."""
    if init.layers == "importance":
        return important_layers(taylor(source, batches, loss_per_row).layers, count)
    return LAYER_CHOICES[init.layers](len(anatomy(source).layers), count)
