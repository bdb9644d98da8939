"""DreamerV3: its stream of steps, its memory, its learning; the loop around it, killed and continued."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Command, different, train

import envs
from agents import DreamerV3, InvalidConfig, StateMismatch, StreamBatch
from agents.dreamerv3.nets import Decoder, Encoder, NormSiLU, UpConv
from agents.dreamerv3.rssm import State
from mbrl.dreamer import Dreamer
from mbrl.evaluate import evaluate
from mbrl.experiment.run import Run
from mbrl.experiment.settings import load
from mbrl.replay import ReplayBuffer, ReplayError
from mbrl.session import Session
from mbrl.train import main
from world_model import Episode

CONFIG = dataclasses.replace(
    load(["agent=dreamerv3", "preset=smoke", "device=cpu"]).dreamerv3,
    precision="fp32",
    batch_length=8,
    lr=1e-3,
)
ROOT = Path(__file__).resolve().parent.parent
TINY_DREAMER = ("agent=dreamerv3", "dreamerv3.batch_size=2", "dreamerv3.batch_length=12", "dreamerv3.train_ratio=12")


def make_agent(seed: int = 1, **changes: Any) -> DreamerV3:
    return DreamerV3((9, 32, 32), 2, dataclasses.replace(CONFIG, **changes), "cpu", seed)


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 9, 32, 32), dtype=torch.uint8, generator=generator)


def buffer(capacity: int = 100, size: int = 2) -> ReplayBuffer:
    return ReplayBuffer(
        capacity, (3, size, size), 2, frame_stack=3, nstep=3, discount=0.99, seed=0, episode_decisions=5
    )


def coded_episode(first: int, decisions: int, terminated: bool = False) -> Episode:
    """Frame i of the episode shows `first + i`; action and reward i are its number too."""
    number = first + np.arange(decisions + 1)
    frames = np.broadcast_to(number[:, None, None, None], (decisions + 1, 3, 2, 2)).astype(np.uint8)
    actions = np.stack([number[:-1], -number[:-1]], 1).astype(np.float32)
    return Episode(frames, actions, number[:-1].astype(np.float32), terminated)


def toy_episodes(count: int, decisions: int = 20) -> list[Episode]:
    """Random play in the toy world."""
    env = envs.make("toy/reach", seed=3, image_size=32, episode_frames=2 * decisions)
    generator, episodes = np.random.default_rng(0), []
    for i in range(count):
        obs, _ = env.reset(seed=i)
        frames, actions, rewards, over = [obs[-3:]], [], [], False
        while not over:
            actions.append(generator.uniform(-1, 1, 2).astype(np.float32))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            frames.append(obs[-3:])
            rewards.append(reward)
            over = terminated or truncated
        episodes.append(Episode(np.stack(frames), np.stack(actions), np.asarray(rewards, np.float32), False))
    return episodes


# -- the stream --------------------------------------------------------------------------------------------------------


def test_a_window_runs_from_one_episode_into_the_next():
    replay = buffer()
    replay.add(coded_episode(10, 3, terminated=True))
    replay.add(coded_episode(20, 2))
    assert replay.num_frames == replay.frames_added == 7
    window = replay.sample_stream(1, 7, newest=[7])
    assert window.frames[0, :, 0, 0, 0].tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert window.rewards[0].tolist() == [10, 11, 12, 0, 20, 21, 0]
    assert window.actions[0, :, 1].tolist() == [-10, -11, -12, 0, -20, -21, 0]
    assert window.is_first[0].tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert window.is_last[0].tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert window.is_terminal[0].tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_every_window_is_drawn_and_none_leaves_what_is_held():
    replay = buffer(capacity=12)
    for i in range(6):  # the first ones are dropped again
        replay.add(coded_episode(10 * i, 3))
    windows = replay.sample_stream(400, 5)
    shown = windows.frames[:, :, 0, 0, 0]
    held = [10 * i + j for i in range(2, 6) for j in range(4)]
    assert replay.num_frames == len(held)
    assert {tuple(row) for row in shown.tolist()} == {tuple(held[i : i + 5]) for i in range(len(held) - 4)}
    for number in held:  # a step has one slot
        assert len(windows.slots[shown == number].unique()) == 1
    with pytest.raises(ReplayError, match="holds 16"):
        replay.sample_stream(1, 17)


# -- acting ------------------------------------------------------------------------------------------------------------


def test_what_it_saw_counts_until_the_episode_ends():
    seen, last = images(4), images(1, seed=1)

    def actions(agent: DreamerV3, *, begin: bool) -> torch.Tensor:
        agent.begin_episode(eval_mode=True)
        for image in seen:
            agent.act(image[None], 0, eval_mode=True)
        if begin:
            agent.begin_episode(eval_mode=True)
        agent._evaluation_noise.generator.manual_seed(5)
        return agent.act(last, 0, eval_mode=True)

    fresh = make_agent()
    fresh._evaluation_noise.generator.manual_seed(5)
    first = fresh.act(last, 0, eval_mode=True)
    assert torch.equal(actions(make_agent(), begin=True), first)
    assert not torch.equal(actions(make_agent(), begin=False), first)


def test_only_the_newest_frame_counts():
    agent, obs = make_agent(), images(1)
    other = obs.clone()
    other[:, :6] = 0
    taken = []
    for image in (obs, other):
        agent.begin_episode(eval_mode=True)
        agent._evaluation_noise.generator.manual_seed(5)
        taken.append(agent.act(image, 0, eval_mode=True))
    assert torch.equal(*taken)


def test_evaluation_does_not_disturb_a_training_episode():
    taken = []
    for interrupted in (False, True):
        agent = make_agent()
        agent.begin_episode(eval_mode=False)
        for image in images(3):
            taken.append(agent.act(image[None], 0, eval_mode=False))
            if interrupted:
                agent.begin_episode(eval_mode=True)
                agent.act(images(1, seed=7), 0, eval_mode=True)
    assert torch.equal(torch.cat(taken[:3]), torch.cat(taken[3:]))
    assert torch.cat(taken).abs().max() <= 1


# -- learning ----------------------------------------------------------------------------------------------------------


def test_learns_the_toy_world():
    """In a few seconds the images become sharper than their mean and the rewards better than theirs."""
    replay, agent = buffer(capacity=1000, size=32), make_agent(warmup_updates=5)
    episodes = toy_episodes(10)
    for episode in episodes:
        replay.add(episode)
    agent.make_memory(replay.num_slots)
    agent.remember(replay.sample_stream(1, replay.num_frames, newest=[replay.num_frames]))
    history = [agent.update(replay.sample_stream(8, 9), decision=i) for i in range(120)]

    def late(name: str) -> float:
        return float(torch.stack([metrics[name] for metrics in history[-15:]]).mean())

    frames = np.concatenate([episode.frames for episode in episodes]) / 255.0
    plain = float(np.square(frames - frames.mean(0)).sum((1, 2, 3)).mean())  # error of the mean image
    assert late("reconstruction_loss") < 0.5 * float(history[0]["reconstruction_loss"])
    assert late("reconstruction_loss") < 1.5 * plain
    assert late("reward_loss") < 0.5 * float(history[0]["reward_loss"])
    assert late("imagined_reward") == pytest.approx(late("replay_reward"), rel=0.3)
    assert late("policy_entropy") > 0


def test_states_are_written_back_and_begin_the_next_window():
    replay, agent = buffer(capacity=100, size=32), make_agent()
    for episode in toy_episodes(2):
        replay.add(episode)
    agent.make_memory(replay.num_slots)
    agent.remember(replay.sample_stream(1, 42, newest=[42]))
    states = agent._states
    assert states is not None
    assert states.used == 42
    assert (states.deter[:42].abs().sum(1) > 0).sum() == 40, "an episode's first state is zero at the start"
    before = states.deter.clone()
    batch = replay.sample_stream(2, 9, newest=[20, 40])
    started: list[State] = []
    read = states.read
    states.read = lambda slots: started.append(read(slots)) or started[-1]  # type: ignore[assignment, func-returns-value]
    agent.update(batch, decision=0)
    assert torch.equal(started[0].deter, before[batch.slots[:, 0]].float())
    changed = (states.deter != before).any(1)
    assert set(changed.nonzero().flatten().tolist()) == set(batch.slots[:, 1:].flatten().tolist())
    assert torch.equal(started[0].stoch.view(2, 4, 4).sum(-1), torch.ones(2, 4))


def test_an_episode_in_a_window_knows_nothing_of_the_one_before():
    agent = make_agent()
    rssm, noise = agent.model.rssm, agent.noise
    features = torch.randn(1, 6, agent.model.encoder.size)
    actions = torch.rand(1, 6, 2)
    is_first = torch.tensor([[False, False, False, True, False, False]])
    after = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        features[:, :3] = torch.randn(1, 3, features.shape[2], generator=generator)
        actions[:, :4] = torch.rand(1, 4, 2, generator=generator)  # the fourth leads from the old to the new one
        noise.generator.manual_seed(2)
        states, _ = rssm.observe(rssm.initial(1), features, actions, is_first, noise)
        after.append(states.deter)
    assert not torch.equal(after[0][:, :3], after[1][:, :3])
    assert torch.equal(after[0][:, 3:], after[1][:, 3:])


def test_norm_and_its_gradient():
    norm = NormSiLU(5)
    torch.nn.init.normal_(norm.scale)
    x, weight = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, 5)
    plain = torch.nn.functional.silu(x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * norm.scale)
    torch.testing.assert_close(norm(x), plain)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), (x, norm.scale)) for y in (norm(x), plain))
    torch.testing.assert_close(ours, theirs)


def test_doubling_then_convolving_is_folded_into_one():
    conv, x = UpConv(3, 5), torch.randn(2, 6, 6, 3)
    doubled = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2)
    plain = torch.nn.functional.conv2d(doubled, conv.conv.weight, conv.conv.bias, padding=2)
    torch.testing.assert_close(conv(x).permute(0, 3, 1, 2), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [32, 48, 64, 128])
def test_images_of_other_sizes(side):
    encoder = Encoder((3, side, side), depth=2)
    features = encoder(torch.zeros(2, 3, 3, side, side, dtype=torch.uint8))
    assert features.shape == (2, 3, encoder.size)
    decoder = Decoder((3, side, side), depth=2, deter=16, latents=8, units=4, blocks=4)
    assert decoder(torch.zeros(2, 3, 16), torch.zeros(2, 3, 8)).shape == (2, 3, 3, side, side)


def test_bf16_stays_near_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        replay, agent = buffer(capacity=100, size=32), make_agent(precision=precision)
        for episode in toy_episodes(2):
            replay.add(episode)
        agent.make_memory(replay.num_slots)
        agent.remember(replay.sample_stream(1, 42, newest=[42]))
        losses.append([float(agent.update(replay.sample_stream(4, 9), 0)["loss"]) for _ in range(3)])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_weights_of_other_sizes_are_refused():
    with pytest.raises(StateMismatch, match="use the configuration it was trained with"):
        make_agent().load_weights(make_agent(size="size1m").weights())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("size", "size13m", "choose smoke"),
        ("bins", 254, "odd number"),
        ("max_std", 0.05, "at least min_std"),
        ("precision", "fp16", "auto, fp32, bf16"),
    ],
)
def test_settings_that_cannot_be_used(key, value, says):
    with pytest.raises(InvalidConfig, match=says):
        dataclasses.replace(CONFIG, **{key: value})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dreamerv3.size=size13m", "dreamerv3: size='size13m' is unknown"),
        ("dreamerv3.train_ration=3", "did you mean 'dreamerv3.train_ratio'"),
        ("image_size=36", "image_size=36: images of 36x36 pixels do not fit"),
    ],
)
def test_errors_are_one_line(typed: Command, run_root: Path, override: str, says: str):
    code, _, line = typed(main, "task=toy/reach", "preset=smoke", *TINY_DREAMER, f"run_root={run_root}", override)
    assert code == 2
    assert says in line
    assert "\n" not in line


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go."""
    return train(tmp_path_factory.mktemp("whole") / "runs", *TINY_DREAMER)


