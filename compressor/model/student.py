"""A smaller model that starts from the teacher's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.encoders import Anatomy, Layer, anatomy, shapes
from compressor.model.manifest import LayerShape, Shapes
from compressor.model.settings import Student
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
"""Name of `init.layers` to the function of (teacher's, student's layer count) that gives the copied layers from 0."""


def student_shapes(teacher: Shapes, student: Student) -> Shapes:
    """The student's shapes, what it leaves open taken from the teacher (half the layers).

    Raises: InputError where the student is larger than the teacher, or its heads do not divide its width.
    """
    if not teacher.is_stock:
        raise InputError("student cannot be copied from a pruned model; name its unpruned teacher")
    given = teacher.layers[0]
    hidden = student.hidden or teacher.hidden
    heads, ffn = student.heads or given.heads, student.ffn or given.ffn
    count = student.layers or max(1, len(teacher.layers) // 2)
    for what, wanted, limit in (
        ("layers", count, len(teacher.layers)),
        ("hidden", hidden, teacher.hidden),
        ("ffn", ffn, given.ffn),
    ):
        if wanted > limit:
            raise InputError(f"student.{what} must be at most the teacher's {limit} (got {wanted})")
    if hidden % heads:
        fits = [number for number in range(1, hidden + 1) if hidden % number == 0 and number <= 2 * given.heads]
        raise InputError(
            f"student.hidden must be divisible by its heads (got hidden {hidden}, heads {heads}"
            f"{'' if student.heads else ' as the teacher'}); heads that fit: {', '.join(map(str, fits))}"
        )
    layer = LayerShape(heads=heads, head_size=hidden // heads, ffn=ffn)
    return replace(teacher, hidden=hidden, layers=(layer,) * count)


def make_student(teacher: PreTrainedModel, student: Student, *, seed: int) -> PreTrainedModel:
    """A new model of the student's shapes, in eval mode on the teacher's device, started from the teacher's weights.

    Layers are those that `student.init.layers` names. Where the student is narrower, the hidden channels, heads and
    neurons of largest norm are kept, in the teacher's order; with nothing narrower the copied layers are exact.
    Raises: InputError as `student_shapes` does.
    """
    target = student_shapes(shapes(teacher), student)
    made = fresh_model(teacher, target, seed=seed)
    source, goal = anatomy(teacher), anatomy(made)
    chosen = LAYER_CHOICES[student.init.layers](len(source.layers), len(target.layers))
    copied = [source.layers[index] for index in chosen]
    hidden = _largest(_hidden_norms(source, copied), target.hidden)
    with torch.no_grad():
        _copy_ends(source, goal, hidden)
        for old, new in zip(copied, goal.layers, strict=True):
            _copy_attention(old, new, hidden)
            _copy_feed_forward(old, new, hidden)
    return made.eval()


@dataclass(frozen=True)
class _Channels:
    """Which of the teacher's q/k and v channels the student's attention keeps, and a factor that keeps its scale."""

    scores: Tensor
    values: Tensor
    factor: float


def _largest(norms: Tensor, count: int) -> Tensor:
    """Places of the `count` largest numbers, ascending; ties go to the lower place."""
    return torch.sort(torch.sort(norms, descending=True, stable=True).indices[:count]).values


def _hidden_norms(source: Anatomy, layers: Sequence[Layer]) -> Tensor:
    """Squared norm, shape (hidden,), of what is written to each hidden channel."""
    tables = torch.stack([table.weight.detach().double().square().mean(0) for table in source.tables]).sum(0)
    written = [_weight(part).square().mean(1) for layer in layers for part in (layer.attention_output, layer.down)]
    return tables + torch.stack(written).sum(0)


def _weight(part: Any) -> Tensor:
    weight: Tensor = part.weight.detach().double()
    return weight


def _copy(old: Any, new: Any, rows: Tensor, columns: Tensor | None = None, factor: float = 1.0) -> None:
    """Copy the chosen output rows (and input columns) of a projection or norm with its bias."""
    weight = old.weight[rows]
    new.weight.copy_((weight if columns is None else weight[:, columns]) * factor)
    new.bias.copy_(old.bias[rows] * factor)


def _copy_ends(source: Anatomy, goal: Anatomy, hidden: Tensor) -> None:
    for old, new in zip(source.tables, goal.tables, strict=True):
        new.weight.copy_(old.weight[:, hidden])
    _copy(source.embedding_norm, goal.embedding_norm, hidden)
    if source.pooler is not None and goal.pooler is not None:
        _copy(source.pooler, goal.pooler, hidden, hidden)
    every = torch.arange(source.classifier.out_features, device=hidden.device)
    _copy(source.classifier, goal.classifier, every, hidden)


def _copy_attention(old: Layer, new: Layer, hidden: Tensor) -> None:
    channels = _attention_channels(old, new)
    _copy(old.query, new.query, channels.scores, hidden, channels.factor)
    _copy(old.key, new.key, channels.scores, hidden)
    _copy(old.value, new.value, channels.values, hidden)
    _copy(old.attention_output, new.attention_output, hidden, channels.values)
    _copy(old.attention_norm, new.attention_norm, hidden)


def _attention_channels(old: Layer, new: Layer) -> _Channels:
    """Whole heads and the strongest channels in each; flat channels where the student's heads are wider or more."""
    scores = _weight(old.query).square().sum(1) * _weight(old.key).square().sum(1)
    values = _weight(old.value).square().sum(1) * _weight(old.attention_output).square().sum(0)
    if new.heads > old.heads or new.head_size > old.head_size:
        width = new.heads * new.head_size
        return _Channels(_largest(scores, width), _largest(values, width), 1.0)
    heads = _largest((scores + values).view(old.heads, -1).sum(1), new.heads)

    def within(norms: Tensor) -> Tensor:
        by_head = norms.view(old.heads, old.head_size)
        return torch.cat([head * old.head_size + _largest(by_head[head], new.head_size) for head in heads])

    return _Channels(within(scores), within(values), math.sqrt(new.head_size / old.head_size))


def _copy_feed_forward(old: Layer, new: Layer, hidden: Tensor) -> None:
    up, down = _weight(old.up), _weight(old.down)
    neurons = _largest(up.square().sum(1) * down.square().sum(0), new.neurons)
    _copy(old.up, new.up, neurons, hidden)
    _copy(old.down, new.down, hidden, neurons)
    _copy(old.norm, new.norm, hidden)
