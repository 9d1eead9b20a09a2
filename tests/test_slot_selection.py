import numpy as np
import pytest

from oclam.seeding import numpy_rng
from oclam.slot_selection import Probe, choose_slots, combine, holders, probe

STEPS, SLOTS, DIM = 60, 4, 3


def trajectories(carriers, count=4, noise=0.3):
    """Random slots; the actions are a linear map of the changes of the slots named, plus noise."""
    rng = numpy_rng("selection")
    slots = [rng.normal(size=(STEPS, SLOTS, DIM)) for _ in range(count)]
    maps = rng.normal(size=(len(carriers), DIM, 2))
    actions = []
    for trajectory in slots:
        change = np.diff(trajectory, axis=0, append=0)
        actions.append(sum(change[:, k] @ m for k, m in zip(carriers, maps, strict=True))
                       + noise * rng.normal(size=(STEPS, 2)))
    return slots, actions


def test_the_one_slot_that_carries_the_actions_is_chosen_alone():
    chosen, probes = choose_slots(*trajectories([2]), max_slots=2, how="concatenate", candidates=range(SLOTS))
    assert chosen == [2]
    assert probes[(2,)].r2 > 0.9 and all(probes[(k,)].r2 < 0.2 for k in (0, 1, 3))
    assert probes[(2,)].mse == pytest.approx(0.09, rel=0.3)  # the noise that no probe can explain


def test_a_pair_is_chosen_when_both_carry_the_actions():
    chosen, probes = choose_slots(*trajectories([0, 3]), max_slots=2, how="concatenate", candidates=range(SLOTS))
    assert chosen == [0, 3] and probes[(0, 3)].gain_over(probes[(0,)]) > 1


def test_no_more_slots_than_allowed():
    assert len(choose_slots(*trajectories([0, 3]), max_slots=1, how="concatenate", candidates=range(SLOTS))[0]) == 1


def test_a_slot_that_holds_no_patch_is_not_chosen_however_much_it_tells():
    masks = np.zeros((10, SLOTS, 4, 4))
    masks[:, 0, :2], masks[:, 1, 2:], masks[:5, 3, 0, 0] = 1, 1, 2  # slot 2 holds nothing, slot 3 half a patch a frame
    assert holders([masks[:5], masks[5:]]) == [0, 1]
    assert holders([masks[:5]]) == [0, 1, 3]
    chosen, probes = choose_slots(*trajectories([2]), max_slots=2, how="concatenate", candidates=[0, 1])
    assert 2 not in chosen and probes[(2,)].r2 > 0.9  # the report still shows what it tells
    assert choose_slots(*trajectories([0, 3]), max_slots=2, how="concatenate", candidates=[3])[0] == [3]


def test_other_trajectories_tell_the_actions_of_the_held_out_one():
    slots, actions = trajectories([1])
    actions[0] = -actions[0]  # what holds elsewhere is wrong here
    errors = probe([s[:, 1] for s in slots], actions).errors
    assert errors[0] > 4 * probe([s[:, 1] for s in slots[1:]], actions[1:]).errors.mean()


def test_probe_of_a_constant_has_the_variance_for_error():
    _, actions = trajectories([0])
    found = probe([np.ones((STEPS, 1)) for _ in actions], actions)
    assert found.mse == pytest.approx(found.variance, rel=0.1)


def test_gain_is_in_standard_errors_over_trajectories():
    better, worse = Probe(np.array([1.0, 2, 3]), 1), Probe(np.array([2.0, 4, 6]), 1)
    assert better.gain_over(worse) == pytest.approx(2 / (1 / 3**0.5))
    assert worse.gain_over(better) == pytest.approx(-better.gain_over(worse))


def test_combining():
    slots = np.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_array_equal(combine(slots, [1, 3], "concatenate")[0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(combine(slots, [1, 3], "mean")[0], [6, 7, 8])
