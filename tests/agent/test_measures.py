import numpy as np
import pytest

from oclam.agent.measures import adjusted_rand_index, agent_patches, agent_scores, assignment_stability, slot_measures

AGENT = np.zeros((2, 4, 4), bool)
AGENT[:, 1, :] = True  # a row: 4 of 16 patches


def test_a_patch_is_agent_from_a_tenth_of_its_pixels():
    image = np.zeros((1, 20, 20), np.uint8)  # a 2 x 2 grid of 100-pixel patches
    image[0, 0, :10] = 1  # 10 pixels of the first
    image[0, 10, 10:19] = 1  # 9 pixels of the last
    assert agent_patches(image, 2)[0].tolist() == [[True, False], [False, False]]


def test_patches_may_cut_pixels():
    image = np.zeros((1, 64, 64), np.uint8)  # 28 patches of 2.29 pixels a side
    image[0, :, 9] = 1  # covers 9..10; patch 3 is 6.86..9.14, patch 4 9.14..11.43: 6% and 38% of them
    assert np.flatnonzero(agent_patches(image, 28)[0, 5]).tolist() == [4]
    image[0, 1:, 9] = 0  # one pixel: the first patch down has 44% of its height in it
    assert np.argwhere(agent_patches(image, 28)[0]).tolist() == [[0, 4]]


def test_scores_of_hand_made_masks():
    assert agent_scores(AGENT, AGENT) == {"agent_iou": 1, "agent_recall": 1, "area": 0.25}
    assert agent_scores(~AGENT, AGENT) == {"agent_iou": 0, "agent_recall": 0, "area": 0.75}
    assert agent_scores(np.ones_like(AGENT), AGENT) == {"agent_iou": 0.25, "agent_recall": 1, "area": 1}
    half = AGENT.copy()
    half[:, :, 2:] = False
    assert agent_scores(half, AGENT) == {"agent_iou": 0.5, "agent_recall": 0.5, "area": 0.125}


def test_frames_without_the_agent_do_not_count():
    agent = AGENT.copy()
    agent[1] = False
    mask = np.ones_like(AGENT)
    mask[0] = AGENT[0]
    assert agent_scores(mask, agent) == {"agent_iou": 1, "agent_recall": 1, "area": 0.25}


def test_rand_index_of_known_labellings():
    truth = np.array([1, 1, 2, 2, 3, 3])
    assert adjusted_rand_index(truth, truth % 3) == 1  # names do not matter
    assert adjusted_rand_index(truth, np.array([5, 5, 0, 0, 1, 1])) == 1
    assert adjusted_rand_index(truth, np.array([0, 1, 0, 1, 0, 1])) == pytest.approx(-4 / 11)
    # Hubert and Arabie by hand: 1 pair together of 2 and 2, 1 of 6 pairs
    assert adjusted_rand_index(np.array([1, 1, 2, 2]), np.array([0, 0, 1, 2])) == pytest.approx(4 / 7)


def test_foreground_rand_index_ignores_the_background():
    truth = np.array([0, 0, 0, 1, 1, 2, 2])
    assert adjusted_rand_index(truth, np.array([0, 1, 2, 3, 3, 4, 4])) == 1
    assert adjusted_rand_index(truth, np.array([3, 3, 3, 3, 3, 3, 3])) == 0


def test_foreground_rand_index_of_one_object_is_all_or_nothing():
    truth = np.array([0, 1, 1, 1])
    assert adjusted_rand_index(truth, np.array([2, 2, 2, 2])) == 1
    assert adjusted_rand_index(truth, np.array([2, 2, 2, 0])) == 0


def test_stability_is_the_share_of_frames_that_the_agent_spends_with_a_slot():
    agent = np.zeros((4, 2, 2), bool)
    agent[:, 0] = True
    labels = np.zeros((4, 2, 2), int)
    labels[:3, 0] = 2  # three frames in slot 2, the last in slot 0
    labels[:, 1] = 1
    np.testing.assert_allclose(assignment_stability(labels, agent, 3), [0.25, 0, 0.75])


