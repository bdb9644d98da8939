"""What is driven (`mbrl/play/`): dream and simulator side by side, every way back, pilots, messages, demonstrations."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from playing import actions, make_conduct, make_drive, say, settings_of
from tiny import Command, checkpoints, tiny

import envs
from mbrl import train, verify
from mbrl.experiment import demonstrations
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.settings import UserError
from mbrl.play import play
from mbrl.play.messages import BadMessage, read
from mbrl.play.pilots import PlanAhead, Policy, TakenBack
from mbrl.rollout import to_float, to_uint8
from mbrl.trained import open_run
from world_model import imagine

SHORT = "world_model.transformer.max_position_embeddings=64"  # the dream begins again behind a few decisions


def drive_through(drive, chosen, pilot="you"):
    return [drive.step(action, pilot) for action in chosen]


def dreamt(moments):
    return np.stack([moment.dream for moment in moments])


def imagined(drive, start, chosen):
    """The dream of these actions from the start in one go, uint8 (T, 3, H, W)."""
    dream = imagine(drive.world, start.context, torch.from_numpy(chosen)[None], len(chosen), temperature=0)
    return to_uint8(dream.frames)[0].numpy()


# -- the tree ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["world_model.transformer.max_position_embeddings=1024", SHORT])
def test_two_branches_are_the_dreams_that_imagine_makes(positions):
    """From one moment with different actions, within the model's positions and beyond them."""
    drive = make_drive(positions)
    start, chosen, turn = drive.here, actions(12), 6
    drive_through(drive, chosen)
    one = drive.tree.path(drive.here)
    drive.go(one[turn])
    drive_through(drive, -chosen[turn:])
    other = drive.tree.path(drive.here)
    assert other[turn] is one[turn]
    turned = np.concatenate([chosen[:turn], -chosen[turn:]])
    assert np.array_equal(dreamt(one[1:]), imagined(drive, start, chosen))
    assert np.array_equal(dreamt(other[1:]), imagined(drive, start, turned))
    assert not np.array_equal(dreamt(one[turn + 1 :]), dreamt(other[turn + 1 :]))
    assert any(moment.anchored for moment in one) == (positions == SHORT)


def test_a_dream_is_taken_up_again_as_it_was():
    """Also when it was drawn, at changing temperatures, and every copy on the way is lost."""
    drive, chosen = make_drive(), actions(14)
    drive.temperature = 1.0
    drive_through(drive, chosen[:5])
    drive.temperature = 0.5
    drive_through(drive, chosen[5:])
    path = drive.tree.path(drive.here)
    for lost in (False, True):
        for moment in path[2:]:
            if lost:
                drive._copies.clear()
                drive._live = None
            drive.go(moment)
            again = drive.dreaming().rollout.frames[0, -1]
            assert np.array_equal(to_uint8(again).numpy(), moment.dream)
    other = drive.go(path[3]), drive.step(chosen[3], "you")
    assert not np.array_equal(other[1].dream, path[4].dream), "a new step draws anew"


def test_the_simulator_beside_is_the_task_itself():
    drive, chosen = make_drive(), actions(6)
    env = envs.make("toy/reach", image_size=32)
    first, _ = env.reset(seed=3)
    assert np.array_equal(drive.here.real, first[-3:])
    moments = drive_through(drive, chosen)
    drive.go(moments[1])
    drive_through(drive, actions(3, seed=5))
    drive.go(moments[-1])
    moments.append(drive.step(chosen[0], "you"))  # back on the first way, as if nothing had been between
    for action, moment in zip([*chosen, chosen[0]], moments, strict=True):
        obs, reward, _, _, info = env.step(action)
        assert np.array_equal(moment.real, obs[-3:])
        assert (moment.reward, moment.success) == (reward, bool(info["success"]))


