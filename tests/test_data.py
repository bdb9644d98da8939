"""Recorded video: what is written is what is drawn, windows stay inside episodes, recording can be taken up again."""

import dataclasses

import numpy as np
import pytest

from mbrl.data import data, scripted
from mbrl.experiment.settings import UserError, load_plain
from world_model import Episode
from world_model.data import ClipDataset, DataError, shard_names, write_shard


def recording(episode: int, decisions: int) -> Episode:
    """Frames, actions and rewards that say where they belong: episode and index."""
    index = np.arange(decisions + 1)
    frames = np.zeros((decisions + 1, 3, 4, 4), np.uint8)
    frames[:, 0], frames[:, 1] = episode, index[:, None, None]
    actions = np.stack([np.full(decisions, episode), index[:-1]], 1).astype(np.float32)
    return Episode(frames, actions, (100 * episode + index[:-1]).astype(np.float32))


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path, "a", [recording(i, 5 + i) for i in range(4)], "toy")
    write_shard(tmp_path, "b", [recording(4 + i, 9) for i in range(4)], "toy")
    return tmp_path


def test_windows_hold_what_was_recorded_and_stay_inside_an_episode(folder):
    dataset = ClipDataset(folder)
    assert dataset.num_episodes == 8
    assert dataset.num_frames == 6 + 7 + 8 + 9 + 4 * 10
    assert dataset.action_dim == 2
    frames, actions, rewards, *_ = dataset.sample(500, 6, np.random.default_rng(0))
    episode, index = frames[:, :, 0, 0, 0].float(), frames[:, :, 1, 0, 0].float()
    assert (episode == episode[:, :1]).all()
    assert (index.diff(dim=1) == 1).all()
    assert (actions[:, :-1, 0] == episode[:, :-1]).all()
    assert (actions[:, :-1, 1] == index[:, :-1]).all()
    assert (rewards[:, :-1] == 100 * episode[:, :-1] + index[:, :-1]).all()
    # Uniform over windows: an episode of 6 frames has one of the 1 + 2 + 3 + 4 + 4 * 5 = 30, starts at 0 only.
    assert set(episode[:, 0].tolist()) == set(range(8))
    assert set(index[episode[:, 0] == 0, 0].tolist()) == {0}
    assert 0 < (episode[:, 0] == 0).float().mean() < 0.1


def test_an_episode_comes_back_whole(folder):
    for index, episode in enumerate([*map(ClipDataset(folder).episode, range(8))]):
        expected = recording(index, 5 + index if index < 4 else 9)
        np.testing.assert_array_equal(episode.frames, expected.frames)
        np.testing.assert_array_equal(episode.actions, expected.actions)
        np.testing.assert_array_equal(episode.rewards, expected.rewards)


def test_seeds_are_kept_and_unknown_where_none_were_recorded(folder):
    write_shard(
        folder, "a", [recording(0, 9)._replace(seed=7), recording(1, 9), recording(2, 9)._replace(seed=0)], "toy"
    )
    with np.load(folder / "b.npz") as index:
        older = {name: index[name] for name in index.files if name != "seeds"}
    np.savez(folder / "b.npz", **older)
    dataset = ClipDataset(folder)
    assert [dataset.episode(i).seed for i in range(7)] == [7, None, 0, None, None, None, None]
    dataset.keep(5, np.random.default_rng(0))
    kept = [dataset.episode(i) for i in range(5)]
    seeds = {0: 7, 2: 0}  # by the number of the episode in "a", which is what its frames show
    assert [episode.seed for episode in kept] == [seeds.get(int(episode.frames[0, 0, 0, 0])) for episode in kept]


