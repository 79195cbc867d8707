"""How often intervals and verdicts are right, on simulated timings whose truth is known.

A round's samples share the machine's speed; each slot has a little of its own; samples are skewed, as times are. Bursts
of other work slow some samples of a slot, or all of it, of one subject or the other, or one subject for many rounds.
"""
# S simulations, R rounds, N samples a slot

import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from compressor.bench.statistics import LOOKS, Interval, p50_by_round, ratio_interval, speed_verdict

SIMULATIONS, ROUNDS, SAMPLES = 2000, 15, 31
Maker = Callable[[np.random.Generator], np.ndarray]


def quiet(rng: np.random.Generator) -> np.ndarray:
    """Times of one subject without the machine's part, shape (S, R, N)."""
    slot = rng.lognormal(0, 0.03, (SIMULATIONS, ROUNDS, 1))
    return slot * rng.lognormal(0, 0.05, (SIMULATIONS, ROUNDS, SAMPLES))


def bursts_of_samples(rng: np.random.Generator) -> np.ndarray:
    """In every fifth slot a run of samples, of any length, takes 1.2 to 4 times as long."""
    hit = rng.random((SIMULATIONS, ROUNDS, 1)) < 0.2
    start, length = (rng.integers(0, SAMPLES, (SIMULATIONS, ROUNDS, 1)) for _ in range(2))
    place = np.arange(SAMPLES)
    within = hit & (place >= start) & (place < start + length)
    return quiet(rng) * np.where(within, rng.uniform(1.2, 4.0, hit.shape), 1.0)


def bursts_of_slots(rng: np.random.Generator) -> np.ndarray:
    """In every tenth slot all samples take 1.2 to 2.5 times as long."""
    hit = rng.random((SIMULATIONS, ROUNDS, 1)) < 0.1
    return quiet(rng) * np.where(hit, rng.uniform(1.2, 2.5, hit.shape), 1.0)


def rare_bursts(rng: np.random.Generator) -> np.ndarray:
    """In one slot of fifty all samples take three times as long."""
    return quiet(rng) * np.where(rng.random((SIMULATIONS, ROUNDS, 1)) < 0.02, 3.0, 1.0)


def p50s(make: Maker, rng: np.random.Generator, copies: int) -> list[np.ndarray]:
    """Median of each slot of so many copies of one subject on a machine that drifts, each of shape (S, R)."""
    machine = rng.lognormal(0, 0.2, (SIMULATIONS, ROUNDS))
    slots = [machine * np.median(make(rng), axis=2) for _ in range(copies)]
    disturbed = {long_bursts: neighbour, bursts_that_follow_one: follower}.get(make)
    if disturbed is None:
        return slots
    return [one * busy for one, busy in zip(slots, disturbed(rng, copies), strict=True)]


def long_bursts(rng: np.random.Generator) -> np.ndarray:
    """As quiet; `neighbour` is what disturbs."""
    return quiet(rng)


def neighbour(rng: np.random.Generator, copies: int) -> list[np.ndarray]:
    """What a busy neighbour does that comes and goes every few slots, whosever they are: 1, or 2 while it is busy.

    The subjects take turns at each place of a round; one array of shape (S, R) for each.
    """
    factors = np.ones((copies, SIMULATIONS, ROUNDS))
    busy = rng.random(SIMULATIONS) < 0.5
    for number in range(ROUNDS):
        for place in range(copies):
            busy ^= rng.random(SIMULATIONS) < 0.15
            factors[(place + number) % copies, :, number] = 1.0 + busy
    return list(factors)


def bursts_that_follow_one(rng: np.random.Generator) -> np.ndarray:
    """As quiet; `follower` is what disturbs."""
    return quiet(rng)


def follower(rng: np.random.Generator, copies: int) -> list[np.ndarray]:
    """One subject, any of them, takes 1.5 times as long in two to seven rounds in a row, in every simulation."""
    who, length = rng.integers(0, copies, SIMULATIONS), rng.integers(2, 8, SIMULATIONS)
    start = rng.integers(0, ROUNDS - length + 1)[:, None]
    rounds = np.arange(ROUNDS)
    within = (rounds >= start) & (rounds < start + length[:, None])
    return [np.where(within & (who == one)[:, None], 1.5, 1.0) for one in range(copies)]


BURSTS = (bursts_of_samples, bursts_of_slots, rare_bursts, long_bursts, bursts_that_follow_one)


def intervals(subject: np.ndarray, reference: np.ndarray) -> list[Interval]:
    return [ratio_interval(list(ours), list(theirs)) for ours, theirs in zip(subject, reference, strict=True)]


def coverage(make: Maker, seed: int) -> float:
    subject, reference = p50s(make, np.random.default_rng(seed), 2)
    return float(np.mean([one.low <= 0.3 <= one.high for one in intervals(0.3 * subject, reference)]))


def verdicts(make: Maker, seed: int, *, true_ratio: float = 1.0) -> Counter[str]:
    """How often each verdict is given to a subject beside a noise floor of its own round, as a report does."""
    subject, reference, again = p50s(make, np.random.default_rng(seed), 3)
    pairs = zip(intervals(true_ratio * subject, reference), intervals(again, reference), strict=True)
    return Counter(speed_verdict(ratio, noise) for ratio, noise in pairs)


