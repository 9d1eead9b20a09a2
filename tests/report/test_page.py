"""The page and its tables: every number with its scale, the paper's beside it, nothing loaded from elsewhere."""

import re
from dataclasses import replace
from typing import get_args

import pytest

from oclam import paths
from oclam.artifacts import save_tensors
from oclam.params import Ocp
from oclam.report.gallery import OCP_MODELS, draw
from oclam.report.page import page
from oclam.report.results import gather, select
from oclam.report.tables import answers, number, tables, warnings
from oclam.slots.models import KINDS
from oclam.variants import VARIANTS, normaliser
from tests.report import tree as tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tree")


@pytest.fixture
def results(folder, monkeypatch):
    monkeypatch.chdir(folder)
    if not paths.encoder.exists():
        tree.write()
    return gather("small", [tree.TASK], tree.SEEDS, tree.RESTARTS, tree.BUDGETS)


def table(results, title):
    return next(entry for entry in tables(results) if entry.title.startswith(title))


def row(entry, heading):
    return dict(zip(entry.columns, next(cells for name, cells in entry.rows if name == heading), strict=True))


@pytest.mark.parametrize("value, text", [(None, "–"), (1234567, "1,234,567"), (0.0, "0"), (0.01234, "0.0123"),
                                         (12.345, "12.3"), (823.4, "823"), (-0.5, "-0.500"), (0.9996, "1.00"),
                                         (9.996, "10.0"), (99.96, "100")])
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_probe_table_has_ratios_to_lapo_and_compares_with_the_paper_by_r2(results):
    ours = row(table(results, "Table 1"), "online probe, error")
    assert ours["lapo-slots"].value.startswith("0.400")
    assert ours["lapo-slots"].ratio == "×4"
    explained = row(table(results, "Table 1"), "online probe, R²")
    assert explained["lapo-slots"].value == "0.600"  # error 0.4 of variance 1
    assert {name: cell.paper for name, cell in explained.items() if cell.paper} == {  # 1 - Table 1 / actions' variance
        "lapo": "paper 0.68", "lapo-masks": "paper 0.92", "lapo-slots": "paper 0.91",
        "lapo-no-distractors": "paper 0.97"}
    assert not any(cell.paper for cell in ours.values())
    assert [name for name, cell in ours.items() if cell.best] == ["lapo-slots"]  # not the one that sees no distractors


def test_the_error_of_the_mean_action_stands_beside_each_task_s_probes(results):
    others = [{**entry, "task": "walker-run", "action_variance": 3.0} for entry in results.probes]
    both = replace(results, tasks=[tree.TASK, "walker-run"], probes=results.probes + others,
                   experts={**results.experts, "walker-run": None})
    entry = table(both, "Table 1")
    assert [cells[0].value for heading, cells in entry.rows if heading == "mean action, error"] == ["1.00", "3.00"]


def test_actions_that_do_not_vary_have_no_r2(results):
    for entry in results.probes:
        entry["action_variance"] = 0.0
    assert {cell.value for cell in row(table(results, "Table 1"), "ridge probe, R²").values()} == {"–"}


@pytest.mark.parametrize("error, ratio", [(9.9, "×2.5"), (10.1, "")])
def test_what_may_be_0_divides_nothing(results, error, ratio):
    lapo, slots = (entry for entry in results.returns
                   if entry["budget"] == 8 and entry["variant"] in ("lapo", "lapo-slots"))
    lapo |= {"normalised": 20.0, "normalised_stderr": error}
    slots |= {"normalised": 50.0}
    assert row(table(results, "Table 2"), "8 labelled")["lapo-slots"].ratio == ratio


def test_return_table_quotes_the_paper_at_the_largest_budget_only(results):
    entry = table(results, "Table 2")
    assert row(entry, "8 labelled")["lapo-slots"].paper == "paper 50 ± 1 ×2.2"
    assert row(entry, "2 labelled")["lapo-slots"].paper == ""
    assert row(entry, "2 labelled")["lapo"].value.startswith("10.0")
    assert row(entry, "8 labelled")["lapo-no-distractors"].value.startswith("28.8")


def test_the_highest_return_with_distractors_is_bold_alone(results):
    for budget in tree.BUDGETS:
        shares = {entry["variant"]: entry["normalised"] for entry in select(results.returns, budget=budget)
                  if normaliser(entry["variant"]) == "bc"}
        cells = row(table(results, "Table 2"), f"{budget} labelled")
        assert [name for name, cell in cells.items() if cell.best] == [max(shares, key=shares.get)]


