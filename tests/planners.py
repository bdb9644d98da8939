"""The planners of `configs/planners/`, by name."""

from agents import PlannerConfig
from mbrl.experiment.settings import CONFIG_DIR, load

PRESETS: dict[str, PlannerConfig] = {
    path.stem: load([f"planner={path.stem}", "device=cpu"]).planning
    for path in sorted((CONFIG_DIR / "planners").glob("*"))
}