def test_beyond_its_positions_a_dream_begins_again_and_says_so():
    drive = make_drive(SHORT)
    left = drive.dreaming().rollout.steps_left
    assert left is not None
    moments = drive_through(drive, actions(3 * left))
    assert [i + 1 for i, moment in enumerate(moments) if moment.anchored] == [left, 2 * left, 3 * left]


def test_a_woken_dream_begins_from_what_is_real():
    drive = make_drive()
    drive_through(drive, actions(4))
    before = drive.here
    woken = drive.wake()
    assert (woken.parent, woken.depth, woken.mse) == (before, before.depth, 0.0)
    real = np.stack([moment.real for moment in drive.tree.path(woken)[2:5]])
    assert np.array_equal(drive.tree.dream_stack(woken), real)
    assert np.array_equal(drive.tree.real_stack(woken), real)
    chosen = actions(3, seed=1)
    moments = drive_through(drive, chosen)
    assert np.array_equal(woken.context, to_float(torch.from_numpy(real)[None]))
    assert np.array_equal(dreamt(moments), imagined(drive, woken, chosen))
    assert np.array_equal(drive.tree.dream_stack(drive.here), dreamt(moments))
    drive.go(before)
    assert drive.step(chosen[0], "you").mse > 0, "the dream that was not woken is still there"


@pytest.mark.parametrize("decision", [0, 1, 7, 10])
def test_a_start_within_a_recorded_episode(decision):
    drive = make_drive()
    episode = drive.expert_episode(seed=4)
    start = drive.begin(drive.within(episode, decision, "an episode"))
    assert start.depth == decision
    assert np.array_equal(start.real, episode.frames[decision])
    first = [episode.frames[max(0, decision - 2 + i)] for i in range(3)]
    assert np.array_equal(start.seen, np.stack(first))
    for i in range(decision, 10):
        moment = drive.step(episode.actions[i], "you")
        assert np.array_equal(moment.real, episode.frames[i + 1])
        assert np.float32(moment.reward) == episode.rewards[i]
    if decision < 10:
        kept = drive.episode()
        assert kept.seed == episode.seed
        assert all(np.array_equal(a, b) for a, b in zip(kept[:3], episode[:3], strict=True)), "from its reset on"


def test_a_start_that_there_is_not():
    drive = make_drive()
    episode = drive.expert_episode(seed=4)
    with pytest.raises(UserError, match="x has the decisions 0 to 10, not 11"):
        drive.within(episode, 11, "x")
    with pytest.raises(UserError, match="x: its seed was not recorded"):
        drive.within(episode._replace(seed=None), 1, "x")


@pytest.mark.parametrize("wide", [False, True])
def test_the_oldest_moments_are_forgotten(monkeypatch, wide):
    """First what was left behind; on one long way its beginning, where the dream began again."""
    monkeypatch.setattr("mbrl.play.drive.MOMENTS", 40)
    drive, chosen = make_drive(SHORT), actions(2)
    root = drive.here
    for i in range(90):
        drive.step(chosen[i % 2], "you")
        if wide and i % 10 == 9:
            drive.go(root)
    path = drive.tree.path(drive.here)
    assert len(drive.tree) <= 40
    assert drive.tree.forgotten
    assert set(drive.tree.moments) >= {moment.id for moment in path}
    assert drive._copies.keys() <= drive.tree.moments.keys()
    assert (path[0] is root) == wide
    for moment in list(drive.tree.moments.values()):
        assert moment.parent is None or moment.parent.id in drive.tree.moments
        drive.go(moment)
        assert np.array_equal(to_uint8(drive.dreaming().rollout.frames[0, -1]).numpy(), moment.dream)
    drive.go(path[-1])
    before = drive.tree.real_stack(drive.here)
    drive.step(chosen[0], "you")
    assert np.array_equal(drive.tree.real_stack(drive.here)[:2], before[1:])
    if not wide:
        with pytest.raises(UserError, match="the beginning of this drive is forgotten"):
            drive.episode()


