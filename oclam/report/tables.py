"""The report's tables as text: this run's numbers, their ratio to lapo, and the paper's numbers."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from oclam.report.results import CLEAN, FEW, RECOVERING, Results, select
from oclam.report.statistics import average, recovery
from oclam.variants import ACTION_VARIANCE, ALL_LABELS, LATENT, PAPER_OCP, VARIANTS, normaliser

# The paper's figures that belong to no variant: Table 4, and Table 5 in seconds on one H100.
PAPER_PARAMETERS = {"ocp (total)": PAPER_OCP.parameters, "ocp (trainable)": 6_343_440} | {
    name: row.paper.parameters for name, row in VARIANTS.items() if row.paper.parameters}
PAPER_DURATIONS = {"ocp": PAPER_OCP.seconds, "bc + finetune": 10_920} | {
    name: row.paper.seconds for name, row in VARIANTS.items() if row.paper.seconds}
STUCK = 0.95  # a loss whose last tenth is above this share of its second one has hardly fallen
COLLAPSED = 0.1  # share of its first variance below which an embedding is said to have collapsed
PAPER_EXPERT = {"cheetah-run": 838, "walker-run": 740, "hopper-hop": 307, "humanoid-walk": 617}  # Table 3: returns


@dataclass(frozen=True)
class Cell:
    """One entry: this run's value, its ratio to lapo and the paper's, each as text."""

    value: str
    ratio: str = ""
    paper: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a section; `rows` are (heading, cells), with as many cells as `columns` or none."""

    section: str
    title: str
    note: str
    columns: tuple
    rows: list


def tables(results: Results) -> list[Table]:
    """Every table of the report, in order."""
    probes = [_probes(results), *_dimensions(results)] if results.probes else []
    measured = ((results.returns, _returns), (select(results.probes, variant=CLEAN), _recovery),
                (results.returns, _statistics), (results.generalisation, _generalisation), (results.returns, _full))
    return [*probes, *(table(results) for rows, table in measured if rows), *_slots(results), _parameters(results),
            _paper_durations(results), _durations(results)]


def answers(results: Results) -> list[str]:
    """The pipeline's question answered for each task: do policies learn more from objects than from frames?"""
    sentences = []
    for task in results.tasks:
        found = {row["variant"]: row for row in select(results.returns, task=task, budget=results.largest)}
        if "lapo" not in found:
            sentences.append(f"{task}: no policies acted with distractors, since there are no actions to learn from or "
                             "no environment.")
            continue
        lapo, masks, slots = (found[variant] for variant in ("lapo", "lapo-masks", "lapo-slots"))
        full = select(results.returns, task=task, variant="bc", budget=0)[0]
        sentences.append(
            f"{task}, {results.largest} labelled trajectories: policies return {number(masks['mean'])} with latent "
            f"actions of the agent's masked frames, {number(slots['mean'])} of its slots and {number(lapo['mean'])} of "
            f"whole frames; cloning all true actions returns {number(full['mean'])}. Probability that an episode "
            f"returns more than with whole frames: masked frames {_better(masks)}, slots {_better(slots)}.")
    return sentences