def test_on_log_normal_noise_the_interval_covers_at_its_nominal_rate():
    assert 0.93 <= coverage(quiet, 1) <= 0.97


@pytest.mark.parametrize("make", BURSTS)
def test_on_bursts_the_interval_covers_at_least_93_percent(make: Maker):
    assert coverage(make, 2) >= 0.93


@pytest.mark.parametrize("make", [quiet, *BURSTS])
def test_copies_of_one_model_are_called_faster_or_slower_at_most_7_times_in_100(make: Maker):
    found = verdicts(make, 3)
    assert found["faster"] + found["slower"] <= 0.07 * SIMULATIONS
    assert found.total() == SIMULATIONS


@pytest.mark.parametrize("make", [quiet, *BURSTS])
def test_without_a_copy_timed_false_alarms_stay_at_most_7_in_100(make: Maker):
    subject, reference = p50s(make, np.random.default_rng(4), 2)
    found = Counter(speed_verdict(ratio, None) for ratio in intervals(subject, reference))
    assert found["faster"] + found["slower"] <= 0.07 * SIMULATIONS


def looked_at(make: Maker, seed: int, *, true_ratio: float = 1.0) -> Counter[str]:
    """Verdicts where two further lots of rounds are timed while there is none, as `bench` does."""
    subject, reference, again = p50s(make, np.random.default_rng(seed), 3)
    found: Counter[str] = Counter()
    for one, other, twin in zip((true_ratio * subject).tolist(), reference.tolist(), again.tolist(), strict=True):
        for end in (15, 30, 45):
            ratio, noise = (ratio_interval(each[:end], other[:end], confidence=LOOKS[3]) for each in (one, twin))
            verdict = speed_verdict(ratio, noise)
            if verdict != "undecided":
                break
        found[verdict] += 1
    return found


@pytest.mark.parametrize("make", [quiet, *BURSTS])
def test_going_on_while_undecided_keeps_false_alarms_at_most_7_in_100(make: Maker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "ROUNDS", 45)
    found = looked_at(make, 8)
    assert found["faster"] + found["slower"] <= 0.07 * SIMULATIONS


def test_going_on_decides_more_often(monkeypatch: pytest.MonkeyPatch):
    once = verdicts(bursts_of_slots, 9, true_ratio=0.8)["faster"]
    monkeypatch.setattr(sys.modules[__name__], "ROUNDS", 45)
    found = looked_at(bursts_of_slots, 9, true_ratio=0.8)
    assert found["faster"] > 1.1 * once
    assert found["slower"] == 0


@pytest.mark.parametrize(("looks", "confidence"), LOOKS.items())
def test_each_look_has_the_confidence_at_which_all_together_err_in_5_of_100(looks: int, confidence: float):
    """Partial sums of standard normal increments, as Pocock 1977 has them."""
    sums = np.random.default_rng(10).normal(size=(400_000, looks)).cumsum(1) / np.sqrt(np.arange(1, looks + 1))
    errs = np.any(np.abs(sums) > stats.norm.ppf((1 + confidence) / 2), axis=1).mean()
    assert errs == pytest.approx(0.05, abs=0.0015)


def test_five_sixths_of_the_time_is_found_faster_on_a_quiet_machine():
    assert verdicts(quiet, 5, true_ratio=5 / 6)["faster"] >= 0.99 * SIMULATIONS


@pytest.mark.parametrize("make", BURSTS)
def test_half_the_time_is_found_faster_among_bursts_and_never_slower(make: Maker):
    found = verdicts(make, 6, true_ratio=0.5)
    assert found["faster"] >= 0.9 * SIMULATIONS
    assert found["slower"] == found["same"] == 0


def test_same_is_hardly_ever_said_of_a_model_that_differs_by_more_than_the_band():
    rng = np.random.default_rng(6)
    subject, reference, again = (rng.lognormal(0, 0.01, (SIMULATIONS, ROUNDS)) for _ in range(3))
    pairs = zip(intervals(1.02 * subject, reference), intervals(again, reference), strict=True)
    assert sum(speed_verdict(ratio, noise) == "same" for ratio, noise in pairs) <= 0.05 * SIMULATIONS


def test_speedups_from_raw_samples_multiply_to_the_inverse_of_the_whole_ratio():
    rng = np.random.default_rng(7)
    raw = bursts_of_slots(rng)[:400] * rng.lognormal(0, 0.3, (400, ROUNDS, 1))
    for chain in raw.reshape(100, 4, ROUNDS, SAMPLES):
        nanoseconds = (1e6 * chain * np.array([8.0, 4.0, 3.0, 1.0])[:, None, None]).astype(np.int64)
        medians = [p50_by_round(dict(enumerate(one.tolist()))) for one in nanoseconds]
        speedups = [ratio_interval(before, after).value for before, after in pairwise(medians)]
        assert np.prod(speedups) == pytest.approx(1 / ratio_interval(medians[-1], medians[0]).value, rel=1e-12)
