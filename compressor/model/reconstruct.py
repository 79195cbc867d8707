"""What the halves of a cut model's layers write, fitted to the uncut model by least squares, without training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.errors import InputError
from compressor.model.parts import Layer, anatomy, shapes
from compressor.model.pruned_modeling import BiasOnly
from compressor.model.states import model_inputs

# B rows, L tokens, N true tokens, D hidden, K inputs of a projection

DAMPING = 1e-3
"""Penalty on the square of a weight's change, as a share of the mean variance of the projection's inputs."""

Half = Literal["attention", "feed-forward"]


@dataclass(frozen=True)
class Place:
    """Where a half of a layer writes: its output projection, and the norm that reads the sum with its input."""

    half: Half
    projection: nn.Linear | BiasOnly
    norm: nn.LayerNorm

    @property
    def inputs(self) -> int:
        """What the projection reads of a token; 0 where the bias alone is left."""
        return 0 if isinstance(self.projection, BiasOnly) else self.projection.in_features


def places(layer: Layer) -> tuple[Place, Place]:
    """Where the two halves of a layer write, in the order of their use."""
    attention = Place("attention", layer.attention_output, layer.attention_norm)
    return attention, Place("feed-forward", layer.down, layer.norm)


@dataclass(frozen=True)
class Fitted:
    """How far a half of one layer is from the same half of the uncut model."""

    layer: int
    """Of the cut model, from 0."""
    half: Half
    before: float
    """Norm, over all tokens, of the difference in what the half's norm reads, by that of what it reads uncut."""
    after: float


class Moments:
    """Sums over tokens of what a projection reads and of what is missing behind it, in float64."""

    def __init__(self, inputs: int, hidden: int, device: torch.device) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64, device=device)
        self.shared = torch.zeros(inputs + 1, hidden, dtype=torch.float64, device=device)
        self.missing = self.wanted = 0.0

    def add(self, inputs_NK: Tensor, missing_ND: Tensor, wanted_ND: Tensor) -> None:
        """Count tokens in: what the projection reads, what its output lacks, and what that is a part of."""
        wide = torch.cat([inputs_NK, inputs_NK.new_ones(len(inputs_NK), 1)], dim=1).double()
        missing = missing_ND.double()
        self.gram += wide.T @ wide
        self.shared += wide.T @ missing
        self.missing += float(missing.square().sum())
        self.wanted += float(wanted_ND.double().square().sum())

    def solve(self, damping: float) -> tuple[Tensor, Tensor, float]:
        """Changes of the weights, (D, K), and of the bias, (D,), and the sum of squares that is missing with them.

        They minimise that sum plus, for each square of a weight's change, `damping` times the tokens' number and the
        mean variance of the inputs. To change nothing is among the choices, so never more is missing than before.
        """
        count = float(self.gram[-1, -1])
        mean_K, mean_D = self.gram[:-1, -1] / count, self.shared[-1] / count
        spread_KK = self.gram[:-1, :-1] - count * torch.outer(mean_K, mean_K)
        shared_KD = self.shared[:-1] - count * torch.outer(mean_K, mean_D)
        change_KD, ridge = torch.zeros_like(shared_KD), 0.0
        if len(mean_K):
            ridge = damping * float(spread_KK.diagonal().mean())
        if ridge > 0:
            change_KD = torch.linalg.solve(spread_KK + ridge * torch.eye(len(mean_K)).to(spread_KK), shared_KD)
        left = self.missing - count * float(mean_D.square().sum())
        left += float((change_KD * (spread_KK @ change_KD - 2 * shared_KD)).sum())
        return change_KD.T, mean_D - mean_K @ change_KD, max(0.0, left)


class _StopError(Exception):
    """Ends a pass where all that was wanted of it has been read."""


