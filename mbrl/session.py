"""What every training loop works with: environments, agent, replay, demonstrations, and the run that it logs to.

`mbpo.py`, `online.py` and `dreamer.py` are loops over it. What a session holds, it can save and restore: after a
restart from the checkpoint of frame F, everything computed on a CPU from F on is the same, bit for bit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents import Agent, BehaviourCloner, Noisy, StreamBatch, TransitionBatch, Uniform, parse_schedule
from mbrl.build import environment_keywords, make_agent, make_buffer, make_env
from mbrl.collector import Collector, begin_of, collect_demonstrations, succeeded
from mbrl.evaluate import Evaluation, play
from mbrl.experiment import demonstrations
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.run import Run, stream_seed
from mbrl.experiment.settings import UserError
from mbrl.experiment.video import encode_gif, side_by_side
from mbrl.replay import ReplayBuffer
from world_model import Episode
from world_model.api import is_due

SHOWN = 3  # evaluation episodes in the video
LOG_UPDATES = 50  # updates between two lines of the log during behaviour cloning


class Session:
    def __init__(self, run: Run) -> None:
        s = run.settings
        self.run, self.settings, self.device = run, s, run.device
        if s.threads:
            torch.set_num_threads(s.threads)
        torch.manual_seed(stream_seed(s.seed, "torch"))  # start weights and dropout; all else has its own generator
        self.env, self.eval_env = make_env(s), make_env(s)
        self.episode_frames = self.env.episode_decisions * s.action_repeat
        if s.checkpoint_every_frames < self.episode_frames:
            raise UserError(
                f"checkpoint_every_frames={s.checkpoint_every_frames} is shorter than an episode: checkpoints fall "
                f"between episodes, so it must be at least {self.episode_frames}"
            )
        if not s.demonstrations and s.num_seed_frames < self.episode_frames:
            raise UserError(
                f"num_seed_frames={s.num_seed_frames} is shorter than an episode: without demonstrations there would "
                f"be nothing to learn from, so it must be at least {self.episode_frames}"
            )
        self.agent = make_agent(s, self.env, self.device)
        self.seed_agent = self.make_seed_agent()
        self.replay = self.make_buffer("replay", s.replay_buffer_frames // s.action_repeat, self.env.episode_decisions)
        self.demonstrations: ReplayBuffer | None = None
        self._demonstration_share = parse_schedule(s.demonstration_share)
        self.collector = Collector(self.env, run, self.replay)
        self._saved = run.start_frame
        self.cloned = False  # whether `begin` has cloned the demonstrations

    @property
    def frame(self) -> int:
        return self.collector.frame

    def make_buffer(self, name: str, decisions: int, episode_decisions: int) -> ReplayBuffer:
        """A buffer for `decisions` of them in episodes of `episode_decisions`, at least one episode."""
        action_dim, scratch = self.env.action_space.shape[0], self.run.folder / "replay"
        return make_buffer(self.settings, name, action_dim, decisions, episode_decisions, scratch)

    def make_seed_agent(self) -> Agent:
        """Who acts during `num_seed_frames`, as `seed_policy` says."""
        s = self.settings
        cloned = isinstance(self.agent, BehaviourCloner) and s.demonstrations and s.drqv2.bc_updates
        seed = stream_seed(s.seed, "random")
        if s.seed_policy == "random" or (s.seed_policy == "auto" and not cloned):
            return Uniform(self.env.action_space.shape[0], self.device, seed)
        if not cloned:
            raise UserError(
                "seed_policy=bc needs a cloned policy: set demonstrations and drqv2.bc_updates above 0 with "
                "agent=drqv2 or agent=mbpo, or seed_policy=random"
            )
        return Noisy(self.agent, s.seed_stddev, self.device, seed)

    # -- beginning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Demonstrations into the replay and the agent, or everything as the last checkpoint left it."""
        s = self.settings
        if self.run.checkpoint is None:
            self.collector.load_state({"frame": 0, "stored": 0, "played": 0})  # clears what an early kill left on disk
            for episode in self._demonstrate() if s.demonstrations else []:
                self.collector.add(episode)
        else:
            self.restore()
        if s.demonstrations:
            length, count = self.env.episode_decisions, self.collector.demonstrations
            kept = self.replay.capacity if s.imitate_successes else 0
            self.demonstrations = self.make_buffer("demonstrations", count * length + kept, length)
            for episode in self.collector.stored_episodes(0, count):
                self.demonstrate(episode)
            if not len(self.demonstrations):
                raise UserError(
                    f"none of the {count} demonstrations in {self.run.folder / 'replay'} can be read: "
                    "remove the run folder to start over"
                )
            played = self.collector.stored - count if s.imitate_successes else 0
            for episode in filter(succeeded, self.collector.stored_episodes(count, count + played)):
                self.demonstrate(episode)
            if self.run.checkpoint is not None:
                with self.run.checkpoint.restoring():
                    self.demonstrations.load_state_dict(self.run.checkpoint.load("demonstrations.json"))
            if isinstance(self.agent, BehaviourCloner):
                self.agent.demonstrations = self.demonstrations.sample
                if self.run.checkpoint is None:
                    self.clone(self.agent)

    def _demonstrate(self) -> list[Episode]:
        s = self.settings
        if isinstance(s.demonstrations, str):
            return demonstrations.load(Path(s.demonstrations), s, self.env.episode_decisions)
        seed = stream_seed(s.seed, "demonstrations")
        return collect_demonstrations(s.task, s.demonstrations, seed, **environment_keywords(s))

    def clone(self, agent: BehaviourCloner) -> None:
        """Behaviour cloning before the first frame; the run is worth a checkpoint afterwards."""
        updates = self.settings.drqv2.bc_updates
        for i, metrics in enumerate(progress_bar(agent.clone(), desc="behaviour cloning", total=updates, leave=False)):
            self.run.record("agent", metrics)
            if i % LOG_UPDATES == 0:
                self.run.flush(self.frame)
        self.cloned = updates > 0
        self.run.progress.unpause()  # its clock is for frames

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def due(self, every_frames: int) -> bool:
        """Whether a multiple of `every_frames` has been reached with the last decision."""
        return is_due(self.frame, every_frames, self.settings.action_repeat)

    def act(self, agent: Agent) -> Episode | None:
        """One decision in the real environment; the episode that ended with it."""
        with self.run.timed("act_s"):
            episode = self.collector.act(agent)
        if self.settings.imitate_successes and episode is not None and succeeded(episode):
            self.demonstrate(episode)
        return episode

    def demonstrate(self, episode: Episode) -> None:
        """Imitate an episode up to `demonstration_tail` decisions after its first success."""
        if self.demonstrations is None:
            return
        tail = self.settings.demonstration_tail
        if tail is not None and episode.successes is not None and succeeded(episode):
            episode = begin_of(episode, int(episode.successes.argmax()) + 1 + tail)
        self.demonstrations.add(episode)

    def updates_due(self, updates_per_decision: float) -> int:
        """Agent updates that belong to this decision, for rates such as 0.5 as well."""
        decision = self.collector.decision
        return int(updates_per_decision * (decision + 1)) - int(updates_per_decision * decision)

    @property
    def evaluation_due(self) -> bool:
        """Whether `eval_every_frames` or the end has been reached; never while the first frames are collected."""
        last = self.frame >= self.settings.num_train_frames
        return self.frame > self.settings.num_seed_frames and (self.due(self.settings.eval_every_frames) or last)

    @property
    def checkpoint_due(self) -> bool:
        """So that no checkpoint is further back than `checkpoint_every_frames`; only between episodes.

        There the environment needs no saving. The last one is saved as `finished`.
        """
        ahead = self.frame + self.episode_frames - self._saved
        unfinished = self.frame < self.settings.num_train_frames
        return self.collector.between_episodes and unfinished and ahead > self.settings.checkpoint_every_frames

    def learn_to_act(self, batch: TransitionBatch | StreamBatch) -> None:
        """One update of the agent, on a batch of the kind that it learns from."""
        with self.run.timed("learn_to_act_s"):
            self.run.record("agent", self.agent.update(batch, self.collector.decision))

    def agent_batch(self, draw: Callable[[int], TransitionBatch]) -> TransitionBatch:
        """`batch_size` transitions: `demonstration_share` of them from the demonstrations, `draw(count)` the rest."""
        size, demonstrated = self.settings.batch_size, 0
        if self.demonstrations is not None:
            demonstrated = round(size * self._demonstration_share(self.collector.decision))
        parts = [draw(size - demonstrated)] if demonstrated < size else []
        if demonstrated:
            assert self.demonstrations is not None
            parts.append(self.demonstrations.sample(demonstrated))
        return TransitionBatch.cat(parts)

    def evaluate(self) -> Evaluation:
        """Play evaluation episodes, in an environment and with seeds of their own, and log them."""
        s, frame = self.settings, self.frame
        seeds = [stream_seed(s.seed, "evaluation", frame, i) for i in range(s.num_eval_episodes)]
        with self.run.timed("evaluate_s"):
            result = play(self.agent, self.eval_env, self.collector.decision, seeds)
        self.run.log_eval(frame, result.episode_return, result.success_rate, len(seeds))
        if s.video:
            shown = [episode.frames for episode in result.episodes[:SHOWN]]
            captions = [f"return {episode.rewards.sum():.0f}" for episode in result.episodes[:SHOWN]]
            self.run.log_video("eval/episodes", frame, encode_gif(side_by_side(shown, captions, scale=2), fps=20))
        return result

    # -- saving ------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """All of this that a checkpoint holds, by file name; a loop adds its own."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        parts: dict[str, Any] = {
            "agent.safetensors": self.agent.weights(),
            "agent.pt": self.agent.state(),
            "random.pt": self.seed_agent.state(),
            "replay.json": self.replay.state_dict(with_episodes=False),
            "collector.json": self.collector.state(),
            "torch.pt": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }
        if self.demonstrations is not None:
            parts["demonstrations.json"] = self.demonstrations.state_dict(with_episodes=False)
        return parts

    def restore(self) -> None:
        """The inverse of `parts`, from the run's checkpoint."""
        saved = self.run.checkpoint
        assert saved is not None
        with saved.restoring():
            self.agent.load_weights(saved.load("agent.safetensors", self.device))
            self.agent.load_state(saved.load("agent.pt", self.device))
            self.seed_agent.load_state(saved.load("random.pt", self.device))
            self.collector.load_state(saved.load("collector.json"))
            self.replay.load_state_dict(saved.load("replay.json"))
            rng = saved.load("torch.pt")
            torch.set_rng_state(rng["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)

    def save(self, parts: Mapping[str, Any], finished: bool = False) -> None:
        """Write a checkpoint of `parts`; behind a `finished` one the run counts as complete."""
        assert finished or self.collector.between_episodes, "a run could not continue within an episode"
        self.run.save(self.frame, parts, finished=finished)
        self._saved = self.frame

    def log_world_model(self, metrics: Mapping[str, float], grid: NDArray[np.uint8] | None) -> None:
        """Metrics of a world model and its dreams beside reality, of `mbrl.world.validate`."""
        self.run.log(self.frame, {f"world_model/{name}": value for name, value in metrics.items()})
        if grid is not None:
            self.run.log_video("imagined/dream", self.frame, encode_gif(grid, fps=3))

    def close(self) -> None:
        self.env.close()
        self.eval_env.close()