def test_every_table_of_results_says_the_labels_used(results):
    entry = table(results, "Table 2")
    assert [row(entry, f"{budget} labelled")["labels used"].value for budget in tree.BUDGETS] == [
        "2, on slots 4, laom-labels 8", "8"]
    assert [cell.value for cell in row(table(results, "Table 1"), "labels used").values()] == [
        "0", "4", "4", "4", "0", "8", "4", "0"]
    every = table(results, "Returns of every policy")
    for heading, used in (("lapo, 2 labelled", "2"), ("lapo-slots, 2 labelled", "4"), ("bc, all labels", "all")):
        assert row(every, heading)["labels used"].value == used
    chances = {name: row(every, f"{name}, 8 labelled")["P(> lapo)"].value for name in ("lapo", "lapo-slots")}
    assert chances == {"lapo": "–", "lapo-slots": "1.00 (1.00 to 1.00)"}
    assert row(every, "bc, all labels")["P(> lapo)"].value == "–"
    assert row(table(results, "R² by action"), "lapo-slots")["labels used"].value == "4"
    assert row(table(results, "Table 3"), tree.TASK)["labels used"].value == "all"
    assert "4 were used to choose restart and slots" in table(results, "Choice of slots").note


def test_standard_errors_say_what_they_are_over(results):
    for seeds, words in (([0, 1], "± the standard error over seeds"), ([0], "over one seed's episodes, which")):
        assert words in table(replace(results, seeds=seeds), "Table 2").note


def test_intervals_of_few_seeds_are_called_too_narrow(results):
    assert "Of few seeds they are too narrow" in table(results, "Returns of every policy").note


def test_an_interval_around_a_half_is_no_proof_of_equality(results):
    found = next(entry for entry in results.returns if entry["improvement"])
    found |= {"improvement": 0.6, "improvement_low": 0.4, "improvement_high": 0.8}
    cells = row(table(results, "Returns of every policy"), f"{found['variant']}, {found['budget']} labelled")
    assert cells["P(> lapo)"].value == "0.60 (0.40 to 0.80), no difference shown"


def test_a_single_episode_has_no_interval(results):
    found = next(entry for entry in results.returns if entry["improvement"])
    found |= {"improvement": 0.6, "improvement_low": None, "improvement_high": None}
    cells = row(table(results, "Returns of every policy"), f"{found['variant']}, {found['budget']} labelled")
    assert cells["P(> lapo)"].value == "0.600"


def test_without_actions_among_distracted_frames_only_the_clean_view_s_policies_have_returns(results):
    clean = [entry for entry in results.returns if VARIANTS[entry["variant"]].view == "clean"]
    found = replace(results, returns=[entry | {"improvement": None} for entry in clean], generalisation=[])
    assert answers(found) == [f"{tree.TASK}: no policies acted with distractors, since there are no actions to learn "
                              "from or no environment."]
    cells = dict(zip(table(found, "Table 2").columns, table(found, "Table 2").rows[-1][1], strict=True))
    assert cells["lapo-no-distractors"].value and not cells["lapo-no-distractors"].ratio
    assert cells["lapo-no-distractors"].paper == "paper 69 ± 14"


def test_generalisation_says_what_is_left_on_unseen_backgrounds(results):
    cells = row(table(results, "Seen and unseen"), "bc")
    assert (cells["training videos"].value, cells["unseen videos"].value) == ("400 ± 1", "200 ± 0")
    assert cells["unseen videos"].ratio == "50%" and cells["labels used"].value == "all"


def test_recovery_table_is_the_share_of_the_way_from_lapo_to_no_distractors(results):
    entry = table(results, "Recovery")
    assert [cell.value for cell in row(entry, "ridge probe, error").values()] == [
        "0, on slots 4, laom-labels 8", "57%", "86%", "43%", "29%", "71%", "64%"]
    assert [cell.value for cell in row(entry, "return, 2 labelled").values()] == [
        "2, on slots 4, laom-labels 8", "14%", "29%", "43%", "57%", "71%", "86%"]


def test_cloning_table_says_the_share_of_the_expert(results):
    cells = row(table(results, "Table 3"), tree.TASK)
    assert (cells["expert"].value, cells["bc"].ratio) == ("500", "40% of expert")
    assert cells["bc"].paper == "paper 823"


def test_parameters_and_durations_stand_beside_the_papers(results):
    assert [cell.value for cell in row(table(results, "Table 4"), "lapo").values()] == ["504", "211,847,849"]
    durations = table(results, "Table 5")
    assert [cell.value for cell in row(durations, "ocp").values()] == ["1 m 1 s", "2 x86_64 cores", "6 h 35 m"]
    assert row(durations, "lapo")["this run"].value == "–"


