"""The verbs that every training loop is made of: act, learn to act, evaluate, save.

`online.py`, `mbpo.py` and `dreamer.py` are loops over them. What a trainer holds, it can save and restore: after a
restart from the checkpoint of frame F, everything computed on a CPU from F on is the same, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from agents import Agent, BehaviourCloner, Noisy, StreamBatch, TransitionBatch, Uniform, parse_schedule
from mbrl.build import environment_keywords, make_agent, make_buffer, make_env
from mbrl.collector import Collector, collect_demonstrations
from mbrl.evaluate import Evaluation, play
from mbrl.replay import Episode, ReplayBuffer
from mbrl.run import Run, stream_seed
from mbrl.settings import UserError
from mbrl.video import encode_gif, side_by_side

SHOWN = 3  # evaluation episodes in the video
LOG_UPDATES = 50  # updates between two lines of the log during behaviour cloning


class Trainer:
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
        cloned = s.drqv2.bc_updates if isinstance(self.agent, BehaviourCloner) else 0
        if cloned and not s.demonstrations:
            raise UserError(
                f"drqv2.bc_updates={cloned}: with demonstrations=0 there is nothing to clone; set demonstrations, or "
                "drqv2.bc_updates=0"
            )
        seed = stream_seed(s.seed, "random")
        if s.seed_policy == "random":
            return Uniform(self.env.action_space.shape[0], self.device, seed)
        if not cloned:
            raise UserError(
                "seed_policy=bc needs a cloned policy: set drqv2.bc_updates above 0 with agent=drqv2 or agent=mbpo, or "
                "seed_policy=random"
            )
        return Noisy(self.agent, s.seed_stddev, self.device, seed)

    def train(self) -> None:
        """The loop, from where the run stands to `num_train_frames`."""
        raise NotImplementedError

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
            length = self.env.episode_decisions
            self.demonstrations = self.make_buffer("demonstrations", s.demonstrations * length, length)
            for episode in self.collector.stored_episodes(s.demonstrations):
                self.demonstrations.add(episode)
            if not len(self.demonstrations):
                raise UserError(
                    f"none of the {s.demonstrations} demonstrations in {self.run.folder / 'replay'} can be read: "
                    "remove the run folder to start over"
                )
            if self.run.checkpoint is not None:
                self.demonstrations.load_state_dict(self.run.checkpoint.load("demonstrations.json"))
            if isinstance(self.agent, BehaviourCloner):
                self.agent.demonstrations = self.demonstrations.sample
                if self.run.checkpoint is None:
                    self.clone(self.agent)

    def _demonstrate(self) -> list[Episode]:
        s = self.settings
        seed = stream_seed(s.seed, "demonstrations")
        return collect_demonstrations(s.task, s.demonstrations, seed, **environment_keywords(s))

    def clone(self, agent: BehaviourCloner) -> None:
        """Behaviour cloning before the first frame."""
        updates = self.settings.drqv2.bc_updates
        for i, metrics in enumerate(tqdm(agent.clone(), desc="behaviour cloning", total=updates, leave=False)):
            self.run.record("agent", metrics)
            if i % LOG_UPDATES == 0:
                self.run.flush(self.frame)

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def due(self, every_frames: int) -> bool:
        """Whether a multiple of `every_frames` has been reached with the last decision."""
        return self.frame // every_frames > (self.frame - self.settings.action_repeat) // every_frames

    def act(self, agent: Agent) -> None:
        """One decision in the real environment; then what is due: log, evaluate, save."""
        with self.run.timed("act_s"):
            self.collector.act(agent)
        if self.due(self.settings.log_every_frames):
            self.settle()
        self.run.step(self.frame)
        last = self.frame >= self.settings.num_train_frames
        if self.frame > self.settings.num_seed_frames and (self.due(self.settings.eval_every_frames) or last):
            with self.run.timed("evaluate_s"):
                self.evaluate()
        # Never further back than checkpoint_every_frames, and only where the environment needs no saving.
        ahead = self.frame + self.episode_frames - self._saved
        if self.collector.between_episodes and not last and ahead > self.settings.checkpoint_every_frames:
            self.save()

    @property
    def updates_per_decision(self) -> float:
        return self.settings.agent_updates_per_decision

    def updates_due(self) -> int:
        """Agent updates that belong to this decision, for rates such as 0.5 as well."""
        rate, decision = self.updates_per_decision, self.collector.decision
        return int(rate * (decision + 1)) - int(rate * decision)

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

    def settle(self) -> None:
        """Wait for what a loop does beside its acting; before anything is logged or saved."""

    def evaluate(self) -> Evaluation:
        """Play evaluation episodes, in an environment and with seeds of their own, and log them."""
        s, frame = self.settings, self.frame
        seeds = [stream_seed(s.seed, "evaluation", frame, i) for i in range(s.num_eval_episodes)]
        result = play(self.agent, self.eval_env, self.collector.decision, seeds)
        self.run.log_eval(frame, result.episode_return, result.success_rate, len(seeds))
        if s.video:
            shown = [episode.frames for episode in result.episodes[:SHOWN]]
            captions = [f"return {episode.rewards.sum():.0f}" for episode in result.episodes[:SHOWN]]
            self.run.log_video("eval/episodes", frame, encode_gif(side_by_side(shown, captions, scale=2), fps=20))
        return result

    # -- saving ------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """Everything that a checkpoint holds, by file name. A subclass adds its own."""
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
        self.agent.load_weights(saved.load("agent.safetensors", self.device))
        self.agent.load_state(saved.load("agent.pt", self.device))
        self.seed_agent.load_state(saved.load("random.pt", self.device))
        self.collector.load_state(saved.load("collector.json"))
        self.replay.load_state_dict(saved.load("replay.json"))
        rng = saved.load("torch.pt")
        torch.set_rng_state(rng["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)

    def save(self, finished: bool = False) -> None:
        assert finished or self.collector.between_episodes, "a run could not continue within an episode"
        self.settle()
        self.run.save(self.frame, self.parts(), finished=finished)
        self._saved = self.frame

    def finish(self) -> None:
        """The last checkpoint; from here on the run counts as finished."""
        self.save(finished=True)

    def close(self) -> None:
        self.env.close()
        self.eval_env.close()
