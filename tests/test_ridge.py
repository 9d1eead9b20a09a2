import numpy as np
import pytest

from oclam.ridge import PENALTIES, Moments, best_ridge
from oclam.seeding import numpy_rng


@pytest.fixture
def data():
    rng = numpy_rng("ridge")
    x = rng.normal(size=(60, 5)) * [1, 10, 0.1, 3, 1] + 2
    return x, x @ rng.normal(size=(5, 2)) + rng.normal(size=(60, 2)) + 1


def test_fit_is_the_minimum_of_its_objective(data):
    x, y = data
    ridge = Moments.of(x, y).fit(0.3)
    design = np.concatenate([x, np.sqrt(60 * 0.3) * np.diag(x.std(0))])  # the penalty as five more rows
    intercept = np.r_[np.ones(60), np.zeros(5)][:, None]
    expected = np.linalg.lstsq(np.hstack([intercept, design]), np.r_[y, np.zeros((5, 2))], rcond=None)[0]
    np.testing.assert_allclose(ridge.bias, expected[0])
    np.testing.assert_allclose(ridge.weight, expected[1:])


def test_error_from_moments_is_the_error_on_the_data(data):
    x, y = data
    moments = Moments.of(x, y)
    ridge = Moments.of(x[:30], y[:30]).fit(0.1)
    np.testing.assert_allclose(moments.mse(ridge), ((x @ ridge.weight + ridge.bias - y) ** 2).mean(0))
    np.testing.assert_allclose(moments.variance, y.var(0))


def test_constant_inputs_and_targets_change_nothing(data):
    x, y = data
    more = Moments.of(np.c_[x, np.full(60, 1e4)], np.c_[y, np.full(60, 1e4)])
    ridge = more.fit(0.01)
    np.testing.assert_allclose(more.mse(ridge)[:2], Moments.of(x, y).mse(Moments.of(x, y).fit(0.01)), rtol=1e-3)
    assert more.variance[2] == 0 and (more.variance[:2] > 0).all()


def test_moments_add_over_batches_and_subtract(data):
    x, y = data
    parts = [Moments.of(x[i:i + 20], y[i:i + 20]) for i in (0, 20, 40)]
    np.testing.assert_allclose(sum(parts).joint, Moments.of(x, y).joint)
    np.testing.assert_allclose((sum(parts) - parts[1]).joint, (parts[0] + parts[2]).joint)


def test_scaling_an_input_changes_no_prediction(data):
    x, y = data
    scale = np.array([100, 1, 0.01, 5, 2])
    one, other = Moments.of(x, y).fit(0.5), Moments.of(x * scale, y).fit(0.5)
    np.testing.assert_allclose(x @ one.weight + one.bias, x * scale @ other.weight + other.bias)


def test_cross_validation_equals_refitting_without_each_trajectory(data):
    x, y = data
    folds = [np.arange(i, i + 15) for i in range(0, 60, 15)]
    penalty, errors = best_ridge([Moments.of(x[f], y[f]) for f in folds], penalties=[0.01, 1.0])
    assert penalty == 0.01
    for fold, error in zip(folds, errors, strict=True):
        rest = np.setdiff1d(np.arange(60), fold)
        ridge = Moments.of(x[rest], y[rest]).fit(penalty)
        np.testing.assert_allclose(error, ((x[fold] @ ridge.weight + ridge.bias - y[fold]) ** 2).mean(0))


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_that_of_the_lowest_mean_error_over_trajectories(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 12, 8))
    groups = [Moments.of(*pair) for pair in zip(x, x[..., :1] + 2 * rng.normal(size=(4, 12, 1)), strict=True)]
    penalty, errors = best_ridge(groups)
    naive = {p: np.mean([group.mse(sum(other for other in groups if other is not group).fit(p)) for group in groups])
             for p in PENALTIES}
    assert penalty == min(naive, key=naive.get) and errors.mean() == pytest.approx(naive[penalty])