def test_slots_without_segmentation_are_shown_and_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree.write()
    tree.forget_segmentation()
    results = gather("small", [tree.TASK], tree.SEEDS, tree.RESTARTS, tree.BUDGETS)
    entry = table(results, "Choice of slots")
    assert "has no segmentation to judge" in entry.note
    assert [cell.value for cell in row(entry, "chosen, together").values()] == ["0.200", "0.700", "0.500", *5 * "–"]
    assert not any(name in heading for heading, _ in entry.rows for name, _ in tree.COMPARED.values())
    assert sum(picture.section == "slots" for picture in draw(results, tmp_path)) == 2  # grid, models


@pytest.mark.parametrize(("model", "iou"), tree.COMPARED.values())
def test_other_models_stand_beside_the_chosen_slots_of_their_own_seed(results, model, iou):
    for seed in tree.SEEDS:
        entry = table(results, f"Choice of slots, {tree.TASK}, seed {seed}")
        cells = row(entry, f"{model}, slot 1, its best")
        assert [cell.value for cell in cells.values()] == [
            "–", "–", "–", number(iou), "0.500", "0.250", "0.750", "0.625"]
        assert row(entry, "chosen, together")["FG-ARI"].value == "0.500"


def test_every_object_centric_model_has_a_name_in_the_report_and_losses():
    assert set(get_args(Ocp.model_fields["model"].annotation)) == OCP_MODELS.keys() == KINDS.keys() | {"steve"}


@pytest.mark.parametrize(("model", "name"), [("videosaur", "VideoSAUR"), ("steve", "ocp (STEVE)"),
                                             ("slotcontrast", "ocp (SlotContrast)")])
def test_three_models_are_shown_on_the_same_frames(results, tmp_path, model, name):
    results.selections[0]["model"] = model
    compared = [picture for picture in draw(results, tmp_path) if "on the same frames" in picture.caption]
    assert [picture.section for picture in compared] == ["slots"] and (
        f"{name}, small STEVE, SlotContrast: " in compared[0].caption)


def test_every_row_is_as_long_as_its_table(results):
    for entry in tables(results):
        assert all(len(cells) in (0, len(entry.columns)) for _, cells in entry.rows), entry.title


def test_warnings_name_what_undermines_the_numbers(results):
    found = warnings(results)
    assert sum("random weights" in text for text in found) == 1
    slots, = [text for text in found if "whole frame" in text]
    assert "seed 1: no slot" in slots
    assert all("lapo:" in text for text in found if "shuffled" in text)
    assert not any("of the expert's return" in text for text in found)  # 400 of 500 is above 60%


def test_latents_no_better_than_shuffled_actions_are_warned_about(results):
    entry = next(entry for entry in results.probes if entry["variant"] == "lapo-slots")
    for error, count in ((0.80, 1), (0.78, 0)):  # shuffled actions have 0.79
        entry["ridge_mse"] = error
        told = [text for text in warnings(results) if "seed 0" in text and "lapo-slots" in text]
        assert sum("shuffled" in text for text in told) == count


def test_collapsed_embeddings_are_warned_about(results):
    laom = next(row for row in results.probes if row["variant"] == "laom")
    for kept, count in ((0.09, 1), (0.11, 0)):
        laom["state_variance_kept"] = kept
        assert sum("seed 0, laom: the variance of the embeddings" in text for text in warnings(results)) == count


def test_an_actor_that_learned_nothing_is_warned_about(results):
    rows = select(results.losses, seed=0, stage="bc", variant="lapo")
    for level, count in ((0.96, 1), (0.94, 0)):
        for place, row in enumerate(rows):
            row["loss"] = 9.0 if place < 2 else 1.0 if place < 4 else level
        told = [text for text in warnings(results) if "the loss of behaviour cloning" in text]
        assert len(told) == count and all(f"{tree.TASK}, seed 0, lapo: " in text for text in told)


def test_latents_without_the_action_on_training_batches_are_warned_about(results):
    row = next(row for row in results.probes if row["variant"] == "laom-masks")
    for error, count in ((0.96, 1), (0.94, 0)):  # the actions' variance is 1
        row |= {"online_mse": error, "action_variance": 2.0}  # that of held-out trajectories, which are few
        told = [text for text in warnings(results) if "laom-masks" in text and "seed 0" in text]
        assert sum("online probe" in text for text in told) == count


def test_a_slot_vector_without_the_pose_is_warned_about(results):
    row = results.selections[0]
    for vector, count in ((0.31, 1), (0.29, 0)):  # the masked frames have 0.2
        row["mask"] = {**row["mask"], "vector_mse": vector}
        assert sum("seed 0: the chosen slot's vector" in text for text in warnings(results)) == count


