"""Who drives, and what pages send (`mbrl/play/conduct.py`, `pilots.py`, `messages.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from playing import garbage, make_conduct, make_drive, say

from mbrl.experiment.settings import UserError
from mbrl.interop.trained import open_run
from mbrl.play.messages import BadMessage, read
from mbrl.play.pilots import Learned, PlanAhead, TakenBack


@pytest.fixture(scope="module")
def trained(finished: Path):
    return open_run(str(finished))


def test_a_key_that_is_held_moves_time_and_one_that_is_let_go_stops_it(tmp_path):
    conduct = make_conduct(tmp_path)
    push = np.array([1, 0], np.float32)
    assert not conduct.due
    say(conduct, "hold", action=push, moving=True, seq=1)
    assert conduct.due
    conduct.advance()
    assert np.array_equal(conduct.drive.here.action, push)
    assert conduct.heeded == {"a": 1}
    say(conduct, "hold", action=0 * push, moving=False, seq=2)
    assert not conduct.due
    say(conduct, "hold", action=push, moving=True, seq=3)
    say(conduct, "hold", action=0 * push, moving=False, seq=4)
    assert conduct.due, "a tap is a step, however short it was"
    conduct.advance()
    assert np.array_equal(conduct.drive.here.action, push)
    assert not conduct.due
    say(conduct, "hold", action=push, moving=True, seq=5)
    conduct.advance()
    conduct.left("b")
    assert conduct.due
    conduct.left("a")
    assert not conduct.due, "nobody holds the key of a page that is gone"


def test_the_policy_takes_over_and_a_key_takes_back(tmp_path, trained):
    conduct = make_conduct(tmp_path, trained)
    say(conduct, "pilot", name="policy")
    assert conduct.due
    for eyes in ("simulator", "dream"):
        say(conduct, "eyes", name=eyes)
        drive = conduct.drive
        stack = drive.tree.dream_stack(drive.here) if eyes == "dream" else drive.tree.real_stack(drive.here)
        agent, obs = trained.policy.agent, torch.from_numpy(stack).flatten(0, 1)[None]
        [expected] = agent.act(obs, decision=0, eval_mode=True)
        conduct.advance()
        assert np.array_equal(drive.here.action, np.clip(expected.numpy(), -1, 1))
        assert drive.here.pilot == "policy"
    say(conduct, "hold", action=np.ones(2, np.float32), moving=True, seq=1)
    conduct.advance()
    assert (conduct.drive.here.pilot, conduct.status.runs) == ("you", False)
    with pytest.raises(UserError, match="nobody here is called bob; known: you, policy, expert, planner"):
        say(conduct, "pilot", name="bob")


def test_episodes_follow_each_other_and_successes_are_counted(tmp_path):
    """An episode counts if its pilot drove all of it; it ends a while behind its success, or with its time."""
    conduct = make_conduct(tmp_path, pilot="expert", again=True, runs=True)
    starts = set()
    while conduct.status.played < 2:
        conduct.advance()
        starts.add(conduct.drive.tree.path(conduct.drive.here)[0])
    assert len(starts) == 3
    assert conduct.status.solved == 2
    in_order = sorted(starts, key=lambda start: start.id)
    assert [start.pilot for start in in_order] == ["reset, seed 0", "reset, seed 1", "reset, seed 2"]
    say(conduct, "hold", action=np.ones(2, np.float32), moving=True, seq=1)
    conduct.advance()
    say(conduct, "hold", action=np.ones(2, np.float32), moving=False, seq=2)
    say(conduct, "pilot", name="expert")
    for _ in range(12):
        conduct.advance()
    assert conduct.status.played == 0, "a person had helped"


def test_the_dream_is_woken_by_itself(tmp_path):
    conduct = make_conduct(tmp_path, pilot="expert", runs=True)
    say(conduct, "wake_every", decisions=3)
    for _ in range(9):
        conduct.advance()
    woken = [moment.depth for moment in conduct.drive.tree.path(conduct.drive.here) if moment.pilot == "woken"]
    assert woken == [3, 6]


def test_the_planner_drives_until_it_is_taken_back(tmp_path):
    drive, back = make_drive(), []
    planner = PlanAhead(2, 0, lambda: bool(back))
    for _ in range(4):
        drive.step(planner.act(drive, "dream"), "planner")
    planned = drive.tree.path(drive.here)[1:]
    assert all(np.abs(moment.action).max() <= 1 for moment in planned)
    drive.go(planned[0])
    assert planner._ahead
    back.append(True)
    with pytest.raises(TakenBack):
        planner.act(drive, "dream")


def test_a_policy_with_a_memory_forgets_what_it_did_not_decide():
    class Counting:
        begun = 0

        def begin_episode(self):
            self.begun += 1

        def act(self, obs):
            assert obs.shape == (9, 32, 32)
            return np.zeros(2, np.float32)

    drive, agent = make_drive(), Counting()
    policy = Learned(agent)
    for _ in range(3):
        drive.step(policy.act(drive, "simulator"), "policy")
    drive.wake()
    drive.step(policy.act(drive, "simulator"), "policy")
    assert agent.begun == 1
    drive.step(np.zeros(2), "you")
    drive.step(policy.act(drive, "simulator"), "policy")
    assert agent.begun == 2


def test_what_no_page_sends_is_one_line():
    said = []
    for text in garbage(5000):
        try:
            read(text, 2)
        except BadMessage as error:
            said.append(str(error))
    assert len(said) > 4000
    assert all(len(line) < 200 and "\n" not in line for line in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "that is no JSON"),
        ("3", "a message is"),
        ('{"do": "fly"}', "nothing is called 'fly'; known: hold, run"),
        ('{"do": "go"}', "go has the fields moment"),
        ('{"do": "go", "moment": "3"}', "go: moment has no such value"),
        ('{"do": "go", "moment": true}', "go: moment has no such value"),
        ('{"do": "hold", "action": [0.5], "moving": true, "seq": 1}', "an action here has 2 numbers"),
        ('{"do": "hold", "action": [0.5, NaN], "moving": true, "seq": 1}', "hold: action has no such value"),
        ('{"do": "temperature", "value": Infinity}', "temperature: value has no such value"),
    ],
)
def test_bad_messages(text, said):
    with pytest.raises(BadMessage, match=said.replace("[", r"\[")):
        read(text, 2)


@pytest.mark.parametrize(
    ("do", "fields", "said"),
    [
        ("go", {"moment": 10**6}, "that moment is forgotten"),
        ("keep", {}, "nothing was driven yet"),
        ("start", {"source": "kept", "number": 0, "decision": 0}, "demonstration: there are 0 episodes"),
        ("start", {"source": "episode", "number": 0, "decision": 0}, "there are no episodes of episode here"),
        ("start", {"source": "expert", "number": 0, "decision": 99}, "has the decisions 0 to 10, not 99"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, do, fields, said):
    conduct = make_conduct(tmp_path)
    with pytest.raises(UserError, match=said):
        say(conduct, do, **fields)
