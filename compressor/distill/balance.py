"""Shares of the gradient: how much each term moves the student, and weights that hold a term at its share."""

# N terms

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compressor.settings import AutoWeight, Number, value_at

MEMORY = 0.3
"""Share of a running mean that a measurement leaves as it is: mostly the last decides, as norms fall fast at first.

By the norms of each of the first 100 steps of MiniLM into 3 layers with four automatic terms, mean shares over steps 51
to 99 are so within 4 % of those asked for; with 0.7, every 100 steps and without roots they are off by up to 45 %.
"""
ROOT_MEMORY = 0.8
"""The same for each step's root of a term's value: about the last five steps decide."""
OFTEN, OFTEN_UNTIL, LATER, SELDOM = 5, 50, 20, 100
"""With an automatic weight norms are measured every 5 steps up to step 50, then every 20; without one every 100.

A measurement costs one more backward pass a term: every 20 steps about a tenth of the time where there are three terms,
every 100 steps a fiftieth."""
LEAST_NORM = 1e-6
"""A smaller gradient is rounding: a student that already agrees would be pushed by amplified noise."""
DEAD, DOMINANT = 0.01, 0.95
"""Shares of the gradient below and above which a term is named in a warning."""


def is_measured(step: int, *, automatic: bool) -> bool:
    """Whether gradients are measured at a step (from 0).

    >>> [step for step in range(230) if is_measured(step, automatic=False)]
    [1, 100, 200]
    """
    if not automatic:
        return step == 1 or (step > 0 and step % SELDOM == 0)
    return step % (OFTEN if step <= OFTEN_UNTIL else LATER) == 0


