"""Foreign video: every reader on a real file of its format, damaged clips, missing packages, and `make data` whole."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mbrl.data import data
from mbrl.experiment.settings import UserError, load_plain
from mbrl.pretrain.mixture import load_mixture, weights
from world_model import Episode
from world_model.data import BROKEN, ClipDataset, DataError, SourceOptions, make_reader, rlds, shard_names, write_shard
from world_model.data.source import fit
from world_model.data.tfrecord import examples, masked_crc32c

HERE = Path(__file__).parent / "data" / "video"
# Source -> its fixture, packages it needs, greatest error of a colour (lossy codecs), numbers of an action.
FIXTURES = {
    "npz": ("npz/train", [], 0, 3),
    "bair": ("bair/train", [], 0, 4),
    "rlds": ("rlds/toy_robot/0.1.0", [], 3, 4),
    "ssv2": ("ssv2/clips", ["av"], 6, 0),
    "robonet": ("robonet", ["av", "h5py"], 6, 5),
    "lerobot": ("lerobot", ["av", "pyarrow"], 6, 3),
}


def options(source: str, **changes) -> SourceOptions:
    plain = SourceOptions(
        path=HERE / FIXTURES[source][0],
        name="toy",
        image_key=None,
        image_size=16,
        crop="none",
        step=1,
        actions=True,
        classes=(),
    )
    return plain._replace(**changes)


def read(source: str, **changes) -> dict[str, Episode]:
    """All clips of a fixture by name, or the test is skipped."""
    for package in FIXTURES[source][1]:
        pytest.importorskip(package)
    reader = make_reader(source, options(source, **changes))
    return {name: clip() for units in reader.shards(1).values() for name, clip in reader.clips(units)}


@pytest.mark.parametrize("source", FIXTURES)
def test_a_reader_gives_what_was_written(source):
    _, _, error, action_dim = FIXTURES[source]
    clips = sorted(read(source).values(), key=lambda clip: clip.frames[0, 0].mean())  # the red of an episode
    assert len(clips) >= 2
    for episode, clip in enumerate([clips[0], clips[-1]]):
        frames, actions, rewards = clip.frames, clip.actions, clip.rewards
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (3, 16, 16)
        steps = len(frames) - 1
        assert steps == (2 if source == "bair" else 3 + episode)
        colour = np.stack(
            [np.full(steps + 1, 60 * episode + 40), 40 * np.arange(steps + 1), np.full(steps + 1, 120)], 1
        )
        assert np.abs(frames - colour[:, :, None, None].astype(float)).max() <= error
        assert actions.shape == (steps, action_dim)
        assert actions.dtype == rewards.dtype == np.float32
        if source == "rlds":  # open_gripper, rotation, world_vector: in the order of their names
            expected = [[t % 2, -0.5, episode, t] for t in range(steps)]
            np.testing.assert_array_equal(actions, np.array(expected, np.float32))
        elif action_dim:
            np.testing.assert_array_equal(actions[:, 0], np.full(steps, episode))
            np.testing.assert_array_equal(actions[:, 1], np.arange(steps))
        known = source in ("rlds", "lerobot")
        np.testing.assert_array_equal(rewards, 10 * episode + np.arange(steps) if known else np.zeros(steps))


def test_robonets_gripper_closes_by_itself():
    clips = read("robonet")
    # The state after action t was t + 1 modulo 2, the bounds are 0 and 0.9: nearer to the upper one, or to the lower.
    np.testing.assert_allclose(clips["penn_traj0.hdf5"].actions[:, 4], [0.9, 0, 0.9])
    np.testing.assert_array_equal(clips["sawyer_traj1.hdf5"].actions[:, 3:], np.zeros((4, 2)))


def test_other_cameras_and_a_camera_that_is_not_there():
    other = read("npz", image_key="aux1_image")["traj_00000.npz"]
    np.testing.assert_array_equal(other.frames, 255 - read("npz")["traj_00000.npz"].frames)
    assert (read("rlds", image_key="wrist")["toy_robot-train.tfrecord-00000-of-00001:0"].frames[:, 2] == 120).all()
    with pytest.raises(ValueError, match="only image, wrist"):
        read("rlds", image_key="front")
    with pytest.raises(ValueError, match="only image, action, aux1_image"):
        read("npz", image_key="front")
    with pytest.raises(ValueError, match="no image_key=image_top"):
        read("bair", image_key="image_top")


def test_classes_of_something_something(tmp_path):
    assert list(read("ssv2")) == ["7.webm", "12", "13"]
    assert list(read("ssv2", classes=(5,))) == ["7.webm", "12"]
    assert list(read("ssv2", classes=(59,))) == ["13"]
    shutil.copytree(HERE / "ssv2/clips/12", tmp_path / "12")
    with pytest.raises(DataError, match=r"needs labels\.json"):
        make_reader("ssv2", options("ssv2", path=tmp_path, classes=(5,))).shards(1)
    (tmp_path / "val_video_folder.txt").write_text("clips/12 5 59\n")
    reader = make_reader("ssv2", options("ssv2", path=tmp_path, classes=(59,)))
    assert list(reader.shards(1).values()) == [["12"]]


def test_steps_join_actions_and_add_rewards():
    whole, half = (read("rlds", step=step) for step in (1, 2))
    for name, clip in half.items():
        kept = (len(whole[name].frames) + 1) // 2
        np.testing.assert_array_equal(clip.frames, whole[name].frames[::2])
        used = 2 * (kept - 1)
        np.testing.assert_array_equal(clip.actions, whole[name].actions[:used].reshape(kept - 1, 8))
        np.testing.assert_array_equal(clip.rewards, whole[name].rewards[:used].reshape(-1, 2).sum(1))
    assert all(clip.actions.shape[1] == 0 for clip in read("rlds", actions=False).values())


def test_clips_that_do_not_fit_together_are_refused():
    make, frames = options("npz").episode, np.zeros((4, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="has 1 frames with step=1"):
        make(frames[:1])
    with pytest.raises(ValueError, match="has 2 actions, but 3 steps"):
        make(frames, np.zeros((2, 1)))
    with pytest.raises(ValueError, match="actions that are not finite"):
        make(frames, np.full((3, 1), np.nan))
    with pytest.raises(ValueError, match="not uint8"):
        make(frames.astype(np.float32))


def test_images_are_squeezed_or_cut():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200  # the middle square
    assert (fit(image, 8, "center") == 200).all()
    squeezed = fit(image, 8)
    assert squeezed.shape == (3, 8, 8)
    assert squeezed[0, 0, 0] < 30 < 170 < squeezed[0, 0, 4]


def test_tfrecord_checksum_and_damage(tmp_path):
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    whole = next((HERE / "bair/train").iterdir())
    cut, bent = tmp_path / "cut", tmp_path / "bent"
    cut.write_bytes(whole.read_bytes()[:-9])
    bytes_ = bytearray(whole.read_bytes())
    bytes_[8 + 4 + 1] ^= 0xFF  # inside the first message: its frame still stands
    bent.write_bytes(bytes_)
    names, readers = zip(*examples(cut), strict=True)
    assert names == ("cut:0", "cut:1 and all behind it")
    assert "0/action" in readers[0]()
    with pytest.raises(ValueError, match="cut off"):
        readers[1]()
    (_, first), (_, second) = examples(bent)
    with pytest.raises(ValueError, match="damaged"):
        first()
    assert "0/action" in second()


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("ssv2", "7.webm"),
        ("ssv2", "12/000003.jpg"),
        ("robonet", "penn_traj0.hdf5"),
        ("lerobot", "videos/observation.images.top/chunk-000/file-000.mp4"),
        ("lerobot", "data/chunk-000/file-000.parquet"),
    ],
)
def test_damage_costs_the_clips_that_it_touches(tmp_path, source, file):
    whole = read(source)
    shutil.copytree(HERE / FIXTURES[source][0], tmp_path / "copy")
    damaged = tmp_path / "copy" / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 3])
    reader, lost = make_reader(source, options(source, path=tmp_path / "copy")), []
    for name, clip in reader.clips([unit for units in reader.shards(1).values() for unit in units]):
        try:
            np.testing.assert_array_equal(clip().frames, whole[name].frames)
        except BROKEN:
            lost.append(name)
    assert lost == {"ssv2": [file.split("/")[0]], "robonet": [file], "lerobot": ["episode 0", "episode 1"]}[source]


def test_lerobot_with_images_in_its_table(tmp_path):
    whole = read("lerobot")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shutil.copytree(HERE / "lerobot", tmp_path / "copy")
    camera, file = "observation.images.top", tmp_path / "copy/data/chunk-000/file-000.parquet"
    image = (HERE / "ssv2/clips/12/000002.jpg").read_bytes()
    table = pq.read_table(file)
    pq.write_table(table.append_column(camera, pa.array([{"bytes": image, "path": None}] * len(table))), file)
    info = json.loads((tmp_path / "copy/meta/info.json").read_text())
    info["features"][camera]["dtype"] = "image"
    (tmp_path / "copy/meta/info.json").write_text(json.dumps(info))
    clips = read("lerobot", path=tmp_path / "copy")
    assert [len(clip.frames) for clip in clips.values()] == [4, 5]
    assert np.abs(clips["episode 1"].frames[:, 1] - 40.0).max() <= 3
    np.testing.assert_array_equal(clips["episode 1"].actions, whole["episode 1"].actions)
    info["codebase_version"] = "v2.1"
    (tmp_path / "copy/meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"of v2\.1; convert it to v3\.0"):
        read("lerobot", path=tmp_path / "copy")


# -- make data --------------------------------------------------------------------------------------------------------


def overrides(source: str, out: Path, *more: str) -> list[str]:
    common = [f"source={source}", f"path={HERE / FIXTURES[source][0]}", "name=toy", "image_size=16", "workers=1"]
    return [*common, f"out={out}", *more]


def test_a_damaged_clip_is_left_out_and_named(tmp_path, typed):
    source, out = tmp_path / "episodes", tmp_path / "out"
    shutil.copytree(HERE / "npz/train", source)
    whole = (source / "traj_00001.npz").read_bytes()
    (source / "traj_00002.npz").write_bytes(whole[: len(whole) // 2])
    (source / "traj_00003.npz").write_bytes(whole)
    code, said, _ = typed(data.main, *overrides("npz", out, f"path={source}", "shard_episodes=2", "workers=2"))
    assert code == 0
    assert f"npz, {source}: 4 of 4 episodes to make (16x16 pixels), in 2 processes, into {out}" in said
    assert "3 episodes added" in said
    assert "damaged and skipped: 1" in said
    assert "traj_00002.npz: " in (out / "toy-skipped.txt").read_text()
    dataset = ClipDataset(out)
    assert (dataset.num_episodes, dataset.action_dim) == (3, 3)
    # The same again adds nothing; a shard that was lost comes back.
    made = (out / "toy-00000.npy").stat().st_mtime_ns
    (out / "toy-00001.npz").unlink()
    assert "1 episodes added" in typed(data.main, *overrides("npz", out, f"path={source}", "shard_episodes=2"))[1]
    assert shard_names(out) == {"toy-00000", "toy-00001"}
    assert (out / "toy-00000.npy").stat().st_mtime_ns == made


def settings(*overrides: str) -> data.DataSettings:
    return load_plain(data.DataSettings, "data", overrides)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["path=none"], "source=npz needs path="),
        (["path=nowhere"], "path=nowhere: there is no such folder"),
        ([f"path={HERE / 'bair/train'}"], "holds no .npz files"),
        (["mixture=paper"], "mixture=paper has no toy"),
        (["mixture=papper"], "known: paper"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, more, said):
    with pytest.raises((UserError, DataError), match=said):
        data.jobs(settings(*overrides("npz", tmp_path, *more)))


def test_a_folder_made_otherwise_is_refused(tmp_path):
    data.check_same(settings(*overrides("npz", tmp_path)))
    data.check_same(settings(*overrides("npz", tmp_path, "workers=3")))
    with pytest.raises(UserError, match="made with image_size=16, not 32"):
        data.check_same(settings(*overrides("npz", tmp_path, "image_size=32")))


@pytest.mark.parametrize(("source", "package"), [("lerobot", "pyarrow"), ("robonet", "h5py"), ("ssv2", "av")])
def test_a_missing_package_is_named(monkeypatch, source, package):
    import sys

    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    for module in [
        name for name in sys.modules if name.split(".")[0] == package or name.startswith("world_model.data.")
    ]:
        if module.split(".")[-1] in ("lerobot", "robonet", "video") or module.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, module)
    if package != "av":  # not the package that is asked about
        pytest.importorskip("av")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"needs {package}: .*pip install '\.\[video\]'"):
        make_reader(source, options(source)).shards(1)


def test_names_come_from_folders(tmp_path):
    (tmp_path / "bridge" / "0.1.0").mkdir(parents=True)
    for path in ("bridge", "bridge/0.1.0"):
        assert data.dataset_name(settings("source=rlds", f"path={tmp_path / path}")) == "bridge"


# -- the mixture ------------------------------------------------------------------------------------------------------


def test_the_papers_mixture():
    mixture = load_mixture("paper")
    assert sum(subset.weight for subset in mixture.values()) == pytest.approx(1, abs=1e-4)
    robots = {name.rstrip("1234") if name.startswith("uiuc") else name for name in mixture} - {"sthsth"}
    assert len(robots) == 35
    assert [name for name, subset in mixture.items() if subset.tokenizer_only] == ["sthsth"]
    assert len(set(mixture["sthsth"].classes)) == 95
    assert (mixture["bridge"].step, mixture["toto"].step, mixture["roboturk"].image_key) == (2, 10, "front_rgb")


def test_a_mixture_says_how_a_subset_is_read(tmp_path):
    source = data.open_source(settings(*overrides("rlds", tmp_path, "name=bridge", "mixture=paper")))
    assert source.options.step == 2
    assert source.options.image_key == "image"
    assert not source.options.actions


def test_episodes_for_testing_are_left_out(tmp_path, monkeypatch):
    """By file name, or by what an RLDS episode says of its origin; one that says nothing is refused."""
    names = load_mixture("paper")["robo_net"].left_out_names
    assert len(names) == 256 + 126
    assert {"berkeley_sawyer_traj11106", "train_eps_00048645"} <= names
    assert load_mixture("paper")["bridge"].left_out_names == set()
    given = settings(*overrides("rlds", tmp_path, "name=robo_net", "mixture=paper", "image_key=image"))
    with pytest.raises(DataError, match="do not say what file they are of"):
        data.record(data.jobs(given)[0])

    def named(path):
        for number, (name, example) in enumerate(examples(path)):
            origin = [f"/robonet/hdf5/{('toy_traj1', 'berkeley_sawyer_traj11106')[number]}.hdf5".encode()]
            yield name, lambda example=example, origin=origin: example() | {"episode_metadata/file_path": origin}

    monkeypatch.setattr(rlds, "examples", named)
    assert data.record(data.jobs(given)[0]) == data.Done(units=1, episodes=1, skipped=[], left_out=1)
    (files := tmp_path / "npz").mkdir()
    for name in ("train_eps_00048645", "train_eps_00048646"):
        shutil.copy(HERE / "npz/train/traj_00000.npz", files / f"{name}.npz")
    given = settings(*overrides("npz", tmp_path, "name=robo_net", "mixture=paper", f"path={files}"))
    assert [unit for job in data.jobs(given) for unit in job.units] == ["train_eps_00048646.npz"]


def test_a_folder_made_before_episodes_were_left_out_is_refused(tmp_path):
    given = settings(*overrides("rlds", tmp_path, "name=robo_net", "mixture=paper"))
    data.check_same(given)
    file = tmp_path / "robo_net.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "left_out"}))
    with pytest.raises(UserError, match="made with left_out=None, not 382"):
        data.check_same(given)


def test_clips_are_drawn_by_weight(tmp_path):
    for name, count in (("a", 8), ("b", 1), ("c", 1)):
        frames = np.full((6, 3, 4, 4), ord(name), np.uint8)
        write_shard(tmp_path, name, [Episode(frames, np.zeros((5, 0)), np.zeros(5))] * count, name)
    dataset = ClipDataset(tmp_path, weights={"a": 1.0, "b": 3.0, "absent": 2.0})
    drawn = dataset.sample(4000, 3, np.random.default_rng(0)).frames[:, 0, 0, 0, 0]
    assert set(drawn.tolist()) == {ord("a"), ord("b")}
    assert (drawn == ord("b")).float().mean() == pytest.approx(0.75, abs=0.03)
    with pytest.raises(DataError, match="none is in the mixture"):
        ClipDataset(tmp_path, weights=weights(load_mixture("paper"), "tokenizer"))