@pytest.mark.parametrize("kind", ["onestep", "simulator"])
def test_other_kinds_of_world_models_can_be_driven(monkeypatch, kind):
    """One that never has to begin again does so all the same, with what it reads, to hold fewer frames."""
    monkeypatch.setattr("mbrl.play.drive.LONGEST", 8)
    drive = make_drive(f"world_model.kind={kind}")
    start, chosen = drive.here, actions(20)
    moments = drive_through(drive, chosen)
    assert not any(moment.anchored for moment in moments)
    drive.go(moments[10])
    assert np.array_equal(drive.step(chosen[11], "you").dream, moments[11].dream)
    if kind == "simulator":
        assert max(moment.mse for moment in moments) == 0
    else:
        assert np.array_equal(dreamt(moments), imagined(drive, start, chosen))


# -- pilots and messages -----------------------------------------------------------------------------------------------


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
        agent = trained.agent(drive.env, torch.device("cpu"))
        [expected] = agent.act(torch.from_numpy(stack).flatten(0, 1)[None], trained.decision, eval_mode=True)
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

        def begin_episode(self, eval_mode):
            self.begun += 1

        def act(self, obs, decision, eval_mode):
            return torch.zeros(1, 2)

    drive, agent = make_drive(), Counting()
    policy = Policy(agent, 0)
    for _ in range(3):
        drive.step(policy.act(drive, "simulator"), "policy")
    drive.wake()
    drive.step(policy.act(drive, "simulator"), "policy")
    assert agent.begun == 1
    drive.step(np.zeros(2), "you")
    drive.step(policy.act(drive, "simulator"), "policy")
    assert agent.begun == 2


def garbage(count, seed=0):
    """Text that no page sends: noise, broken JSON, right names with wrong fields, numbers of every kind."""
    dice = random.Random(seed)
    values = [None, True, -1, 1e999, float("nan"), "x" * 50, [], [1] * 3, {}, {"a": 1}, 2**70, [None, 0], "\u0000"]
    names = "hold go start pilot temperature wake_every eyes speed step run nothing __init__".split()
    fields = "do action moving seq moment name value decisions on source number".split()
    for _ in range(count):
        kind = dice.randrange(4)
        if kind == 0:
            yield "".join(chr(dice.randrange(1, 0x2FF)) for _ in range(dice.randrange(60)))
        elif kind == 1:
            yield "[" * dice.randrange(5000)
        else:
            message = {dice.choice(fields): dice.choice(values) for _ in range(dice.randrange(5))}
            if kind == 3:
                message["do"] = dice.choice(names)
            text = json.dumps(message)
            yield text[: dice.randrange(len(text) + 1)] if dice.random() < 0.2 else text


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


# -- demonstrations ----------------------------------------------------------------------------------------------------


def drive_and_keep(folder: Path) -> Path:
    """A successful episode kept from the page's side; returns the folder it is in."""
    conduct = make_conduct(folder, pilot="expert", runs=True)
    while not any(moment.success for moment in conduct.drive.tree.path(conduct.drive.here)):
        conduct.advance()
    say(conduct, "keep")
    assert "train with demonstrations=" in conduct.status.note
    assert "never touches success" not in conduct.status.note
    return folder


def test_a_driven_demonstration_trains_a_run(tmp_path: Path, run_root: Path, typed: Command):
    folder = drive_and_keep(tmp_path / "kept")
    drive_and_keep(folder)
    [first, second] = EpisodeStore(folder).load([0, 1])
    assert first.successes.any()
    code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={folder}", "num_train_frames=80"))
    assert (code, line) == (0, "")
    run = run_root / "toy/reach/mbpo/1"
    replayed = list(EpisodeStore(run / "replay").load(range(2)))
    for kept, again in zip((first, second), replayed, strict=True):
        assert np.array_equal(kept.frames, again.frames)
        assert np.array_equal(kept.actions, again.actions)
    # It continues with those it began with, whatever becomes of the folder.
    (folder / "000001.npz").unlink()
    code, _, line = typed(train.main, *tiny(run_root, f"demonstrations={folder}", "num_train_frames=120"))
    assert (code, line) == (0, "")
    assert checkpoints(run)[-1] == 120


