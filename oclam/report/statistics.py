"""Statistics of a few noisy runs, after arXiv 2108.13264: interquartile mean, and intervals by bootstrap over seeds
and episodes."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def average(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing or there is none."""
    return None if None in values or not len(values) else float(np.mean(values))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half along the last axis: a quarter, rounded down, is left out at either end."""
    return stats.trim_mean(values, 0.25, axis=-1)


def improvement(returns: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The probability that a return is higher than one of the others, ties counted half (arXiv 2108.13264).

    returns (..., N) and others (..., M): every pair counts once, so 0.5 says that neither is better. It is Mann and
    Whitney's U, computed from ranks, since the pairs of many episodes do not fit in memory.
    """
    pairs = np.shape(returns)[-1] * np.shape(others)[-1]
    return stats.mannwhitneyu(returns, others, axis=-1, method="asymptotic").statistic / pairs


def recovery(value: float | None, lapo: float | None, clean: float | None, errors: bool = False) -> float | None:
    """How much of what distractors cost lapo a variant wins back: 0 at lapo's value, 1 at that without distractors.

    The measure of arXiv 2502.09680v3. None where a value is missing or distractors cost nothing.

    errors: whether less is better, as of probe errors; else more is, as of returns.
    """
    if None in (value, lapo, clean) or (clean >= lapo if errors else clean <= lapo):
        return None
    return (value - lapo) / (clean - lapo)


def summary(returns: np.ndarray) -> dict[str, float]:
    """Statistics of returns (S, E) of S seeds with E episodes each.

    mean and its standard error (stderr), of seeds where there are several, otherwise of episodes, which says nothing
    about other seeds; interquartile mean of all episodes (iqm) and the interval (low, high) in which 95% of the
    resamples have theirs. stderr, low and high are NaN for a single episode.
    """
    returns = np.asarray(returns, np.float64)
    means = returns.mean(1) if len(returns) > 1 else returns[0]
    stderr = low = high = math.nan
    if len(means) > 1:
        stderr = stats.sem(means)
        low, high = interval(interquartile_mean(resamples(returns)))
    values = {"mean": returns.mean(), "stderr": stderr, "iqm": interquartile_mean(returns.ravel()),
              "low": low, "high": high}
    return {key: float(value) for key, value in values.items()}


def improvement_interval(returns: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The interval in which 95% of the resamples of both, (S, E) in the same episodes, have their `improvement`."""
    return interval(improvement(resamples(returns), resamples(others, seed=1)))


def resamples(returns: np.ndarray, count: int = 2000, seed: int = 0) -> np.ndarray:
    """Bootstrap samples of returns (S, E): seeds and episodes drawn with replacement: (count, S E).

    All seeds act in the same episodes (start, background), so the drawn ones are always the same; `seed` decides
    which seeds are drawn.
    """
    returns, (seeds, episodes) = np.asarray(returns), np.shape(returns)
    drawn = np.random.default_rng([seed, 1]).integers(seeds, size=(count, seeds, 1))  # not the episodes' stream
    return returns[drawn, np.random.default_rng(0).integers(episodes, size=(count, 1, episodes))].reshape(count, -1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
