"""Training as a user starts it, with `python -m mbrl.train`, `resume` and `evaluate`: what a run leaves behind."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Command, Shell, checkpoints, different, tiny, train, weights

from agents import Agent, DrQv2, Noisy, TransitionBatch, Uniform
from mbrl import evaluate, resume
from mbrl.collector import EpisodeRecorder, succeeded
from mbrl.experiment.episodes import episode_files, read_episodes
from mbrl.experiment.run import Run
from mbrl.experiment.settings import load
from mbrl.online import Online
from mbrl.replay import ReplayBuffer
from mbrl.session import Session
from mbrl.train import main
from world_model import Episode, IVideoGPT

# -- what a run leaves -------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"config.yaml", "git.json", "metrics.jsonl", "eval.csv", "train.csv"}
    assert names >= files | {"tb", "videos", "checkpoints", "replay"}
    assert checkpoints(finished) == [120, 160]
    assert len(list((finished / "replay").glob("*.npz"))) == 2 + 8  # demonstrations and training
    assert list((finished / "tb").iterdir())
    for name in ("eval-episodes", "imagined-dream"):
        for frame in (80, 160):
            assert Image.open(finished / "videos" / f"{name}-{frame:09d}.gif").n_frames > 1
    assert not list(finished.glob("**/*.pkl"))
    assert not list(finished.glob("**/*.tmp"))


def test_what_a_run_logs(finished: Path) -> None:
    with open(finished / "eval.csv") as file:
        assert file.readline().startswith("frame,episode_return,success_rate,episodes,wall_time_s")
    rows = read_rows(finished / "eval.csv")
    assert [(row["frame"], row["episodes"]) for row in rows] == [("80", "1"), ("160", "1")]
    assert all(0 <= float(row["success_rate"]) <= 1 and float(row["episode_return"]) > 0 for row in rows)
    episodes = read_rows(finished / "train.csv")
    assert [int(row["frame"]) for row in episodes] == list(range(20, 161, 20))
    tags: dict[str, list[int]] = {}
    for line in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines()):
        for tag in line:
            tags.setdefault(tag, []).append(line["frame"])
    for tag in ("eval/success_rate", "world_model/dream_mse", "world_model/reward_mae", "world_model/token_accuracy"):
        assert tags[tag] == [80, 160], tag
    assert tags["train/episode_return"] == list(range(20, 161, 20))
    assert tags["agent/critic_loss"] == list(range(60, 161, 20))
    # The first training of the world model is logged where it happened, at the end of the seed frames.
    for tag in ("world_model/transformer_loss", "world_model/tokenizer_loss", "imagined/reward_mean"):
        assert tags[tag][0] == 40, tag


def test_the_world_model_is_left_in_the_official_layout(finished: Path) -> None:
    model = IVideoGPT.from_pretrained(finished / "world_model", action_dim=2, context_length=2)
    saved = weights(finished)
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), saved[f"world_model/{name}"]), name


def test_a_finished_run_says_so(shell: Shell, finished: Path) -> None:
    root = finished.parents[3]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    again = shell("train", *tiny(root, "video=true"))
    assert again.returncode == 0
    assert "is finished: 160 frames, success rate" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("agent", ["drqv2", "uniform"])
def test_other_agents_train_without_a_world_model(run_root: Path, agent: str) -> None:
    folder = train(run_root, f"agent={agent}", "video=true")
    assert folder == run_root / "toy" / "reach" / agent / "1"
    assert [row["frame"] for row in read_rows(folder / "eval.csv")] == ["80", "160"]
    assert {path.name[:13] for path in (folder / "videos").iterdir()} == {"eval-episodes"}
    newest = {path.name for path in (folder / "checkpoints" / "000000160").iterdir()}
    assert not any("world_model" in name or "imagined" in name for name in newest)
    logged = (folder / "metrics.jsonl").read_text()
    assert ("agent/critic_loss" in logged) == (agent == "drqv2")
    assert "imagined" not in logged


def test_a_run_may_end_within_an_episode(run_root: Path) -> None:
    """The budget is in frames; that the last checkpoint falls into an episode harms nobody."""
    folder = train(run_root, "agent=drqv2", "num_train_frames=90")
    assert checkpoints(folder) == [80, 90]
    assert read_rows(folder / "eval.csv")[-1]["frame"] == "90"


def test_without_behaviour_cloning_no_demonstrations_are_needed(run_root: Path) -> None:
    folder = train(run_root, "agent=drqv2", "num_train_frames=80", "demonstrations=0", "drqv2.bc_schedule=0")
    assert len(list((folder / "replay").glob("*.npz"))) == 4


# -- what demonstrations are used for ----------------------------------------------------------------------------------

DEMONSTRATED = (
    "drqv2.bc_updates=3",
    "drqv2.ibrl=true",
    "drqv2.layer_norm=true",
    "drqv2.actor_average=0.9",
    "seed_policy=bc",
    "demonstration_share=linear(0.5,0.25,40)",
    "imitate_successes=true",
)


def cut(run_root: Path, frame: int, *overrides: str) -> None:
    """Train until `frame`."""
    act = Session.act

    def until(self: Session, agent: Agent) -> None:
        act(self, agent)
        if self.frame == frame:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "act", until)
        with pytest.raises(KeyboardInterrupt):
            train(run_root, *overrides)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go that uses its demonstrations in every way there is."""
    return train(tmp_path_factory.mktemp("demonstrated") / "runs", "agent=drqv2", *DEMONSTRATED)