def test_measures_of_a_known_assignment():
    segmentation = np.repeat(AGENT, 4, 0).reshape(2, 4, 4, 4).astype(np.uint8)  # 2 episodes x 4 frames
    masks = np.zeros((2, 4, 3, 4, 4), np.uint8)
    masks[:, :, 0], masks[:, :, 2, 1] = 100, 150  # slot 2 holds the agent's row, slot 0 the rest
    masks[1, 3, 2, 1] = 0  # but for one frame
    found = slot_measures(masks, segmentation, chosen=[2])
    assert found["segmentation_choice"] == 2 and found["fg_ari"] == 1
    assert found["slots"][2] == {"agent_iou": 7 / 8, "agent_recall": 7 / 8, "area": 7 / 32, "stability": 7 / 8}
    assert {key: found[key] for key in found["slots"][2]} == found["slots"][2]
    assert found["slots"][1] == {"agent_iou": 0, "agent_recall": 0, "area": 0, "stability": 0}
    together = slot_measures(masks, segmentation, chosen=[0, 2])
    assert (together["agent_recall"], together["area"], together["agent_iou"]) == (1, 1, 0.25)


def test_episodes_without_the_agent_are_left_out_and_nothing_is_measured_where_none_has_it():
    masks, segmentation = np.random.default_rng(0).random((2, 3, 4, 4, 4)), np.zeros((2, 3, 16, 16), np.uint8)
    assert slot_measures(masks, segmentation, [1]) == {}
    segmentation[1, 1, 4:8] = 1
    assert slot_measures(masks, segmentation, [1]) == slot_measures(masks[1:], segmentation[1:], [1])


def test_measures_are_means_over_the_frames_that_show_the_agent_as_a_loop_finds_them():
    rng = np.random.default_rng(0)
    labels, agent = rng.integers(3, size=(2, 6, 4, 4)), rng.random((2, 6, 4, 4)) < 0.3
    agent[0, 2] = False  # a frame without the agent
    labels[0, :4][agent[0, :4]], labels[1, 3:][agent[1, 3:]] = 1, 2  # an episode spends most frames with slot 1, or 2
    labels[0, 5] = 0  # covers the agent, and all else
    masks, chosen = np.eye(3)[labels].transpose(0, 1, 4, 2, 3), [0, 1]
    found = slot_measures(masks, agent.astype(np.uint8), chosen)
    frames = [[(label, real) for label, real in zip(*episode, strict=True) if real.any()]
              for episode in zip(labels, agent, strict=True)]
    every = frames[0] + frames[1]

    def naive(inside):
        overlaps = [(np.isin(label, inside), real) for label, real in every]
        return {"agent_iou": np.mean([(mask & real).sum() / (mask | real).sum() for mask, real in overlaps]),
                "agent_recall": np.mean([(mask & real).sum() / real.sum() for mask, real in overlaps]),
                "area": np.mean([mask.mean() for mask, _ in overlaps])}

    most = [[np.bincount(label[real], minlength=3).argmax() for label, real in episode] for episode in frames]
    stability = np.array([np.bincount(slots, minlength=3) / len(slots) for slots in most])
    for k, row in enumerate(found["slots"]):
        assert row == pytest.approx(naive([k]) | {"stability": stability[:, k].mean()})
    assert {key: found[key] for key in found["slots"][0]} == pytest.approx(
        naive(chosen) | {"stability": stability.max(1).mean()})
    assert found["fg_ari"] == pytest.approx(np.mean([len(set(label[real])) == 1 for label, real in every]))


def test_the_slot_that_matches_is_the_best_and_not_the_one_that_covers_everything():
    labels, agent = np.zeros((1, 2, 4, 4), int), AGENT[None].astype(np.uint8)
    labels[0, 1, 1, :3] = 1  # slot 0 covers all of one frame
    found = slot_measures(np.eye(2)[labels].transpose(0, 1, 4, 2, 3), agent, [0])
    assert [row["agent_iou"] for row in found["slots"]] == pytest.approx([(1 / 4 + 1 / 16) / 2, 3 / 8])
    assert found["slots"][0]["agent_recall"] > found["slots"][1]["agent_recall"] and found["segmentation_choice"] == 1
