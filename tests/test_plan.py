import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from oclam import suite
from oclam.datasets import TripleSampler, open_dataset
from oclam.errors import UserError
from oclam.importers.store import write_dataset
from oclam.params import Extras, read
from oclam.plan import TFLOPS, Cost, Plan, main
from oclam.variants import LATENT
from tests import ROOT
from tests.importers.test_store import source


def plan(path, *changes):
    return Plan(read(ROOT / path, changes))


def costs(plan):
    return {cost.stage: cost for cost in plan.costs()}


EXTRAS = [f"extras.{name}=true" for name in Extras.model_fields]


@pytest.fixture(scope="module")
def paper():
    return costs(plan("params/paper.yaml", "ocp.slots=8", *EXTRAS))


def test_extras_that_are_left_out_cost_nothing(paper):
    few = costs(plan("params/paper.yaml", "ocp.slots=8", "extras.steve=true"))
    assert paper.keys() - few.keys() == {"slotcontrast", "lapo-focus", "laom", "laom-masks", "laom-labels"}
    of_run = 4 * 3  # tasks and seeds
    for stage, all_variants, others in (("bc", 8, 4), ("finetune", 8, 4), ("eval", 11, 7)):
        assert (paper[stage].runs, few[stage].runs) == (of_run * all_variants, of_run * others)
        if stage != "eval":  # whose cost is the variants' mean
            assert replace(few[stage], runs=paper[stage].runs) == paper[stage]
    assert few["eval"].samples == (4 * (7 + 1) + 7 + 2 + 1) / 7 * 25 * 1000


@pytest.mark.parametrize(("stage", "parameters"), [("lapo", 211_847_849), ("lapo-masks", 211_847_849),
                                                   ("lapo-slots", 89_186_432), ("bc", 107_541_504),
                                                   ("ocp", 92_149_776)])
def test_paper_yaml_has_the_parameters_of_table_4(paper, stage, parameters):
    assert paper[stage].total == parameters


def test_the_encoder_is_frozen_and_all_else_is_trained(paper):
    assert paper["ocp"].trainable == 6_343_440 and paper["encoder"].total == 92_149_776 - 6_343_440
    assert paper["lapo"].trainable == paper["lapo"].total


def test_the_paper_s_dataset_and_latents_have_their_known_sizes(paper):
    assert paper["ocp"].data == 5000 * 1000 * 64 * 64 * 3  # the 61 GB of the paper's dataset
    assert paper["lapo"].disk - 4 * paper["lapo"].total == 5050 * 1000 * 8192 * 2
    assert paper["collect"].runs == 8 and paper["lapo"].runs == 12 and paper["bc"].runs == 12 * len(LATENT)


def test_samples_are_those_that_the_sampler_gives(paper):
    sampler = TripleSampler(5000, 1000, 512, 10, 0)
    assert paper["lapo"].samples == 10 * sampler.steps_per_epoch * 512
    assert paper["ocp"].samples == 100_000 * 128 * 3
    assert paper["finetune"].samples == 7 * 2500 * 512


@pytest.fixture
def small():
    return plan("params.yaml")


def test_flops_and_activations_of_a_linear_layer_are_the_closed_form(small):
    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 3))
        found = small.measure(layers, lambda: layers(torch.empty(1, 8)))
    assert (found.size, found.forward) == (8 * 5 + 5 + 5 * 3 + 3, 2 * (8 * 5 + 5 * 3))
    assert found.both == 3 * found.forward - 2 * 8 * 5  # the input needs no gradient
    assert found.activations == 4 * (8 + 5 + 5)  # what each layer saw, in float32


def test_a_detached_run_counts_the_way_forward_alone(small):
    with torch.device("meta"):
        layer = nn.Linear(8, 5)
        found = small.measure(layer, lambda: layer(torch.empty(1, 8)).detach())
    assert found.forward == found.both == 2 * 8 * 5


def test_activations_take_two_bytes_in_bfloat16_and_four_in_float32():
    with torch.device("meta"):
        layer = nn.Linear(8, 5)
        found = [plan("params.yaml", f"compute.precision={precision}").measure(layer, lambda: layer(torch.empty(1, 8)))
                 for precision in ("bfloat16", "float32")]
    assert [measured.activations for measured in found] == [2 * 8, 4 * 8]


def test_no_weights_are_allocated(small):
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in small.encoder.parameters())


def test_hours_add_arithmetic_and_rendering(paper):
    collect, lapo = paper["collect"], paper["lapo"]
    assert collect.hours(1e15, 1000) == pytest.approx(collect.rendered / 1000 / 3600)
    assert lapo.hours(1e15, 1000) == pytest.approx(lapo.flops / 1e15 / 3600)


