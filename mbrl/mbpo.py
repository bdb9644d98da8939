"""MBPO with an iVideoGPT world model: Algorithm 1 of the paper, on one page. `make train AGENT=mbpo`.

A DrQ-v2 agent learns from a real replay buffer and from an imagined one that the world model fills with short rollouts
from real states; the world model, its reward head included, is fine-tuned on the real data as it comes in.
Sources: iVideoGPT (Wu et al., arXiv 2405.15223, section 4.3 and appendix A.5), MBPO (Janner et al., arXiv 1906.08253),
DrQ-v2 (Yarats et al., arXiv 2107.09645). `Trainer` holds the verbs that are not special to MBPO.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import trange

import envs
from agents import Agent, TransitionBatch
from mbrl.background import Background
from mbrl.build import make_world
from mbrl.evaluate import Evaluation
from mbrl.replay import ReplayBuffer
from mbrl.rollout import RealClips, dream
from mbrl.run import Run, stream_seed
from mbrl.settings import UserError
from mbrl.trainer import Trainer
from mbrl.validate import validate
from mbrl.video import encode_gif

LOG_UPDATES = 50  # updates between two lines of the log while the world model is first trained


class MBPO(Trainer):
    initialised: bool  # whether the first training of the world model and the first dreams are done

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        s = self.settings
        self.begin()

        # A random policy fills the real replay; first training of the world model; first dreams.
        while self.frame < s.num_seed_frames:
            self.act(self.seed_agent)
        if self.imagines and not self.initialised:
            with self.background.alone():
                for i in trange(s.initial_model_updates, desc="first training of the world model", leave=False):
                    self.learn_world(frame=None)
                    if i % LOG_UPDATES == 0:
                        self.run.flush(self.frame)
            for _ in trange(-(-s.initial_rollouts // s.rollout_batch), desc="first dreams", leave=False):
                self.dream(self.seed_agent)
            self.initialised = True
            if self.collector.between_episodes:
                self.save()  # so that this need not be done again

        while self.frame < s.num_train_frames:
            # Learn the world.
            if self.imagines:
                self.learn_world(self.frame)
            # Learn to act, from reality and dreams.
            for _ in range(self.updates_due()):
                self.learn_to_act(self.agent_batch(self.mixed_batch))
            # Dream.
            if self.imagines and self.due(s.rollout_every_frames):
                self.dream(self.agent)
            # Act.
            self.act(self.agent)

        self.finish()

    # -- the verbs of MBPO -------------------------------------------------------------------------------------------

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        s = self.settings
        self.world = make_world(s, self.env, self.device)
        if envs.suite_of(s.task).terminates and "continue" not in self.world.heads:
            raise UserError(
                f"task={s.task} can end before its time limit, and dreams of this world model can't: add continue to "
                "world_model.heads"
            )
        self.clips = RealClips(self.replay, self.device)
        decisions = s.imagined_buffer_frames // s.action_repeat
        self.imagined: ReplayBuffer = self.make_buffer("imagined", decisions, s.rollout_horizon)
        self.generator = torch.Generator(self.device).manual_seed(stream_seed(s.seed, "dreams"))
        self.initialised = False
        self.imagines = s.real_ratio < 1  # otherwise nothing would learn from dreams: no world model is needed
        self.background = Background(self.device)

    def learn_world(self, frame: int | None) -> None:
        """Update the parts that are due at `frame` (all without one) on fresh real clips, in the background."""
        batch = self.world.sample(self.clips, frame)
        if batch is None:
            return

        def update() -> None:
            with self.run.timed("learn_world_s"):
                self.run.record("world_model", self.world.update(*batch))

        self.background.start(update)

    @contextmanager
    def still_world(self) -> Iterator[None]:
        """All threads for the body, while nothing is learned of the world: updates under way are waited for."""
        with self.background.alone(), self.world.frozen():
            yield

    def dream(self, agent: Agent) -> None:
        """Roll the world model out from real states, under `agent`, into the imagined buffer."""
        s = self.settings
        with self.still_world(), self.run.timed("dream_s"):
            episodes = dream(
                self.world,
                agent,
                self.replay.sample_starts(s.rollout_batch),
                s.rollout_horizon,
                self.collector.decision,
                temperature=s.rollout_temperature,
                top_k=s.rollout_top_k,
                generator=self.generator,
            )
        for episode in episodes:
            self.imagined.add(episode)
        mean = sum(float(episode.rewards.mean()) for episode in episodes) / len(episodes)
        self.run.record("imagined", {"reward_mean": mean, "buffer_decisions": float(len(self.imagined))})

    def mixed_batch(self, size: int) -> TransitionBatch:
        """`real_ratio` of a batch from reality, the rest from dreams (once there are any)."""
        real = round(size * self.settings.real_ratio) if len(self.imagined) else size
        self.run.record("imagined", {"batch_share": 1 - real / size})
        parts = [self.replay.sample(real)] if real else []
        if real < size:
            parts.append(self.imagined.sample(size - real))
        return TransitionBatch.cat(parts)

    def settle(self) -> None:
        self.background.wait()

    def evaluate(self) -> Evaluation:
        """Also holds the world model against the evaluation episodes, which it never trained on."""
        if not self.imagines:
            return super().evaluate()
        s = self.settings
        seed = stream_seed(s.seed, "validation", self.frame)
        with self.still_world():
            result = super().evaluate()
            metrics, grid = validate(
                self.world, result.episodes, s.rollout_horizon, seed, s.rollout_temperature, s.rollout_top_k
            )
        self.run.log(self.frame, {f"world_model/{name}": value for name, value in metrics.items()})
        if grid is not None:
            self.run.log_video("imagined/dream", self.frame, encode_gif(grid, fps=3))
        return result

    def parts(self) -> dict[str, Any]:
        return super().parts() | {
            "world_model.safetensors": self.world.weights(),
            "world_model.pt": self.world.state(),
            "imagined.pt": self.imagined.state_dict(with_episodes=True),
            "dreams.pt": {"generator": self.generator.get_state(), "initialised": self.initialised},
        }

    def restore(self) -> None:
        super().restore()
        saved = self.run.checkpoint
        assert saved is not None
        self.world.load_weights(saved.load("world_model.safetensors", self.device))
        self.world.load_state(saved.load("world_model.pt", self.device))
        self.imagined.load_state_dict(saved.load("imagined.pt"))
        dreams = saved.load("dreams.pt")
        self.generator.set_state(dreams["generator"])
        self.initialised = dreams["initialised"]

    def finish(self) -> None:
        """Also leaves the world model in a folder of its own, for other runs to begin from."""
        self.settle()
        self.run.flush(self.frame)  # a loss that is not finite stops here
        self.world.save_pretrained(self.run.folder / "world_model")
        super().finish()

    def close(self) -> None:
        self.background.close()
        super().close()
