"""Side by side with the official iVideoGPT code: two processes take turns on the same weights and inputs.

For each line both workers first compute what is compared; a mismatch leaves the line without a speed. Then they are
timed in turn (ours, theirs, ours, theirs, ...), so that both meet the same machine, with equal numbers of threads.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

import envs
from benchmarks import compare, inputs
from benchmarks.compare import Mismatch
from benchmarks.measure import Spread, spread
from benchmarks.options import Options
from benchmarks.table import duration, number, table
from mbrl.experiment.settings import Settings, UserError
from world_model.precision import autocast_dtype

ROOT = Path(__file__).resolve().parent.parent
REST_S = 0.3  # before a turn: the threads of the other process stop looking for work within 0.2 s
OURS = (sys.executable, "-m", "benchmarks.workers.ours")
SHIPPED = (sys.executable, "-m", "benchmarks.workers.shipped")
PACKAGES = ("torch", "numpy", "transformers", "diffusers", "accelerate", "safetensors")


class Peer(NamedTuple):
    """Other people's code to measure beside."""

    name: str
    file: str  # that tells a checkout of it
    packages: tuple[str, ...]  # whose versions are reported
    worker: str  # the module that runs there
    document: str  # that says how its environment is made


IVIDEOGPT = Peer(
    "thuml/iVideoGPT", "mbrl/video_predictor.py", PACKAGES, "benchmarks.workers.peer", "docs/performance.md"
)


class WorkerDied(RuntimeError):
    """A worker that ended before it answered; the message is the last line of its log."""


class Worker:
    """A process that answers requests (`workers/pipe.py`)."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # nothing is fetched
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment,
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One request, one answer. Raises WorkerDied."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do} | request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self._log.read_text().strip().splitlines()
            raise WorkerDied(f"{lines[-1] if lines else 'it said nothing'} (see {self._log})")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()  # closes its input, upon which it ends

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Line(NamedTuple):
    """One comparison."""

    workload: str  # of both workers
    unit: str
    units: float  # a call
    calls: int  # in a row, so that what is timed is not too short
    spec: dict[str, Any]
    theirs: Sequence[str]  # command of the other worker
    compare: Callable[[dict[str, Tensor], dict[str, Tensor]], float]  # in fp32: the largest difference, or Mismatch
    precisions: tuple[str, ...] = ("fp32",)

    @property
    def name(self) -> str:
        return "-".join([self.workload, *filter(None, [self.spec.get("quality")])])


class Result(NamedTuple):
    line: Line
    precision: str
    difference: float | None  # the largest of all outputs, in bf16 to float32; None where they did not agree
    problem: str  # why there is no speed
    ours: Spread | None = None
    theirs: Spread | None = None

    @property
    def summary(self) -> str:
        assert self.ours is not None
        assert self.theirs is not None
        return (
            f"ours {duration(self.ours.median)}, theirs {duration(self.theirs.median)}, same to {self.difference:.1g}"
        )

    def as_dict(self) -> dict[str, Any]:
        sides = {"ours": self.ours, "theirs": self.theirs}
        return {
            "line": self.line.name,
            "precision": self.precision,
            "unit": self.line.unit,
            "units_a_call": self.line.units,
            "difference": self.difference,
            "problem": self.problem,
        } | {side: seconds._asdict() if seconds else None for side, seconds in sides.items()}


def measure_line(line: Line, precision: str, repeats: int, folder: Path, log: Path) -> Result:
    """Compare, then time in turn. `folder` takes the outputs, `log` what the workers print."""
    spec = line.spec | {"precision": precision, "given": precision == "bf16"}
    file = folder / "outputs.safetensors"
    try:
        if precision == "bf16":
            with Worker(OURS, log.with_suffix(".exact.log")) as worker:
                worker.ask("make", workload=line.workload, spec=spec | {"precision": "fp32"})
                worker.ask("outputs", file=str(file))
            exact = load_file(file)
        with Worker(OURS, log.with_suffix(".ours.log")) as ours, Worker(line.theirs, log.with_suffix(".log")) as theirs:
            threads, outputs = set(), []
            for worker in (ours, theirs):
                threads.add(worker.ask("make", workload=line.workload, spec=spec)["threads"])
                worker.ask("outputs", file=str(file))
                outputs.append(load_file(file))
            if len(threads) > 1:
                raise Mismatch(f"the two sides compute with different numbers of threads, {sorted(threads)}")
            if precision == "bf16":
                difference = compare.same_in_bf16(outputs[0], outputs[1], exact)
            else:
                difference = line.compare(outputs[0], outputs[1])
            del outputs
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(repeats):
                for taken, worker in zip(seconds, (ours, theirs), strict=True):
                    time.sleep(REST_S)
                    taken.append(worker.ask("time", calls=line.calls)["seconds"])
    except (Mismatch, WorkerDied) as error:
        return Result(line, precision, None, " ".join(str(error).split()))
    return Result(line, precision, difference, "", spread(seconds[0]), spread(seconds[1]))


def check_peer(checkout: str, python: str, peer: Peer = IVIDEOGPT) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command of the peer's worker and the versions of its environment.

    Raises:
        UserError: one line for what is wrong with either.
    """
    root = Path(checkout).resolve()
    if not (root / peer.file).is_file():
        raise UserError(f"peer={checkout} is no checkout of {peer.name}: it has no {peer.file}")
    if python == "none":
        raise UserError(f"peer needs peer_python=<python of an environment with its dependencies>, {peer.document}")
    code = (
        "import importlib.metadata as m, json, sys;"
        f"print(json.dumps({{'python': sys.version.split()[0]}} | {{n: m.version(n) for n in {peer.packages}}}))"
    )
    if os.sep in python:
        python = str(Path(python).absolute())  # not resolved: a link is what makes an environment of it
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"peer_python={python} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"peer_python={python} lacks what the official code needs ({last}); see {peer.document}")
    return (python, "-m", peer.worker, str(root)), json.loads(done.stdout)


