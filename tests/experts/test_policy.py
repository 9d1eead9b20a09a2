"""The expert's file and its NumPy network."""

from dataclasses import replace

import numpy as np
import pytest

from oclam import suite
from oclam.errors import UserError
from oclam.experts.policy import ExpertPolicy, load_expert, main, measure, save_expert
from oclam.seeding import seed_of

TASK = "cheetah-run"  # 17 observations, 6 actions


def policy(sizes=(17, 5, 6), seed=0, bound="clip", activation="tanh"):
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(after, before)).astype(np.float32), rng.normal(size=after).astype(np.float32))
              for before, after in zip(sizes, sizes[1:], strict=False)]
    mean, std = rng.normal(size=sizes[0]), rng.uniform(0.5, 2, sizes[0])
    return ExpertPolicy(TASK, "PPO", layers, mean, std, 10.0, activation, bound, {"return_mean": 1.5})


@pytest.mark.parametrize("bound", ["clip", "tanh"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_network_equals_loops_over_units(bound, activation):
    mlp, observation = policy(bound=bound, activation=activation), np.random.default_rng(1).normal(size=17)
    hidden = [(observation[i] - mlp.mean[i]) / mlp.std[i] for i in range(17)]
    for k, (weight, bias) in enumerate(mlp.layers):
        hidden = [sum(weight[i, j] * hidden[j] for j in range(len(hidden))) + bias[i] for i in range(len(bias))]
        if k == 0:
            hidden = [np.tanh(value) if activation == "tanh" else max(value, 0) for value in hidden]
    expected = [np.tanh(value) if bound == "tanh" else min(max(value, -1), 1) for value in hidden]
    np.testing.assert_allclose(mlp(observation.astype(np.float32)), expected, atol=1e-5)


def test_normalised_observations_are_clipped():
    mlp, far = policy(), np.full(17, 1e9, np.float32)
    np.testing.assert_array_equal(mlp(far), mlp((mlp.mean + 10 * mlp.std + 1e-3).astype(np.float32)))
    assert not np.array_equal(mlp(far), mlp(mlp.mean + mlp.std))


def test_a_batch_is_its_rows():
    mlp, batch = policy(), np.random.default_rng(2).normal(size=(3, 4, 17)).astype(np.float32)
    assert mlp(batch).shape == (3, 4, 6) and mlp(batch).dtype == np.float32
    np.testing.assert_allclose(mlp(batch)[1, 2], mlp(batch[1, 2]), atol=1e-6)


def test_file_gives_the_policy_back_and_the_same_bytes(tmp_path):
    before = policy()
    save_expert(tmp_path / "a", before)
    after = load_expert(tmp_path / "a", TASK)
    save_expert(tmp_path / "b", after)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert after.facts == before.facts
    observation = np.ones(17, np.float32)
    np.testing.assert_array_equal(after(observation), before(observation))


@pytest.mark.parametrize("change, word", [
    ({"task": "walker-run"}, "walker-run"),
    ({"mean": np.zeros(16)}, "17"),
    ({"std": np.ones(18)}, "17"),
    ({"layers": policy((17, 5, 4)).layers}, "actions of 6"),
    ({"layers": policy((24, 5, 6)).layers}, "observations of 17"),
    ({"layers": policy((17, 5, 5, 6)).layers[1:]}, "17"),
    ({"activation": "gelu"}, "gelu"),
    ({"bound": "none"}, "none"),
    ({"task": "cheetah-fly"}, "cheetah-fly"),
])
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, change, word):
    save_expert(tmp_path / "expert", replace(policy(), **change))
    with pytest.raises(UserError, match=word) as caught:
        load_expert(tmp_path / "expert", TASK)
    assert "\n" not in str(caught.value) and "expert" in str(caught.value)


def test_a_safetensors_file_that_is_no_expert_is_refused(tmp_path):
    from safetensors.numpy import save_file
    save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not an expert"):
        load_expert(tmp_path / "x.safetensors", TASK)


def test_an_expert_that_claims_nothing_is_measured_and_no_episode_refused(tmp_path, monkeypatch, capsys):
    save_expert(tmp_path / "expert.safetensors", replace(policy(), facts={}))
    monkeypatch.setattr("oclam.experts.policy.measure", lambda *_: np.array([1.0, 3.0]))
    monkeypatch.setattr("sys.argv", ["policy", str(tmp_path / "expert.safetensors"), "cheetah-run", "--episodes", "2"])
    main()
    assert capsys.readouterr().out == "measured: 2.0 ± 1.0 over 2 episodes\n"
    monkeypatch.setattr("sys.argv", ["policy", str(tmp_path / "expert.safetensors"), "cheetah-run", "--episodes", "0"])
    with pytest.raises(UserError, match="^--episodes: 0 given"):
        main()


def test_unknown_task_is_refused():
    with pytest.raises(UserError, match="cheetah-fly"):
        suite.load_task("cheetah-fly", 0)


def test_flatten_keeps_the_suite_order():
    observation = suite.load_task("walker-run", 0).reset().observation
    assert list(observation) == ["orientations", "height", "velocity"]
    np.testing.assert_array_equal(suite.flatten(observation), np.float32(
        [*observation["orientations"], observation["height"], *observation["velocity"]]))


def test_returns_depend_on_purpose_and_nothing_else(monkeypatch):
    load_suite = suite.load_task

    def short(task):
        environment = load_suite(task)
        environment._step_limit = 20
        return environment

    monkeypatch.setattr(suite, "load_task", short)
    mlp = policy()
    first = measure(mlp, 2, "a")
    np.testing.assert_array_equal(first, measure(mlp, 2, "a"))
    assert not np.array_equal(first, measure(mlp, 2, "b")) and first[0] != first[1]


def test_a_return_is_the_sum_of_an_episode_s_rewards(monkeypatch):
    environment, mlp, rewards = suite.load_task(TASK), policy(), []
    environment._step_limit = 20
    environment.task.random.seed(seed_of("expert", TASK, "a", 0) % 2**32)
    step = environment.reset()
    while not step.last():
        step = environment.step(mlp(suite.flatten(step.observation)))
        rewards.append(step.reward)
    monkeypatch.setattr(suite, "load_task", lambda _: environment)
    assert measure(mlp, 1, "a") == pytest.approx(sum(rewards)) and len(rewards) == 20 and sum(rewards) > max(rewards)