def warnings(results: Results) -> list[str]:
    """Sentences that a reader must know before trusting the numbers."""
    found = []
    if results.encoder.get("source") == "random":
        found.append("The encoder has random weights: results on slots say nothing about the method.")
    for row in results.selections:
        if row["better_than_whole_frame"] is False:  # None without known actions
            found.append(f"{row['task']}, seed {row['seed']}: no slot predicts actions better than the whole frame, "
                         "so variants on the chosen slots cannot be expected to beat lapo.")
        if row["mask"].get("vector_mse", 0) > 1.5 * row["chosen_probe"].get("probe_mse", 0):
            found.append(f"{row['task']}, seed {row['seed']}: the chosen slot's vector predicts actions much worse "
                         "than its masked frames; the vector has lost the pose, which lapo-slots depends on.")
    said = {}  # (task, seed, sentence) -> variants
    for row in results.probes:
        sentences = {
            "the probe is no better than with shuffled actions; these latent actions hold nothing of the true ones.":
                row["ridge_mse"] >= row["shuffled_mse"],
            "the online probe is no better than the mean action; latent actions are nearly constant, or hold little of "
            "the true ones.": row["online_mse"] >= 0.95 * row["online_variance"],
            f"the variance of the embeddings fell below {COLLAPSED:.0%} of its first value; they collapsed.":
                row["state_variance_kept"] is not None and row["state_variance_kept"] < COLLAPSED}
        for sentence in [sentence for sentence, holds in sentences.items() if holds]:
            said.setdefault((row["task"], row["seed"], sentence), []).append(row["variant"])
    losses = {}  # of behaviour cloning
    for row in select(results.losses, stage="bc"):
        losses.setdefault((row["task"], row["seed"], row["variant"]), []).append(row["loss"])
    for (task, seed, variant), values in losses.items():
        tenth = len(values) // 10
        if tenth and np.mean(values[-tenth:]) > STUCK * np.mean(values[tenth:2 * tenth]):
            sentence = "the loss of behaviour cloning hardly fell; the policies' actions are nearly constant."
            said.setdefault((task, seed, sentence), []).append(variant)
    found += [f"{task}, seed {seed}, {', '.join(variants)}: {sentence}"
              for (task, seed, sentence), variants in said.items()]
    for task in results.tasks:
        share = _of_expert(results, task, "bc-no-distractors")
        if share is not None and share < 0.6:
            found.append(f"{task}: behaviour cloning on all true actions without distractors reaches {share:.0%} of "
                         "the expert's return; normalised returns mean little.")
    return found


def _of_expert(results, task, variant):
    """The share of the expert's return that cloning all actions reaches, None where one of them is missing."""
    found = select(results.returns, task=task, variant=variant, budget=0)
    return found[0]["mean"] / results.experts[task] if found and results.experts[task] else None


def _present(rows, variants):
    """The variants that have rows, in order."""
    there = {row["variant"] for row in rows}
    return tuple(variant for variant in variants if variant in there)


def number(value: float | None, spread: float | None = None) -> str:
    """Three significant digits (integers whole), a dash for None; after ± a known `spread` with as many decimals."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    decimals = max(2 - int(f"{value:.2e}".split("e")[1]), 0) if value else 0  # of the rounded value
    return f"{value:,.{decimals}f}" + ("" if spread is None or math.isnan(spread) else f" ± {spread:.{decimals}f}")


def _probes(results):
    rows, variants = [], _present(results.probes, LATENT)
    for task in results.tasks:
        rows.append((task, []))
        of_task = {variant: select(results.probes, task=task, variant=variant) for variant in variants}
        for key, variance, heading in (("online_mse", "online_variance", "online probe"),
                                       ("ridge_mse", "action_variance", "ridge probe")):
            values = {variant: [row[key] for row in table] for variant, table in of_task.items()}
            rows.append((f"{heading}, error", _beside(values, {}, {}, lower=True)))
            if len(results.seeds) > 1:
                rows.append((f"{heading}, each seed", [Cell(", ".join(map(number, found)))
                                                       for found in values.values()]))
            explained = {name: average([_explained(row[key], row[variance]) for row in table])
                         for name, table in of_task.items()}
            rows.append((f"{heading}, R²", [
                Cell(number(r2), paper=_paper(paper_r2(task, variant) if key == "online_mse" else None))
                for variant, r2 in explained.items()]))
        for key, heading in (("shuffled_mse", "shuffled actions, error"),
                             ("frame_difference_mse", "frame differences, error"),
                             ("action_variance", "mean action, error")):
            rows.append((heading, [Cell(number(average([row[key] for row in table]))) for table in of_task.values()]))
        rows.append(("labels used", [Cell(_labels(table[0]["labels"]) if table else number(None))
                                     for table in of_task.values()]))
    note = ("How well a linear map predicts true actions from latent actions: mean squared error (lower is better, × "
            "says how many times lower than lapo's) and R², the share of the actions' variance that is explained. The "
            "online probe is the paper's: trained beside the model, measured on training batches, on latent actions "
            "between frames t and t+k. The ridge probe is stricter: fitted afterwards, measured on held-out "
            "trajectories, between t and t+1. The paper's actions are unbounded with variances up to 44.5, so only R² "
            "compares with it. Below are ridge probes with shuffled actions and of differences of the view's frames, "
            "the error of the mean action (the variance on the held-out trajectories), and how many labelled "
            "trajectories chose restarts and slots, or trained the model. Bold is the best variant with distractors.")
    return Table("probes", "Table 1. Action probes", note, variants, rows)


def _explained(error, variance):
    """R²; None where actions do not vary."""
    return 1 - error / variance if variance > 1e-12 else None


def paper_r2(task: str, variant: str) -> float | None:
    """R² of the paper's online probe: 1 - its error / the variance of its actions. None where the paper has none."""
    probe = VARIANTS[variant].paper.probe.get(task)
    return None if probe is None else round(1 - probe[0] / ACTION_VARIANCE[task], 2)


