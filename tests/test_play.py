"""The moments of a drive (`mbrl/play/drive.py`): dream and simulator side by side, and every way back."""

import numpy as np
import pytest
import torch
from playing import actions, make_drive

import envs
from mbrl.experiment.settings import UserError
from mbrl.rollout import to_float, to_uint8
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
