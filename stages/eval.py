"""Returns in the environment, in the view that the policies were trained for: reads a folder of policies, writes every
episode's return and a video of the first episode at the largest budget.

In the distracted view, if it has background videos, the policy of the largest budget is also evaluated on the other
ones: the difference shows how it generalises to videos that no training saw."""

from functools import partial

from oclam import envs, paths, suite
from oclam.artifacts import write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.errors import Absent, UserError
from oclam.evaluation.episodes import episode_seeds, evaluate
from oclam.params import load
from oclam.policies.files import load_policies
from oclam.variants import view_of
from oclam.video import FPS, write_video

OTHER = {"train": "test", "test": "train"}
RECORDED, EVERY = 300, 3  # the video shows every third of the first 300 frames


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("env", "eval", "collect.steps")
    if task not in suite.TASKS:
        raise Absent(f"the suite has no {task}: policies cannot act there")
    seeds = episode_seeds(params.eval.seed, params.eval.episodes)
    view, folder = view_of(variant), paths.policies(task, seed, variant)
    policies, cards = load_policies(folder, task=task, view=view, seed=seed, variant=variant,
                                    image_size=params.env.image_size)
    if (known := cards[0].action_dim) != (wanted := suite.sizes(suite.load_task(task))[0]):
        raise UserError(f"{folder}: policies with {known} actions, the suite's {task} has {wanted}; import what is not "
                        "the suite's under another task name")
    inputs = [folder, paths.backgrounds] if view == "distracted" else [folder]
    checkpoint = Checkpoint(f"eval-{task}-{seed}-{variant}", params, inputs)
    make = {videos: partial(envs.make, task, view, params.env, paths.backgrounds, videos) for videos in OTHER}
    asked = [(policy, card.budget, params.eval.backgrounds) for policy, card in zip(policies, cards, strict=True)]
    if view == "distracted" and params.env.background:
        asked.insert(0, (policies[-1], cards[-1].budget, OTHER[params.eval.backgrounds]))
    returns, frames, _ = evaluate([policy for policy, *_ in asked], cards[0].frame_stack,
                                  [make[videos] for *_, videos in asked], seeds, params.collect.steps,
                                  checkpoint.name, recorded=RECORDED, checkpoint=checkpoint)

    write_csv(paths.evaluation(task, seed, variant),
              [{"backgrounds": videos, "budget": budget, "episode": episode, "return": value}
               for (_, budget, videos), row in zip(asked, returns, strict=True) for episode, value in enumerate(row)])
    write_video(paths.episode_video(task, seed, variant), frames[::EVERY], FPS)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