def test_demonstrations_that_do_not_fit(tmp_path: Path, run_root: Path, typed: Command):
    folder = drive_and_keep(tmp_path / "kept")
    empty = tmp_path / "empty"
    empty.mkdir()
    for overrides, said in (
        ([f"demonstrations={tmp_path / 'nothing'}"], "nothing: there is no such folder; make play keeps"),
        ([f"demonstrations={empty}"], "empty: there is no episode in it"),
        ([f"demonstrations={folder}", "task=toy/centre"], "it was driven with task=toy/reach, not toy/centre"),
        ([f"demonstrations={folder}", "action_repeat=1"], "it was driven with action_repeat=2, not 1"),
        (["demonstrations=-1"], "demonstrations=-1 is out of range"),
        (["demonstrations=2.5"], "demonstrations=2.5"),
    ):
        code, _, line = typed(train.main, *tiny(run_root, *overrides))
        assert code == 2
        assert said in line
    with pytest.raises(UserError, match="cannot take it: it was driven with task=toy/reach, not toy/centre"):
        demonstrations.keep(folder, next(EpisodeStore(folder).load([0])), settings_of("task=toy/centre"))


# -- the commands ------------------------------------------------------------------------------------------------------


def test_which_run_is_meant(finished: Path, tmp_path: Path, typed: Command):
    for overrides, said in (
        (
            ["task=toy/reach", "watch=true", f"run_root={tmp_path}"],
            "no run of toy/reach has weights here: make train TASK=toy/reach",
        ),
        (["task=toy/reach", "watch=true", f"run_root={finished.parents[3]}"], f"one of yours: add run={finished}"),
        ([f"run={tmp_path}"], "there is no run; a run's folder is runs/<task>/<agent>/<seed>"),
        ([f"run={finished}", "task=hammer"], "learned task=toy/reach, not hammer"),
        ([f"run={finished}", "batch_size=3"], "batch_size is the run's own beside run="),
        ([f"run={finished}", "model=nowhere/at/all"], "model=nowhere/at/all: there is no such folder"),
        (["task=toy/reach", "model=world_model/pretrained/small"], "knows actions of 4 numbers, toy/reach has 2"),
        (["task=toy/reach", "port=70000"], "port=70000 is out of range"),
    ):
        code, _, line = typed(play.main, *overrides)
        assert code == 2
        assert said in line


def test_a_film_of_the_policy(finished: Path, tmp_path: Path, typed: Command):
    path = tmp_path / "films/dream.gif"
    code, out, line = typed(play.main, f"run={finished}", f"gif={path}")
    assert (code, line) == (0, "")
    assert path.read_bytes()[:6] == b"GIF89a"
    assert "10 decisions" in out


def test_an_evaluation_is_verified(finished: Path, tmp_path: Path, typed: Command):
    code, out, line = typed(verify.main, f"run={finished}", "device=cpu")
    assert (code, line) == (0, "")
    assert out.startswith(f"the same: {finished} at frame 160, 1 episodes: success rate")
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (copy / name).symlink_to(finished / name)
    rows = (finished / "eval.csv").read_text().splitlines()
    frame, *rest = rows[-1].split(",")
    (copy / "eval.csv").write_text("\n".join([rows[0], ",".join([frame, rest[0], "0.5", *rest[2:]])]))
    code, _, line = typed(verify.main, f"run={copy}", "device=cpu")
    assert code == 2
    assert "not the same" in line
    (copy / "eval.csv").write_text(rows[0])
    code, _, line = typed(verify.main, f"run={copy}", "device=cpu")
    assert code == 2
    assert "has no evaluation at frame 160" in line
    assert typed(verify.main)[2].startswith("error: run=none: name the folder")
    published = "runs/published/hammer/drqv2/1"
    assert "it has no weights, only its results" in typed(verify.main, f"run={published}")[2]
