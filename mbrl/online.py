"""The model-free loop: act, learn from what really happened. `make train AGENT=drqv2`.

The same environments, protocols and evaluation as MBPO (`mbrl/mbpo.py`), so that the two can be compared.
"""

from mbrl.experiment.run import Run
from mbrl.session import Session


class Online:
    def __init__(self, run: Run) -> None:
        self.session = Session(run)

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        session = self.session
        s = session.settings
        session.begin()
        if session.cloned:
            session.save(session.parts())

        while session.frame < s.num_train_frames:
            if session.frame < s.num_seed_frames:
                session.act(session.seed_agent)
            else:
                # Learn to act.
                for _ in range(session.updates_due(s.agent_updates_per_decision)):
                    session.learn_to_act(session.agent_batch(session.replay.sample))
                # Act.
                session.act(session.agent)
            session.run.step(session.frame)
            # Evaluate.
            if session.evaluation_due:
                session.evaluate()
            # Save.
            if session.checkpoint_due:
                session.save(session.parts())

        session.save(session.parts(), finished=True)

    def close(self) -> None:
        self.session.close()
