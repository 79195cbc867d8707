"""One probability of each class from several voters who disagree, err and leave gaps."""

# N rows, V voters, C classes

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ONE_VOTER_TRUST = 0.9
"""Probability of the class that a lone voter names: nobody else tells how often it errs."""
NO_VOTE = -1


def vote_probabilities(
    votes_NV: NDArray[np.int64], classes: int, *, smoothing: float = 0.5, tolerance: float = 1e-6, rounds: int = 200
) -> NDArray[np.float64]:
    """Probability of each class of each row, shape (N, C); NaN where nobody voted.

    Several voters: the EM of Dawid and Skene (1979, https://doi.org/10.2307/2346806), which learns how often each
    voter takes one class for another, started at the shares of the votes. One voter: its class has 0.9, the others
    share the rest.

    Args:
        votes_NV: class ids, -1 where a voter said nothing.
        classes: how many there are.
        smoothing: added to each count of the voters' confusions and of the classes, so that nothing is impossible.
        tolerance: EM ends when no probability moves by more.
        rounds: of EM at most.
    """
    given_NV = votes_NV != NO_VOTE
    said_NVC = np.eye(classes)[np.where(given_NV, votes_NV, 0)] * given_NV[..., None]
    found = np.full((len(votes_NV), classes), np.nan)
    some = given_NV.any(1)
    if votes_NV.shape[1] == 1:
        rest = (1 - ONE_VOTER_TRUST) / max(1, classes - 1)
        found[some] = np.where(said_NVC[some, 0] > 0, ONE_VOTER_TRUST, rest)
        return found
    said_NVC = said_NVC[some]
    belief_NC = said_NVC.sum(1) / said_NVC.sum((1, 2))[:, None]
    for _ in range(rounds):
        before, belief_NC = belief_NC, _believed(said_NVC, belief_NC, smoothing)
        if np.abs(belief_NC - before).max(initial=0.0) <= tolerance:
            break
    found[some] = belief_NC
    return found


def _believed(said_NVC: NDArray[np.float64], belief_NC: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """One round of EM: confusions and class shares from the beliefs, then the beliefs from those."""
    confusion_VCC = np.einsum("nc,nvk->vck", belief_NC, said_NVC) + smoothing
    confusion_VCC /= confusion_VCC.sum(-1, keepdims=True)
    share_C = belief_NC.sum(0) + smoothing
    logs_NC = np.log(share_C / share_C.sum()) + np.einsum("nvk,vck->nc", said_NVC, np.log(confusion_VCC))
    odds_NC = np.exp(logs_NC - logs_NC.max(1, keepdims=True))
    believed: NDArray[np.float64] = odds_NC / odds_NC.sum(1, keepdims=True)
    return believed
