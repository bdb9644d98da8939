"""Evaluation: play episodes with the agent as it is, without exploring. `make eval TASK=...`.

The environment and the seeds are evaluation's own, and nothing random of the training is drawn from, so evaluating
more often changes no weight.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

import envs
from agents import Agent, DrQv2
from mbrl.build import make_agent, make_env
from mbrl.collector import record
from mbrl.experiment import checkpoints
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import needs_of_evaluation, refuse_too_large
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.command import command
from mbrl.experiment.identity import FREE_KEYS
from mbrl.experiment.run import CHECKPOINTS, run_folder, stored_settings, stream_seed
from mbrl.experiment.settings import Settings, UserError, load, pick_device, typed_keys
from mbrl.experiment.video import side_by_side, write_gif
from mbrl.interop.trained import world_of_run
from mbrl.plan.agent import PlanningAgent, plan_for_rewards
from world_model import Episode

SHOWN = 3  # episodes in a video
PLANNING = ("planner", "planning")
FREE = FREE_KEYS | {"num_eval_episodes", "device"}


class Evaluation(NamedTuple):
    episode_return: float  # mean over the episodes, success bonus included
    success_rate: float  # share of episodes that touched success at any time
    episodes: list[Episode]
    successes: list[float]


def play(agent: Agent, env: envs.PixelEnv, decision: int, seeds: Iterable[int]) -> Evaluation:
    """One episode for each seed; `decision` is how far training is."""

    def act(obs: np.ndarray) -> np.ndarray:
        return agent.act(torch.from_numpy(obs)[None], decision, eval_mode=True)[0].float().cpu().numpy()

    episodes = []
    for seed in seeds:
        agent.begin_episode(eval_mode=True)
        episodes.append(record(env, act, seed))
    successes = [float(episode.successes.max()) for episode in episodes if episode.successes is not None]
    returns = [float(episode.rewards.sum()) for episode in episodes]
    return Evaluation(float(np.mean(returns)), float(np.mean(successes)), episodes, successes)


def planning_agent(
    agent: Agent, settings: Settings, env: envs.PixelEnv, saved: Checkpoint, device: torch.device
) -> PlanningAgent:
    """`agent`, or a planner that it helps, with the world model of the checkpoint. Raises UserError: there is none."""
    found = world_of_run(run_folder(settings), saved, settings, env, device)
    if settings.agent not in ("mbpo", "mpc") or found is None:
        raise UserError(f"planner={settings.planner}: agent={settings.agent} has no world model to plan in")
    world, _ = found
    policy = agent if isinstance(agent, DrQv2) else None
    if not isinstance(agent, PlanningAgent):
        seed = stream_seed(settings.seed, "make eval", "planner")
        agent = PlanningAgent(settings.planning, env.action_space.shape[0], seed, device)
    plan_for_rewards(agent, world, settings.discount, policy)
    return agent


def evaluate(overrides: list[str]) -> None:
    """Evaluate the newest checkpoint of the run of task, agent and seed on fresh episodes; nothing of it changes.

    Of its keys, those in `FREE` may differ from the run's. With `planner=<name>` a planner acts, in the run's world
    model: the policy proposes candidates, and its critic tells what comes after the horizon.
    """
    asked, typed = load(overrides), typed_keys(overrides)
    planned = {key for key in typed if key.split(".")[0] in PLANNING}
    settings = stored_settings(asked, typed - planned, FREE)
    if planned:
        settings = dataclasses.replace(settings, planner=asked.planner, planning=asked.planning)
    refuse_too_large(needs_of_evaluation(settings), settings.device)
    folder = run_folder(settings)
    saved = checkpoints.latest(folder / CHECKPOINTS)
    if saved is None:
        raise UserError(f"{folder} has no checkpoint yet: let it train a little longer")
    device, env = pick_device(settings.device), make_env(settings)
    agent = make_agent(settings, env, device)
    with saved.restoring():
        agent.load_weights(saved.load("agent.safetensors", device))  # all that acting needs, and fit for any device
        if planned or isinstance(agent, PlanningAgent):
            agent = planning_agent(agent, settings, env, saved, device)
    # Not the seeds that training evaluated with: its choice of a checkpoint may have been made on those.
    seeds = [stream_seed(settings.seed, "make eval", i) for i in range(settings.num_eval_episodes)]
    bar = progress_bar(seeds, unit="episode")
    result = play(agent, env, saved.frame // settings.action_repeat, bar)
    env.close()
    planner = f"_{settings.planner}" if planned else ""
    video = folder / "videos" / f"make_eval{planner}_{saved.frame:09d}.gif"
    acting = f", planner {settings.planner}" if isinstance(agent, PlanningAgent) else ""
    print(
        f"{folder} at frame {saved.frame}{acting}: success rate {result.success_rate:.2f}, "
        f"return {result.episode_return:.1f} over {len(seeds)} episodes ({video})",
        flush=True,  # also where the video can't be written
    )
    write_gif(video, side_by_side([episode.frames for episode in result.episodes[:SHOWN]], scale=2), fps=20)


if __name__ == "__main__":
    command(evaluate)
