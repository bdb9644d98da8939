"""What other programs take from a run: its policy and its world model, and its dreams as an environment."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny import train
from tiny_world import TOKENIZER, TRANSFORMER

import agents
from mbrl.evaluate import play
from mbrl.experiment import checkpoints
from mbrl.experiment.episodes import episode_files, read_episodes
from mbrl.interop import load
from mbrl.interop.dream_env import DreamEnv
from mbrl.interop.recordings import Recordings
from mbrl.rollout import to_float, to_uint8
from world_model import IVideoGPT, imagine
from world_model.api import Episode
from world_model.data import write_shard
from world_model.onestep import OneStep, OneStepLearning, OneStepWorld
from world_model.schema import UserError

DREAM = "mbrl.interop.dream_env:Dream-v0"


def recorded(run: Path) -> list[np.ndarray]:
    return [episode.frames for episode in read_episodes(episode_files(run / "replay"))]


# -- policy and world model ------------------------------------------------------------------------------------------


def test_a_run_acts_as_it_is_evaluated(finished):
    import envs

    run = load(finished)
    env = envs.make("toy/reach", image_size=32, episode_frames=20)
    played = play(run.agent, env, run.frame // 2, [7]).episodes[0]
    obs, _ = env.reset(seed=7)
    run.begin_episode()
    for action in played.actions:
        np.testing.assert_array_equal(run.act(obs), action)
        obs = env.step(action)[0]
    both = run.act(np.stack([obs, obs]))
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both[0], run.act(torch.from_numpy(obs)), atol=1e-6)
    dream = run.world_model.imagine(torch.rand(1, 2, 3, 32, 32), torch.zeros(1, 4, 2), 4)
    assert dream.rewards.shape == (1, 4)


def test_it_takes_torch_and_the_run_folder_alone(finished, project_root, tmp_path):
    """Packages that torch and safetensors do not bring cannot even be imported here."""
    barred = "envs gymnasium hydra omegaconf yaml mujoco metaworld dm_control tensorboard PIL matplotlib tqdm".split()
    code = f"""
