"""DreamerV3 started again over a replay that has lost an episode."""

from pathlib import Path
from typing import Any

import pytest
from test_dreamer import TINY_DREAMER
from tiny import tiny, train

from mbrl.dreamer import Dreamer
from mbrl.experiment.run import Run
from mbrl.experiment.settings import load
from mbrl.session import Session


@pytest.fixture
def cut_dreamer(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped at frame 110, while learning; its last checkpoint is that of frame 80."""
    act = Session.act

    def until(self: Session, agent: Any) -> None:
        act(self, agent)
        if self.frame == 110:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "act", until)
        with pytest.raises(KeyboardInterrupt):
            train(run_root, *TINY_DREAMER)
    return run_root / "toy" / "reach" / "dreamerv3" / "1"


def test_a_damaged_episode_moves_no_state_to_another_step(cut_dreamer: Path, run_root: Path):
    """The steps behind it lie in other slots after a restart. A first step's state depends on the weights alone."""
    (cut_dreamer / "replay" / "000003.npz").write_bytes(b"damaged")
    with Run.open(load(tiny(run_root, *TINY_DREAMER))) as run:
        loop = Dreamer(run)
        with pytest.warns(UserWarning, match=r"skipping damaged episode .*000003"):
            loop.session.begin()
        loop.restore(run.checkpoint)
        loop.remember()
        stream = loop.replay.sample_stream(1, loop.replay.num_frames, newest=[loop.replay.num_frames])
        states = loop.agent._states
        assert states is not None
        deter = states.read(stream.slots[0]).deter
        first = stream.is_first[0]
        assert first.sum() == loop.replay.num_episodes == 5
        assert len(deter[first].unique(dim=0)) == 1
        assert (deter[~first] != deter[first][0]).any(1).all()
        assert loop.remembered == loop.replay.frames_added
        loop.close()
    with pytest.warns(UserWarning, match="skipping damaged episode"):
        train(run_root, *TINY_DREAMER)