def _dimensions(results):
    note = "The share of each true action's variance that the ridge probe explains: 1 is all, 0 none."
    for task in results.tasks:
        of_task, rows = select(results.dimensions, task=task), []
        dimensions = sorted({row["dimension"] for row in of_task})
        for variant in _present(of_task, LATENT):
            means = [np.mean([row["ridge_r2"] for row in select(of_task, variant=variant, dimension=dimension)])
                     for dimension in dimensions]
            labels = select(results.probes, task=task, variant=variant)[0]["labels"]
            rows.append((variant, [Cell(_labels(labels)), *(Cell(number(mean)) for mean in means)]))
        columns = ("labels used", *(f"action {dimension + 1}" for dimension in dimensions))
        yield Table("probes", f"R² by action dimension, {task}", note, columns, rows)


def _returns(results):
    variants = _present(results.returns, FEW)
    budgets = sorted({row["budget"] for row in results.returns} - {0})
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for budget in budgets:
            found = {row["variant"]: row for row in select(results.returns, task=task, budget=budget)}
            values = {variant: [found[variant]["normalised"]] if variant in found else [] for variant in variants}
            spreads = {variant: found[variant]["normalised_stderr"] for variant in variants if variant in found}
            paper = {variant: VARIANTS[variant].paper.normalised[task] for variant in variants
                     if budget == results.largest and task in VARIANTS[variant].paper.normalised}
            rows.append((f"{budget} labelled",
                         [Cell(_used(found, budget)), *_beside(values, spreads, paper, lower=False)]))
    note = ("100 × return / return of bc with all labels in the same view; higher is better, × is the ratio to "
            f"lapo (none where lapo's is within two standard errors of 0), ± the standard error {_spread(results)} "
            "(of the return alone: bc's is taken as exact), bold the best variant that sees distractors. The paper "
            "fine-tunes on 32 to 128 trajectories and prints one number, "
            "shown here beside the largest budget. scratch is the control: the same labels without latent pretraining. "
            "All labelled trajectories are the first of one random order, so larger sets contain the smaller. Labels "
            "used: the budget; where variants used more, their names and numbers follow (on slots: all that observe "
            "slots or masks). "
            f"{_divisors(results)}")
    columns = ("labels used", *variants)
    return Table("returns", "Table 2. Normalised return after fine-tuning", note, columns, rows)


def _divisors(results):
    """What share of the expert the divisors of normalised returns reach."""
    shares = []
    for task in results.tasks:
        for name in ALL_LABELS:
            if (share := _of_expert(results, task, name)) is not None:
                shares.append(f"{name} reaches {share:.0%} of the expert on {task}")
    return f"The divisors: {', '.join(shares)}." if shares else ""