def lines(
    settings: Settings, options: Options, overrides: Sequence[str], peer: Sequence[str], folder: Path
) -> list[Line]:
    """The lines that are asked for."""
    s, learner = settings, settings.world_model.learner
    batches = options.cuda if s.device == "cuda" else options.cpu
    spec: dict[str, Any] = {
        "overrides": list(overrides),
        "folder": str(folder),
        "device": s.device,
        "threads": s.threads,
        "action_dim": inputs.ACTION_DIM,
        "context_length": s.world_model.tokenizer.context_length,
        "segment_length": learner.segment_length,
        "sampled_future_frames": learner.sampled_future_frames,
        "nstep": s.nstep,
        "discount": s.discount,
    }
    both = tuple(options.precisions)
    same = compare.same_outputs
    transitions, clips = {"batch": s.batch_size}, {"batch": learner.batch_size}
    imagined_frames = batches.dreams * s.rollout_horizon
    found = {
        "dream": Line("dream", "imagined frames", imagined_frames, 1, spec, peer, same, both),
        "tokenizer": Line("tokenizer", "updates", 1, 1, spec, peer, same, both),
        "transformer": Line("transformer", "updates", 1, 1, spec, peer, same, both),
        "agent": Line("agent", "updates", 1, 5, spec, peer, same, both),
        "transitions": Line(
            *("transitions", "transitions", s.batch_size, 20, spec | transitions, peer),
            lambda ours, theirs: compare.same_transitions(folder, s, ours, theirs),
        ),
        "clips": Line(
            *("clips", "clips", learner.batch_size, 20, spec | clips, peer),
            lambda ours, theirs: compare.same_segments(folder, ours, theirs),
        ),
    }
    for quality in ("fast", "paper") if envs.suite_of(s.task).name == "metaworld" else ():
        shown = spec | {"quality": quality}
        found[f"environment-{quality}"] = Line("environment", "frames", s.action_repeat, 10, shown, SHIPPED, same)
    if options.lines == ("all",):
        return list(found.values())
    if unknown := [name for name in options.lines if name not in found]:
        raise UserError(f"lines={unknown[0]} is unknown: choose all or some of {', '.join(found)}")
    return [found[name] for name in options.lines]


def measure(options: Options, settings: Settings, overrides: Sequence[str], out: Path) -> tuple[str, dict[str, Any]]:
    """The table of all lines and its numbers.

    Raises:
        UserError: the peer or its environment is not what it must be.
    """
    peer, versions = check_peer(options.peer, options.peer_python)
    native = autocast_dtype("auto", torch.device(settings.device)) is not None
    out.mkdir(parents=True, exist_ok=True)
    results, left_out = [], []
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch).resolve()
        chosen = lines(settings, options, overrides, peer, folder)
        inputs.write(folder, settings, options)
        for line in chosen:
            for precision in line.precisions:
                if precision == "bf16" and not native:
                    left_out.append(f"{line.name} in bf16: this device does not compute in it")
                    continue
                result = measure_line(
                    line, precision, options.repeats, folder, out.resolve() / f"{line.name}-{precision}"
                )
                results.append(result)
                print(f"{line.name} {precision}: {result.problem or result.summary}", flush=True)
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"{report(results)}\n\ntheirs: {shown}"
    values = {"peer_versions": versions, "left_out": left_out, "lines": [result.as_dict() for result in results]}
    return "\n".join([text, *left_out]), values


def report(results: Sequence[Result]) -> str:
    """One row a line. Speeds only where both sides were shown to compute the same."""
    rows, problems = [], []
    for r in results:
        if r.ours is None or r.theirs is None:
            rows.append([r.line.name, r.precision, "", "", "", "", "they differ"])
            problems.append(f"{r.line.name} {r.precision}: {r.problem}")
            continue
        times = [f"{duration(s.median)} ({duration(s.low)} - {duration(s.high)})" for s in (r.ours, r.theirs)]
        rate = f"{number(r.line.units / r.ours.median)} {r.line.unit}/s"
        ratio = f"{r.theirs.median / r.ours.median:.2f}"
        rows.append([r.line.name, r.precision, *times, ratio, rate, f"{r.difference:.1g}"])
    head = ("one call", "precision", "ours", "theirs", "theirs / ours", "our rate", "off by")
    return "\n".join([table(head, rows), *problems])