class _Stream:
    """A model's hidden states in front of one of its layers, of every batch, and how its layers are called."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self.layers, self.place = anatomy(model).layers, 0
        self.states: list[Tensor] = []
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        device = next(model.parameters()).device
        self.true = [batch["attention_mask"].to(device).bool() for batch in batches]

        def take(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.states.append(args[0])
            self.calls.append((args[1:], kwargs))
            raise _StopError

        with hooked(self.layers[0].whole.register_forward_pre_hook(take, with_kwargs=True)):
            for batch in batches:
                with contextlib.suppress(_StopError):
                    model(**{name: value.to(device) for name, value in model_inputs(model, batch).items()})

    @property
    def layer(self) -> Layer:
        """The layer that comes next."""
        return self.layers[self.place]

    def read(self, batch: int, parts: Sequence[nn.Module]) -> list[Tensor]:
        """What each of these parts of the next layer, in the order of their use, takes of a batch."""
        found: list[Tensor] = []

        def take(_part: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0])
            if len(found) == len(parts):
                raise _StopError

        args, kwargs = self.calls[batch]
        with hooked(*(part.register_forward_pre_hook(take) for part in parts)), contextlib.suppress(_StopError):
            self.layer.whole(self.states[batch], *args, **kwargs)
        return found

    def sums(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the norms of the next layer read of each batch, (B, L, D): behind attention, and at its end."""
        pairs = [self.read(batch, (self.layer.attention_norm, self.layer.norm)) for batch in range(len(self.states))]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def advance(self, at_end: Sequence[Tensor] | None = None) -> None:
        """Go behind the next layer; `at_end` is what its last norm reads, found anew where it is None."""
        norm = self.layer.norm
        self.states = [
            norm(self.read(batch, (norm,))[0] if at_end is None else at_end[batch]) for batch in range(len(self.states))
        ]
        self.place += 1


@contextlib.contextmanager
def hooked(*hooks: RemovableHandle) -> Iterator[None]:
    """Inside, these hooks act."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _fit(stream: _Stream, place: Place, wanted: Sequence[Tensor], damping: float) -> Fitted:
    """Fits one half of the stream's next layer to the sums that the uncut model's norm reads."""
    projection = place.projection
    moments = Moments(place.inputs, projection.bias.numel(), projection.bias.device)
    for batch, (true, sums) in enumerate(zip(stream.true, wanted, strict=True)):
        read, has = stream.read(batch, (projection, place.norm))
        moments.add(read[true][:, : place.inputs], sums[true] - has[true], sums[true])
    change_DK, change_D, left = moments.solve(damping)
    if not isinstance(projection, BiasOnly):
        projection.weight.add_(change_DK)
    projection.bias.add_(change_D)
    before, after = (math.sqrt(each / moments.wanted) for each in (moments.missing, left))
    return Fitted(stream.place, place.half, before, after)


def reconstruct(
    model: PreTrainedModel,
    uncut: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    damping: float = DAMPING,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Fitted]:
    """Weights and biases of the output projections of `model`, changed so that its layers hand on what `uncut`'s do.

    From the first layer up, first the attention output projection, then the second of the feed-forward half: what goes
    into the norm behind it is fitted to what goes into that norm of `uncut`, by least squares from what the projection
    reads in `model`, so that errors of the layers before are made good, too (after Kwon et al. 2022,
    https://arxiv.org/abs/2204.09656, section 3.3, which fits each layer to its own output). Where all heads or neurons
    of a layer are gone, the bias alone is fitted. Padding does not count.

    Args:
        model: changed in place.
        uncut: of the same width; is left as it is, and so are its random numbers: both run in eval mode.
        layers: the layer of `uncut`, from 0, that each of `model`'s is made from, ascending.
        batches: input_ids, attention_mask and so on, each (B, L). The hidden states of all are held at once, for both
            models; what is summed over them does not grow with their number.
        progress: called with the layers that are done and their number.
    Returns: both halves of each layer, in the order of the layers.
    Raises: InputError for models of different widths, and where there is no row.
    """
    if shapes(model).hidden != shapes(uncut).hidden:
        raise InputError(
            f"the outputs of a model of width {shapes(model).hidden} cannot be fitted to those of one of width "
            f"{shapes(uncut).hidden}; both must be as wide"
        )
    given = list(batches)
    if not given:
        raise InputError("outputs are fitted on rows, and none were given; give some, labelled or not")
    found: list[Fitted] = []
    with torch.inference_mode(), _evaluating(model), _evaluating(uncut):
        stream, whole = _Stream(model, given), _Stream(uncut, given)
        for place in range(len(stream.layers)):
            progress(place, len(stream.layers))
            while whole.place < layers[place]:
                whole.advance()
            wanted = whole.sums()
            for half, sums in zip(places(stream.layer), wanted, strict=True):
                found.append(_fit(stream, half, sums, damping))
            whole.advance(wanted[-1])
            stream.advance()
    return found