def test_what_the_loop_leaves(whole: Path):
    assert whole.parent.name == "dreamerv3"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    logged = {line["frame"] for line in lines if "agent/reconstruction_loss" in line}
    assert logged == set(range(60, 161, 20)), "it learns once the random policy is done"
    explained = (ROOT / "docs/metrics.md").read_text()
    tags = {tag for line in lines for tag in line} - {"frame", "wall_time_s"}
    assert {tag for tag in tags if f"| `{tag}` |" not in explained} == set()
    only = set(re.findall(r"^\| `(agent/\w+)` .*Only with `AGENT=dreamerv3`", explained, re.MULTILINE))
    assert only == {tag for tag in tags if tag.startswith("agent/")}
    assert {"world_model/moving_error_ratio", "world_model/reward_mae"} <= tags
    newest = whole / "checkpoints" / "000000160"
    assert {"agent.safetensors", "agent.pt", "stream.json"} <= {path.name for path in newest.iterdir()}


def test_a_checkpoint_is_evaluated(typed: Command, whole: Path):
    overrides = ("task=toy/reach", "agent=dreamerv3", f"run_root={whole.parents[3]}", "num_eval_episodes=1")
    lines = [typed(evaluate, *overrides)[:2] for _ in range(2)]
    assert lines[0] == lines[1], "it draws from a stream of its own"
    assert (lines[0][0], "at frame 160: success rate" in lines[0][1]) == (0, True)


