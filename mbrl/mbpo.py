"""MBPO with an iVideoGPT world model: Algorithm 1 of the paper, on one page. `make train AGENT=mbpo`.

A DrQ-v2 agent learns from a real replay buffer and from an imagined one that the world model fills with short rollouts
from real states; the world model, its reward head included, is fine-tuned on the real data as it comes in.
Sources: iVideoGPT (Wu et al., arXiv 2405.15223, section 4.3 and appendix A.5), MBPO (Janner et al., arXiv 1906.08253),
DrQ-v2 (Yarats et al., arXiv 2107.09645). What is not special to MBPO is in `mbrl/session.py`.
"""

import math
from typing import Any

import torch

from agents import Agent, TransitionBatch
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.run import Run, stream_seed
from mbrl.replay import ReplayBuffer
from mbrl.rollout import dream
from mbrl.session import Session
from mbrl.world.gate import Gate
from mbrl.world.training import WorldTraining


class MBPO:
    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        s, device = run.settings, run.device
        self.agent, self.replay = self.session.agent, self.session.replay
        self.world = WorldTraining(self.session)
        decisions = s.imagined_buffer_frames // s.action_repeat
        self.imagined: ReplayBuffer = self.session.make_buffer("imagined", decisions, s.rollout_horizon)
        self.gate = Gate(s.dream_gate)
        self.generator = torch.Generator(device).manual_seed(stream_seed(s.seed, "dreams"))
        # The two keys count in different clocks: frames of dreams, and frames between two batches of them.
        imagined_frames = s.rollout_batch * s.rollout_horizon * s.action_repeat
        window = s.imagined_buffer_frames * s.rollout_every_frames // imagined_frames
        run.progress.write(f"the imagined buffer holds the dreams of the last {window:,} frames")
        self.initialised = False  # whether the first training of the world model and the first dreams are done
        self.imagines = s.real_ratio < 1  # otherwise nothing would learn from dreams: the world model stays as it is

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        session = self.session
        s = session.settings
        self.begin()

        while session.frame < s.num_train_frames:
            if session.frame < s.num_seed_frames:
                # A policy that has learned nothing here fills the real replay.
                session.act(session.seed_agent)
            else:
                self.initialise()
                # Learn the world.
                if self.imagines:
                    self.world.learn(session.frame)
                # Learn to act, from reality and dreams.
                for _ in range(session.updates_due(s.agent_updates_per_decision)):
                    session.learn_to_act(session.agent_batch(self.mixed_batch))
                # Dream.
                if session.due(s.rollout_every_frames):
                    self.dream(self.agent)
                # Act.
                self.act()
            session.run.step(session.frame)
            # Evaluate.
            if session.evaluation_due:
                self.world.evaluate(validated=self.imagines)
            # Save.
            if session.checkpoint_due:
                self.save()

        self.world.finish()
        session.save(self.parts(), finished=True)

    # -- the verbs of MBPO -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Demonstrations into the replay and the agent, or everything as the last checkpoint left it."""
        self.session.begin()
        if self.session.run.checkpoint is not None:
            self.restore(self.session.run.checkpoint)
        elif self.session.cloned:
            self.save()  # so that this need not be done again

    def initialise(self) -> None:
        """First training of the world model, first dreams; once."""
        session, s = self.session, self.session.settings
        if self.initialised or not self.imagines:
            return
        self.world.learn_first()
        for _ in progress_bar(range(-(-s.initial_rollouts // s.rollout_batch)), desc="first dreams", leave=False):
            self.dream(session.seed_agent)
        self.initialised = True
        if session.collector.between_episodes:
            self.save()  # so that this need not be done again

    def act(self) -> None:
        """One decision in the real environment; the episode that ends with it says whether dreams can be trusted."""
        session, s = self.session, self.session.settings
        episode = session.act(self.agent)
        if episode is None or not self.imagines or not self.gate.least:
            return
        with self.world.model.frozen(), session.run.timed("dream_s"):
            seed = stream_seed(s.seed, "gate", session.frame)
            self.gate.judge(self.world.model, episode, s.rollout_horizon, seed)
        if not math.isnan(self.gate.correlation):
            session.run.record("imagined", {"gate_correlation": self.gate.correlation})

    def dream(self, agent: Agent) -> None:
        """Roll the world model out from real states, under `agent`, into the imagined buffer."""
        session, s = self.session, self.session.settings
        if not self.imagines or not self.gate.open:
            return
        with self.world.model.frozen(), session.run.timed("dream_s"):
            episodes = dream(
                self.world.model,
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
        dreams = len(self.imagined) and self.gate.open
        real = round(size * self.session.settings.real_ratio) if dreams else size
        self.session.run.record("imagined", {"batch_share": 1 - real / size})
        parts = [self.replay.sample(real)] if real else []
        if real < size:
            parts.append(self.imagined.sample(size - real))
        return TransitionBatch.cat(parts)

    def close(self) -> None:
        self.world.close()
        self.session.close()

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.session.save(self.parts())

    def parts(self) -> dict[str, Any]:
        return (
            self.session.parts()
            | self.world.parts()
            | {
                "imagined.pt": self.imagined.state_dict(with_episodes=True),
                "dreams.pt": {
                    "generator": self.generator.get_state(),
                    "initialised": self.initialised,
                    "gate": self.gate.state(),
                },
            }
        )

    def restore(self, saved: Checkpoint) -> None:
        self.world.restore(saved)
        with saved.restoring():
            self.imagined.load_state_dict(saved.load("imagined.pt"))
            dreams = saved.load("dreams.pt")
            self.generator.set_state(dreams["generator"])
            self.initialised = dreams["initialised"]
            self.gate.load_state(dreams.get("gate", []))
