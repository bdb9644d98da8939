"""What is typed: numbers out of their ranges, lines that are none, sizes that no machine has, places that are not."""

import dataclasses
import os
import random
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny import tiny

from fuzzing.case import Case, Scene, comparison, prediction, pretraining
from mbrl import train, verify
from mbrl.compare import compare
from mbrl.data import data
from mbrl.experiment.capacity import needs_of_run, refuse_too_large
from mbrl.experiment.run import stored_settings
from mbrl.experiment.settings import Settings, build, load, load_plain, to_dict
from mbrl.export import export
from mbrl.plan.settings import PlanSettings
from mbrl.play import play
from mbrl.predict import predict
from mbrl.pretrain import pretrain
from mbrl.study import study
from mbrl.sweep import runs as sweep
from world_model.metrics.fvd import I3D
from world_model.metrics.perceptual import LPIPS
from world_model.schema import Pattern, Range

CPU = torch.device("cpu")

# -- numbers -----------------------------------------------------------------------------------------------------------

PLAIN: dict[str, tuple[type, Callable[[], Any]]] = {
    "run": (Settings, lambda: load(["preset=smoke", "device=cpu"])),
    "pretrain": (pretrain.PretrainSettings, lambda: load_plain(pretrain.PretrainSettings, "pretrain")),
    "plan": (PlanSettings, lambda: load_plain(PlanSettings, "plan")),
    "predict": (predict.PredictSettings, lambda: load_plain(predict.PredictSettings, "predict")),
    "study": (study.StudySettings, lambda: load_plain(study.StudySettings, "study")),
    "compare": (compare.CompareSettings, lambda: load_plain(compare.CompareSettings, "compare")),
    "data": (data.DataSettings, lambda: load_plain(data.DataSettings, "data")),
    "export": (export.ExportSettings, lambda: load_plain(export.ExportSettings, "export")),
    "play": (play.PlayOptions, lambda: load_plain(play.PlayOptions, "play")),
    "verify": (verify.VerifyOptions, lambda: load_plain(verify.VerifyOptions, "verify")),
    "sweep": (sweep.SweepSettings, lambda: load_plain(sweep.SweepSettings, "sweep")),
}
NAN, INF = float("nan"), float("inf")
NO_NUMBERS: tuple[Any, ...] = (NAN, INF, -INF, "x", "", [1], {"a": 1}, "1e", "0x1", True, b"1", 1j)
WORDS: tuple[Any, ...] = ("", "../x", "a/b", "x" * 300, "a b", [1], {"a": 1}, True)


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a settings class, with its type."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def bounds(hint: Any) -> Iterator[tuple[type, Range | Pattern]]:
    """The plain type and the bound of each number or word that a type allows."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, bound = typing.get_args(hint)
        if inner in (int, float, str):
            yield inner, Range.parse(bound) if isinstance(bound, str) else bound
        else:
            yield from bounds(inner)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        for one in typing.get_args(hint):
            yield from bounds(one)


def outside(kind: type, bound: Range | Pattern, words: bool, generator: random.Random) -> list[Any]:
    """Values that a key of this type and bound must not have; a word is one unless the key may have `words`, too."""
    if isinstance(bound, Pattern):
        return [word for word in WORDS if not isinstance(word, str) or bound.complaint(word)]
    numbers = [bound.low - 1, -(10.0**300), *([bound.low] if bound.above else [])]
    numbers += [bound.high * 2 + 1, 10.0**300] if bound.high < 1e300 or kind is float else []
    wrong = [value for value in NO_NUMBERS if not (words and isinstance(value, str))]
    return [*map(kind, numbers), *([0.5] if kind is int else []), *generator.sample(wrong, 3)]


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return values | {head: with_value(values[head], tail, value) if tail else value}


def numbers(generator: random.Random, each: int) -> Iterator[Case]:
    """Every key that has a range, `each` times, with values outside of it."""
    for verb, (kind, settings) in PLAIN.items():
        values = to_dict(settings())
        for key, hint in leaves(kind):
            plain = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
            listed = typing.get_origin(plain) is tuple
            for inner, bound in bounds(hint):
                values_outside = outside(inner, bound, str in typing.get_args(hint), generator)
                for value in generator.sample(values_outside, min(each, len(values_outside))):
                    given = [value] if listed else value
                    yield Case(
                        f"{verb} {key}={value!r}",
                        lambda kind=kind, values=values, key=key, given=given: build(
                            kind, with_value(values, key, given)
                        ),
                        refused=True,
                        says=key,
                    )


LINES = (
    r"""seed=1e5 seed=1.5 seed==1 =1 seed seed= seed=[ seed=] seed={ seed=' seed=" seed=\ seed=1,2 seed=range(3)
    seed=${seed} seed=choice(1,2) seed=${oc.env:NOPE} seed=${x seed=${oc.decode:1 +seed=1 ~seed ++seed=1 seed@x=1
    hydra.run.dir=x hydra/launcher=x --config-name=x -m --multirun seed:1 drqv2=1 drqv2.=1 .seed=1 drqv2..lr=1
    variant=../x variant=/x variant=a/b task=../x task=/etc/passwd task=\q task=$x^$ task=${oc.env:HOME}
    agent=../drqv2 preset=../presets/small protocol= run_root= device=gpu camera=[1] seed=-1 drqv2.lr=linear(
    drqv2.stddev_schedule=linear(1,2) drqv2.stddev_schedule=linear(nan,1,2) drqv2.stddev_schedule=linear(1,0,-5)
    drqv2.stddev_schedule=linear(1e999,0,5) demonstration_share=2 world_model.heads=[x] world_model.heads=reward
    world_model.tokenizer.block_out_channels=[] num_train_frames=1 world_model.tokenizer.block_out_channels=[7]
    world_model.tokenizer.norm_num_groups=5 world_model.onestep.width=9 threads=100000
    agent_updates_per_decision=1e12 replay_memory_gb=1e308""".split()
    + ["", " ", "seed=1 2", "seed=\x00", "seed=\x1b[2J", "seed=\udcff", "variant=a\nb", "variant=a\tb", "=" * 1000]
    + ["seed=" + "9" * 5000, "seed=" + "[" * 5000, "seed=" + "{a:" * 2000, "x" * 10_000, "task=" + "t" * 5000]
    + ["variant=" + "v" * 300, "world_model.tokenizer.block_out_channels=[" + "8," * 2000 + "8]"]
)


def lines(generator: random.Random, count: int) -> Iterator[Case]:
    """What is typed behind a command."""
    for line in generator.sample(LINES, min(count, len(LINES))):
        yield Case(f"typed {line[:60]!r}", lambda line=line: load(["preset=smoke", "device=cpu", line]), refused=True)


# -- what is too large -------------------------------------------------------------------------------------------------

HUGE = 10**12
LARGE = {  # what else is typed, and keys with values that do not fit beside it
    "agent=mbpo": """batch_size image_size drqv2.hidden_dim drqv2.feature_dim nstep replay_buffer_frames rollout_batch
        imagined_buffer_frames rollout_horizon num_eval_episodes demonstrations frame_stack episode_frames
        drqv2.bc_batch_size world_model.tokenizer.num_vq_embeddings world_model.tokenizer.layers_per_block
        world_model.tokenizer.latent_channels world_model.transformer.num_hidden_layers world_model.learner.batch_size
        world_model.transformer.hidden_size world_model.transformer.intermediate_size
        world_model.learner.segment_length world_model.learner.tokenizer_batch_size""",
    "agent=dreamerv3": "dreamerv3.batch_size dreamerv3.imagination_length",
    "world_model.kind=onestep": "world_model.onestep.width world_model.onestep.batch_size world_model.onestep.steps",
}


def large() -> Iterator[Case]:
    """Runs that no machine can hold."""
    for first, keys in LARGE.items():
        values = to_dict(load(["preset=smoke", "device=cpu", "task=toy/reach", first]))
        for key in keys.split():
            yield Case(
                f"{first} {key}={HUGE}", partial(_fit, with_value(values, key, HUGE)), refused=True, says=str(HUGE)
            )
    for seed in ("1-99999999999", "1-5,8-99999999999", "0-10000", "5000000000"):
        yield Case(
            f"sweep seed={seed}", lambda seed=seed: sweep.plan([f"seed={seed}", "task=toy/reach"]), True, "seed="
        )
    for word in ("episodes_per_task=1000000000000", "image_size=1000000", "workers=100000"):
        yield Case(f"data {word}", lambda word=word: data.main([word, "out=large"]), True, word.split("=")[0])
    yield Case("compare reps=1e12", lambda: compare.main(["reps=1000000000000"]), True, "reps")


def _fit(values: dict[str, Any]) -> None:
    settings = build(Settings, values)
    refuse_too_large(needs_of_run(settings), settings.device)


# -- paths -------------------------------------------------------------------------------------------------------------

PLACES = (
    *"file file/x /dev/null /dev/null/x /proc/x /sys/x loop loop/x pipe pipe/x".split(),
    "x" * 300,
    "x/" * 3000,
    "",
)


def paths(scene: Scene) -> Iterator[Case]:
    """Where nothing can be written, or where nothing is."""
    here = Path("places")
    here.mkdir(exist_ok=True)
    if not (here / "file").exists():
        (here / "file").write_text("x")
        (here / "loop").symlink_to("loop")
        os.mkfifo(here / "pipe")
    of_run, of_pretraining, of_prediction = (
        to_dict(load(tiny(scene.empty))),
        to_dict(load_plain(pretrain.PretrainSettings, "pretrain", pretraining(scene))),
        to_dict(load_plain(predict.PredictSettings, "predict", prediction(scene))),
    )
    verbs: dict[str, Callable[[str], object]] = {
        "train run_root": lambda path: train.train(build(Settings, of_run | {"run_root": path})),
        "evaluate run_root": lambda path: stored_settings(build(Settings, of_run | {"run_root": path})),
        "pretrain out": lambda path: pretrain.pretrain(
            build(pretrain.PretrainSettings, of_pretraining | {"out": path})
        ),
        "pretrain start_from": lambda path: pretrain.pretrain(
            build(pretrain.PretrainSettings, of_pretraining | {"start_from": path})
        ),
        "predict model": lambda path: predict.Prediction(
            build(predict.PredictSettings, of_prediction | {"model": path})
        ),
        "predict data": lambda path: predict.Prediction(build(predict.PredictSettings, of_prediction | {"data": path})),
        "compare out": lambda path: compare.main(comparison(scene, out=path)),
        "compare runs": lambda path: compare.main([f"runs=['{path}']"]),
        "data out": lambda path: data.main(["source=npz", f"path={scene.data}", f"out={path}"]),
        "data path": lambda path: data.main(["source=rlds", f"path={path}", "out=converted-from-nowhere"]),
        "LPIPS": lambda path: LPIPS.from_folder(path or "."),
        "I3D": lambda path: I3D(path or ".", CPU),
    }
    for place in PLACES:
        path = place if place.startswith("/") or not place else str(here / place)
        for verb, call in verbs.items():
            yield Case(f"{verb}={place[:20]}", lambda call=call, path=path: call(path), True)
    for name in ("../x", "/x", "", ".", "..", ".x", "a/b", "x" * 300, "a\nb", "~/x", "$HOME"):
        yield Case(f"predict name={name!r}", lambda name=name: predict.main(prediction(scene, name=name)), True, "")
        yield Case(
            f"data name={name!r}",
            lambda name=name: data.main([f"name={name}", "source=npz", f"path={scene.data}"]),
            True,
        )
        yield Case(f"compare name={name!r}", lambda name=name: compare.main(comparison(scene, name=name)), True)
        yield Case(
            f"pretrain mixture={name!r}", lambda name=name: pretrain.main(pretraining(scene, mixture=name)), True
        )