def _recovery(results):
    rows, variants = [], _present(results.probes, RECOVERING)
    for task in results.tasks:
        rows.append((task, []))
        probes = {name: average([row["ridge_mse"] for row in select(results.probes, task=task, variant=name)])
                  for name in LATENT}
        used = _used({row["variant"]: row for row in select(results.probes, task=task)}, 0)
        rows.append(("ridge probe, error", _recovered(probes, variants, used, errors=True)))
        for budget in sorted({row["budget"] for row in results.returns} - {0}):
            found = {row["variant"]: row for row in select(results.returns, task=task, budget=budget)}
            means = {name: found[name]["mean"] if name in found else None for name in LATENT}
            rows.append((f"return, {budget} labelled", _recovered(means, variants, _used(found, budget), errors=False)))
    note = ("(variant - lapo) / (lapo-no-distractors - lapo), the measure of the paper's later version "
            "(arXiv 2502.09680v3): 0% is lapo, 100% is no distractors. It says little where those two are close.")
    return Table("returns", "Recovery: what a variant wins back of what distractors cost lapo", note,
                 ("labels used", *variants), rows)


def _recovered(values, variants, used, errors):
    shares = [recovery(values[name], values["lapo"], values[CLEAN], errors) for name in variants]
    return [Cell(used), *(Cell("–" if share is None else f"{share:.0%}") for share in shares)]


def _used(found, budget):
    """The labels that one row of a table stands for, and the variants that used more, by name."""
    more = {"on slots": found.get("lapo-slots"),
            **{name: found.get(name) for name in LATENT if VARIANTS[name].supervised}}
    used = [f"{name} {row['labels']}" for name, row in more.items() if row and row["labels"] > budget]
    return ", ".join([str(budget), *used])


def _statistics(results):
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for row in select(results.returns, task=task):
            labels = f"{row['budget']} labelled" if row["budget"] else "all labels"
            rows.append((f"{row['variant']}, {labels}", [
                Cell(_labels(row["labels"])), Cell(number(row["mean"], row["stderr"])), Cell(number(row["iqm"])),
                Cell(f"{number(row['low'])} to {number(row['high'])}"), Cell(row["by_seed"].replace(" ", ", ")),
                Cell(number(row["normalised"])), Cell(_better(row)), Cell(f"{row['seeds']} × {row['episodes']}")]))
    note = (f"Undiscounted return of an episode: mean and standard error {_spread(results)}, interquartile mean with "
            "its 95% interval (arXiv 2108.13264), mean of each seed. P(> lapo) is the probability that an episode "
            "returns more than one of lapo's at the same budget; where its 95% interval contains 0.5 these episodes do "
            "not tell which is better. Intervals are by bootstrap over seeds and episodes. Of few seeds they are too "
            "narrow: where seeds differ as much as episodes do, those of 1, 2, 3 and 5 seeds with 10 episodes each "
            "contain the truth in 45%, 75%, 85% and 90% of cases.")
    columns = ("labels used", "mean", "IQM", "95% interval", "each seed", "normalised", "P(> lapo)",
               "seeds × episodes")
    return Table("returns", "Returns of every policy", note, columns, rows)


def _spread(results):
    """What the standard errors of returns are over."""
    if len(results.seeds) > 1:
        return "over seeds, which all act in the same episodes"
    return "over one seed's episodes, which says nothing of other seeds"


def _generalisation(results):
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for row in select(results.generalisation, task=task):
            seen, unseen = row["train_mean"], row["test_mean"]
            rows.append((row["variant"], [
                Cell(_labels(row["labels"])), Cell(number(seen, row["train_stderr"])),
                Cell(number(unseen, row["test_stderr"]), f"{unseen / seen:.0%}" if seen > 0 else "")]))
    note = ("Return of the policy of the largest label budget on the training videos, which are the backgrounds of "
            "demonstrations that are collected here (the paper evaluates on those), and on unseen ones; with what "
            "share of the return is left.")
    return Table("returns", "Seen and unseen backgrounds", note, ("labels used", "training videos", "unseen videos"),
                 rows)