def test_the_paper_s_scale_takes_the_paper_s_hours(paper):
    for stage, hours in (("ocp", 23_700 / 3600), ("lapo", 27_480 / 3600), ("lapo-slots", 8_940 / 3600)):
        assert paper[stage].hours(1e12 * TFLOPS[stage], 3200) == pytest.approx(hours, rel=0.03)


def test_laom_has_its_parameters_and_labels_cost_their_share_of_the_inverse_model(paper):
    assert paper["laom"].total == paper["laom-masks"].total == paper["laom-labels"].total == 192_307_136
    with torch.device("meta"):
        found = plan("params/paper.yaml")
        (both, encoder), samples = found.latent_action_models["laom_labels"], found.lapo("laom").samples
    assert paper["laom-labels"].flops - paper["laom"].flops == samples // 4 * both.both  # 128 beside 512
    assert 2 * encoder.forward < both.forward


def test_kept_clips_pass_the_encoder_once():
    with torch.device("meta"):
        few, many = (plan("params.yaml", f"ocp.kept_clips={kept}").ocp() for kept in (10, 20))
        frame, *_, clip, _ = plan("params.yaml").object_centric_model
    assert many.flops - few.flops == 10 * read(ROOT / "params.yaml").ocp.clip_length * frame.forward
    assert few.samples == many.samples
    assert many.data - few.data == 10 * 2 * sum(part.numel() for part in clip)  # features and keys, in float16


def test_every_restart_is_a_run_and_labelled_frames_are_encoded_once():
    def flops(restarts, labelled):
        found = plan("params.yaml", f"restarts={list(range(restarts))}", f"slot_select.labelled_episodes={labelled}")
        with torch.device("meta"):
            frozen, _, extraction, _, _ = found.object_centric_model
            return found.ocp(), found.slots(), 250 * frozen.forward, 250 * extraction.forward

    ocp, one, _, _ = flops(1, 8)
    thrice, three, encode, extract = flops(3, 8)
    assert (ocp.runs, thrice.runs) == (1, 3) and ocp.flops == thrice.flops
    added = three.flops - one.flops
    assert added == 8 * (encode + 3 * extract)  # every model on 8 labelled episodes of 250 frames
    assert flops(3, 16)[1].flops - three.flops == added and three.memory - one.memory == 2 * 4 * ocp.trainable


def test_a_loss_on_some_patches_costs_less_and_steve_needs_no_encoder():
    with torch.device("meta"):
        few, all_patches = (plan("params.yaml", f"ocp.decoded_patches={patches}").ocp() for patches in (16, "null"))
        steve = plan("params.yaml", "ocp.model=steve", "encoder.source=none").ocp()
    assert few.flops < all_patches.flops and few.memory < all_patches.memory and few.total == all_patches.total
    assert steve.total == steve.trainable


def test_steve_beside_ocp_is_the_model_that_ocp_would_train():
    with torch.device("meta"):
        found = plan("params.yaml", "ocp.model=steve", "ocp.batch_size=8", "ocp.steps=10",
                     "ocp.decoded_patches=null", "steve.batch_size=8", "steve.steps=10", "encoder.source=none")
        ocp, steve = found.ocp(), found.steve()
    assert (steve.total, steve.memory, steve.samples) == (ocp.total, ocp.memory, ocp.samples)
    assert steve.disk == 0 and steve.flops > ocp.flops  # it also extracts the masks of the segmented episodes


def test_slotcontrast_beside_ocp_is_the_model_that_ocp_would_train():
    with torch.device("meta"):
        found = plan("params.yaml", "ocp.model=slotcontrast", "ocp.steps=10", "slotcontrast.steps=10")
        ocp, beside, measured = found.ocp(), found.slotcontrast(), found.object_centric_model
        frozen, slots, extraction, clip, _ = measured
        videosaur = plan("params.yaml").ocp()
    assert (beside.runs, beside.disk) == (1, 0) and beside == replace(
        ocp, stage="slotcontrast", runs=1, disk=0,
        flops=ocp.flops + 4 * 250 * (frozen.forward + extraction.forward))  # masks of 4 segmented episodes
    patches, dim, width = clip[0].shape[2], clip[0].shape[3], found.params.ocp.slot_dim
    # No deviations of the initial slots and no transformer in the decoder, which ends in features and a mask instead of
    # similarities to patches; an MLP after slot attention.
    norm, layer = 2 * width, width * (width + 1)
    block = 2 * norm + 4 * layer + 4 * width * (width + 1) + width * (4 * width + 1)
    assert videosaur.trainable - slots.size == (
        found.params.ocp.slots * width + (patches - dim - 1) * (found.params.ocp.decoder_hidden + 1)
        + 2 * block + 3 * norm + 2 * width**2 - norm - 4 * width * (width + 1) - width * (4 * width + 1))


