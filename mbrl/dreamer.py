"""The loop of DreamerV3: act, learn from windows of the stream of episodes. `make train AGENT=dreamerv3`.

The same environments, protocols and evaluation as MBPO (`mbrl/mbpo.py`). World model, actor and critic learn in one
update (`agents/dreamerv3`); how often follows from `dreamerv3.train_ratio`. Windows are drawn as in the official code
(danijar/dreamerv3, `embodied/core/replay.py`): those that are new in the replay once, in order, the others uniformly.
"""

from typing import Any

from agents import DreamerV3, StreamBatch
from mbrl.evaluate import Evaluation
from mbrl.run import Run, stream_seed
from mbrl.trainer import Trainer
from mbrl.validate import validate_dreamer
from mbrl.video import encode_gif


class Dreamer(Trainer):
    agent: DreamerV3

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        s = self.settings
        self.begin()

        while self.frame < s.num_seed_frames:
            self.remember()
            self.act(self.seed_agent)

        while self.frame < s.num_train_frames:
            self.remember()
            for _ in range(self.updates_due()):
                self.learn_to_act(self.windows())
            self.act(self.agent)

        self.finish()

    # -- the verbs of DreamerV3 --------------------------------------------------------------------------------------

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.agent.make_memory(self.replay.num_slots)
        # Both in frames of the stream, counted as `replay.frames_added` counts them.
        self.remembered = 0  # the agent has a state for those before
        self.offered = 0  # those before were in a window when they were new

    @property
    def updates_per_decision(self) -> float:
        c = self.settings.dreamerv3
        return c.train_ratio / (c.batch_size * c.batch_length)

    def updates_due(self) -> int:
        """None before the first window is full."""
        return super().updates_due() if self.replay.num_frames > self.settings.dreamerv3.batch_length else 0

    def remember(self) -> None:
        """Let the agent see the episodes that are new in the replay: demonstrations and random ones as well."""
        new = min(self.replay.frames_added - self.remembered, self.replay.num_frames)
        if new:
            with self.run.timed("learn_to_act_s"):
                self.agent.remember(self.replay.sample_stream(1, new, newest=[new]))
            self.remembered = self.replay.frames_added

    def windows(self) -> StreamBatch:
        """A batch of windows, each with the step before it, whose state it begins from."""
        c, added = self.settings.dreamerv3, self.replay.frames_added
        length, newest = 1 + c.batch_length, list[int]()
        self.offered = max(self.offered, added - self.replay.num_frames)
        while len(newest) < c.batch_size and added - self.offered >= length:
            newest.append(added - self.offered)
            self.offered += length
        return self.replay.sample_stream(c.batch_size, length, newest)

    def evaluate(self) -> Evaluation:
        """Also holds the world model against the evaluation episodes, which it never trained on."""
        result = super().evaluate()
        seed = stream_seed(self.settings.seed, "validation", self.frame)
        metrics, grid = validate_dreamer(self.agent, result.episodes, seed)
        self.run.log(self.frame, {f"world_model/{name}": value for name, value in metrics.items()})
        if grid is not None:
            self.run.log_video("imagined/dream", self.frame, encode_gif(grid, fps=3))
        return result

    def parts(self) -> dict[str, Any]:
        counted = {"added": self.replay.frames_added, "remembered": self.remembered, "offered": self.offered}
        return super().parts() | {"stream.json": counted}

    def restore(self) -> None:
        super().restore()
        assert self.run.checkpoint is not None
        counted = self.run.checkpoint.load("stream.json")
        self.remembered = counted["remembered"]
        self.offered = min(counted["offered"], self.replay.frames_added)
        # Checkpoints from before "added" was counted are taken to be whole.
        if self.replay.frames_added != counted.get("added", self.replay.frames_added):
            self.remember_again()

    def remember_again(self) -> None:
        """New states for all steps: a damaged episode was left out, so those behind it have moved to other slots."""
        behind = self.replay.num_frames  # steps from the episode's first to the stream's end
        for episode in self.replay.episodes():
            length = len(episode.frames)
            self.agent.remember(self.replay.sample_stream(1, length, newest=[behind]))
            behind -= length
        self.remembered = self.replay.frames_added
