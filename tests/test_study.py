"""Studies at the smallest size, on the command line: what stands in their tables is what it says."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import TOKENIZER, TRANSFORMER, make_clips

from mbrl.build import make_env
from mbrl.experiment.settings import load_plain
from mbrl.plan.scores import codes, image
from mbrl.predict.predict import Prediction, PredictSettings
from mbrl.pretrain.models import make_model, sizes
from mbrl.study import ranking, study
from mbrl.study.distances import code_distances, descent, image_distances, ranks
from mbrl.study.efficiency import kept_for_backward, variants
from mbrl.world.simulator import SimulatorRollout
from world_model import Episode, IVideoGPT, TokenizerConfig
from world_model.api import Clips
from world_model.data import ClipDataset, write_shard
from world_model.ivideogpt.per_frame import PerFrameGPT
from world_model.ivideogpt.weights import TOKENIZER_FILE, TRANSFORMER_FILE

FRAMES, SIDE = 7, 64


def moving_bar(seed: int) -> Episode:
    """A bar that moves to the right by what the action says."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(1, 7, FRAMES - 1)
    places = np.cumsum([generator.integers(8), *steps])
    frames = np.full((FRAMES, 3, SIDE, SIDE), 60, np.uint8)
    for frame, place in zip(frames, places, strict=True):
        frame[:, :, place : place + 12] = 200
    actions = np.zeros((FRAMES - 1, 4), np.float32)
    actions[:, 0] = steps / 6
    return Episode(frames, actions, actions[:, 0].copy())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bars")
    for shard in range(2):  # one episode of each is held out
        write_shard(folder, f"bars-{shard}", [moving_bar(20 * shard + i) for i in range(20)], "bars")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    made = make_model("auto", "auto", "smoke", "none", action_dim=4, context_length=None, rewards=True)
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def studied(data, model, tmp_path, typed, monkeypatch):
    """Type `python -m mbrl.study study=<name> ...`; the rows of its table, and its folder."""
    monkeypatch.setattr("mbrl.world.validate.CLIPS", 2)

    def run(name: str, *more: str):
        overrides = dict(
            study=name, data=data, out=tmp_path / name, clips=4, samples=2, repeats=1, preset="smoke", horizon=3,
            device="cpu", threads=1, tokenizer_updates=2, transformer_updates=2, cached_clips=4,
        )  # fmt: skip
        learner = dict(
            segment_length=5, tokenizer_span=5, sampled_future_frames=2, batch_size=2, tokenizer_batch_size=2,
            precision="fp32",
        )  # fmt: skip
        overrides |= {f"learner.{key}": value for key, value in learner.items()}
        if name != "efficiency":
            overrides["start_from"] = model
        code, said, error = typed(study.main, *(f"{key}={value}" for key, value in overrides.items()), *more)
        assert (code, error) == (0, "")
        folder = tmp_path / name
        assert (folder / "study.md").read_text() in said
        assert f"Into {folder}; what is there already is not trained again" in said.splitlines()[0]
        return json.loads((folder / "study.json").read_text())["rows"], folder

    return run