def _better(row):
    """The probability of improvement over lapo, its interval, and whether that says anything."""
    if row["improvement"] is None:
        return number(None)
    low, high = row["improvement_low"], row["improvement_high"]
    if low is None:
        return number(row["improvement"])
    shown = "" if not low <= 0.5 <= high else ", no difference shown"
    return f"{row['improvement']:.2f} ({low:.2f} to {high:.2f}){shown}"


def _full(results):
    names, rows = ("bc-no-distractors", "bc"), []
    for task in results.tasks:
        expert = results.experts[task]
        cells = [Cell(_labels(None)), Cell(number(expert), paper=_paper(PAPER_EXPERT.get(task)))]
        for name in names:
            share = _of_expert(results, task, name)
            row = next(iter(select(results.returns, task=task, variant=name, budget=0)), {"mean": None, "stderr": None})
            cells.append(Cell(number(row["mean"], row["stderr"]), "" if share is None else f"{share:.0%} of expert",
                              _paper(VARIANTS[name].paper.returns.get(task))))
        rows.append((task, cells))
    note = "Mean return of an episode. Table 2 divides by bc's. Expert: the demonstrations, with their action noise."
    columns = ("labels used", "expert", *names)
    return Table("returns", "Table 3. Behaviour cloning on all true actions", note, columns, rows)


def _slots(results):
    columns = {"probe_mse": "error, masked frames", "probe_r2": "R²", "vector_mse": "error, slot vector",
               "agent_iou": "IoU with agent", "agent_recall": "recall", "area": "area", "stability": "stability",
               "fg_ari": "FG-ARI"}
    for choice in results.selections:
        found = select(results.slots, task=choice["task"], seed=choice["seed"])
        judged = [row["probe_mse"] for row in found if row["probe_mse"] is not None]  # empty where no actions are known
        rows = [(f"slot {row['slot']}" + (", chosen" if row["chosen"] else ""),
                 [Cell(number(row.get(key)), best=key == "probe_mse" and judged != [] and row[key] == min(judged))
                  for key in columns])
                for row in found]
        together = {**choice, **choice["chosen_probe"]}
        rows.append(("chosen, together", [Cell(number(together.get(key))) for key in columns]))
        rows.append(("chosen, pixel mask", [Cell(number(choice["mask"].get(key))) for key in columns]))
        rows.append(("whole frame", [Cell(number(choice["whole_frame"].get(key))) for key in columns]))
        best = select(results.compared, task=choice["task"], seed=choice["seed"])
        rows += [(f"{row['model']}, slot {row['slot']}, its best", [Cell(number(row.get(key))) for key in columns])
                 for row in best]
        chosen = "restart and slots" if choice["restart_errors"] else "slots"
        note = (f"{choice['why']} Model: {choice['model']}, restart {choice['restart']}. Probes predict the true "
                f"actions of labelled trajectories; {choice['labels']} were used to choose {chosen}. "
                "Masked frames here are cut by patches, at 8x8 pixels. Slot vectors are stage slots' in each row but "
                "that of the pixel mask, which has those that lapo-slots observes. ")
        if choice["fg_ari"] is None:
            note += "This dataset has no segmentation to judge the choice by."
        else:
            note += ("IoU, recall, area, stability and FG-ARI (of all slots) come from the simulator's segmentation "
                     "on the patch grid, those of the mask of lapo-masks on pixels; they evaluate the choice and "
                     "are not used to make it. Stability: share of frames in which the slot covers the most of the "
                     "agent; together: of the slot that does so most often. FG-ARI: share of frames in which a single "
                     "slot covers all of the agent; also 1 where one slot covers the whole frame.")
            if best:
                models = " and ".join(dict.fromkeys(row["model"] for row in best))
                note += f" {models}: trained once; the slot shown is the one with the highest IoU."
        yield Table("slots", f"Choice of slots, {choice['task']}, seed {choice['seed']}", note, tuple(columns.values()),
                    rows)


