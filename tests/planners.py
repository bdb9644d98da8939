"""The planners of `configs/planners/`, by name."""

from agents import PlannerConfig
from mbrl.experiment.settings import CONFIG_DIR, planner_preset

PRESETS: dict[str, PlannerConfig] = {
    path.stem: planner_preset(path.stem) for path in sorted((CONFIG_DIR / "planners").glob("*.yaml"))
}