@pytest.mark.parametrize("frame", [30, 50, 110])
def test_cut_off_with_every_use_of_demonstrations_ends_bit_equal(
    demonstrated: Path, run_root: Path, frame: int
) -> None:
    """While the seed policy plays, after its frames, and while learning."""
    cut(run_root, frame, "agent=drqv2", *DEMONSTRATED)
    again = train(run_root, "agent=drqv2", *DEMONSTRATED)
    assert different(demonstrated, again) == []
    actions = [np.load(run / "replay" / f"{9:06d}.npz")["actions"] for run in (demonstrated, again)]
    assert np.array_equal(*actions)


def test_what_was_cloned_is_not_cloned_again(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("agent=mbpo", "drqv2.bc_updates=3", "num_train_frames=60")
    whole = train(run_root / "whole", *words)
    cut(run_root / "cut", 2, *words)
    assert checkpoints(run_root / "cut/toy/reach/mbpo/1") == [0]
    monkeypatch.setattr(DrQv2, "clone", lambda _: pytest.fail("cloned again"))
    assert different(whole, train(run_root / "cut", *words)) == []


def test_a_stop_while_cloning_says_that_nothing_is_saved(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: DrQv2) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DrQv2, "clone", stopped)
    with pytest.raises(KeyboardInterrupt, match="no checkpoint yet: the same command begins again"):
        train(run_root, "agent=drqv2", "drqv2.bc_updates=3")


