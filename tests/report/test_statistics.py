import math
import tracemalloc

import numpy as np
import pytest

from oclam.report.statistics import (
    improvement,
    improvement_interval,
    interquartile_mean,
    recovery,
    resamples,
    summary,
)


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([1000, 3, 1, 2, 4, -1000, 5, 6]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([[0, 1, 2, 99], [0, 4, 6, 99]]).tolist() == [1.5, 5.0]


def test_probability_of_improvement_is_the_share_of_pairs_won():
    assert improvement([[2, 3], [4, 1]], [0, 2]).tolist() == [0.875, 0.75]
    assert improvement([1, 3], [2]) == 0.5 and improvement([2, 3], [2, 2]) == 0.75  # a tie is half a win


def test_probability_of_improvement_of_many_episodes_needs_little_memory():
    random = np.random.default_rng(0)
    returns, others = random.normal(size=(20, 600)).round(1), random.normal(size=(20, 600)).round(1)
    tracemalloc.start()
    chances = improvement(returns, others)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pairs = returns[:, :, None] - others[:, None]
    np.testing.assert_allclose(chances, (np.sign(pairs).mean((1, 2)) + 1) / 2, rtol=1e-12)
    assert peak < 12 * (returns.nbytes + others.nbytes)  # a byte for each pair would be 37 times as much


def test_resamples_draw_seeds_and_the_same_episodes_for_all():
    returns = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    drawn = resamples(returns, 4000).reshape(4000, 2, 3)
    assert (np.ptp(drawn // 10, axis=2) == 0).all()  # all episodes of one drawn seed
    assert (drawn[:, 0] % 10 == drawn[:, 1] % 10).all()
    assert (resamples(returns, 50, seed=1) % 10 == resamples(returns, 50) % 10).all()  # also for another variant
    # Variance of the mean: of seeds 25 / 2, and of episodes 2 / 3 / 3.
    assert drawn.mean((1, 2)).var() == pytest.approx(25 / 2 + 2 / 3 / 3, rel=0.1)


@pytest.mark.parametrize(("seeds", "episodes"), [(3, 3), (2, 5)])
def test_seeds_are_drawn_independently_of_episodes(seeds, episodes):
    returns = np.arange(seeds)[:, None] + np.arange(episodes)
    # Variances of the means of both draws, (n^2 - 1) / 12 of each draw, add up.
    expected = sum((n**2 - 1) / 12 / n for n in (seeds, episodes))
    assert resamples(returns, 20_000).mean(1).var() == pytest.approx(expected, rel=0.05)


def test_interval_is_as_wide_as_episodes_that_all_seeds_share():
    shared = np.random.default_rng(0).normal(size=(1, 12))
    one, five = summary(shared), summary(np.repeat(shared, 5, axis=0))
    assert (five["low"], five["high"]) == pytest.approx((one["low"], one["high"]), abs=0.05)


def test_interval_of_the_probability_of_improvement_contains_a_half_where_nothing_differs():
    random = np.random.default_rng(0)
    returns, others = random.normal(size=(2, 20)), random.normal(size=(2, 20))
    low, high = improvement_interval(returns, others)
    assert low < improvement(returns.ravel(), others.ravel()) < high and low < 0.5 < high
    assert improvement_interval(returns + 9, others) == (1, 1)
    # With one seed and few pairs in doubt, the interval is that of two means of ranks (Mann-Whitney).
    wide, narrow = (np.diff(improvement_interval(*random.normal(size=(2, 1, n))))[0] for n in (25, 400))
    assert wide / narrow == pytest.approx(4, rel=0.25)


def test_recovery_is_0_at_lapo_and_1_without_distractors_whether_more_or_less_is_better():
    assert recovery(10, 10, 30) == 0 and recovery(30, 10, 30) == 1 and recovery(5, 10, 30) == -0.25
    assert recovery(0.2, 0.3, 0.1, errors=True) == pytest.approx(0.5)  # errors fall
    assert recovery(5, 10, 9) is recovery(9, 5, 10, errors=True) is None  # distractors cost nothing
    assert recovery(1.0, 2.0, 2.0) is None and recovery(None, 1.0, 2.0) is None


def test_one_seed_counts_episodes():
    result = summary([[1.0, 2.0, 3.0, 4.0]])
    assert result["mean"] == 2.5
    assert result["stderr"] == pytest.approx(math.sqrt(5 / 3) / 2)  # sample deviation over the root of 4
    assert result["iqm"] == 2.5
    assert 1 <= result["low"] < 2.5 < result["high"] <= 4


def test_several_seeds_count_seeds_not_episodes():
    # Episodes of a seed are alike here, so many of them add no certainty.
    few, many = summary([[0.0], [3.0], [6.0]]), summary(np.repeat([[0.0], [3.0], [6.0]], 25, axis=1))
    assert few["stderr"] == pytest.approx(math.sqrt(3))
    assert many["stderr"] == pytest.approx(math.sqrt(3))
    assert many["low"] == 0 and many["high"] == 6  # 1 resample in 27 is all of one seed, more than 2.5%


def test_interval_of_the_mean_of_normal_values_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(size=(1, 400))
    result = summary(values)
    # Asymptotic standard error of a normal sample's interquartile mean: 1.09 / sqrt(n) (efficiency 0.84).
    assert (result["high"] - result["low"]) / 2 == pytest.approx(1.96 * 1.09 / 20, rel=0.15)


@pytest.mark.parametrize("shared", [0, 0.5])  # of the episodes' variance, by all seeds
@pytest.mark.parametrize("seeds, coverage", [(1, 0.45), (2, 0.75), (3, 0.85), (5, 0.9)])
def test_intervals_of_few_seeds_are_too_narrow_as_the_report_says(seeds, coverage, shared):
    random = np.random.default_rng(0)
    found = [summary(random.normal(size=(seeds, 1)) + shared**0.5 * random.normal(size=12)
                     + (1 - shared)**0.5 * random.normal(size=(seeds, 12))) for _ in range(300)]
    assert np.mean([row["low"] <= 0 <= row["high"] for row in found]) == pytest.approx(coverage, abs=0.06)


def test_a_single_episode_has_no_error_and_shared_values_have_none():
    single, same = summary([[7.0]]), summary([[7.0, 7.0, 7.0]])
    assert single["mean"] == single["iqm"] == 7 and math.isnan(single["stderr"]) and math.isnan(single["low"])
    assert same["stderr"] == 0 and same["low"] == same["high"] == 7


def test_deterministic_and_equivariant_to_scale_and_shift():
    returns = np.random.default_rng(0).uniform(size=(3, 5))
    assert summary(returns) == summary(returns)
    scaled, plain = summary(10 * returns + 1), summary(returns)
    for key in ("mean", "iqm", "low", "high"):
        assert scaled[key] == pytest.approx(10 * plain[key] + 1)
    assert scaled["stderr"] == pytest.approx(10 * plain["stderr"])


def test_one_outlier_moves_neither_the_interquartile_mean_nor_its_interval():
    result = summary([[0.0] * 19 + [1000.0]])  # 1 resample in 3,000 has it six times, so that one is not cut off
    assert result["mean"] == 50 and result["iqm"] == result["low"] == result["high"] == 0
    assert summary([[0.0] * 4, [0.0, 0, 100, 100]])["iqm"] == 0  # of all episodes; of each seed it would be 0 and 50


def test_seeds_of_two_policies_are_drawn_on_their_own():
    # Drawn alike, a return is never higher in over a quarter of the pairs; drawn apart, in all of 1 resample of 16.
    assert improvement_interval([[0.0, 0], [2, 2]], [[1.0, 1], [3, 3]]) == (0, 1)
