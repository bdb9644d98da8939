"""Keep of a run what others need of it: `make publish RUN=runs/coffee-push/mbpo/1`.

    config.yaml, eval.csv, git.json          what a report reads and what the run is made again from
    checkpoints/<frame>/agent.safetensors    its policy, for `make watch` and `make verify`
    world_model/                             what it dreams in, a number in two bytes
    README.md                                what it is, how it does, how it is made and used again

Nothing of it names the machine or its folders. Of a DrQ-v2 agent the target critic stays behind, which is for learning,
and where an average of the weights acts in evaluation, it alone keeps all digits.
"""

import dataclasses
import json
import platform
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from agents import TARGET_CRITIC
from mbrl.build import make_env
from mbrl.compare.results import evaluations
from mbrl.compare.stats import wilson
from mbrl.experiment import checkpoints
from mbrl.experiment.logger import EVAL
from mbrl.experiment.run import CHECKPOINTS, PROVENANCE
from mbrl.experiment.settings import Folder, UserError, load_plain
from mbrl.experiment.stored_config import CONFIG, read_config, stored_config, write_config, write_text
from mbrl.interop.trained import AGENT, LEFT, open_run, world_of
from world_model.files import read_json, reading
from world_model.hub import push

# What a machine has its own values of.
ACTING = "average."
OF_A_MACHINE = {"run_root": "runs", "wandb": False}


@dataclasses.dataclass(frozen=True)
class PublishOptions:
    run: Folder
    out: Folder
    weights: bool
    to: str


def main(overrides: list[str]) -> None:
    options = load_plain(PublishOptions, "publish", overrides)
    if options.run == "none":
        raise UserError("run=none: name the folder of a run, such as run=runs/coffee-push/mbpo/1")
    folder, out = Path(options.run), Path(options.out)
    if not (folder / EVAL).is_file():
        raise UserError(f"run={folder}: it has no {EVAL}; a run's folder is runs/<task>/<agent>/<seed>")
    depth = 3 + str((stored_config(folder) or {}).get("task", "")).count("/")  # toy/reach is two folders
    if len(folder.resolve().parts) <= depth:
        raise UserError(f"run={folder}: a run's folder is runs/<task>/<agent>/<seed>")
    to = out.joinpath(*folder.resolve().parts[-depth:])
    if to.exists():
        raise UserError(f"{to} is there already: remove it to publish this run again")
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    figures(folder, partial)
    if options.weights:
        weights(folder, partial)
        write_text(partial / "README.md", card(partial, str(to) if options.to == "none" else options.to))
    partial.rename(to)
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    print(f"{to}: {size / 1e6:.1f} MB" + (f"; make verify RUN={to} plays it" if options.weights else ""))
    if options.to != "none":
        print(f"pushed: {push(to, options.to)}")


def figures(folder: Path, to: Path) -> None:
    """The config, the evaluations and the provenance of a run, without the names of folders and of the machine."""
    config = read_config(folder / CONFIG)
    write_config(to, config | {key: value for key, value in OF_A_MACHINE.items() if key in config})
    shutil.copyfile(folder / EVAL, to / EVAL)
    with reading(folder / PROVENANCE):
        record = read_json(folder / PROVENANCE)
        record["starts"] = [_anonymous(start) for start in record["starts"]]
    write_text(to / PROVENANCE, json.dumps(record, indent=1) + "\n")


def _anonymous(start: dict[str, Any]) -> dict[str, Any]:
    machine = start["machine"] | {"system": f"{platform.system()}-{platform.machine()}"}
    words = [word for word in start["command"] if word.split("=")[0] not in OF_A_MACHINE]
    return start | {"machine": machine, "command": words}


def weights(folder: Path, to: Path) -> None:
    """The agent of the newest checkpoint and the world model. Raises UserError: the run has no weights."""
    trained = open_run(str(folder))
    saved = trained.policy.checkpoint
    agent = {name: value for name, value in saved.load(AGENT).items() if name.split(".")[0] != TARGET_CRITIC}
    if any(name.startswith(ACTING) for name in agent):
        agent = {name: value if name.startswith(ACTING) else value.bfloat16() for name, value in agent.items()}
    checkpoints.save(to / CHECKPOINTS, saved.frame, {AGENT: agent})
    if trained.settings.agent != "mbpo":
        return
    env = make_env(trained.settings)
    world, _ = world_of(trained.settings, env, torch.device("cpu"), "none", trained)
    world.save_pretrained(to / LEFT, torch.bfloat16)
    env.close()


def card(folder: Path, called: str) -> str:
    """The page of a published run, which can be loaded by the name `called`."""
    with reading(folder / CONFIG):
        config = read_config(folder / CONFIG)
        agent, task, preset, protocol, seed = (config[key] for key in ("agent", "task", "preset", "protocol", "seed"))
    with reading(folder / PROVENANCE):
        start = read_json(folder / PROVENANCE)["starts"][-1]
        commit, torch_version = (re.sub(r"[^\w.+-]", "", str(x)) for x in (start["commit"], start["versions"]["torch"]))
    rows = [*zip(*evaluations(folder / EVAL, print).values(), strict=True)]
    frame, earned, rate, episodes, _ = rows[-1]
    low, high = wilson(round(rate * episodes), int(episodes))
    table = "\n".join(f"| {f:,.0f} | {success:.2f} | {r:.1f} | {n:.0f} |" for f, r, success, n, _ in rows)
    return f"""---
license: mit
library_name: ivideogpt-mbrl
tags: [reinforcement-learning, world-model, robotics]
---
# {agent} on {task}

A policy from images and, of MBPO, the world model that it learned beside, made with ivideogpt-mbrl: preset
`{preset}`, protocol `{protocol}`, seed {seed}.
One seed says how this run went, not how good the method is.

After {frame:,.0f} frames it succeeds in {rate:.0%} of {episodes:.0f} episodes (95 % interval {low:.0%} to {high:.0%});
mean return {earned:.1f}.

```python
from mbrl.interop import load

policy = load("{called}")
action = policy.act(obs)  # uint8 (9, 64, 64), the newest three frames, to float32 (4,)
policy.world_model        # start, step, expand: world_model/api.py
```

| frames | success | return | episodes |
|---|---|---|---|
{table}

Made at commit `{commit}` with torch {torch_version}, by

```bash
{shlex.join(["python", "-m", "mbrl.train", *start["command"]])}
```
"""
