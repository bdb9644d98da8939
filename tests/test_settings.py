"""Settings: files are laid over each other in the right order, and every mistake gets one clear line."""

import dataclasses
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from mbrl.compare.compare import CompareSettings
from mbrl.data.data import DataSettings
from mbrl.experiment import settings
from mbrl.experiment.settings import CONFIG_DIR, Settings, UserError, build, flatten, load, pick_device, to_dict
from mbrl.export.export import ExportSettings
from mbrl.plan.settings import PlanSettings
from mbrl.play.play import PlayOptions
from mbrl.predict.predict import PredictSettings
from mbrl.pretrain.pretrain import PretrainSettings
from mbrl.study.study import StudySettings
from mbrl.sweep.runs import SweepSettings

PAPER_TASKS = {  # where the published curves end, in frames
    "button-press-topdown-wall": 60_000,
    "plate-slide": 100_000,
    "hammer": 100_000,
    "door-lock": 150_000,
    "handle-pull-side": 200_000,
    "coffee-push": 400_000,
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def test_every_combination_of_files_composes() -> None:
    for agent in names("agents"):
        for preset in names("presets"):
            result = load([f"agent={agent}", f"preset={preset}", "task=dm_control/walker-walk"])
            assert (result.agent, result.preset) == (agent, preset)
    for task in PAPER_TASKS:
        for protocol in names("protocols"):
            assert load([f"task={task}", f"protocol={protocol}", "preset=smoke"]).protocol == protocol


def test_one_spelling_of_a_task() -> None:
    assert load(["task=coffee_push"]) == load(["task=metaworld/coffee-push"]) == load(["task=coffee-push"])
    assert load(["task=coffee_push"]).task == "coffee-push"


def test_preset_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load([]).preset == "small"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load([]).preset == "paper"
    assert load(["device=cpu"]).preset == "small"
    assert load(["preset=smoke"]).preset == "smoke"


def test_device_auto_is_stored_as_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run which is continued on another device is another config."""
    assert load(["preset=smoke"]).device == load(["preset=smoke", "device=auto"]).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load(["preset=smoke"]).device == "cuda"
    assert load(["preset=smoke", "device=cpu"]).device == "cpu"


@pytest.mark.parametrize(("task", "frames"), PAPER_TASKS.items())
def test_paper_preset_has_the_papers_numbers(task: str, frames: int) -> None:
    paper = load(["preset=paper", f"task={task}"])
    assert paper.num_train_frames == frames
    assert paper.demonstrations == (0 if task == "door-lock" else 5)
    assert (paper.success_bonus, paper.num_seed_frames, paper.render_quality) == (10.0, 4000, "paper")
    assert (paper.batch_size, paper.nstep, paper.discount, paper.real_ratio) == (256, 3, 0.99, 0.5)
    assert (paper.rollout_batch, paper.rollout_horizon, paper.rollout_every_frames) == (32, 10, 200)
    assert (paper.initial_model_updates, paper.initial_rollouts) == (1000, 640)
    assert (paper.update_transformer_every_frames, paper.update_tokenizer_every_frames) == (10, 40)
    assert (paper.drqv2.lr, paper.drqv2.feature_dim, paper.drqv2.hidden_dim) == (1e-4, 50, 1024)
    assert paper.drqv2.bc_schedule == "0"
    assert paper.world_model.tokenizer.block_out_channels == (128, 256, 512)
    assert paper.world_model.transformer.hidden_size == 768


def test_protocols_and_what_a_suite_lacks() -> None:
    plain = load(["protocol=plain"])
    assert (plain.success_bonus, plain.demonstrations) == (0.0, 0)
    dm_control = load(["task=dm_control/walker-walk"])
    assert (dm_control.success_bonus, dm_control.demonstrations) == (0.0, 0)
    assert load(["task=reach"]).demonstrations == 5  # a Meta-world task without a file of its own


def test_the_command_line_wins() -> None:
    result = load(["agent=drqv2", "preset=smoke", "real_ratio=0.25", "drqv2.hidden_dim=17", "protocol=plain"])
    assert (result.real_ratio, result.drqv2.hidden_dim) == (0.25, 17)
    assert load(["protocol=plain", "demonstrations=2"]).demonstrations == 2


def test_schedules_need_no_quotes_for_hydra() -> None:
    plain = load(["drqv2.stddev_schedule=linear(1.0,0.1,500)"])
    quoted = load(['drqv2.stddev_schedule="linear(1.0,0.1,500)"'])
    assert plain == quoted
    assert plain.drqv2.stddev_schedule == "linear(1.0,0.1,500)"
    assert load(["drqv2.bc_schedule=0"]).drqv2.bc_schedule == "0"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["task=coffee-posh"], "unknown task 'coffee-posh'.*coffee-push"),
        (["agent=mbop"], "unknown agent 'mbop'; did you mean 'mbpo'"),
        (["preset=smal"], "unknown preset 'smal'; did you mean 'small'"),
        (["protocol=paper"], "unknown protocol 'paper' .known: bonus_demos, plain"),
        (["eval_every_frame=1"], "unknown key eval_every_frame; did you mean 'eval_every_frames'"),
        (["lr=1"], "unknown key lr; did you mean 'drqv2.lr'"),
        (["drqv2.hiden_dim=1"], "unknown key drqv2.hiden_dim; did you mean 'drqv2.hidden_dim'"),
        (["presets=paper"], "unknown key presets; did you mean 'preset'"),
        (["drqv2=3"], "drqv2 is a section"),
        (["seed=one"], "seed=one has the wrong type: it must be a whole number"),
        (["seed=1.5"], "seed=1.5 has the wrong type: it must be a whole number"),
        (["seed=true"], "seed=True has the wrong type: it must be a whole number"),
        (["seed="], "seed= has the wrong type"),
        (["video=1"], "video=1 has the wrong type: it must be true or false"),
        (["discount=nan"], "discount=nan is out of range"),
        (["seed=-1"], "seed=-1 is out of range: it must be at least 0"),
        (["real_ratio=2"], "real_ratio=2.0 is out of range: it must be at most 1$"),
        (["num_train_frames=0"], "num_train_frames=0 is out of range: it must be at least 1"),
        (["num_train_frames=100"], "num_train_frames=100 must be more than num_seed_frames"),
        (["render_quality=slow"], "render_quality=slow: it must be one of fast, paper"),
        (["device=tpu"], "device=tpu: it must be one of auto, cpu, cuda, mps"),
        (["device=cuda"], "device=cuda: this torch sees no CUDA GPU"),
        (["variant=../x"], "variant=../x"),
        (["drqv2.encoder=resnet"], "drqv2: encoder='resnet'"),
        (["drqv2.stddev_schedule=cosine(1,2)"], "drqv2: .*cosine"),
        (["world_model.tokenizer.block_out_channels=32"], "it must be a list"),
        (
            ["world_model.tokenizer.block_out_channels=[32,x]"],
            r"block_out_channels\[1\]=x has the wrong type",
        ),
        (
            ["preset=small", "world_model.transformer.hidden_size=64", "world_model.pretrained=some/folder"],
            "in world_model.pretrained=some/folder; add world_model.pretrained=none initial_model_updates=800",
        ),
        (["preset=small", "world_model.pretrained=none"], "initial_model_updates=200 must be at least 800"),
        (
            ["preset=smoke", "agent=dreamerv3", "dreamerv3.batch_length=5000"],
            "batch_length=5000 must be less than",
        ),
        (["seed=1,2"], "one value at a time"),
        (["+new=1"], "cannot be added"),
        (["~seed"], "cannot be added or removed"),
        (["seed"], "cannot read 'seed'"),
        (["batch_size=${sed}"], "do not compose"),
    ],
)
def test_a_mistake_gets_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load(overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "limit"),
    [
        ("drqv2.critic_target_tau=2", "at most 1"),
        ("drqv2.critic_target_tau=0", "more than 0"),
        ("drqv2.lr=-1e-4", "more than 0"),
        ("drqv2.bc_batch_size=0", "at least 1"),
        ("dreamerv3.unimix=1.5", "at most 1"),
        ("dreamerv3.beta2=1", "less than 1"),
        ("dreamerv3.batch_length=1", "at least 2"),
        ("dreamerv3.lr=0", "more than 0"),
        ("world_model.tokenizer.in_channels=1", "3$"),
        ("world_model.tokenizer.space_to_depth=0", "at least 1"),
        ("world_model.tokenizer.block_out_channels=[-8,8]", "at least 4"),
        ("world_model.tokenizer.latent_channels=-1", "at least 1"),
        ("world_model.transformer.attention_dropout=1.5", "less than 1"),
        ("world_model.transformer.initializer_range=-1", "more than 0"),
        ("world_model.learner.max_grad_norm=-1", "more than 0"),
        ("world_model.learner.weight_decay=-1", "at least 0"),
        ("world_model.learner.reward_weight=-1", "at least 0"),
        ("world_model.learner.mse_weight=-1", "at least 0"),
        ("world_model.learner.token_noise=2", "at most 1"),
        ("world_model.learner.token_noise=-1", "at least 0"),
        ("world_model.learner.warmup_updates=-1", "at least 0"),
        ("world_model.learner.segment_length=1", "at least 2"),
        ("world_model.learner.sampled_future_frames=0", "at least 1"),
        ("world_model.learner.tokenizer_lr=-1e-4", "more than 0"),
        ("planning.horizon=0", "at least 1"),
        ("planning.momentum=1.0", "less than 1"),
    ],
)
def test_a_number_out_of_its_range(override: str, limit: str) -> None:
    with pytest.raises(UserError, match=rf"{override.split('=')[0]}.* is out of range: it must be {limit}"):
        load(["preset=smoke", override])


def test_a_list_of_another_length() -> None:
    with pytest.raises(UserError, match=r"block_out_channels=\[\] has the wrong length: it must be at least 1"):
        load(["preset=smoke", "world_model.tokenizer.block_out_channels=[]"])


def numbers_without_a_range(kind: Any, key: str) -> list[str]:
    """Keys below `key` that any number would do for."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return [found for name, hint in hints.items() for found in numbers_without_a_range(hint, f"{key}.{name}")]
    if get_origin(kind) is not None and get_origin(kind) not in (Annotated, Literal):
        return [found for part in get_args(kind) for found in numbers_without_a_range(part, key)]
    return [key] if kind in (int, float) else []


def test_every_number_has_a_range() -> None:
    for kind in (
        Settings,
        PretrainSettings,
        PredictSettings,
        StudySettings,
        CompareSettings,
        DataSettings,
        SweepSettings,
        PlayOptions,
        ExportSettings,
        PlanSettings,
    ):
        assert numbers_without_a_range(kind, kind.__name__) == []


def test_a_run_from_scratch_learns_before_it_dreams() -> None:
    overrides = ["preset=small", "world_model.pretrained=none"]
    assert load([*overrides, "initial_model_updates=800"]).initial_model_updates == 800
    assert load([*overrides, "agent=drqv2"]).agent == "drqv2"  # has no world model
    assert load([*overrides, "real_ratio=1"]).real_ratio == 1  # never dreams


def test_settings_are_frozen_and_survive_their_own_dict() -> None:
    result = load(["preset=smoke"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 2  # type: ignore[misc]
    assert build(Settings, to_dict(result)) == result
    assert flatten(to_dict(result))["drqv2.lr"] == result.drqv2.lr


def test_a_file_with_a_wrong_or_missing_key_is_refused() -> None:
    values = to_dict(load(["preset=smoke"]))
    with pytest.raises(UserError, match="unknown key drqv2.lrr; did you mean 'lr'"):
        build(Settings, values | {"drqv2": values["drqv2"] | {"lrr": 1}})
    with pytest.raises(UserError, match="seed has no value in runs/x/config.yaml"):
        build(Settings, {key: value for key, value in values.items() if key != "seed"}, file="runs/x/config.yaml")
    with pytest.raises(UserError, match="drqv2.encoder has no value in runs/x/config.yaml"):
        build(Settings, values | {"drqv2": {"feature_dim": 50}}, file="runs/x/config.yaml")


def test_device_cpu_is_never_refused() -> None:
    assert pick_device("cpu") == pick_device("auto") == torch.device("cpu")
    assert settings.nearest("zzzz", ["a", "b"]) == "; known: a, b"
