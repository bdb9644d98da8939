"""The model-free loop: act, learn from what really happened. `make train AGENT=drqv2`.

The same verbs, environments, protocols and evaluation as MBPO (`mbrl/mbpo.py`), so that the two can be compared.
"""

from mbrl.trainer import Trainer


class Online(Trainer):
    def train(self) -> None:
        """Until `num_train_frames`; continues where the run's checkpoint left off."""
        s = self.settings
        self.begin()

        while self.frame < s.num_seed_frames:
            self.act(self.seed_agent)

        while self.frame < s.num_train_frames:
            for _ in range(self.updates_due()):
                self.learn_to_act(self.agent_batch(self.replay.sample))
            self.act(self.agent)

        self.finish()
