"""Train an agent, or continue a run that was cut off: python -m mbrl.train task=coffee-push [key=value ...]

Every key stands in configs/config.yaml; `dry_run=true` says what would be done, and what it takes. The run's folder is
runs/<task>/<agent>[-<variant>]/<seed>.
"""

import sys

import envs
from mbrl.dreamer import Dreamer
from mbrl.experiment.capacity import needs_of_run, refuse_too_large
from mbrl.experiment.command import command
from mbrl.experiment.planned import dry_run, headline, plan
from mbrl.experiment.run import CHECKPOINTS, Run, saved_frame
from mbrl.experiment.settings import Settings, load
from mbrl.mbpo import MBPO
from mbrl.mpc import MPC
from mbrl.online import Online

# Agents that are not here learn online.
LOOPS: dict[str, type[MBPO | Dreamer | MPC | Online]] = {"mbpo": MBPO, "dreamerv3": Dreamer, "mpc": MPC}


def train(settings: Settings) -> None:
    refuse_too_large(needs_of_run(settings), settings.device)
    with Run.open(settings) as run:
        run.progress.write(headline(settings), file=sys.stderr)
        loop = LOOPS.get(settings.agent, Online)(run)
        try:
            loop.train()
        except KeyboardInterrupt as stop:
            # As the disk has it: a stop can come while `save` makes sure of what it has written.
            if not any((run.folder / CHECKPOINTS).glob("[0-9]*")):
                stop.args = ("there was no checkpoint yet: the same command begins again",)
            else:
                stop.args = (f"the same command continues from frame {saved_frame(settings):,}",)
            raise
        except (ValueError, RuntimeError):
            run.flush(loop.session.frame)  # where a loss broke first, name it rather than what it spoilt
            raise
        finally:
            loop.close()


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    settings = load(overrides)
    envs.check_installed(settings.task)
    if dry:
        refuse_too_large(needs_of_run(settings), settings.device)
        print(plan(settings, saved_frame(settings)))
    else:
        train(settings)


if __name__ == "__main__":
    command(main)