def _parameters(results):
    rows = [(name, [Cell(number(results.parameters[name])), Cell(number(count))])
            for name, count in PAPER_PARAMETERS.items()]
    note = ("params/paper.yaml gives the paper's counts; smaller scales have the same models at smaller sizes. bc is "
            "the actor of latent actions, of stage bc.")
    return Table("cost", "Table 4. Parameters", note, ("this run", "paper"), rows)


def _paper_durations(results):
    measured = [row for row in results.durations if row["mean"] is not None]
    rows = []
    for name, seconds in PAPER_DURATIONS.items():
        parts = [[row for row in measured if part == (row["variant"] if row["stage"] == "lapo" else row["stage"])]
                 for part in name.split(" + ")]
        ours = sum(np.mean([row["mean"] for row in part]) for part in parts) if all(parts) else None
        hardware = ", ".join(sorted({row["hardware"] for part in parts for row in part})) or "–"
        rows.append((name, [Cell(_time(ours)), Cell(hardware), Cell(_time(seconds))]))
    note = ("Wall-clock of one run of the stage: one task, one seed, one variant. A dash stands for a stage that was "
            "not run on this machine but restored from DVC's cache.")
    return Table("cost", "Table 5. Durations", note, ("this run", "hardware", "paper, one H100"), rows)


def _durations(results):
    rows = [(row["stage"] + (f", {row['variant']}" if row["variant"] else ""),
             [Cell(_time(row["mean"])), Cell(_time(row["seconds"])), Cell(f"{row['runs']} of {row['of']}"),
              Cell(row["hardware"] or "–")]) for row in results.durations]
    total = sum(row["seconds"] or 0 for row in results.durations)
    rows.append(("all stages", [Cell(""), Cell(_time(total)), Cell(""), Cell("")]))
    return Table("cost", "Wall-clock of every stage", "", ("mean of a run", "total", "runs", "hardware"), rows)


def _beside(values, spreads, paper, *, lower):
    """Cells of one row, from every variant's values over seeds; the best variant that sees distractors is marked.

    Ratios to lapo are left out where lapo's value is within two standard errors of 0: they would say nothing.
    """
    means = {name: average(entries) for name, entries in values.items()}
    rivals = [mean for name, mean in means.items() if mean is not None and normaliser(name) == "bc"]
    best = (min if lower else max)(rivals, default=None)
    errors = {name: spreads.get(name, _standard_error(entries)) for name, entries in values.items()}
    lapo = means.get("lapo")
    known = lapo is not None and lapo > 2 * (errors["lapo"] or 0)
    theirs = paper.get("lapo", (None,))[0]
    return [Cell(number(mean, errors[name]),
                 _ratio(mean, lapo, lower) if known and name != "lapo" else "",
                 _paper(*paper[name], _ratio(paper[name][0], theirs, lower) if name != "lapo" else "")
                 if name in paper else "",
                 mean is not None and mean == best and normaliser(name) == "bc")
            for name, mean in means.items()]


def _standard_error(values):
    return float(stats.sem(values)) if len(values) > 1 else None


def _ratio(value, lapo, lower):
    over, under = (lapo, value) if lower else (value, lapo)
    return f"×{float(f'{over / under:.2g}'):g}" if over is not None and under else ""


def _paper(value, spread=None, ratio=""):
    if value is None:
        return ""
    return f"paper {value:g}" + ("" if spread is None else f" ± {spread:g}") + f" {ratio}".rstrip()


def _labels(count):
    return "all" if count is None else number(count)


def _time(seconds):
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s" if minutes else f"{number(float(seconds))} s"
