"""Calibration and expected accuracy, on classifiers simulated with a known temperature."""

import numpy as np
import pytest
from scipy import optimize, special

from compressor.errors import InputError
from compressor.evaluate.calibration import (
    calibration_error,
    confidence,
    cross_fitted_confidence,
    expected_accuracy,
    fit_temperature,
)


def simulated(seed: int, rows: int, *, temperature: float, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits and class ids drawn from them; calibrated once the logits are divided by `temperature`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, (rows, classes))
    shares = special.softmax(true, axis=-1)
    references = (rng.random((rows, 1)) > shares.cumsum(-1)).sum(-1).clip(0, classes - 1)
    return true * temperature, references


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float):
    logits, references = simulated(0, 20_000, temperature=temperature)
    assert fit_temperature(logits, references) == pytest.approx(temperature, rel=0.04)


def test_the_temperature_minimises_the_loss_of_a_direct_search():
    logits, references = simulated(1, 3000, temperature=2.0)

    def loss(temperature: float) -> float:
        return -special.log_softmax(logits / temperature, axis=-1)[np.arange(3000), references].mean()

    direct = optimize.brute(loss, ((0.5, 5.0),), Ns=400)
    assert fit_temperature(logits, references) == pytest.approx(float(direct[0]), rel=0.01)


def test_a_temperature_mends_an_overconfident_model_and_changes_no_answer():
    logits, references = simulated(2, 8000, temperature=3.0)
    right = logits.argmax(-1) == references
    found = fit_temperature(*simulated(3, 4000, temperature=3.0))
    before = calibration_error(confidence(logits), right)
    after = calibration_error(confidence(logits, temperature=found), right)
    assert before > 0.1
    assert after < 0.03
    assert ((logits / found).argmax(-1) == logits.argmax(-1)).all()


def test_the_calibration_error_is_that_of_a_loop_over_the_bins():
    logits, references = simulated(4, 700, temperature=2.0)
    confident, right = confidence(logits), logits.argmax(-1) == references
    total = 0.0
    for number in range(15):
        inside = (confident >= number / 15) & (confident < (number + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confident[inside].mean())
    assert calibration_error(confident, right) == pytest.approx(total)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def test_a_model_that_is_right_on_a_few_rows_is_not_called_certain():
    logits = np.tile([4.0, 0.0], (20, 1))
    found = fit_temperature(logits, np.zeros(20, int))
    assert 0.9 < confidence(logits, temperature=found)[0] < 0.99


def test_confidence_fitted_on_the_other_half_is_calibrated_and_never_sees_its_own_labels():
    logits, references = simulated(5, 4000, temperature=3.0)
    found = cross_fitted_confidence(logits, references)
    assert calibration_error(found, logits.argmax(-1) == references) < 0.04
    turned = references.copy()
    turned[::2] = (turned[::2] + 1) % 3
    assert np.array_equal(cross_fitted_confidence(logits, turned)[::2], found[::2])


def test_expected_accuracy_covers_the_accuracy_that_labelling_finds():
    covered = 0
    for seed in range(400):
        logits, references = simulated(seed, 200, temperature=1.0)
        found = expected_accuracy(confidence(logits))
        covered += found.low <= np.mean(logits.argmax(-1) == references) <= found.high
    assert covered / 400 >= 0.95


def test_the_interval_is_that_of_redrawing_rows_and_outcomes():
    logits, _ = simulated(6, 500, temperature=1.0)
    confident, rng = confidence(logits), np.random.default_rng(0)
    drawn = confident[rng.integers(0, 500, (4000, 500))]
    many = (rng.random(drawn.shape) < drawn).mean(1)
    found = expected_accuracy(confident)
    assert (found.low, found.high) == pytest.approx(np.quantile(many, [0.025, 0.975]), abs=0.006)


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(InputError, match=r"got shape \(3, 1\) for 3 labels"):
        fit_temperature(np.zeros((3, 1)), np.zeros(3, int))
    with pytest.raises(InputError, match="same rows"):
        calibration_error(np.ones(2), np.ones(3, bool))
    with pytest.raises(InputError, match="a row or more"):
        expected_accuracy(np.array([]))
    with pytest.raises(InputError, match="two rows or more"):
        cross_fitted_confidence(np.zeros((1, 2)), np.zeros(1, int))