def test_the_divisors_share_of_the_expert_is_named(results):
    note = table(results, "Table 2").note
    assert "bc reaches 40% of the expert on cheetah-run, bc-no-distractors reaches 80%" in note


def test_trained_encoder_and_weak_cloning(results, monkeypatch):
    monkeypatch.setitem(results.experts, tree.TASK, 1000.0)
    save_tensors(paths.encoder, {}, source="distill")
    found = warnings(gather("small", [tree.TASK], tree.SEEDS, tree.RESTARTS, tree.BUDGETS))
    save_tensors(paths.encoder, {}, source="random")
    assert not any("random weights" in text for text in found)
    assert sum("reaches 40% of the expert's return" in text for text in warnings(results)) == 1


def test_the_page_opens_with_its_answer_a_film_and_a_chart(results, tmp_path):
    masks, slots, lapo = (table_mean(results, name) for name in ("lapo-masks", "lapo-slots", "lapo"))
    sentence, = answers(results)
    assert f"8 labelled trajectories: policies return {masks} with latent actions of the agent's masked" in sentence
    assert f"{slots} of its slots and {lapo} of whole frames; cloning all true actions returns 200" in sentence
    text = page(results, draw(results, tmp_path))
    opening = text[text.index("<h1>"):text.index("<nav>")]
    assert opening.count("<video") == opening.count("<img") == 1 and sentence.replace("'", "&#39;") in opening
    assert text.count("<video") == 1 + len(VARIANTS) and "image/gif" not in text


def table_mean(results, variant):
    return number(select(results.returns, variant=variant, budget=8)[0]["mean"])


def test_page_is_self_contained_stamped_and_deterministic(results, folder, tmp_path):
    pictures = draw(results, tmp_path)
    text = page(results, pictures)
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv)', text)
    assert "<script" not in text and "@import" not in text
    assert text.count('<img') + text.count("<video") == len(pictures) == text.count("<figcaption>")
    stamps = text.count('<span class="stamp">Small scale, 2 seeds, 5 episodes</span>')
    assert stamps == 1 + len(tables(results)) + len(pictures)
    again = tmp_path / "again"
    again.mkdir()
    assert page(results, draw(results, again)) == text
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}


def test_what_the_artifacts_say_is_escaped(results):
    results.selections[0]["why"] = "<b>a & b</b>"
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in page(results, [])


def test_spreads_are_standard_errors_of_what_they_stand_beside(results):
    assert row(table(results, "Table 1"), "ridge probe, error")["lapo"].value == "0.800 ± 0.010"  # of 0.79 and 0.81
    shares = row(table(results, "Table 2"), "8 labelled")
    assert shares["lapo-no-distractors"].value == "28.8 ± 0.1"  # 114.5 and 115.5 of 400


def test_each_probe_s_share_is_of_the_variance_of_its_own_actions(results):
    for entry in results.probes:
        entry |= {"online_variance": 4.0, "action_variance": 2.0}
    for heading, r2 in (("online probe, R²", "0.900"), ("ridge probe, R²", "0.900")):  # errors 0.4 and 0.2
        assert row(table(results, "Table 1"), heading)["lapo-slots"].value == r2


def test_every_dimension_of_the_actions_has_its_own_share(results):
    cells = row(table(results, "R² by action"), "lapo-slots")
    assert [cells[f"action {dimension}"].value for dimension in (1, 2)] == ["0.800", "0.500"]


def test_the_slot_of_the_lowest_error_is_bold_alone(results):
    entry = table(results, "Choice of slots")
    best = [name for name, cells in entry.rows for cell in cells if cell.best]
    assert best == [f"slot {tree.CHOSEN}, chosen"]


def test_the_interquartile_mean_stands_beside_the_mean(results):
    select(results.returns, variant="lapo", budget=2)[0]["iqm"] = 7.0
    cells = row(table(results, "Returns of every policy"), "lapo, 2 labelled")
    assert (cells["mean"].value, cells["IQM"].value) == ("20.0 ± 0.5", "7.00")
    assert cells["each seed"].value == "19.5, 20.5"


def test_durations_of_one_run_are_means_over_variants_and_the_total_counts_every_run(results):
    runs = [{"stage": stage, "variant": variant, "runs": 2, "of": 2, "seconds": 2.0 * mean, "mean": mean,
             "hardware": "here"} for stage, variant, mean in (("bc", "lapo", 100.0), ("bc", "laom", 200.0),
                                                             ("finetune", "lapo", 30.0))]
    measured = replace(results, durations=runs)
    assert row(table(measured, "Table 5"), "bc + finetune")["this run"].value == "3 m 0 s"
    assert row(table(measured, "Wall-clock"), "all stages")["total"].value == "11 m 0 s"
