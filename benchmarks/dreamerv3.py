"""DreamerV3 beside the official code: python -m benchmarks.dreamerv3 peer=<checkout> peer_python=<python> [key=value]

    measure=learn    the official code on the run that the other keys describe: the task, episodes, sizes and numbers
                     that `python -m mbrl.train` would take; its curve goes to runs/<task>/dreamerv3-official/<seed>
    measure=speed    one update of each at the sizes that the other keys describe, in turn, both in float32

docs/dreamerv3.md says how the peer's environment is made and what was found.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf

from agents import dreamerv3
from agents.dreamerv3.nets import stages
from benchmarks import measure
from benchmarks.beside import OURS, REST_S, Peer, Worker, WorkerDied, check_peer
from benchmarks.measure import spread
from benchmarks.table import duration, number, table, write
from mbrl.build import environment_keywords
from mbrl.experiment.command import command
from mbrl.experiment.logger import EVAL, EVAL_COLUMNS, TRAIN, TRAIN_COLUMNS
from mbrl.experiment.run import CONFIG, run_folder, stream_seed
from mbrl.experiment.settings import Positive, Settings, UserError, load, load_plain, to_dict

OFFICIAL = Peer(
    "danijar/dreamerv3",
    "dreamerv3/rssm.py",
    ("jax", "jaxlib", "numpy", "optax", "elements", "ninjax", "gymnasium"),
    "benchmarks.workers.dreamerv3",
    "docs/dreamerv3.md",
)
# Ours -> theirs, as a pattern of their dotted keys. What is missing here is `SAME`, or `size` or `precision`.
KEYS = {
    "train_ratio": "run.train_ratio",
    "lr": "agent.opt.lr",
    "warmup_updates": "agent.opt.warmup",
    "agc": "agent.opt.agc",
    "beta1": "agent.opt.beta1",
    "beta2": "agent.opt.beta2",
    "eps": "agent.opt.eps",
    "unimix": "agent.dyn.rssm.unimix",
    "free_nats": "agent.dyn.rssm.free_nats",
    "dyn_scale": "agent.loss_scales.dyn",
    "rep_scale": "agent.loss_scales.rep",
    "imagination_length": "agent.imag_length",
    "horizon": "agent.horizon",
    "return_lambda": r".*\.lam",
    "entropy": "agent.imag_loss.actent",
    "min_std": "agent.policy.minstd",
    "max_std": "agent.policy.maxstd",
    "slow_rate": "agent.slowvalue.rate",
    "slow_scale": r".*\.slowreg",
    "replay_value_scale": "agent.loss_scales.repval",
    "return_rate": "agent.retnorm.rate",
    "return_limit": "agent.retnorm.limit",
    "bins": r".*\.bins",
}
SAME = ("batch_size", "batch_length")
SIZES = {name: rf".*\.{name}" for name in ("depth", "units")} | {
    name: rf".*\.rssm\.{name}" for name in ("deter", "hidden", "stoch", "classes", "blocks")
}


@dataclasses.dataclass(frozen=True)
class Options:
    measure: Literal["speed", "learn"]
    peer: str
    peer_python: str
    out: str
    repeats: Positive
    calls: Positive


def read(overrides: Sequence[str]) -> tuple[Options, Settings, list[str]]:
    """The options, the settings of the run that is meant, and the overrides of those settings."""
    own = {field.name for field in dataclasses.fields(Options)}
    of_bench = [override for override in overrides if override.split("=")[0] in own]
    of_run = [override for override in overrides if override not in of_bench]
    of_run = ["agent=dreamerv3", "dreamerv3.precision=fp32", "device=cpu", *of_run]
    return load_plain(Options, "bench_dreamerv3", of_bench), load(of_run), of_run


def official_config(settings: Settings) -> dict[str, Any]:
    """Our settings under the official names."""
    config = dataclasses.asdict(settings.dreamerv3)
    keys = {theirs: config[ours] for ours, theirs in KEYS.items()} | {name: config[name] for name in SAME}
    size, side = dreamerv3.SIZES[settings.dreamerv3.size], settings.image_size
    keys |= {SIZES[name]: width for name, width in size._asdict().items()}
    _, _, widths = stages((3, side, side), size.depth)
    return keys | {
        "seed": settings.seed,
        "replay.size": settings.replay_buffer_frames // settings.action_repeat,
        r".*\.mults": [width // size.depth for width in widths],  # one convolution less for small images
    }


def describe(settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """What a worker needs to know of a run."""
    s = settings
    for name in ("num_train_frames", "eval_every_frames"):
        if getattr(s, name) % s.action_repeat:
            raise UserError(f"{name}={getattr(s, name)} must be a multiple of action_repeat={s.action_repeat} here")
    first = s.num_seed_frames // s.eval_every_frames + 1  # the evaluations of mbrl/session.py
    evaluations = {*range(first * s.eval_every_frames, s.num_train_frames, s.eval_every_frames), s.num_train_frames}
    return {
        "overrides": list(overrides),
        "device": "cpu",
        "threads": s.threads,
        "task": s.task,
        "environment": environment_keywords(s),
        "config": official_config(s),
        "episode_seeds": [stream_seed(s.seed, "episode", i) for i in range(s.num_train_frames // s.action_repeat)],
        "evaluation_seeds": {
            frame: [stream_seed(s.seed, "evaluation", frame, i) for i in range(s.num_eval_episodes)]
            for frame in sorted(evaluations)
        },
        "tables": {TRAIN: TRAIN_COLUMNS, EVAL: EVAL_COLUMNS},
    }


def learn(settings: Settings, overrides: Sequence[str], theirs: Sequence[str]) -> str:
    """Let the official code learn."""
    official = dataclasses.replace(settings, variant="-".join(filter(None, [settings.variant, "official"])))
    folder = run_folder(official)
    if (folder / EVAL).exists():
        raise UserError(f"{folder} holds a run already: remove it, or set variant or seed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(to_dict(official))))
    start = time.perf_counter()
    with Worker(theirs, folder / "worker.log") as worker:
        spec = describe(settings, overrides) | {"folder": str(folder.resolve())}
        updates = worker.ask("learn", spec=spec)["updates"]
    return f"{folder}: {updates} updates, {duration(time.perf_counter() - start)}"


def speed(options: Options, settings: Settings, overrides: Sequence[str], theirs: Sequence[str], folder: Path) -> Any:
    """The number of threads, the same on both sides, and the seconds of an update of ours and of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds: tuple[list[float], list[float]] = ([], [])
    spec = describe(settings, overrides)
    with Worker(OURS, folder / "ours.log") as ours, Worker(theirs, folder / "theirs.log") as official:
        threads = {worker.ask("make", workload="dreamerv3", spec=spec)["threads"] for worker in (ours, official)}
        if len(threads) > 1:
            raise WorkerDied(f"the two sides compute with different numbers of threads, {sorted(threads)}")
        for _ in range(options.repeats):
            for taken, worker in zip(seconds, (ours, official), strict=True):
                time.sleep(REST_S)
                taken.append(worker.ask("time", calls=options.calls)["seconds"])
    return threads.pop(), spread(seconds[0]), spread(seconds[1])