import sys
for name in {barred}: sys.modules[name] = None
import numpy as np
from mbrl.interop import load
run = load({str(finished)!r})
print(run.act(np.zeros((9, 32, 32), np.uint8)).shape, run.world_model.layout.context_length)
"""
    environment = {"PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "(2,) 2\n", done.stderr


def test_agents_with_a_memory_and_runs_without_a_model(tmp_path, monkeypatch):
    folder = train(tmp_path / "a", "agent=dreamerv3", "demonstrations=0", "num_train_frames=120")
    obs = np.random.default_rng(0).integers(0, 255, (2, 9, 32, 32), dtype=np.uint8)
    dreamer, other = load(folder), load(folder)
    for _ in range(2):
        np.testing.assert_array_equal(dreamer.act(obs[0]), other.act(obs[0]))
    begun: list[bool] = []
    begin = dreamer.agent.begin_episode
    monkeypatch.setattr(dreamer.agent, "begin_episode", lambda eval_mode: begun.append(eval_mode) or begin(eval_mode))
    dreamer.act(obs[0])
    assert begun == []
    dreamer.begin_episode()
    dreamer.act(obs[0])
    assert dreamer.act(obs).shape == (2, 2), "two side by side: they begin together"
    assert begun == [True, True]
    with pytest.raises(UserError, match="world_model is not there: runs with a world model leave it when they end"):
        _ = dreamer.world_model


def test_a_run_of_an_older_version_has_the_defaults_of_newer_keys(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished, tmp_path / "run")
    newest = checkpoints.latest(copy / "checkpoints")
    parts = {path.name: newest.load(path.name) for path in newest.path.iterdir() if path.name != "manifest.json"}
    del parts["run.json"]["config"]["drqv2"]["layer_norm"]
    shutil.rmtree(copy / "checkpoints")
    checkpoints.save(copy / "checkpoints", newest.frame, parts)
    obs = np.zeros((9, 32, 32), np.uint8)
    np.testing.assert_array_equal(load(copy).act(obs), load(finished).act(obs))
    monkeypatch.setitem(sys.modules, "mbrl.experiment.identity", None)
    with pytest.raises(UserError, match=r"made by another version: .* takes pip install 'ivideogpt-mbrl\[train\]'"):
        load(copy)


def test_a_published_run_needs_its_agent_and_its_config_alone(finished, tmp_path):
    weights = checkpoints.latest(finished / "checkpoints").load("agent.safetensors")
    halves = {name: value.half() for name, value in weights.items()}
    checkpoints.save(tmp_path / "checkpoints", 160, {"agent.safetensors": halves})
    shutil.copy(finished / "config.yaml", tmp_path)
    obs = np.random.default_rng(0).integers(0, 255, (9, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(load(tmp_path).act(obs), load(finished).act(obs), atol=0.01)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no checkpoints: it is no run folder"):
        load(tmp_path)
    folder = train(tmp_path / "runs", "agent=uniform", "demonstrations=0", "num_train_frames=60")
    with pytest.raises(UserError, match="agent=uniform has learned nothing"):
        load(folder)


def test_every_agent_has_its_line():
    assert {kind.section for kind in agents.AGENTS.values()} == {"drqv2", "dreamerv3"}


# -- dreams as an environment ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env(finished):
    return gymnasium.make(DREAM, model=finished, render_mode="rgb_array")


def test_gymnasium_has_no_complaint_about_dreams(env):
    check_env(env.unwrapped)
    assert env.observation_space.shape == (9, 32, 32)
    assert env.action_space.shape == (2,)
    assert env.unwrapped.episode_decisions == 3, "the run's rollout_horizon"


def test_an_episode_is_a_dream_from_a_recorded_moment(finished):
    env = DreamEnv(finished, temperature=0.0, horizon=5)
    stacks = [frames[i : i + 3].reshape(9, 32, 32) for frames in recorded(finished) for i in range(len(frames) - 2)]
    for seed in range(20):
        obs, info = env.reset(seed=seed)
        if any((obs == stack).all() for stack in stacks):
            break
    else:
        raise AssertionError("no start has three recorded frames")
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    context = to_float(torch.from_numpy(obs).reshape(1, 3, 3, 32, 32))
    dream = imagine(load(finished).world_model, context, torch.from_numpy(actions)[None], 5, temperature=0.0)
    for t, action in enumerate(actions):
        obs, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(obs[-3:], to_uint8(dream.frames[0, t]).numpy())
        assert reward == pytest.approx(float(dream.rewards[0, t]), abs=1e-5)
        assert (terminated, truncated, info["success"]) == (False, t == 4, 0.0)


def test_episodes_from_the_first_frame_on(finished):
    starts = {frames[0].tobytes() for frames in recorded(finished)}
    env = DreamEnv(finished, anywhere=False)
    for _ in range(5):
        obs, _ = env.reset()
        assert {obs[:3].tobytes(), obs[3:6].tobytes(), obs[6:].tobytes()} <= starts
        assert (obs[:3] == obs[6:]).all()


def test_seeds_decide_dreams_and_snapshots_go_back(finished, env):
    other = DreamEnv(finished, seed=5)

    def played(one):
        return [one.step(np.full(2, 0.5, np.float32)) for _ in range(3)]

    a, b = env.unwrapped.reset(seed=3), other.reset(seed=3)
    np.testing.assert_array_equal(a[0], b[0])
    moment = other.snapshot()
    dreamt = [step[0] for step in played(env.unwrapped)]
    for one in (played(other), [other.restore(moment)] and played(other)):
        np.testing.assert_array_equal([step[0] for step in one], dreamt)
    other.reset(seed=3)
    other.simulator._generator.manual_seed(1)
    assert any((step[0] != frame).any() for step, frame in zip(played(other), dreamt, strict=True)), "tokens are drawn"


def test_a_model_and_shards_by_themselves(tmp_path):
    model = IVideoGPT(TOKENIZER, TRANSFORMER, action_dim=3, heads=("reward", "success", "continue"))
    model.save_pretrained(tmp_path / "model")
    frames = np.random.default_rng(0).integers(0, 255, (6, 3, 32, 32), dtype=np.uint8)
    episode = Episode(frames, np.zeros((5, 3), np.float32), np.zeros(5, np.float32))
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data", "x-0", [episode], "x")
    env = DreamEnv(tmp_path / "model", starts=tmp_path / "data")
    assert env.episode_decisions == 10
    env.reset(seed=0)
    outcomes = {env.step(np.zeros(3, np.float32))[4]["success"] for _ in range(2)}
    assert outcomes <= {0.0, 1.0}
    with pytest.raises(UserError, match="name some with starts=<folder>"):
        DreamEnv(tmp_path / "model")
    with pytest.raises(UserError, match="frame_stack=1: this model dreams from 2 frames"):
        DreamEnv(tmp_path / "model", starts=tmp_path / "data", frame_stack=1)


def test_starts_that_are_not_like_the_model(finished, tmp_path):
    model = finished / "world_model"
    with pytest.raises(UserError, match="holds no recorded episodes"):
        DreamEnv(model, starts=tmp_path)
    frames = np.zeros((6, 3, 64, 64), np.uint8)
    write_shard(tmp_path, "x-0", [Episode(frames, np.zeros((5, 4), np.float32), np.zeros(5, np.float32))], "x")
    with pytest.raises(UserError, match="holds 64x64 pixels and actions of 4 numbers, .* dreams of 32x32 and 2"):
        DreamEnv(model, starts=tmp_path)


def test_a_damaged_recording_is_left_out(finished, tmp_path):
    copy = shutil.copytree(finished / "replay", tmp_path / "replay")
    files = episode_files(copy)
    for path in files[1:]:
        path.write_bytes(b"no episode")
    recordings = Recordings(copy)
    generator = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="skipping damaged episode"):
        drawn = [recordings.draw(generator) for _ in range(30)]
    assert len(recordings) >= 1
    assert all((one.frames == recorded(finished)[0]).all() for one in drawn)


def test_an_agent_of_another_library_takes_a_thousand_steps(finished, tmp_path):
    """In the dreams of the one-step model: they are the quickest."""
    sb3 = pytest.importorskip("stable_baselines3")
    learning = OneStepLearning(8, 2, 1, 1, 1e-3, 1.0, 5.0, 0.3, 1.0, "fp32")
    OneStepWorld(OneStep(learning, action_dim=2), 32, torch.device("cpu")).save_pretrained(tmp_path)
    env = gymnasium.make(DREAM, model=tmp_path, starts=finished)
    settings = dict(n_steps=125, batch_size=125, n_epochs=1, policy_kwargs=dict(net_arch=[16]), device="cpu")
    agent = sb3.PPO("MlpPolicy", env, **settings)
    before = agent.policy.action_net.weight.detach().clone()
    agent.learn(1000)
    assert agent.num_timesteps == 1000
    assert (agent.policy.action_net.weight != before).any()


# -- the document ----------------------------------------------------------------------------------------------------


def test_snippets_of_the_document_run(finished, project_root):
    """On the toy world, and with a policy that 32 pixels are enough for."""
    pytest.importorskip("stable_baselines3")
    text = (project_root / "docs/extending.md").read_text()
    tasks, policy, dreams = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(tasks.replace("coffee-push", "toy-reach").replace("success_bonus", "image_size=32, success_bonus"), names)
    for snippet in (
        policy,
        dreams.replace("CnnPolicy", "MlpPolicy").replace("200", "10").replace("=100)", "=10)").replace("1000", "10"),
    ):
        exec(snippet.replace("runs/coffee-push/mbpo/1", str(finished)), names)
    assert names["action"].shape == (2,)
    assert names["agent"].num_timesteps == 10
