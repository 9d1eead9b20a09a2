import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from oclam import datasets
from oclam.datasets import (
    Frames,
    FrameSampler,
    Prefetch,
    TripleSampler,
    frame_of,
    open_dataset,
    stack_index,
    to_image,
    transition_of,
)
from oclam.errors import UserError

EPISODES, STEPS = 5, 7


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A dataset of 5 + 1 episodes of 7 steps; every pixel row is its own."""
    monkeypatch.chdir(tmp_path)
    return make("data.zarr", EPISODES + 1, STEPS)


def make(path, episodes, steps):
    random, group = np.random.default_rng(0), zarr.create_group(path)
    group.attrs.update(task="cheetah-run", view="distracted", episodes=episodes - 1, test_episodes=1)
    pixels = random.integers(0, 256, (episodes, steps, 8, 8, 3), dtype=np.uint8)
    group.create_array("pixels", data=pixels, chunks=(1, 4, 8, 8, 3), shards=(2, 8, 8, 8, 3))
    for name, shape in {"actions": (2,), "states": (3,), "rewards": ()}.items():
        group.create_array(name, data=random.normal(size=(episodes, steps, *shape)).astype(np.float32))
    return open_dataset(path)


def load(store):
    return Frames.load(store.pixels, range(EPISODES), "cpu")


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(datasets, "available_memory", lambda: 2000)


def naive_stack(pixels, t, stack):
    episode, step = divmod(int(t), STEPS)
    return np.stack([pixels[episode, max(step - back, 0)] for back in reversed(range(stack))])


def test_dataset_reads_what_was_written(store):
    assert (store.episodes, store.test_episodes, store.steps) == (EPISODES, 1, STEPS)
    assert store.actions.shape == (EPISODES + 1, STEPS, 2) and store.states.shape[-1] == 3
    assert store.rewards is store.rewards


@pytest.mark.parametrize("spoil", ["attrs", "array", "shape"])
def test_what_is_no_dataset_is_refused(store, spoil):
    group = zarr.open_group("data.zarr", mode="r+")
    if spoil == "attrs":
        del group.attrs["task"]
    elif spoil == "array":
        del group["actions"]
    else:
        group.attrs["episodes"] = 17
    with pytest.raises(UserError, match="data.zarr: .*dvc repro"):
        open_dataset("data.zarr")


FOREIGN = {  # a store that somebody else wrote: what its pixels are, what the line must say
    "float01": lambda pixels: (pixels / 255).astype(np.float32), "chw": lambda pixels: np.moveaxis(pixels, -1, 2),
    "rgba": lambda pixels: np.concatenate([pixels, pixels[..., :1]], -1), "grey": lambda pixels: pixels[..., 0]}


@pytest.mark.parametrize("kind", FOREIGN)
def test_pixels_of_another_type_or_layout_are_refused_at_opening(store, kind):
    foreign = FOREIGN[kind](store.pixels[:])
    group = zarr.open_group("data.zarr", mode="r+")
    group.create_array("pixels", data=foreign, overwrite=True)
    with pytest.raises(UserError, match="data.zarr: pixels .* expected uint8") as error:
        open_dataset("data.zarr")
    assert "\n" not in str(error.value)


def test_a_store_of_zarr_2_is_read_and_another_task_refused(store):
    group = zarr.create_group("two.zarr", zarr_format=2, attributes=dict(store.attrs))
    for name in ("pixels", "actions", "states", "rewards"):
        group.create_array(name, data=store.group[name][:])
    assert np.array_equal(open_dataset("two.zarr", "cheetah-run").pixels[:], store.pixels[:])
    with pytest.raises(UserError, match="two.zarr: a dataset of cheetah-run, walker-run expected"):
        open_dataset("two.zarr", "walker-run")


def test_labels_of_held_out_episodes_cannot_be_used(store):
    assert sorted(store.labelled(EPISODES, 0, "a.b")) == list(range(EPISODES))
    with pytest.raises(UserError, match="^a.b: 6 given, data.zarr has 5 training episodes"):
        store.labelled(EPISODES + 1, 0, "a.b")


def test_more_labels_contain_the_fewer_and_another_seed_has_others(store):
    many = replace(store, episodes=100)
    largest = many.labelled(64, 0, "a.b")
    for count in (2, 8, 64):
        assert many.labelled(count, 0, "a.b") == largest[:count]
    assert many.labelled(64, 1, "a.b") != largest != list(range(64))
    assert replace(many, attrs={**many.attrs, "task": "walker-run"}).labelled(64, 0, "a.b") != largest


def test_imported_actions_have_mean_0_and_deviation_1_over_training_episodes_and_the_simulators_are_as_they_are(store):
    np.testing.assert_array_equal(store.normalised_actions([1, 0]), store.actions[[1, 0]])
    imported = open_dataset(store.path)
    imported.attrs["adopted"], imported.actions[:, :, 0] = "store", 3
    imported.actions[:, :, 1] = 0.01 * imported.actions[:, :, 1] + 20
    found = imported.normalised_actions(range(EPISODES))
    np.testing.assert_allclose(found.mean((0, 1)), 0, atol=0.01)
    np.testing.assert_allclose(found.std((0, 1)), [0, 1], rtol=0.01)  # the first never varies
    offset, scale = imported.action_units(range(EPISODES))
    np.testing.assert_allclose(offset + scale * found, imported.actions[:EPISODES], rtol=1e-6)


def test_without_known_actions_units_are_0_and_1(store):
    unknown = open_dataset(store.path)
    unknown.attrs["adopted"], unknown.actions[:] = "store", np.nan
    assert [unit.tolist() for unit in unknown.action_units(range(EPISODES))] == [[0, 0], [1, 1]]


def test_a_transition_and_its_frame_are_each_other_s_inverse():
    transitions = torch.arange(EPISODES * (STEPS - 1))
    frames = frame_of(transitions, STEPS)
    naive = [e * STEPS + t for e in range(EPISODES) for t in range(STEPS - 1)]
    assert frames.tolist() == naive and torch.equal(transition_of(frames, STEPS), transitions)


def test_stacks_of_triples_equal_a_loop_over_items(store):
    frames, sampler, pixels = load(store), TripleSampler(EPISODES, STEPS, 11, 4, 0), store.pixels[:]
    for step in range(4):
        for indices in sampler.batch(step):
            stacks = frames.gather(stack_index(indices, 3, STEPS))
            assert np.array_equal(stacks, np.stack([naive_stack(pixels, t, 3) for t in indices]))


def test_stacks_repeat_the_first_frame_of_their_own_episode():
    t = torch.tensor([0, 1, 2, STEPS, STEPS + 1, 3 * STEPS - 1])
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [7, 7, 7], [7, 7, 8], [18, 19, 20]]
    assert stack_index(t, 3, STEPS).tolist() == expected
    assert torch.equal(stack_index(t, 1, STEPS).squeeze(-1), t)


@pytest.mark.parametrize("batch_size", [1, 10, 30, 77])
def test_every_epoch_has_every_frame_with_a_successor_once(batch_size):
    sampler, samples = FrameSampler(EPISODES, STEPS, batch_size, 0), EPISODES * (STEPS - 1)
    drawn = torch.cat([sampler.batch(step) for step in range(-(-3 * samples // batch_size))])
    epochs = [sorted(drawn[i * samples:(i + 1) * samples].tolist()) for i in range(3)]
    assert epochs == [[t for t in range(EPISODES * STEPS) if t % STEPS != STEPS - 1]] * 3
    assert sampler.steps_per_epoch == -(-samples // batch_size)
    assert not torch.equal(drawn[:samples], drawn[samples:2 * samples])


def test_batches_depend_on_seed_and_step_alone():
    first, second = (TripleSampler(EPISODES, STEPS, 9, 4, seed=1) for _ in range(2))
    forwards = [torch.stack(first.batch(step)) for step in range(8)]
    backwards = [torch.stack(second.batch(step)) for step in reversed(range(8))]
    assert all(map(torch.equal, forwards, reversed(backwards)))
    other = TripleSampler(EPISODES, STEPS, 9, 4, seed=2)
    assert not torch.equal(forwards[0], torch.stack(other.batch(0)))


def test_the_future_is_uniform_and_stays_in_its_episode():
    steps, offset = 100, 10
    t, after, future = TripleSampler(400, steps, 400 * (steps - 1), offset, 0).batch(0)
    assert torch.equal(after, t + 1) and torch.equal(future // steps, t // steps)
    free = t % steps < steps - offset
    counts = Counter((future - t)[free].tolist())
    assert sorted(counts) == list(range(1, offset + 1))
    expected = int(free.sum()) / offset  # 3,600 a value, standard deviation 57
    assert all(abs(count - expected) < 5 * expected ** 0.5 for count in counts.values())
    last = t % steps == steps - 2
    assert torch.equal(future[last], after[last])


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_gather_equals_indexing_for_every_type_and_width(kind, width):
    rows = torch.randint(0, 256, (20, width, 1), generator=torch.Generator().manual_seed(0)).to(getattr(torch, kind))
    index, frames = torch.tensor([[3, 19, 0], [3, 3, 7]]), Frames(rows, "cpu")
    assert torch.equal(frames.gather(index), rows[index])


def test_mapped_rows_equal_those_in_memory_and_the_file_is_made_once(store, monkeypatch, capsys):
    index = torch.arange(EPISODES * STEPS).flip(0)
    expected = load(store).gather(index)
    assert "host memory" in capsys.readouterr().err
    monkeypatch.setattr(datasets, "available_memory", lambda: 2000)
    assert torch.equal(load(store).gather(index), expected)
    assert "mapped from .resume" in capsys.readouterr().err
    monkeypatch.setattr(datasets, "_read", None)  # a second reading would fail
    assert torch.equal(load(store).gather(index), expected)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "OCLAM_JOBS"])
def test_processes_that_train_together_and_stages_side_by_side_share_the_memory(store, monkeypatch, capsys, variable):
    size = EPISODES * STEPS * 8 * 8 * 3
    monkeypatch.setattr(datasets, "available_memory", lambda: 3 * size)  # of which half may be used
    for processes, place in {"1": "host memory", "2": "mapped from"}.items():
        monkeypatch.setenv(variable, processes)
        load(store)
        assert place in capsys.readouterr().err


@pytest.mark.parametrize(("bytes_a_number", "place"), [(7, "mapped from"), (9, "host memory")])
def test_numbers_of_four_bytes_are_mapped_where_half_of_the_memory_has_less(store, monkeypatch, capsys,
                                                                            bytes_a_number, place):
    monkeypatch.setattr(datasets, "available_memory", lambda: bytes_a_number * EPISODES * STEPS * 3)
    states = Frames.load(store.group["states"], range(EPISODES), "cpu").gather(torch.arange(EPISODES * STEPS))
    assert place in capsys.readouterr().err
    assert np.array_equal(states, store.states[:EPISODES].reshape(-1, 3))


@pytest.mark.parametrize("episodes", [range(EPISODES + 1), range(2, 4), [3, 0]])
def test_ranges_of_episodes_share_one_mapped_file(store, little_memory, monkeypatch, episodes):
    load(store)
    if isinstance(episodes, range):
        monkeypatch.setattr(datasets, "_read", None)  # a second reading would fail
    frames = Frames.load(store.pixels, episodes, "cpu")
    expected = store.pixels[:][list(episodes)].reshape(-1, 8, 8, 3)
    assert len(frames) == len(expected) and np.array_equal(frames.gather(torch.arange(len(frames))), expected)


def test_a_changed_array_is_mapped_again_and_the_old_file_removed(store, little_memory):
    load(store)
    zarr.open_group("data.zarr", mode="r+")["pixels"][0] = 7
    assert (load(store).gather(torch.arange(STEPS)) == 7).all()
    assert len(list(datasets.FOLDER.iterdir())) == 1


def test_episodes_are_counted_from_the_first_one_loaded(store):
    held_out = Frames.load(store.pixels, range(EPISODES, EPISODES + 1), "cpu")
    assert len(held_out) == STEPS and np.array_equal(held_out.gather(torch.arange(STEPS)), store.pixels[EPISODES])


LIMITED = """
import resource, sys, torch
from oclam import datasets
from oclam.datasets import Frames, open_dataset
store = open_dataset("large.zarr")
Frames.load(store.pixels, range(1), "cpu")  # libraries, threads and arenas before the limit
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]),) * 2)
datasets.available_memory = lambda: 2 * int(sys.argv[1])
frames = Frames.load(store.pixels, range(store.episodes), "cpu")
print(int(frames.gather(torch.arange(0, len(frames), 997)).sum()))
"""


def test_a_dataset_beyond_the_allowance_streams_within_a_bound(tmp_path, monkeypatch):
    """160 MB of pixels are read and sampled in 80 MB of memory, where loading them whole does not fit."""
    monkeypatch.chdir(tmp_path)
    group = zarr.create_group("large.zarr")
    group.attrs.update(task="cheetah-run", view="distracted", episodes=40, test_episodes=0)
    shape = (40, 325, 64, 64, 3)
    group.create_array("pixels", shape=shape, dtype="uint8", chunks=(1, *shape[1:]), fill_value=1)
    for name, width in (("actions", (1,)), ("states", (1,)), ("rewards", ())):
        group.create_array(name, shape=(40, 325, *width), dtype="float32")

    def run(allowance):
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(datasets.__file__).parents[1])}
        return subprocess.run([sys.executable, "-c", LIMITED, str(allowance), str(80 * 2**20)], env=environment,
                              capture_output=True, text=True)

    mapped, whole = run(10**6), run(10**9)
    assert mapped.returncode == 0, mapped.stderr
    assert int(mapped.stdout) == len(range(0, 40 * 325, 997)) * 64 * 64 * 3
    assert whole.returncode != 0 and "memory" in whole.stderr


def test_prefetch_gives_the_same_batches_in_any_order_and_passes_errors_on():
    def make(step):
        return 1 / (step - 3)

    ahead = Prefetch(make)
    assert [ahead(step) for step in (0, 1, 2, 10, 9, 4)] == [make(step) for step in (0, 1, 2, 10, 9, 4)]
    with pytest.raises(ZeroDivisionError):
        ahead(3)


def test_prefetch_makes_the_next_batch_before_it_is_asked_for():
    made = []
    ahead = Prefetch(lambda step: made.append(step) or step)
    assert ahead(0) == 0
    ahead._pool.shutdown()
    assert made == [0, 1]


def test_images_are_in_minus_one_to_one_with_the_oldest_frame_first():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = to_image(frames)
    assert images.shape == (2, 9, 4, 5) and images.dtype == torch.float32 and images.is_contiguous()
    for stack in range(3):
        for color in range(3):
            expected = frames[:, stack, :, :, color].float() / 127.5 - 1
            assert torch.allclose(images[:, 3 * stack + color], expected, atol=1e-6)
    assert to_image(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1)).flatten().tolist() == [-1, 1]


def test_an_episode_with_one_unknown_action_gives_no_labels(store):
    store.actions[1, 3, 0] = np.nan
    assert store.with_actions == [0, 2, 3, 4] and set(store.labelled(4, 0, "a.b")) == {0, 2, 3, 4}


def test_an_episode_with_one_unknown_action_does_not_count_in_the_units(store):
    store.attrs["adopted"], store.actions[1, 3, 0] = "store", np.nan
    np.testing.assert_array_equal(store.action_units(range(EPISODES)), store.action_units([0, 2, 3, 4]))


def test_every_step_and_seed_draws_its_own_futures():
    first, second = (TripleSampler(1, 10**5, 64, 10, seed) for seed in (0, 1))  # whose end cuts off no draw
    batches = [first.batch(0), first.batch(1), second.batch(0)]
    assert max(int(now.max()) for now, _, _ in batches) < 10**5 - 10
    assert len({tuple((future - now).tolist()) for now, _, future in batches}) == 3
