"""The loop of DreamerV3: act, learn from windows of the stream of episodes. `make train AGENT=dreamerv3`.

The same environments, protocols and evaluation as MBPO (`mbrl/mbpo.py`). World model, actor and critic learn in one
update (`agents/dreamerv3`); how often follows from `dreamerv3.train_ratio`. Windows are drawn as in the official code
(danijar/dreamerv3, `embodied/core/replay.py`): those that are new in the replay once, in order, the others uniformly.
"""

from typing import Any

from agents import DreamerV3, StreamBatch
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.run import Run, stream_seed
from mbrl.session import Session
from mbrl.world.validate import validate_dreamer


class Dreamer:
    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        assert isinstance(self.session.agent, DreamerV3)
        self.agent, self.replay = self.session.agent, self.session.replay
        self.agent.make_memory(self.replay.num_slots)
        # Both in frames of the stream, counted as `replay.frames_added` counts them.
        self.remembered = 0  # the agent has a state for those before
        self.offered = 0  # those before were in a window when they were new

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        session, s = self.session, self.session.settings
        session.begin()
        if session.run.checkpoint is not None:
            self.restore(session.run.checkpoint)

        while session.frame < s.num_train_frames:
            self.remember()
            if session.frame < s.num_seed_frames:
                session.act(session.seed_agent)
            else:
                # Learn the world and to act, in one update.
                for _ in range(self.updates_due()):
                    session.learn_to_act(self.windows())
                # Act.
                session.act(self.agent)
            session.run.step(session.frame)
            # Evaluate.
            if session.evaluation_due:
                self.evaluate()
            # Save.
            if session.checkpoint_due:
                session.save(self.parts())

        session.save(self.parts(), finished=True)

    # -- the verbs of DreamerV3 --------------------------------------------------------------------------------------

    def updates_due(self) -> int:
        """`train_ratio` replayed steps a decision; none before the first window is full."""
        c = self.session.settings.dreamerv3
        due = self.session.updates_due(c.train_ratio / (c.batch_size * c.batch_length))
        return due if self.replay.num_frames > c.batch_length else 0

    def remember(self) -> None:
        """Let the agent see the episodes that are new in the replay: demonstrations and random ones as well."""
        new = min(self.replay.frames_added - self.remembered, self.replay.num_frames)
        if new:
            with self.session.run.timed("learn_to_act_s"):
                self.agent.remember(self.replay.sample_stream(1, new, newest=[new]))
            self.remembered = self.replay.frames_added

    def windows(self) -> StreamBatch:
        """A batch of windows, each with the step before it, whose state it begins from."""
        c, added = self.session.settings.dreamerv3, self.replay.frames_added
        length, newest = 1 + c.batch_length, list[int]()
        self.offered = max(self.offered, added - self.replay.num_frames)
        while len(newest) < c.batch_size and added - self.offered >= length:
            newest.append(added - self.offered)
            self.offered += length
        return self.replay.sample_stream(c.batch_size, length, newest)

    def evaluate(self) -> None:
        """Also holds the world model against the evaluation episodes, which it never trained on."""
        session = self.session
        result = session.evaluate()
        seed = stream_seed(session.settings.seed, "validation", session.frame)
        with session.run.timed("evaluate_s"):
            found = validate_dreamer(self.agent, result.episodes, seed)
        session.log_world_model(*found)

    def close(self) -> None:
        self.session.close()

    # -- saving ------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        counted = {"added": self.replay.frames_added, "remembered": self.remembered, "offered": self.offered}
        return self.session.parts() | {"stream.json": counted}

    def restore(self, saved: Checkpoint) -> None:
        with saved.restoring():
            counted = saved.load("stream.json")
            self.remembered = counted["remembered"]
            self.offered = min(counted["offered"], self.replay.frames_added)
            # Checkpoints from before "added" was counted are taken to be whole.
            whole = self.replay.frames_added == counted.get("added", self.replay.frames_added)
        if not whole:
            self.remember_again()

    def remember_again(self) -> None:
        """New states for all steps: a damaged episode was left out, so those behind it have moved to other slots."""
        behind = self.replay.num_frames  # steps from the episode's first to the stream's end
        for episode in self.replay.episodes():
            length = len(episode.frames)
            self.agent.remember(self.replay.sample_stream(1, length, newest=[behind]))
            behind -= length
        self.remembered = self.replay.frames_added