def gradient_norm(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Norm of the gradient of `value`, shape (), by all parameters together, fp32; the graph is kept."""
    if not value.requires_grad:
        return value.new_zeros((), dtype=torch.float32)
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    dense = [each.coalesce().values() if each.is_sparse else each for each in found if each is not None]
    if not dense:
        return value.new_zeros((), dtype=torch.float32)
    norms = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in dense])
    whole: Tensor = torch.linalg.vector_norm(norms)
    return whole


class Balance(nn.Module):
    """Running means of the terms' gradient norms, in buffers, so that a resumed training goes on with them.

    An automatic weight w holds w times the term's norm at a share of the other terms' pull: where some weights are
    given, at `auto` times the mean of weight times norm over those that are not 0; where all are automatic, at `auto`
    times the norm of the first term at the first measurement, so that equal ones pull equally from then on.

    In a measured step the shares are those asked for. Between measurements a norm is taken to go as the root of the
    term's value, as it does for squared differences and, close to agreement, for divergences; the shares of a single
    batch then vary about those asked for as its own gradients do, more the fewer rows it has.

    Args:
        given: name of each term to its weight, as the recipe says it.
    """

    norms: Tensor
    """(N,) sum of norms over roots of values, each new one fading the earlier ones by MEMORY."""
    counts: Tensor
    """(N,) the same sum of ones, by which the mean is unbiased from the first measurement on."""
    roots: Tensor
    """(N,) sum of the roots of each step's values, fading by ROOT_MEMORY."""
    steps: Tensor
    """(N,) the same sum of ones."""
    shares: Tensor
    """(N,) running mean of each term's share of the gradient, begun at the first measurement."""
    measured: Tensor
    """() measurements so far."""
    reference: Tensor
    """() norm that equal automatic terms are brought to; 0 before the first measurement."""

    def __init__(self, given: Mapping[str, Number | AutoWeight]) -> None:
        super().__init__()
        self.given = dict(given)
        self.names = tuple(given)
        for name in ("norms", "counts", "roots", "steps", "shares"):
            self.register_buffer(name, torch.zeros(len(self.names)))
        for name in ("measured", "reference"):
            self.register_buffer(name, torch.zeros(()))

    @property
    def automatic(self) -> bool:
        """Whether a weight is automatic."""
        return any(isinstance(weight, AutoWeight) for weight in self.given.values())

    def measure(self, terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Norm of each term's unweighted gradient now, shape (N,), taken into the running means; the graph is kept.

        A norm that is not finite or at most LEAST_NORM is left out of its mean: a batch without labels says nothing
        about the labels term.

        Args:
            terms: name to value, (); terms left out count 0.
            parameters: all that the student trains.
        """
        nothing = self.norms.new_zeros(())
        now = torch.stack(
            [gradient_norm(terms[name], parameters).to(nothing) if name in terms else nothing for name in self.names]
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(now)
            now = now / torch.distributed.get_world_size()
        valid = torch.isfinite(now) & (now > LEAST_NORM)
        usable = torch.where(valid, now, 0.0)
        roots = self._roots(terms)
        known = valid & (roots > 0)
        ratio = torch.where(known, usable / torch.where(known, roots, 1.0), 0.0)
        _fade(self.norms, self.counts, ratio, known, MEMORY)
        leading = usable[valid.int().argmax()]
        self.reference.copy_(torch.where(self.reference > 0, self.reference, leading))
        return usable

    def follow(self, terms: Mapping[str, Tensor]) -> None:
        """Take in the values, (), of a step; terms left out and values of 0 (no labels) change nothing."""
        roots = self._roots(terms)
        _fade(self.roots, self.steps, roots, roots > 0, ROOT_MEMORY)

    def running(self) -> Tensor:
        """Norm of each term's gradient to be reckoned with now, shape (N,); 0 before it was measured."""
        least = torch.finfo(self.norms.dtype).tiny
        return self.norms / self.counts.clamp(min=least) * self.roots / self.steps.clamp(min=least)

    def _roots(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Root of each term's value, shape (N,); 0 where it is not given, not finite or below 0."""
        nothing = self.norms.new_zeros(())
        values = torch.stack([terms[name].detach().to(nothing) if name in terms else nothing for name in self.names])
        return torch.where(torch.isfinite(values), values.clamp(min=0.0), 0.0).sqrt()

    def weights(self, progress: float, norms: Tensor | None = None) -> Tensor:
        """Factor of each term, shape (N,); an automatic one is its `auto` until its gradient was measured.

        Args:
            norms: what `measure` gave in this very step, which then counts instead of the running means, so that the
                shares of a measured step are those asked for; None between measurements.
        """
        values = list(self.given.values())
        asked = self._filled([each.auto if isinstance(each, AutoWeight) else 0.0 for each in values])
        fixed = self._filled([0.0 if isinstance(each, AutoWeight) else value_at(each, progress) for each in values])
        mean, seen = self.running(), self.counts > 0
        if norms is not None:
            mean = torch.where(norms > 0, norms, mean)
        pulling = (fixed > 0) & seen
        others = (fixed * mean * pulling).sum() / pulling.sum().clamp(min=1)
        target = torch.where(pulling.any(), others, self.reference)
        automatic = torch.where(seen, asked * target / mean.clamp(min=LEAST_NORM), asked)
        return torch.where(asked > 0, automatic, fixed)

    def _filled(self, values: Sequence[float]) -> Tensor:
        """Numbers on the buffers' device, shape (N,); filled there, as a copy would wait for the device."""
        return torch.stack([self.norms.new_full((), value) for value in values])

    def share(self, norms: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Each term's share, (), of the sum of weight times norm, taken into the running means of shares."""
        pulls = norms * weights
        now = pulls / pulls.sum().clamp(min=torch.finfo(pulls.dtype).tiny)
        mean = torch.where(self.shares > 0, MEMORY * self.shares + (1 - MEMORY) * now, now)
        self.shares.copy_(torch.where(norms > 0, mean, self.shares))  # a batch without labels says nothing of them
        self.measured.add_(1)
        return dict(zip(self.names, now, strict=True))

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each term that hardly moves the student, and one for a term beside which the others do not.

        Judged by the running mean of shares, in which about the last three measurements count most; none before the
        first, and none of terms whose weight is 0 at the end.
        """
        if not float(self.measured):
            return ()
        shares = dict(zip(self.names, self.shares.tolist(), strict=True))
        pulling = {
            name: shares[name]
            for name, weight in self.given.items()
            if isinstance(weight, AutoWeight) or value_at(weight, 1.0) > 0
        }
        found = [_warning(name, share) for name, share in pulling.items()] if len(pulling) > 1 else []
        return tuple(sentence for sentence in found if sentence is not None)


def _fade(sums: Tensor, counts: Tensor, new: Tensor, where: Tensor, memory: float) -> None:
    """Take `new` into sums whose earlier parts fade, in place, where there is something new."""
    sums.copy_(torch.where(where, memory * sums + new, sums))
    counts.copy_(torch.where(where, memory * counts + 1.0, counts))


def _warning(name: str, share: float) -> str | None:
    if share < DEAD:
        return (
            f"term {name} is dead: it made {share:.1%} of the gradient in the last measurements, less than {DEAD:.0%}; "
            "raise its weight, write weight: auto, or leave it out"
        )
    if share > DOMINANT:
        return (
            f"term {name} dominates: it made {share:.1%} of the gradient in the last measurements, more than "
            f"{DOMINANT:.0%}; lower its weight, or write weight: auto"
        )
    return None
