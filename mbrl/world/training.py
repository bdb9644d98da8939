"""The world model of a run: it learns from the real replay, is held against evaluation, is saved.

What the loops with a world model share, `mbpo.py` and `mpc.py`.
"""

import sys
from typing import Any

import envs
from mbrl.build import make_world
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.rollout import RealClips
from mbrl.session import Session
from mbrl.world.validate import validate
from world_model.ivideogpt.learner import WorldModelLearner

LOG_UPDATES = 50  # updates between two lines of the log while the world model is first trained


class WorldTraining:
    def __init__(self, session: Session) -> None:
        s = session.settings
        self.session = session
        self.model = make_world(s, session.env, session.device)
        if envs.suite_of(s.task).terminates and "continue" not in self.model.heads:
            raise UserError(
                f"task={s.task} can end before its time limit, and dreams of this world model can't: add continue to "
                "world_model.heads"
            )
        if isinstance(self.model, WorldModelLearner):
            session.run.progress.write(f"the tokenizer learns from {self.model.reconstruction_loss}", file=sys.stderr)
        self.clips = RealClips(session.replay, session.device)

    def learn_first(self) -> None:
        """The first training, before anybody dreams."""
        session = self.session
        updates = range(session.settings.initial_model_updates)
        for i in progress_bar(updates, desc="first training of the world model", leave=False):
            self.learn(frame=None)
            if i % LOG_UPDATES == 0:
                session.run.flush(session.frame)
        session.run.progress.unpause()  # its clock is for frames

    def learn(self, frame: int | None) -> None:
        """Update the parts that are due at `frame` (all without one) on fresh real clips."""
        run, batch = self.session.run, self.model.sample(self.clips, frame)
        if batch is None:
            return
        with run.timed("learn_world_s"):
            run.record("world_model", self.model.update(*batch))

    def evaluate(self, validated: bool = True) -> None:
        """Also holds the world model against the evaluation episodes, which it never trained on."""
        session, s = self.session, self.session.settings
        seed = stream_seed(s.seed, "validation", session.frame)
        with self.model.frozen():
            episodes = session.evaluate().episodes
            if validated:
                with session.run.timed("evaluate_s"):
                    found = validate(
                        self.model, episodes, s.rollout_horizon, seed, s.rollout_temperature, s.rollout_top_k
                    )
                session.log_world_model(*found)

    def finish(self) -> None:
        """Leave the world model for other runs to begin from."""
        session = self.session
        session.run.flush(session.frame)  # a loss that is not finite stops here
        self.model.save_pretrained(session.run.folder / "world_model")

    def close(self) -> None:
        self.model.close()

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"world_model.safetensors": self.model.weights(), "world_model.pt": self.model.state()}

    def restore(self, saved: Checkpoint) -> None:
        """Raises UserError: the checkpoint holds another world model."""
        device = self.session.device
        with saved.restoring():
            self.model.load_weights(saved.load("world_model.safetensors", device))
            self.model.load_state(saved.load("world_model.pt", device))