def main(overrides: list[str]) -> None:
    options, settings, of_run = read(overrides)
    theirs, versions = check_peer(options.peer, options.peer_python, OFFICIAL)
    try:
        if options.measure == "learn":
            print(learn(settings, of_run, theirs))
            return
        facts, c = measure.machine(torch.device("cpu")), settings.dreamerv3
        folder = Path(options.out) / "dreamerv3" / f"{c.size}-{c.batch_size}x{c.batch_length}-{settings.threads}"
        facts["threads"], ours, official = speed(options, settings, of_run, theirs, folder)
    except WorkerDied as error:
        raise UserError(str(error)) from error
    rows = [
        [side, duration(s.median), f"{duration(s.low)} - {duration(s.high)}", number(1 / s.median)]
        for side, s in (("ours", ours), ("official", official))
    ]
    text = "\n".join(
        [
            f"{c.size}, {c.batch_size} windows of {c.batch_length} steps, float32; {facts['cpu']}, "
            f"{facts['threads']} threads, load {facts['load_average_before']:.1f} before",
            table(("an update", "median", "range", "updates a second"), rows),
            f"theirs / ours {official.median / ours.median:.2f}",
        ]
    )
    values = {"machine": facts, "peer_versions": versions, "ours": ours._asdict(), "official": official._asdict()}
    write(folder, "speed", text, values)
    print(text)


if __name__ == "__main__":
    command(main)
