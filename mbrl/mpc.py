"""Model-predictive control: learn the world, plan in it, on one page. `make train AGENT=mpc`.

There is no policy and no critic: every few decisions the planner of `configs/planners/` dreams candidates in the world
model and the first actions of the best are taken, with noise while training. The world model learns online from what
really happened, as in MBPO (`mbrl/mbpo.py`), and plans are judged by the rewards that its head predicts. PlaNet (Hafner
et al., arXiv 1811.04551) is such an agent with another world model.
"""

from typing import Any

from mbrl.experiment.checkpoints import Checkpoint
from mbrl.experiment.run import Run
from mbrl.plan.agent import PlanningAgent, plan_for_rewards
from mbrl.session import Session
from mbrl.world.training import WorldTraining


class MPC:
    def __init__(self, run: Run) -> None:
        self.session = Session(run)
        agent = self.session.agent
        assert isinstance(agent, PlanningAgent)
        self.agent = agent
        self.world = WorldTraining(self.session)
        plan_for_rewards(self.agent, self.world.model, run.settings.discount)
        self.initialised = False  # whether the first training of the world model is done

    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        session = self.session
        s = session.settings
        session.begin()
        if session.run.checkpoint is not None:
            self.restore(session.run.checkpoint)

        while session.frame < s.num_train_frames:
            if session.frame < s.num_seed_frames:
                session.act(session.seed_agent)
            else:
                self.initialise()
                # Learn the world.
                self.world.learn(session.frame)
                # Act by planning in it.
                self.act()
            session.run.step(session.frame)
            # Evaluate.
            if session.evaluation_due:
                self.world.evaluate()
            # Save.
            if session.checkpoint_due:
                self.save()

        self.world.finish()
        session.save(self.parts(), finished=True)

    # -- the verbs of MPC --------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """First training of the world model; once."""
        if self.initialised:
            return
        self.world.learn_first()
        self.initialised = True
        if self.session.collector.between_episodes:
            self.save()  # so that this need not be done again

    def act(self) -> None:
        """One decision, for which nothing is learned meanwhile; what a new plan promised is logged."""
        before = self.agent.latest
        with self.world.model.frozen():
            self.session.act(self.agent)
        if (latest := self.agent.latest) is not None and latest is not before:
            named = {f"plan_{name}": value for name, value in latest.plan.metrics.items()}
            self.session.run.record("agent", named | {"plan_promised": latest.plan.promised})

    def close(self) -> None:
        self.world.close()
        self.session.close()

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.session.save(self.parts())

    def parts(self) -> dict[str, Any]:
        return self.session.parts() | self.world.parts() | {"mpc.json": {"initialised": self.initialised}}

    def restore(self, saved: Checkpoint) -> None:
        self.world.restore(saved)
        with saved.restoring():
            self.initialised = bool(saved.load("mpc.json")["initialised"])