@pytest.mark.parametrize("frame", [30, 110])
def test_a_run_cut_off_ends_bit_equal(whole: Path, run_root: Path, monkeypatch: pytest.MonkeyPatch, frame: int):
    """In the random phase and while learning; the last states of the steps count as well."""
    act = Session.act

    def until(self: Session, agent: Any) -> None:
        act(self, agent)
        if self.frame == frame:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "act", until)
        with pytest.raises(KeyboardInterrupt):
            train(run_root, *TINY_DREAMER)
    again = train(run_root, *TINY_DREAMER)
    assert different(whole, again) == []
    saved = [torch.load(run / "checkpoints" / "000000160" / "agent.pt", weights_only=True) for run in (whole, again)]
    assert torch.equal(saved[0]["states"]["deter"], saved[1]["states"]["deter"])
    assert torch.equal(saved[0]["states"]["stoch"], saved[1]["states"]["stoch"])
    assert (whole / "checkpoints/000000160/stream.json").read_text() == (
        again / "checkpoints/000000160/stream.json"
    ).read_text()
    without_time = [
        [line.rsplit(",", 1)[0] for line in (run / "eval.csv").read_text().splitlines()] for run in (whole, again)
    ]
    assert without_time[0] == without_time[1]


def test_evaluating_changes_no_weight(whole: Path, run_root: Path):
    often = train(run_root, *TINY_DREAMER, "eval_every_frames=20", "num_eval_episodes=2", "video=true")
    assert different(whole, often) == []