@pytest.mark.parametrize(("change", "line"), [
    ("tasks=[cheetah-fly]", "tasks: 'cheetah-fly' given"),
    ("encoder.source=none.safetensors", "encoder.source: 'none.safetensors' given"),
    ("encoder.image_size=66", "encoder.image_size: 66 given, allowed are multiples of the encoder's patch, 4 pixels"),
    ("encoder.image_size=28", "ocp.decoded_patches: 64 given, the encoder has 49 patches"),
])
def test_what_does_not_exist_or_fit_is_named(change, line):
    with pytest.raises(UserError, match=line):
        plan("params.yaml", change).costs()


def test_imported_demonstrations_have_the_widths_of_their_files(tmp_path):
    folder = tmp_path / "kitchen-sweep"
    write_dataset(folder / "distracted.zarr", [source([16, 16, 16])], "kitchen-sweep", "distracted", None, 16, 1)
    stored = open_dataset(folder / "distracted.zarr").group
    found = plan("params.yaml", "tasks=[kitchen-sweep]", "collect.source=files", f"collect.path={tmp_path}")
    assert (found.action_dim, found.state_dim) == (stored["actions"].shape[2], stored["states"].shape[2])
    _, expert, _, collect = found.assets()
    assert expert.samples == collect.rendered == found.evaluation().runs == 0 < collect.samples


@pytest.mark.parametrize(("name", "why"), [
    ("vit_none", "which timm .* does not know"), ("vit_base_patch16_224.none", "which timm .* does not know"),
    ("resnet50", "allowed are timm's vision transformers")])
def test_an_unknown_architecture_is_named(name, why):
    with pytest.raises(UserError, match=f"encoder.name: '{name}' given, {why}"):
        plan("params/paper.yaml", f"encoder.name={name}").costs()


@pytest.mark.parametrize("option", ["--fps", "--tflops"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_machine_that_does_nothing_is_refused(monkeypatch, option, value):
    monkeypatch.setattr(sys, "argv", ["plan", str(ROOT / "params/tiny.yaml"), option, value])
    with pytest.raises(UserError, match=f"{option}: {value} given, more than 0 is needed"):
        main()


def test_the_command_prints_one_line_a_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", str(ROOT / "params.yaml"), "lapo.latent_dim=16", *EXTRAS, "--tflops",
                                      "1"])
    monkeypatch.chdir(ROOT)
    main()
    stages = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert stages == ["backgrounds", "expert", "encoder", "collect", "ocp", "slots", "slot-select", "steve",
                      "slotcontrast", *LATENT, "bc", "bc-full", "finetune",
                      "scratch", "eval"]