def test_few_shot_adapts_the_tokenizer_and_nothing_else(studied, model, data):
    rows, folder = studied("fewshot", "trajectories=[0,3]", "learner.tokenizer_lr=1e-2")
    assert [row["trajectories"] for row in rows] == [0, 3]
    assert rows[0]["psnr"] != rows[1]["psnr"]
    assert rows[0]["copy_psnr"] == rows[1]["copy_psnr"]  # of equal clips
    before, after = (load_file(place / TOKENIZER_FILE) for place in (model, folder / "3/model"))
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"encoder", "decoder", "cond_encoder", "cond_decoder"} <= changed
    assert not any("quantize" in name for name in changed)  # a token means what it meant
    before, after = (load_file(place / TRANSFORMER_FILE) for place in (model, folder / "3/model"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "episodes: 3\n" in (folder / "3/config.yaml").read_text()
    asked = dict(model=model, data=data, clips=4, samples=2, horizon=3, device="cpu", precision="fp32")
    zero_shot = Prediction(load_plain(PredictSettings, "predict", [f"{k}={v}" for k, v in asked.items()]))
    assert zero_shot.run()[0]["psnr"] == pytest.approx(rows[0]["psnr"])
    assert {path.name for path in folder.glob("*.png")} == {"0-trajectories.png", "3-trajectories.png"}


def test_scaling_sets_loss_against_parameters(studied, model, data):
    rows, folder = studied("scaling", "transformers=[tiny,mini]")
    for row in rows:
        trained = IVideoGPT.from_pretrained(folder / row["transformer"] / "model").eval()
        assert row["parameters"] == sum(parameter.numel() for parameter in trained.transformer.parameters())
        tokenizer = load_file(model / TOKENIZER_FILE)
        assert all(torch.equal(value, tokenizer[name]) for name, value in trained.tokenizer.state_dict().items())
        held_out = ClipDataset(data, "held_out")
        assert held_out.num_episodes == 2
        assert 0 < row["loss in nats a token"] < 2 * np.log(trained.layout.vocabulary)
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert rows[0]["loss in nats a token"] != rows[1]["loss in nats a token"]


def test_held_out_loss_is_the_mean_over_all_clips(model, monkeypatch):
    """In batches of unequal size as in one."""
    trained = IVideoGPT.from_pretrained(model).eval()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (5, 4, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    clips = Clips(frames, torch.randn(5, 4, 4, generator=generator), torch.zeros(5, 4))
    at_once = study.held_out_loss(trained, clips)
    monkeypatch.setattr(study, "TOKENIZED", 3)
    assert study.held_out_loss(trained, clips) == pytest.approx(at_once, rel=1e-4)
    with torch.no_grad():
        expected = trained(frames / 255, clips.actions).ce_loss
    assert at_once[0] == pytest.approx(float(expected), rel=1e-4)


def test_efficiency_counts_tokens_and_memory(studied):
    """Smoke has 8 x 8 context and 4 x 4 dynamics tokens."""
    rows, _ = studied("efficiency", "tokenizer=auto", "transformer=auto", "learner.quantize_after=1")
    compressive, few, many = rows
    assert [row["tokens"] for row in rows] == ["compressive, 8x8 and 4x4", "each frame 4x4", "each frame 8x8"]
    assert [row["a frame"] for row in rows] == [16, 16, 64]
    assert [row["tokens a clip"] for row in rows] == [2 * 65 - 1 + 3 * 17, 5 * 17 - 1, 5 * 65 - 1]
    for row in rows:  # the cache of a 5-frame clip: keys and values, two layers, 32 numbers of 4 bytes a token
        assert row["cache MiB"] * 2**20 == 2 * 2 * 32 * 4 * row["tokens a clip"]
    assert few["activations MiB"] < compressive["activations MiB"] < many["activations MiB"]
    assert all(5 < row["psnr"] < 60 for row in rows)


def test_efficiency_compares_tokenizers_that_differ_in_tokens_alone():
    config = sizes(TokenizerConfig, "small-16", "small")
    assert config.blend
    made = [kind(config, TRANSFORMER).tokenizer.config for kind, config in variants(config).values()]
    assert [config.blend for config in made] == [False] * 3


def test_activations_are_counted_without_weights():
    layer, x = torch.nn.Linear(10, 20, bias=False), torch.ones(5, 10)

    def step():
        layer(x).relu().sum().backward()

    assert kept_for_backward(layer, step) == 4 * (5 * 10 + 5 * 20)  # the input and what ReLU gave


def test_decoupling_tells_what_comes_from_the_context(studied, model, tmp_path):
    rows, folder = studied("decoupling")
    names = [row["decoded with"] for row in rows]
    assert names == ["its own context", "another clip's context", "no context", "nothing: the last frame given"]
    assert rows[-1]["motion correlation"] is None  # it never changes
    assert "| - |" in (folder / "study.md").read_text()
    assert len({row["psnr"] for row in rows}) == 4
    # Without cross-attention a model of whole images decodes alike whatever the context.
    deaf = IVideoGPT.from_pretrained(model)
    for block in deaf.tokenizer.cond_decoder.cross_att_blocks:
        torch.nn.init.zeros_(block.att.out_proj.weight)
        torch.nn.init.zeros_(block.att.out_proj.bias)
    deaf.save_pretrained(tmp_path / "deaf")
    rows, _ = studied("decoupling", f"start_from={tmp_path / 'deaf'}")
    own, another, none, _ = (row["psnr"] for row in rows)
    assert own == pytest.approx(another, abs=1e-3)
    assert own == pytest.approx(none, abs=1e-3)


def test_a_study_goes_on_where_it_was_cut_off(studied, monkeypatch):
    """What is trained is not trained again."""
    rows, _ = studied("scaling", "transformers=[tiny]")

    def again(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(study.Pretraining, "train", again)
    assert studied("scaling", "transformers=[tiny]")[0] == rows


def test_errors_are_one_line(data, tmp_path, typed):
    for overrides, said in (
        (["study=scalling"], "did you mean 'scaling'"),
        (["transformer_update=3"], "did you mean 'transformer_updates'"),
        (["study=scaling", "transformers=[huge]"], "transformer=huge: there is none of this name"),
        (["study=fewshot", "trajectories=[39]"], "has 38 episodes to learn from, not 39"),
        (["study=decoupling", "clips=1"], "needs clips=2"),
        (["study=efficiency", "learner.segment_length=9"], "no episode"),
        (["study=efficiency", "goal=true"], "goal=True: this study trains new tokenizers"),
        (["study=efficiency", "augmentation.hue=0.1"], "without discriminator and augmentation"),
        (["study=efficiency", "tokenizer_updates=50"], "after learner.quantize_after=100 updates and has 50"),
    ):
        given = dict(data=data, out=tmp_path, device="cpu", horizon=3) | {"learner.tokenizer_span": 5}
        given |= {"learner.segment_length": 5} | dict(override.split("=") for override in overrides)
        code, _, error = typed(study.main, *(f"{key}={value}" for key, value in given.items()))
        assert code == 2
        assert said in error
        assert "\n" not in error


# -- tokens of single frames ------------------------------------------------------------------------------------------


def test_distances_are_ranked_against_the_decisions_to_go(studied):
    rows, _ = studied("distances", "task_names=[toy/reach,toy/centre]", "episodes_per_task=2")
    assert [row["task"] for row in rows] == ["toy/reach", "toy/centre"]
    for row in rows:
        assert row["episodes"] == 2
        assert all(-1 <= row[f"{what}, {how}"] <= 1 for what in ("images", "codes") for how in ("whole", "16 ahead"))


def test_ranks():
    assert list(ranks(np.array([3.0, 1.0, 1.0, 9.0]))) == [3, 1.5, 1.5, 4]
    assert descent(np.array([9.0, 4.0, 1.0, 0.0])) == pytest.approx(1)
    assert descent(np.array([0.0, 1.0, 4.0])) == pytest.approx(-1)
    assert np.isnan(descent(np.zeros(3)))


@torch.no_grad()
def test_distances_are_those_that_a_planner_scores_by(model):
    world = IVideoGPT.from_pretrained(model, 4).eval()
    frames = torch.from_numpy(moving_bar(3).frames).float() / 255
    known = world.layout.context_length
    start = world.start(torch.stack([frames[0]] * (known - 1) + [frames[1]])[None], horizon=1, temperature=0.0)
    for measure, distances in (
        (codes, code_distances(world, known, frames, 1, len(frames) - 1)),
        (image, image_distances(frames)[1:]),
    ):
        scores = [
            float(measure(frames[-1])(start, [SimpleNamespace(frame=frame[None], tokens=start.encode(frame[None]))]))
            for frame in frames[1:]
        ]
        np.testing.assert_allclose(scores, -distances, rtol=1e-4, atol=1e-6)
    assert distances[-1] == 0


@torch.no_grad()
def test_a_single_frame_tokenizer_looks_at_no_other_frame():
    torch.manual_seed(0)
    model = PerFrameGPT(TOKENIZER, TRANSFORMER, action_dim=3).eval()
    layout, clips = model.layout, make_clips(batch=2)
    assert (layout.context_tokens, layout.dynamics_tokens) == (16, 16)
    tokens, _ = model.tokenizer.tokenize(clips.frames)
    assert tokens.shape == (2, layout.length(6))
    other = clips.frames.clone()
    other[:, :2] = 1 - other[:, :2]
    assert torch.equal(layout.split(tokens)[1], layout.split(model.tokenizer.tokenize(other)[0])[1])
    decoded = model.tokenizer.detokenize(tokens)
    assert decoded.shape == clips.frames.shape
    # A future frame is decoded from its own tokens alone.
    codes = model.tokenizer.dynamics_quantize.embedding(layout.split(tokens)[1])
    alone = model.tokenizer.decode_future(codes, None, None)
    torch.testing.assert_close(decoded[:, 2:], alone)
    dream = model.imagine(clips.frames[:, :2], clips.actions[:, 1:4], horizon=3, temperature=0)
    assert dream.tokens.shape == (2, 3, 16)


# -- what a planner could gain -----------------------------------------------------------------------------------------


def test_candidates_are_ranked_by_the_model_and_by_the_truth(studied, finished, monkeypatch):
    monkeypatch.setattr(ranking, "FIRST", 2)
    rows, _ = studied("ranking", f"run={finished}", "episodes_per_task=2")
    table = {row["chosen by"]: row for row in rows}
    ceiling, chance = table["what followed: the ceiling"], table["chance"]
    assert ceiling["rank correlation"] == pytest.approx(1)
    assert len(table) == 12
    assert ceiling["moments"] >= 2
    for row in rows:
        assert row["return of the choice"] <= ceiling["return of the choice"]
        assert row["moments"] == ceiling["moments"]
    assert table["true rewards, 16 ahead"]["return of the choice"] > chance["return of the choice"]


def test_exact_dreams_give_true_scores(finished):
    ranked = ranking.Ranking(str(finished), torch.device("cpu"))
    longer = dataclasses.replace(ranked.settings, episode_frames=80)
    env, beside = make_env(longer), make_env(longer)
    ranked.env = env
    obs, _ = env.reset(seed=5)
    for _ in range(2):
        obs, *_ = env.step(np.full(env.action_space.shape, 0.3, np.float32))
    now = env.snapshot()
    start = lambda given, **_: SimulatorRollout(beside, given, [now] * len(given))  # noqa: E731
    ranked.world = SimpleNamespace(start=start)
    with torch.no_grad():
        moment = ranked.moment(now, obs, torch.Generator().manual_seed(0))
    for ahead in ranking.AHEAD:
        dreamt, true = (moment.scores[f"{how} rewards, {ahead} ahead"] for how in ("dreamt", "true"))
        np.testing.assert_allclose(dreamt, true, rtol=1e-5)
        assert len(np.unique(true)) > 1
    ends = [moment.scores[f"{how} rewards, 5 ahead, then the critic"] for how in ("dreamt", "true")]
    np.testing.assert_allclose(*ends, rtol=1e-4)
    # What followed the first candidate, by hand: its dream is exact, so it is what the policy does.
    obs, earned = env.restore(now), 0.0
    for h in range(ranking.TAKEN + ranking.AFTER):
        obs, reward, terminated, truncated, _ = env.step(ranked.policy.act(obs))
        earned += ranked.settings.discount**h * reward
        if terminated or truncated:
            break
    assert moment.earned[0] == pytest.approx(earned, rel=1e-4)


def test_a_run_that_cannot_be_ranked(typed, tmp_path):
    for name, told in {"none": "run=none: name the folder", str(tmp_path): f"{tmp_path} has no checkpoints"}.items():
        code, _, error = typed(study.main, "study=ranking", f"run={name}", f"out={tmp_path / 'out'}")
        assert code == 2
        assert told in error
        assert "\n" not in error