def test_how_often_what_is_done(run_root: Path, monkeypatch: pytest.MonkeyPatch):
    """Updates by the train ratio, every new window offered once, every episode begun afresh."""
    updates: list[int] = []
    offered: list[int] = []
    begun: list[bool] = []
    learn, sample, begin = Session.learn_to_act, ReplayBuffer.sample_stream, DreamerV3.begin_episode

    def counted(self: Session, batch: StreamBatch) -> None:
        updates.append(self.frame)
        learn(self, batch)

    def watched(self: ReplayBuffer, batch_size: int, length: int, newest: Any = ()) -> StreamBatch:
        if length == 13:
            offered.extend(self.frames_added - back for back in newest)
        return sample(self, batch_size, length, newest)

    def noted(self: DreamerV3, eval_mode: bool) -> None:
        begun.append(eval_mode)
        begin(self, eval_mode)

    monkeypatch.setattr(Session, "learn_to_act", counted)
    monkeypatch.setattr(ReplayBuffer, "sample_stream", watched)
    monkeypatch.setattr(DreamerV3, "begin_episode", noted)
    folder = train(run_root, *TINY_DREAMER, "num_eval_episodes=3")
    assert len(updates) == 60 * 12 // (2 * 12)  # decisions after the random policy
    assert min(updates) >= 40
    # 2 demonstrations and 8 episodes of 11 frames; what the last one added was not used any more
    assert offered == list(range(0, 9 * 11 - 12, 13))
    assert json.loads((folder / "checkpoints/000000160/stream.json").read_text())["offered"] == offered[-1] + 13
    assert begun.count(False) == 6  # 120 frames after the random policy, 20 each
    assert begun.count(True) == 2 * 3


def test_run_opens(run_root: Path):
    settings = load(["task=toy/reach", "preset=smoke", "device=cpu", "agent=dreamerv3", f"run_root={run_root}"])
    with Run.open(settings) as run:
        loop = Dreamer(run)
        assert loop.updates_due() == 0, "nothing to learn from yet"
        loop.close()