def test_successes_become_demonstrations_also_behind_a_checkpoint(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About every second episode counts as one here."""
    held = set()
    record, act = EpisodeRecorder.episode, Session.act

    def lucky(self: EpisodeRecorder) -> Episode:
        episode = record(self)
        lucky = float(episode.actions.sum() * 1e4 // 1 % 2)
        return episode._replace(successes=np.full(len(episode.actions), lucky, np.float32))

    def counted(self: Session, agent: Agent) -> None:
        act(self, agent)
        assert self.demonstrations is not None
        held.add((self.collector.stored, self.demonstrations.num_episodes))

    monkeypatch.setattr(EpisodeRecorder, "episode", lucky)
    monkeypatch.setattr(Session, "act", counted)
    own = ("agent=drqv2", "imitate_successes=true", "seed_policy=random")
    cut(run_root, 110, *own)
    folder = train(run_root, *own)
    episodes = read_episodes(episode_files(folder / "replay"))
    successes = np.cumsum([succeeded(episode) or number < 2 for number, episode in enumerate(episodes)])
    assert 2 < successes[-1] < len(successes)
    assert held == {(i + 1, n) for i, n in enumerate(successes) if i > 0}


@pytest.mark.parametrize(("tail", "kept"), [(None, [10, 10]), (2, [6, 10]), (50, [10, 10])])
def test_demonstrations_end_after_their_success(
    run_root: Path, monkeypatch: pytest.MonkeyPatch, tail: int | None, kept: list[int]
) -> None:
    successes = [np.arange(10) == 3, np.zeros(10)]  # the second never succeeds, as one that a person drove may not
    shown = [
        Episode(
            np.random.default_rng(i).integers(0, 256, (11, 3, 32, 32), dtype=np.uint8),
            np.full((10, 2), i, np.float32),
            np.ones(10, np.float32),
            successes=success.astype(np.float32),
        )
        for i, success in enumerate(successes)
    ]
    monkeypatch.setattr(Session, "_demonstrate", lambda _: shown)
    monkeypatch.setattr(ReplayBuffer, "add", lambda self, episode: added.append(episode))
    added: list[Episode] = []
    with Run.open(load(tiny(run_root, "agent=drqv2", f"demonstration_tail={tail or 'null'}"))) as run:
        session = Online(run).session
        monkeypatch.setattr(ReplayBuffer, "__len__", lambda _: 1)
        session.begin()
        session.close()
    in_replay, imitated = added[:2], added[2:]
    assert [len(episode.actions) for episode in in_replay] == [10, 10], "the replay has all of them"
    assert [len(episode.actions) for episode in imitated] == kept
    for episode, whole in zip(imitated, shown, strict=True):
        decisions = len(episode.actions)
        assert np.array_equal(episode.frames, whole.frames[: decisions + 1])
        assert len(episode.rewards) == len(episode.successes) == decisions


def test_evaluating_often_changes_nothing_of_it(demonstrated: Path, run_root: Path) -> None:
    often = train(run_root, "agent=drqv2", *DEMONSTRATED, "eval_every_frames=20")
    assert different(demonstrated, often) == []


def test_a_run_with_every_use_of_demonstrations_is_evaluated(typed: Command, demonstrated: Path) -> None:
    overrides = ("task=toy/reach", "agent=drqv2", f"run_root={demonstrated.parents[3]}", "num_eval_episodes=1")
    code, out, _ = typed(evaluate.evaluate, *overrides)
    assert (code, "at frame 160: success rate" in out) == (0, True)
    logged = [json.loads(line) for line in (demonstrated / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in logged if "agent/bc_loss" in line)["frame"] == 0, "cloning is logged"


def test_the_seed_policy_is_the_clone_with_its_own_noise(run_root: Path) -> None:
    """Without noise the first episode is what the cloned policy plays; noise makes it another."""
    overrides = ("agent=drqv2", "drqv2.bc_updates=3", "seed_policy=bc", "num_train_frames=60")
    played = []
    for name, stddev in (("plain", 0.0), ("noisy", 0.1), ("again", 0.0)):
        folder = train(run_root / name, *overrides, f"seed_stddev={stddev}")
        played.append(np.load(folder / "replay" / "000002.npz")["actions"])
    assert np.array_equal(played[0], played[2])
    assert 0 < np.abs(played[1][0] - played[0][0]).max() < 0.6, "the first action is of the same observation"
    assert np.abs(played[0]).max() < 1, "uniform actions would come closer to the ends"


@pytest.mark.parametrize(("demonstrations", "cloned"), [(2, True), (0, False)])
def test_what_is_demonstrated_is_cloned(run_root: Path, demonstrations: int, cloned: bool) -> None:
    """The clone acts first and with little noise; without demonstrations all is as if nothing were said of cloning."""
    cloning = ("drqv2.bc_updates=3", "drqv2.bc_stddev_schedule=0.1", f"demonstrations={demonstrations}")
    with Run.open(load(tiny(run_root, "agent=drqv2", *cloning))) as run:
        session = Online(run).session
        assert isinstance(session.seed_agent, Noisy if cloned else Uniform)
        assert isinstance(session.agent, DrQv2)
        assert session.agent.config.bc_updates == (3 if cloned else 0)
        assert (session.agent._stddev(0) == 0.1) is cloned
        session.close()


def test_demonstrations_have_their_share_of_each_batch(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(tiny(run_root, "agent=drqv2", "batch_size=8", "demonstration_share=linear(0.5,0.25,40)"))
    with Run.open(settings) as run:
        trainer = Online(run).session
        trainer.begin()
        monkeypatch.setattr(trainer.demonstrations, "sample", lambda count: coded(count, 1.0))
        shares = []
        for frame in (0, 40, 80, 120):  # 0, 20, 40, 60 decisions
            trainer.collector.frame = frame
            batch = trainer.agent_batch(lambda count: coded(count, 0.0))
            assert len(batch.reward) == 8
            shares.append(float(batch.reward.mean()))
        assert shares == [0.5, 0.375, 0.25, 0.25]
        trainer.close()


def test_the_share_is_drawn_in_the_loop(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    sample = ReplayBuffer.sample

    def noted(self: ReplayBuffer, batch_size: int) -> TransitionBatch:
        drawn.append((self.num_episodes, batch_size))
        return sample(self, batch_size)

    monkeypatch.setattr(ReplayBuffer, "sample", noted)
    sizes = ("num_train_frames=60", "batch_size=4", "demonstration_share=0.25")
    train(run_root, "agent=drqv2", "drqv2.bc_schedule=0", *sizes)
    assert drawn == [(2 + 2, 3), (2, 1)] * 5, "two demonstrations, two episodes played; half an update a decision"


def coded(count: int, reward: float) -> TransitionBatch:
    obs = torch.zeros(count, 9, 32, 32, dtype=torch.uint8)
    return TransitionBatch(obs, torch.zeros(count, 2), torch.full((count, 1), reward), torch.ones(count, 1), obs)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("seed_policy=bc",), "seed_policy=bc needs a cloned policy: set demonstrations and drqv2.bc_updates above 0"),
        (("agent=dreamerv3", "seed_policy=bc", "drqv2.bc_updates=3"), "with agent=drqv2 or agent=mbpo"),
        (("drqv2.bc_updates=3", "drqv2.ibrl=true", "demonstrations=0"), "demonstrations=0 there is nothing to clone"),
        (("drqv2.ibrl=true",), "drqv2: ibrl needs a cloned policy"),
        (("demonstration_share=linear(0.5,1.5,10)",), "must stay between 0 and 1"),
        (("demonstration_share=half",), "schedule 'half' is not understood"),
        (("seed_stddev=-1",), "seed_stddev=-1.0 is out of range"),
        (("drqv2.guide_schedule=0",), "unknown key drqv2.guide_schedule; did you mean"),
        (("drqv2.guide_batch_size=3",), "unknown key drqv2.guide_batch_size; did you mean 'drqv2.bc_batch_size'"),
    ],
)
def test_what_demonstrations_cannot_be_used_for(
    typed: Command, run_root: Path, overrides: tuple[str, ...], line: str
) -> None:
    code, _, error = typed(main, *tiny(run_root, "agent=drqv2", *overrides))
    assert code == 2
    assert line in error
    assert "\n" not in error


# -- evaluate and resume -----------------------------------------------------------------------------------------------


def test_evaluate_plays_the_newest_checkpoint_and_changes_nothing(shell: Shell, finished: Path) -> None:
    root = finished.parents[3]
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    asked = ("task=toy/reach", "device=cpu", f"run_root={root}", "num_eval_episodes=2")
    done = shell("evaluate", *asked)
    assert done.returncode == 0, done.stderr
    assert f"{finished} at frame 160: success rate" in done.stdout
    assert "over 2 episodes" in done.stdout
    assert "2/2" in done.stderr, "a bar over the episodes"
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    [video] = after.keys() - before.keys()
    assert Image.open(video).n_frames > 1
    assert before.items() <= after.items()


def test_evaluate_is_the_same_every_time(typed: Command, finished: Path) -> None:
    overrides = ("task=toy/reach", f"run_root={finished.parents[3]}")
    first, second = typed(evaluate.evaluate, *overrides), typed(evaluate.evaluate, *overrides)
    assert first == second
    assert first[0] == 0


def test_evaluate_needs_the_weights_alone(typed: Command, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest, generators above all, fits only the device that the run was trained on."""

    def refuse(*_: object) -> None:
        raise AssertionError("the training state was loaded")

    monkeypatch.setattr(DrQv2, "load_state", refuse)
    assert typed(evaluate.evaluate, "task=toy/reach", "device=cpu", f"run_root={finished.parents[3]}")[0] == 0


@pytest.mark.parametrize("main", [evaluate.evaluate, resume.main])
def test_there_is_no_such_run(typed: Command, run_root: Path, main: Callable[[list[str]], None]) -> None:
    code, _, line = typed(main, "task=toy/reach", f"run_root={run_root}", "seed=8")
    assert code == 2
    assert "there is no run in" in line
    assert not run_root.exists()


def test_resume_continues_with_the_config_of_the_start(
    shell: Shell, typed: Command, stopped: tuple[Path, list[str]], finished: Path
) -> None:
    """None of the overrides of the start is typed again, and the end is that of a run in one go."""
    folder, _ = stopped
    overrides = ("task=toy/reach", f"run_root={folder.parents[3]}")
    done = shell("resume", *overrides)
    assert done.returncode == 0, done.stderr
    starts = json.loads((folder / "git.json").read_text())["starts"]
    assert [start["frame"] for start in starts] == [0, 80]
    assert different(folder, finished) == []
    assert not list((folder / "videos").iterdir()), "video=false was chosen at the start"
    code, out, _ = typed(resume.main, *overrides)
    assert (code, "is finished" in out) == (0, True)


def test_resume_refuses_what_would_be_another_run(typed: Command, cut_off: Path) -> None:
    root = cut_off.parents[3]
    code, _, line = typed(resume.main, "task=toy/reach", f"run_root={root}", "nstep=5", "drqv2.lr=1e-3")
    assert code == 2
    assert "nstep was 3, is 5" in line
    assert "drqv2.lr was 0.0001, is 0.001" in line
