import numpy as np
import pytest

from oclam.agent.selection import (
    Probe,
    choose_model,
    choose_slots,
    combine,
    masked_thumbnails,
    probe,
    probe_masked,
    select_slots,
)
from oclam.params import SlotSelect
from oclam.seeding import numpy_rng

STEPS, SLOTS, SIZE = 60, 4, 16


def scene(carriers, count=4, noise=0.3):
    """Frames, masks and actions of some trajectories: four slots with a quarter of the frame each, in random colours.

    The actions are a linear map of how the colours of the slots `carriers` change, plus noise.
    """
    rng = numpy_rng("selection")
    colours = rng.integers(256, size=(count, STEPS, SLOTS, 3))
    maps = rng.normal(size=(len(carriers), 3, 2))
    change = np.diff(colours / 60, axis=1, append=0)
    actions = sum(change[:, :, k] @ m for k, m in zip(carriers, maps, strict=True))
    frames = colours.astype(np.uint8).reshape(count, STEPS, 2, 2, 3).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    masks = np.eye(SLOTS).reshape(1, SLOTS, 2, 2).repeat(STEPS, 0)
    return list(frames), [masks] * count, list(actions + noise * rng.normal(size=actions.shape))


def views_of(frames, masks, actions):
    return [masked_thumbnails(*trajectory) for trajectory in zip(frames, masks, strict=True)], actions


def test_the_one_slot_that_predicts_the_actions_is_chosen_alone():
    chosen, probes = choose_slots(*views_of(*scene([2])), max_slots=2)
    assert chosen == [2]
    assert probes[(2,)].r2 > 0.9 and all(probes[(k,)].r2 < 0.2 for k in (0, 1, 3))
    assert probes[(2,)].mse == pytest.approx(0.09, rel=0.3)  # the noise that no probe can explain


def test_a_pair_is_chosen_when_both_predict_the_actions():
    chosen, probes = choose_slots(*views_of(*scene([0, 3])), max_slots=2)
    assert chosen == [0, 3] and probes[(0, 3)].gain_over(probes[(0,)]) > 1


def test_no_more_slots_than_allowed():
    assert len(choose_slots(*views_of(*scene([0, 3])), max_slots=1)[0]) == 1


def test_a_slot_without_a_patch_predicts_nothing():
    frames, masks, actions = scene([2])
    masks = [np.stack([*mask.transpose(1, 0, 2, 3), mask[:, 2] / 2], 1) for mask in masks]  # a fifth below the third
    found = probe_masked(*views_of(frames, masks, actions), [4])
    assert found.mse == pytest.approx(found.variance, rel=0.1)
    assert choose_slots(*views_of(frames, masks, actions), max_slots=2)[0] == [2]


