"""Play the last evaluation of a run again, which must give what eval.csv says: `make verify RUN=...`.

    python -m mbrl.verify run=runs/published/coffee-push/mbpo/1

The seeds are those of the training's own evaluation, and the weights those that it was made with. Only the machine may
differ; another processor or OpenGL library can change last bits and pixels, and with them an episode that was close.
"""

import dataclasses
import math

import torch

from mbrl.build import make_env
from mbrl.compare.results import evaluations
from mbrl.evaluate import play
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.command import command
from mbrl.experiment.logger import EVAL
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import Device, Folder, UserError, load_plain, pick_device
from mbrl.interop.trained import Trained, open_run


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    run: Folder
    device: Device


def main(overrides: list[str]) -> None:
    options = load_plain(VerifyOptions, "verify", overrides)
    if options.run == "none":
        raise UserError("run=none: name the folder of the run to verify, such as run=runs/coffee-push/mbpo/1")
    trained = open_run(options.run, device=pick_device(options.device).type)
    settings, row = trained.settings, published(trained)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    env, policy, episodes = make_env(settings), trained.policy, int(row["episodes"])
    frame, decision = policy.frame, policy.frame // settings.action_repeat
    seeds = [stream_seed(settings.seed, "evaluation", frame, i) for i in range(episodes)]
    result = play(policy.agent, env, decision, progress_bar(seeds, unit="episode"))
    env.close()
    rate, earned = row["success_rate"], row["episode_return"]
    told = (
        f"{policy.folder} at frame {frame}, {episodes} episodes: success rate {result.success_rate:g}, return "
        f"{result.episode_return:.3f}; eval.csv says {rate:g} and {earned:.3f}"
    )
    if not math.isclose(result.success_rate, rate, abs_tol=1e-6):
        raise UserError(f"not the same: {told}")
    same = math.isclose(result.episode_return, earned, rel_tol=1e-5)
    print(f"the same: {told}" if same else f"the same success rate, another return: {told}")


def published(trained: Trained) -> dict[str, float]:
    """The row of eval.csv that belongs to the weights. Raises UserError: there is none."""
    path, frame = trained.policy.folder / EVAL, trained.policy.frame
    columns = evaluations(path, print)
    for row in zip(*columns.values(), strict=True):
        if row[0] == frame:
            return dict(zip(columns, map(float, row), strict=True))
    raise UserError(f"{path} has no evaluation at frame {frame}, that of its weights; a finished run has")


if __name__ == "__main__":
    command(main)
