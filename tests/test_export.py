"""Episodes out as a LeRobot dataset, and read back to the last bit by our reader and by LeRobot's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from mbrl.data.data import main as make_data
from mbrl.experiment.episodes import EpisodeStore, episode_files, read_episodes
from mbrl.export.export import main
from mbrl.interop import load
from world_model.api import Episode
from world_model.data import ClipDataset, DataError, SourceOptions, lerobot_writer, make_reader
from world_model.data.lerobot_writer import write_lerobot


def made(count: int = 3, action_dim: int = 2, successes: bool = True) -> list[Episode]:
    """Random pictures, and lengths of 4, 5, 6 ... decisions."""
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return [
        Episode(
            generator.integers(0, 256, (steps + 1, 3, 16, 16), dtype=np.uint8),
            numbers(steps, action_dim),
            numbers(steps),
            successes=(numbers(steps) > 0).astype(np.float32) if successes else None,
        )
        for steps in range(4, 4 + count)
    ]


def write(folder: Path, episodes: list[Episode]) -> None:
    write_lerobot(folder, episodes, camera="observation.image", fps=20, task="push the cup")


def read(folder: Path, size: int = 16) -> list[Episode]:
    options = SourceOptions(folder, "x", None, size, "none", 1, True, ())
    reader = make_reader("lerobot", options)
    return [clip() for units in reader.shards(2).values() for _, clip in reader.clips(units)]


def check_equal(some: list[Episode], others: list[Episode]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        for name in ("frames", "actions", "rewards", "successes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("action_dim", [2, 1, 0])
@pytest.mark.parametrize("successes", [True, False])
def test_our_reader_reads_what_was_written(tmp_path, action_dim, successes):
    episodes = made(action_dim=action_dim, successes=successes)
    write(tmp_path / "out", episodes)
    check_equal(read(tmp_path / "out"), episodes)


def test_many_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "FILE_MB", 0.01)
    monkeypatch.setattr(lerobot_writer, "CHUNK_FILES", 2)
    write(tmp_path / "out", made(6))
    tables = {path.relative_to(tmp_path / "out/data").as_posix() for path in (tmp_path / "out").rglob("data/*/*")}
    assert {"chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"} <= tables
    check_equal(read(tmp_path / "out"), made(6))


def test_statistics(tmp_path):
    episodes = made()
    write(tmp_path / "out", episodes)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    pixels = np.concatenate([episode.frames for episode in episodes]) / 255  # (N, 3, 16, 16)
    np.testing.assert_allclose(np.ravel(stats["observation.image"]["mean"]), pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(np.ravel(stats["observation.image"]["std"]), pixels.std((0, 2, 3)))
    assert stats["observation.image"]["count"] == [len(pixels)]
    actions = np.concatenate([np.append(episode.actions, episode.actions[-1:], 0) for episode in episodes])
    np.testing.assert_allclose(stats["action"]["max"], actions.max(0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0))


def test_nothing_is_left_of_a_dataset_that_was_not_finished(tmp_path):
    first, other = made(1)[0], made(1, action_dim=3)[0]
    for episodes, line in (
        ([first, other], "episode 1 has another action than the first"),
        ([first, first._replace(successes=None)], "episode 1 has another next.success than the first"),
        ([], "there are no episodes to write"),
    ):
        with pytest.raises(DataError, match=line):
            write(tmp_path / "out", episodes)
        assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out", [first])
    with pytest.raises(DataError, match="out is there already"):
        write(tmp_path / "out", [first])


def test_lerobots_own_loader_reads_what_was_written(tmp_path, monkeypatch):
    library = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for action_dim in (2, 1):
        folder = tmp_path / str(action_dim)
        write(folder, made(action_dim=action_dim))
        dataset = library.LeRobotDataset("local/x", root=folder)
        assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 18, 20)
        rows = [dataset[i] for i in range(len(dataset))]
        for number, episode in enumerate(made(action_dim=action_dim)):
            own = [row for row in rows if row["episode_index"] == number]
            frames = np.stack([(row["observation.image"].numpy() * 255).round().astype(np.uint8) for row in own])
            np.testing.assert_array_equal(frames, episode.frames)
            actions = np.stack([row["action"].numpy().reshape(-1) for row in own])
            np.testing.assert_array_equal(actions[:-1], episode.actions)
            np.testing.assert_array_equal([row["next.reward"].item() for row in own][:-1], episode.rewards)
            np.testing.assert_array_equal([row["next.success"].item() for row in own][:-1], episode.successes)
            assert [row["next.done"].item() for row in own] == [False] * (len(own) - 2) + [True, True]
            assert {row["task"] for row in own} == {"push the cup"}
        windows = {"observation.image": [-0.05, 0.0], "action": [0.0, 0.05]}
        window = library.LeRobotDataset("local/x", root=folder, episodes=[1], delta_timestamps=windows)[1]
        assert window["observation.image"].shape == (2, 3, 16, 16)


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_run_and_back_into_training_data(finished, tmp_path, typed):
    code, out, _ = typed(main, f"run={finished}", f"out={tmp_path / 'out'}", "episodes=3")
    assert code == 0
    assert "out: a LeRobot dataset of 3 episodes, 33 frames" in out
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"]["observation.image"]["shape"] == [32, 32, 3]
    data = [f"path={tmp_path / 'out'}", f"out={tmp_path / 'data'}", "image_size=32", "workers=1"]
    typed(make_data, "source=lerobot", *data)
    clips = ClipDataset(tmp_path / "data", held_out_every=0)
    played = list(read_episodes(episode_files(finished / "replay")[:3]))
    check_equal([clips.episode(i) for i in range(clips.num_episodes)], played)


def test_shards_and_driven_demonstrations(finished, tmp_path, typed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = EpisodeStore(tmp_path / "driven")
    for i, episode in enumerate(read_episodes(episode_files(finished / "replay")[:2])):
        store.save(i, episode)
    typed(main, "run=driven", "task=push it")
    check_equal(read(Path("data/lerobot/driven"), 32), list(store.load([0, 1])))
    typed(make_data, "source=lerobot", "path=data/lerobot/driven", "out=shards", "image_size=32", "workers=1")
    typed(main, "run=shards", "out=again")
    check_equal(read(Path("again"), 32), list(store.load([0, 1])))


def test_dreams(finished, tmp_path, typed):
    code, out, _ = typed(main, f"run={finished}", f"out={tmp_path / 'out'}", "dreams=4", "horizon=5")
    assert code == 0
    episodes = read(tmp_path / "out", 32)
    assert [len(episode.rewards) for episode in episodes] == [5] * 4
    assert all(episode.successes is None for episode in episodes), "this model predicts none"
    policy, stacks = load(finished), {e.frames[i].tobytes() for e in finished_episodes(finished) for i in range(10)}
    assert all(episode.frames[0].tobytes() in stacks for episode in episodes), "it begins at a recorded frame"
    newest = np.concatenate(episodes[0].frames[2:5])
    np.testing.assert_allclose(policy.act(newest), episodes[0].actions[4], atol=1e-6)


def finished_episodes(run: Path) -> list:
    return list(read_episodes(episode_files(run / "replay")))


def test_what_cannot_be_exported_is_one_line(finished, tmp_path, typed):
    assert "run=none: name the folder of a run" in typed(main)[2]
    assert f"{tmp_path} holds no recorded episodes" in typed(main, f"run={tmp_path}")[2]
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "world_model")
    assert "world_model is not there" in typed(main, f"run={copy}", f"out={tmp_path / 'x'}", "dreams=2")[2]
    assert not (tmp_path / "x").exists()
