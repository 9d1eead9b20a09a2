"""Statistics of a few noisy runs, after arXiv 2108.13264: interquartile mean and bootstrap intervals."""

import math

import numpy as np
from scipy import stats

__all__ = ["improvement", "interquartile_mean", "recovery", "summary"]


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half along `axis`: a quarter of the values, rounded down, is left out at either end."""
    return stats.trim_mean(values, 0.25, axis=axis)


def improvement(returns: np.ndarray, others: np.ndarray) -> float:
    """The probability that a return is higher than one of the others, ties counted half (arXiv 2108.13264).

    returns and others: of any shape; every pair counts once, so 0.5 says that neither is better.
    """
    difference = np.subtract.outer(np.ravel(returns), np.ravel(others))
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def recovery(value: float | None, lapo: float | None, clean: float | None) -> float | None:
    """How much of what distractors cost lapo a variant wins back: 0 at lapo's value, 1 at that without distractors.

    The measure of arXiv 2502.09680v3, for probe errors and returns alike. None where a value is missing or distractors
    cost nothing.
    """
    if None in (value, lapo, clean) or lapo == clean:
        return None
    return (value - lapo) / (clean - lapo)


def summary(returns: np.ndarray) -> dict[str, float]:
    """Statistics of returns (S, E) of S seeds with E episodes each.

    mean and its standard error (stderr), interquartile mean of all episodes (iqm) and its 95% percentile bootstrap
    interval (low, high). Standard error and bootstrap resample seeds where there are several, otherwise episodes, which
    says nothing about other seeds. Those three are NaN for a single episode.
    """
    returns = np.asarray(returns, np.float64)
    units = returns if len(returns) > 1 else returns.T  # (units, values of each)
    count, means = len(units), units.mean(1)
    stderr = low = high = math.nan
    if count > 1:
        stderr = stats.sem(means)
        interval = stats.bootstrap((np.arange(count),), lambda drawn, axis: _iqm_of_units(units, drawn, axis),
                                   vectorized=True, method="percentile", n_resamples=2000,
                                   random_state=np.random.default_rng(0)).confidence_interval
        low, high = interval
    values = {"mean": returns.mean(), "stderr": stderr, "iqm": interquartile_mean(returns.ravel()),
              "low": low, "high": high}
    return {key: float(value) for key, value in values.items()}


def _iqm_of_units(units, drawn, axis):
    values = units[np.moveaxis(drawn, axis, -1)]  # (..., drawn units, values of each)
    return interquartile_mean(values.reshape(*values.shape[:-2], -1))
