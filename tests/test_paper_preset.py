"""`PRESET=paper` at full size, once: one update of tokenizer, transformer and agent, one dream of 2 x 3 frames."""

import numpy as np
import torch

from mbrl.build import make_agent, make_env, make_world
from mbrl.experiment.settings import load
from mbrl.replay import ReplayBuffer
from mbrl.rollout import dream, to_clips, to_float
from world_model import Episode


def test_one_of_everything():
    settings = load(["preset=paper", "task=toy/reach", "device=cpu"])
    env = make_env(settings)
    agent = make_agent(settings, env, torch.device("cpu"))
    world = make_world(settings, env, torch.device("cpu"))
    layout, config = world.model.layout, settings.world_model.learner
    assert (layout.length(config.segment_length), layout.vocabulary) == (683, 16386)

    replay = ReplayBuffer(
        50, (3, 64, 64), 2, frame_stack=settings.frame_stack, nstep=settings.nstep, discount=0.99, seed=0
    )
    rng = np.random.default_rng(0)
    replay.add(
        Episode(
            rng.integers(0, 256, (31, 3, 64, 64), np.uint8),
            rng.uniform(-1, 1, (30, 2)).astype(np.float32),
            rng.uniform(0, 1, 30).astype(np.float32),
            terminated=False,
        )
    )
    segments = replay.sample_segments(1, config.segment_length)  # a batch of 16 takes minutes on a CPU
    before = {name: value.clone() for name, value in world.model.named_parameters() if "norm" in name}
    metrics = world.update(to_clips(segments, torch.device("cpu")), to_float(segments.frames))
    metrics |= agent.update(replay.sample(settings.batch_size), decision=0)
    assert all(value.isfinite() for value in metrics.values())
    moved = {
        name.split(".")[0] for name, value in before.items() if not torch.equal(value, world.model.get_parameter(name))
    }
    assert moved == {"tokenizer", "transformer"}

    episodes = dream(
        world,
        agent,
        replay.sample_starts(2),
        3,
        0,
        temperature=settings.rollout_temperature,
        top_k=settings.rollout_top_k,
        generator=torch.Generator().manual_seed(0),
    )
    assert [episode.frames.shape for episode in episodes] == [(settings.frame_stack + 3, 3, 64, 64)] * 2
    env.close()
