import numpy as np
import pytest

from compressor.distill.votes import vote_probabilities


def drawn(rows: int, rights: list[float], *, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and votes of voters who are right so often."""
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=rows)
    votes = np.stack(
        [np.where(random.random(rows) < right, truth, random.integers(classes, size=rows)) for right in rights], 1
    )
    return truth, votes


def dawid_skene(votes: list[list[int]], classes: int, smoothing: float, rounds: int) -> list[list[float]]:
    """The EM of Dawid and Skene in plain loops, for rows that all have a vote."""
    voters, each = len(votes[0]), range(classes)
    belief = [
        [sum(vote == c for vote in row) / sum(vote >= 0 for vote in row) for c in range(classes)] for row in votes
    ]
    for _ in range(rounds):
        share = [smoothing + sum(row[c] for row in belief) for c in range(classes)]
        table = [
            [
                [smoothing + sum(b[c] for b, row in zip(belief, votes, strict=True) if row[v] == k) for k in each]
                for c in each
            ]
            for v in range(voters)
        ]
        for place, row in enumerate(votes):
            odds = []
            for c in range(classes):
                value = share[c] / sum(share)
                for v, vote in enumerate(row):
                    if vote >= 0:
                        value *= table[v][c][vote] / sum(table[v][c])
                odds.append(value)
            belief[place] = [value / sum(odds) for value in odds]
    return belief


def test_several_voters_are_weighed_as_dawid_and_skene_do() -> None:
    _, votes = drawn(40, [0.9, 0.6, 0.4])
    votes[::7, 1] = -1
    votes[3] = [2, -1, -1]
    ours = vote_probabilities(votes, 3, smoothing=0.5, tolerance=0.0, rounds=30)
    np.testing.assert_allclose(ours, dawid_skene(votes.tolist(), 3, 0.5, 30), atol=1e-9)


def test_a_reliable_voter_outweighs_two_who_guess() -> None:
    truth, votes = drawn(2000, [0.95, 0.5, 0.5, 0.3, 0.3], seed=1)
    counts = np.eye(3)[votes].sum(1)
    majority = (counts.argmax(1) == truth).mean()
    learned = (vote_probabilities(votes, 3).argmax(1) == truth).mean()
    assert learned > majority + 0.05
    assert learned > 0.93


def test_a_lone_voter_is_believed_nine_times_in_ten() -> None:
    found = vote_probabilities(np.array([[1], [-1], [0]]), 3)
    np.testing.assert_allclose(found[[0, 2]], [[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]])
    assert np.isnan(found[1]).all()


def test_probabilities_sum_to_one_and_rows_without_votes_have_none() -> None:
    _, votes = drawn(50, [0.8, 0.7])
    votes[5] = -1
    found = vote_probabilities(votes, 3)
    assert np.isnan(found[5]).all()
    np.testing.assert_allclose(np.delete(found, 5, 0).sum(1), 1.0)
    assert (np.delete(found, 5, 0) > 0).all()


def test_neither_the_order_of_voters_nor_that_of_rows_matters() -> None:
    _, votes = drawn(60, [0.9, 0.6, 0.5])
    one = vote_probabilities(votes, 3)
    np.testing.assert_allclose(vote_probabilities(votes[:, ::-1], 3), one, atol=1e-9)
    np.testing.assert_allclose(vote_probabilities(votes[::-1], 3)[::-1], one, atol=1e-9)


@pytest.mark.parametrize("voters", [1, 3])
def test_a_file_without_any_vote_has_no_probabilities(voters: int) -> None:
    assert np.isnan(vote_probabilities(np.full((4, voters), -1), 2)).all()