def test_a_masked_view_is_the_frame_where_the_mask_is_the_highest():
    frames, masks = (part[0] for part in scene([2])[:2])
    views = masked_thumbnails(frames, masks)
    coarse = frames.reshape(STEPS, 8, 2, 8, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(views.sum(1), coarse.reshape(STEPS, -1), rtol=1e-5)
    inside = np.zeros((8, 8))
    inside[:4, 4:] = inside[4:, 4:] = 1
    np.testing.assert_allclose(views[:, [1, 3]].sum(1), (coarse * inside).reshape(STEPS, -1), rtol=1e-5)


def vectors_of(colour):
    """Trajectories (STEPS, 3) of one slot's colours, and the actions that they predict."""
    frames, _, actions = scene([colour])
    return [frame[:, 0, -1].astype(float) for frame in frames], actions


def test_the_error_on_a_trajectory_comes_from_a_fit_on_the_others():
    vectors, actions = vectors_of(1)
    actions[0] = -actions[0]  # what holds elsewhere is wrong here
    errors = probe(vectors, actions).errors
    assert errors[0] > 4 * probe(vectors[1:], actions[1:]).errors.mean()


def test_probe_of_a_constant_has_the_variance_for_error():
    _, actions = vectors_of(1)
    found = probe([np.ones((STEPS, 1)) for _ in actions], actions)
    assert found.mse == pytest.approx(found.variance, rel=0.1)


def test_constant_actions_are_predicted_without_anything_to_explain():
    found = probe(*(2 * [[np.zeros((20, 2), np.float32)] * 3]))
    assert found.variance == 0 and found.r2 == 0


def test_gain_is_in_standard_errors_over_trajectories():
    better, worse = Probe(np.array([1.0, 2, 3]), 1), Probe(np.array([2.0, 4, 6]), 1)
    assert better.gain_over(worse) == pytest.approx(2 / (1 / 3**0.5))
    assert worse.gain_over(better) == pytest.approx(-better.gain_over(worse))


def test_combining():
    slots = np.arange(24.0).reshape(2, 4, 3)
    np.testing.assert_array_equal(combine(slots, [1, 3], "concatenate")[0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(combine(slots, [1, 3], "mean")[0], [6, 7, 8])


def test_the_model_is_kept_whose_slot_predicts_the_actions():
    frames, masks, actions = scene([2])
    whole = [np.concatenate([np.ones((STEPS, 1, 2, 2)), np.zeros((STEPS, SLOTS - 1, 2, 2))], 1)] * len(frames)
    best, errors = choose_model(np.stack([whole, masks, whole]), frames, actions)
    assert best == 1 and errors[1] == probe_masked(*views_of(frames, masks, actions), [2]).mse
    assert errors[0] == errors[2] == probe_masked(*views_of(frames, masks, actions), range(SLOTS)).mse > errors[1]


def test_a_second_slot_must_help_what_is_learned_from_too():
    frames, masks, actions = scene([0, 3])
    colours = [frame[:, ::SIZE // 2, ::SIZE // 2].reshape(STEPS, SLOTS, 3).astype(float) for frame in frames]

    def chosen(learned_from):
        return choose_slots(*views_of(frames, masks, actions), 2, learned_from)[0]

    alone = chosen(lambda which: [one[:, :1].mean(1) for one in colours])
    assert len(alone) == 1 and alone[0] in (0, 3)
    assert chosen(lambda which: [one[:, which].reshape(STEPS, -1) for one in colours]) == [0, 3]


def test_gains_below_the_margin_leave_one_slot(monkeypatch):
    monkeypatch.setattr("oclam.agent.selection.MARGIN", 1e6)
    assert len(choose_slots(*views_of(*scene([0, 3])), max_slots=2)[0]) == 1


def test_the_table_has_the_probes_of_the_chosen_slots_and_of_whole_frames_also_where_they_are_chosen_by_hand():
    select = SlotSelect(method="auto", manual={}, labelled_episodes=4, max_slots=2, combine="mean", masks="soft",
                        registered=False)
    frames, masks, actions = scene([2])
    vectors = [frame[:, ::SIZE // 2, ::SIZE // 2].reshape(STEPS, SLOTS, 3).astype(float) for frame in frames]
    thumbnails, _ = views_of(frames, masks, actions)
    whole = probe_masked(thumbnails, actions, range(SLOTS))
    for manual, chosen in ((None, [2]), ([0, 1], [0, 1])):
        found = select_slots(select, manual, frames, masks, vectors, actions,
                             lambda which: [colours[:, which].reshape(STEPS, -1) for colours in vectors])
        masked = probe_masked(thumbnails, actions, chosen)
        vector = probe([colours[:, chosen].mean(1) for colours in vectors], actions)
        assert found["chosen"] == chosen
        assert found["chosen_probe"] == pytest.approx(
            {"probe_mse": masked.mse, "probe_r2": masked.r2, "vector_mse": vector.mse})
        assert found["whole_frame"] == pytest.approx({"probe_mse": whole.mse, "probe_r2": whole.r2})
        better = chosen == [2]
        assert found["better_than_whole_frame"] == better == (masked.mse < whole.mse)
        assert ("No slot predicts" not in found["why"]) == better