def test_the_command_says_one_line_about_a_wrong_parameter():
    command = [sys.executable, "-m", "oclam.plan", "params.yaml", "lapo.latent=16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "lapo.latent: unknown" in done.stderr
    assert done.stderr.count("\n") == 1


def test_all_runs_of_a_stage_count_in_the_last_line(monkeypatch, capsys):
    monkeypatch.setattr(Plan, "costs", lambda _: [Cost("ocp", 3, flops=3600 * 10**12, disk=2000),
                                                  Cost("collect", 1, rendered=7200)])
    monkeypatch.setattr(sys, "argv", ["plan", str(ROOT / "params.yaml"), "--tflops", "1", "--fps", "1"])
    main()  # three runs of one hour and one of two
    assert "All runs: 5 hours, 1.08e+16 FLOPs, 6.00kB on disk" in capsys.readouterr().out


def test_evaluation_acts_with_the_policies_of_all_budgets_and_with_distractors_twice_with_the_last(paper):
    policies = 8 * (7 + 1) + 7 + 2 + 1  # with few labels; lapo-no-distractors, bc and bc-no-distractors
    assert paper["eval"].samples == paper["eval"].rendered == round(policies / 11 * 25 * 1000)
    with torch.device("meta"):
        found = plan("params/paper.yaml", "env.background=false", *EXTRAS).evaluation()
    assert found.samples == round((policies - 9) / 11 * 25 * 1000)


def test_a_dataset_has_frames_and_numbers_of_four_bytes(small):
    collect, frames = small.params.collect, small.frames
    cost, = [cost for cost in small.assets() if cost.stage == "collect"]
    numbers = sum(suite.sizes(suite.load_task(small.params.tasks[0]))) + 1
    size = small.params.env.image_size
    assert cost.disk == frames * (3 * size**2 + 4 * numbers) + collect.segmented_episodes * collect.steps * size**2
    assert cost.rendered == cost.samples == frames


def test_backgrounds_are_as_large_as_textures_and_the_longest_expert_counts():
    found = plan("params.yaml", "tasks=[cheetah-run, walker-run]", "expert.train=true", "env.texture_size=32",
                 "backgrounds.videos=7", "backgrounds.frames=10")
    backgrounds, expert, *_ = found.assets()
    steps = [found.params.expert.training[task].steps for task in found.params.tasks]
    assert backgrounds.samples == (7 + 4) * 10  # half as many videos, rounded up, are kept for evaluation
    assert backgrounds.disk == backgrounds.samples * 32 * 32 * 3
    assert (expert.runs, expert.samples) == (2, max(steps))


def test_a_selection_has_the_vectors_of_its_slots_or_their_mean_a_mask_and_masked_frames():
    for combine, vectors in (("concatenate", 3), ("mean", 1)):
        found = plan("params.yaml", "slot_select.max_slots=3", f"slot_select.combine={combine}")
        size, dim = found.params.env.image_size, found.params.ocp.slot_dim
        assert found.slot_select().disk == found.frames * (2 * vectors * dim + 4 * size**2)


def test_slots_and_latent_actions_are_inferred_of_held_out_episodes_too():
    with torch.device("meta"):
        few, many = (plan("params.yaml", f"collect.test_episodes={episodes}") for episodes in (10, 20))
        _, label = few.latent_action_models["lapo"]
        frozen, _, extraction, _, _ = few.object_centric_model
        assert many.lapo("lapo").flops - few.lapo("lapo").flops == 10 * 250 * label.forward
        assert many.slots().flops - few.slots().flops == 10 * 250 * (frozen.forward + extraction.forward)


def test_cloning_goes_both_ways_with_four_numbers_a_weight_and_acting_forward_alone(small):
    with torch.device("meta"):
        (bc, full), actor, acting = small.cloning(), small.latent_actor, small.evaluation()
    assert acting.flops == acting.samples * actor.forward
    assert bc.flops == bc.samples * actor.both and 2 * actor.forward < actor.both < 3 * actor.forward
    assert bc.memory == 4 * 4 * actor.size + small.params.bc.batch_size * actor.activations
    labels = 4 * small.action_dim - 2 * small.params.lapo.latent_dim  # true actions in float32, latent ones in float16
    assert full.data - bc.data == small.training_frames * labels


def test_a_frozen_actor_is_kept_once_and_one_that_trains_for_every_budget():
    with torch.device("meta"):
        found, other = (plan("params.yaml", f"finetune.unfreeze={unfreeze}") for unfreeze in ("false", "true"))
        (frozen, _), (trained, scratch), actor = found.few_labels(), other.few_labels(), found.latent_actor
    tune, decoder = found.params.finetune, frozen.trainable
    labelled, budgets = max(tune.budgets) * found.params.collect.steps, len(tune.budgets)
    assert trained.trainable == frozen.total == actor.size + decoder
    assert frozen.disk == 4 * (actor.size + budgets * decoder) and trained.disk == 4 * budgets * trained.total
    assert scratch.disk == 4 * budgets * scratch.total
    assert trained.memory - frozen.memory == 3 * 4 * actor.size + tune.batch_size * actor.activations
    assert trained.flops - frozen.flops == trained.samples * actor.both - labelled * actor.forward
    assert frozen.data - trained.data == labelled * 4 * found.params.lapo.latent_dim  # its outputs, in float32


def test_epochs_of_fine_tuning_pass_over_the_frames_of_each_budget():
    found = plan("params.yaml", "finetune.updates=1", "finetune.epochs=64", "finetune.batch_size=64")
    with torch.device("meta"):
        tuned, _ = found.few_labels()  # an update a frame
    assert tuned.samples == 64 * sum(found.params.finetune.budgets) * found.params.collect.steps


def test_a_frozen_actor_sees_every_labelled_frame_once():
    with torch.device("meta"):
        once, twice = (plan("params.yaml", "finetune.unfreeze=false", "finetune.epochs=0",
                            f"finetune.updates={updates}") for updates in (100, 200))
        flops = [next(found.few_labels()).flops for found in (once, twice)]
        labelled = max(once.params.finetune.budgets) * once.params.collect.steps
        assert 2 * flops[0] - flops[1] == labelled * once.latent_actor.forward


def test_lapo_keeps_its_frames_and_lapo_focus_their_masks_too(paper):
    assert paper["lapo"].data == 5050 * 1000 * 64 * 64 * 3 and paper["lapo-focus"].data == 5050 * 1000 * 64 * 64 * 4
    assert paper["slots"].disk == 5050 * 1000 * 8 * (2 * 128 + 28**2)  # of 28 x 28 patches


def test_training_keeps_four_numbers_a_weight_and_activations_of_its_batch(paper):
    with torch.device("meta"):
        few, many = (plan("params.yaml", f"lapo.batch_size={size}").lapo("lapo") for size in (16, 32))
    assert 2 * few.memory - many.memory == 4 * 4 * few.total
    assert paper["bc"].data == 5000 * 1000 * (64 * 64 * 3 + 2 * 8192)  # of the training episodes alone
