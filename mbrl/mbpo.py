"""MBPO with an iVideoGPT world model: Algorithm 1 of the paper, on one page. `make train AGENT=mbpo`.

A DrQ-v2 agent learns from a real replay buffer and from an imagined one that the world model fills with short rollouts
from real states; the world model, its reward head included, is fine-tuned on the real data as it comes in.
Sources: iVideoGPT (Wu et al., arXiv 2405.15223, section 4.3 and appendix A.5), MBPO (Janner et al., arXiv 1906.08253),
DrQ-v2 (Yarats et al., arXiv 2107.09645). What is not special to MBPO is in `mbrl/session.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import trange

import envs
from agents import Agent, TransitionBatch
from mbrl.build import make_world
from mbrl.experiment.background import Background
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.run import Run, stream_seed
from mbrl.experiment.settings import UserError
from mbrl.replay import ReplayBuffer
from mbrl.rollout import RealClips, dream
from mbrl.session import Session
from mbrl.validate import validate

LOG_UPDATES = 50  # updates between two lines of the log while the world model is first trained


class MBPO:
    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        s, device = run.settings, run.device
        self.agent, self.replay = self.session.agent, self.session.replay
        self.world = make_world(s, self.session.env, device)
        if envs.suite_of(s.task).terminates and "continue" not in self.world.heads:
            raise UserError(
                f"task={s.task} can end before its time limit, and dreams of this world model can't: add continue to "
                "world_model.heads"
            )
        self.clips = RealClips(self.replay, device)
        decisions = s.imagined_buffer_frames // s.action_repeat
        self.imagined: ReplayBuffer = self.session.make_buffer("imagined", decisions, s.rollout_horizon)
        self.generator = torch.Generator(device).manual_seed(stream_seed(s.seed, "dreams"))
        # The two keys count in different clocks: frames of dreams, and frames between two batches of them.
        imagined_frames = s.rollout_batch * s.rollout_horizon * s.action_repeat
        window = s.imagined_buffer_frames * s.rollout_every_frames // imagined_frames
        run.progress.write(f"the imagined buffer holds the dreams of the last {window:,} frames")
        self.initialised = False  # whether the first training of the world model and the first dreams are done
        self.imagines = s.real_ratio < 1  # otherwise nothing would learn from dreams: the world model stays as it is
        self.background = Background(device)

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        session = self.session
        s = session.settings
        session.begin()
        if session.run.checkpoint is not None:
            self.restore(session.run.checkpoint)

        while session.frame < s.num_train_frames:
            if session.frame < s.num_seed_frames:
                # A policy that has learned nothing here fills the real replay.
                session.act(session.seed_agent)
            else:
                self.initialise()
                # Learn the world.
                self.learn_world(session.frame)
                # Learn to act, from reality and dreams.
                for _ in range(session.updates_due(s.agent_updates_per_decision)):
                    session.learn_to_act(session.agent_batch(self.mixed_batch))
                # Dream.
                if session.due(s.rollout_every_frames):
                    self.dream(self.agent)
                # Act.
                session.act(self.agent)
            if session.log_due:
                self.join()
            session.run.step(session.frame)
            # Evaluate.
            if session.evaluation_due:
                self.evaluate()
            # Save.
            if session.checkpoint_due:
                self.save()

        self.join()
        session.run.flush(session.frame)  # a loss that is not finite stops here
        self.world.save_pretrained(session.run.folder / "world_model")  # for other runs to begin from
        session.save(self.parts(), finished=True)

    # -- the verbs of MBPO -------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """First training of the world model, first dreams; once."""
        session, s = self.session, self.session.settings
        if self.initialised or not self.imagines:
            return
        with self.background.alone():
            for i in trange(s.initial_model_updates, desc="first training of the world model", leave=False):
                self.learn_world(frame=None)
                if i % LOG_UPDATES == 0:
                    session.run.flush(session.frame)
        for _ in trange(-(-s.initial_rollouts // s.rollout_batch), desc="first dreams", leave=False):
            self.dream(session.seed_agent)
        self.initialised = True
        if session.collector.between_episodes:
            self.save()  # so that this need not be done again

    def learn_world(self, frame: int | None) -> None:
        """Update the parts that are due at `frame` (all without one) on fresh real clips, in the background."""
        run, batch = self.session.run, self.world.sample(self.clips, frame) if self.imagines else None
        if batch is None:
            return

        def update() -> None:
            with run.timed("learn_world_s"):
                run.record("world_model", self.world.update(*batch))

        self.background.start(update)

    @contextmanager
    def still_world(self) -> Iterator[None]:
        """All threads for the body, while nothing is learned of the world: updates under way are waited for."""
        with self.background.alone(), self.world.frozen():
            yield

    def dream(self, agent: Agent) -> None:
        """Roll the world model out from real states, under `agent`, into the imagined buffer."""
        session, s = self.session, self.session.settings
        if not self.imagines:
            return
        with self.still_world(), session.run.timed("dream_s"):
            episodes = dream(
                self.world,
                agent,
                self.replay.sample_starts(s.rollout_batch),
                s.rollout_horizon,
                session.collector.decision,
                temperature=s.rollout_temperature,
                top_k=s.rollout_top_k,
                generator=self.generator,
            )
        for episode in episodes:
            self.imagined.add(episode)
        mean = sum(float(episode.rewards.mean()) for episode in episodes) / len(episodes)
        session.run.record("imagined", {"reward_mean": mean, "buffer_decisions": float(len(self.imagined))})

    def mixed_batch(self, size: int) -> TransitionBatch:
        """`real_ratio` of a batch from reality, the rest from dreams (once there are any)."""
        real = round(size * self.session.settings.real_ratio) if len(self.imagined) else size
        self.session.run.record("imagined", {"batch_share": 1 - real / size})
        parts = [self.replay.sample(real)] if real else []
        if real < size:
            parts.append(self.imagined.sample(size - real))
        return TransitionBatch.cat(parts)

    def evaluate(self) -> None:
        """Also holds the world model against the evaluation episodes, which it never trained on."""
        session, s = self.session, self.session.settings
        seed = stream_seed(s.seed, "validation", session.frame)
        with self.still_world():
            episodes = session.evaluate().episodes
            if self.imagines:
                with session.run.timed("evaluate_s"):
                    found = validate(
                        self.world, episodes, s.rollout_horizon, seed, s.rollout_temperature, s.rollout_top_k
                    )
                session.log_world_model(*found)

    def join(self) -> None:
        """Join what goes on beside the loop."""
        self.background.wait()

    def close(self) -> None:
        self.background.close()
        self.world.close()
        self.session.close()

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.join()
        self.session.save(self.parts())

    def parts(self) -> dict[str, Any]:
        return self.session.parts() | {
            "world_model.safetensors": self.world.weights(),
            "world_model.pt": self.world.state(),
            "imagined.pt": self.imagined.state_dict(with_episodes=True),
            "dreams.pt": {"generator": self.generator.get_state(), "initialised": self.initialised},
        }

    def restore(self, saved: Checkpoint) -> None:
        device = self.session.device
        try:
            self.world.load_weights(saved.load("world_model.safetensors", device))
            self.world.load_state(saved.load("world_model.pt", device))
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{saved.path} holds another world model than this version makes of the run's config: finish the run "
                "with the version that began it (git.json), or set variant=<name> to begin anew"
            ) from error
        self.imagined.load_state_dict(saved.load("imagined.pt"))
        dreams = saved.load("dreams.pt")
        self.generator.set_state(dreams["generator"])
        self.initialised = dreams["initialised"]