def test_successes_are_kept_and_unknown_where_none_were_recorded(folder):
    """Of two shards: one with successes, one without, as a folder holds that was begun before they were recorded."""
    known = [e._replace(successes=np.full(len(e.rewards), i, np.float32)) for i, e in enumerate([recording(0, 9)] * 2)]
    write_shard(folder, "a", known, "toy")
    with np.load(folder / "b.npz") as index:
        older = {name: index[name] for name in index.files if name != "successes"}
    np.savez(folder / "b.npz", **older)
    dataset = ClipDataset(folder)
    successes = [dataset.episode(i).successes for i in range(dataset.num_episodes)]
    assert [values.dtype == np.float32 and len(values) for values in successes] == [9] * 6
    assert [values[0] for values in successes[:2]] == [0, 1]
    assert all(np.isnan(values).all() for values in successes[2:])
    batch = dataset.windows(np.array([1, 2]), np.array([0, 0]), 5)
    assert batch.successes[0].tolist() == [1] * 5
    assert batch.successes[1].isnan().all()


def test_held_out_episodes_are_not_trained_on(folder):
    parts = {part: ClipDataset(folder, part, held_out_every=3) for part in ("train", "held_out")}
    seen = {
        part: {int(dataset.episode(i).frames[0, 0, 0, 0]) for i in range(dataset.num_episodes)}
        for part, dataset in parts.items()
    }
    assert seen == {"train": {0, 1, 3, 4, 5, 7}, "held_out": {2, 6}}


def test_small_shards_give_their_share(tmp_path):
    """Files of five episodes, say: none has a twentieth one, but a twentieth of all is held out."""
    for shard in range(200):
        write_shard(tmp_path, f"s-{shard:05d}", [recording(0, 2)] * 5, "toy")
    parts = {part: ClipDataset(tmp_path, part).num_episodes for part in ("train", "held_out")}
    assert sum(parts.values()) == 1000
    assert 35 <= parts["held_out"] <= 65


def test_bad_datasets_are_refused_by_name(folder, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*make data"):
        ClipDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no episode of .* has 11 frames"):
        ClipDataset(folder).sample(1, 11, np.random.default_rng(0))
    (folder / "b.npy").write_bytes((folder / "b.npy").read_bytes()[:-100])
    with pytest.raises(DataError, match="b.npz cannot be read"):
        ClipDataset(folder)


def test_a_half_written_shard_is_not_there(folder):
    (folder / "b.npz").unlink()
    assert shard_names(folder) == {"a"}
    assert ClipDataset(folder).num_episodes == 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    overrides = ["task_names=[reach]", "episodes_per_task=3", "shard_episodes=2", "workers=1", "episode_frames=20"]
    return load_plain(data.DataSettings, "data", [*overrides, f"out={tmp_path_factory.mktemp('recorded')}"])


def test_recording_is_taken_up_again_and_repeatable(settings, tmp_path):
    jobs = data.jobs(settings)
    assert [(job.name, len(job.units)) for job in jobs] == [("reach-000", 2), ("reach-001", 1)]
    assert data.record(jobs[1]) == data.Done(units=1, episodes=1, skipped=[])
    assert [job.name for job in data.missing(jobs)] == ["reach-000"]
    again = dataclasses.replace(settings, out=str(tmp_path))
    data.record(data.jobs(again)[1])
    one, two = (ClipDataset(s.out).episode(0) for s in (settings, again))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.frames.shape == (11, 3, 64, 64)
    assert one.successes.shape == (10,)
    assert set(one.successes) <= {0, 1}  # recorded: not NaN
    assert np.abs(np.diff(one.frames.astype(int), axis=0)).max() > 50  # the arm moves


def test_the_plan_says_how_much_is_made():
    given = load_plain(data.DataSettings, "data", [])
    plan = data.plan(given, data.open_source(given), 880, 440, 2)
    assert plan.startswith(
        "metaworld, 44 tasks: 440 of 880 episodes to make (about 0.55 GB, 64x64 pixels), in 2 processes"
    )


def test_tasks_for_pre_training_are_never_judged_on():
    tasks = scripted.chosen_tasks(("pretraining",))
    assert len(tasks) == 44
    assert not set(tasks) & set(scripted.chosen_tasks(("paper",)))
    assert scripted.chosen_tasks(("hammer", "paper"))[0] == "hammer"
    assert len(scripted.chosen_tasks(("hammer", "paper"))) == 6
    with pytest.raises(UserError, match="of different suites"):
        scripted.chosen_tasks(("hammer", "toy/reach"))
