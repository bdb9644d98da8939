"""A mixture of datasets for pre-training: what share of the clips each gives, and how it is read.

configs/mixtures/<name>.yaml:   <dataset>: {weight: 0.1275, step: 2, image_key: image}
"""

import dataclasses
from typing import Annotated

import yaml

from mbrl.experiment.settings import CONFIG_DIR, Positive, Range, UserError, build


@dataclasses.dataclass(frozen=True)
class Subset:
    weight: Annotated[float, Range(0.0)]  # share of the clips drawn
    step: Positive  # keep every step-th frame, so that all datasets move at about one speed
    image_key: str | None = None
    tokenizer_only: bool = False  # the transformer never sees it
    classes: tuple[int, ...] = ()  # of Something-Something v2
    left_out: str = "none"  # a file of configs/left_out that names episodes to leave out, or none

    @property
    def left_out_names(self) -> frozenset[str]:
        """Episodes by all their names: as recorded and, where it is another, as converted."""
        if self.left_out == "none":
            return frozenset()
        names = yaml.safe_load((CONFIG_DIR / "left_out" / f"{self.left_out}.yaml").read_text())
        return frozenset(names) | frozenset(name for name in names.values() if name)


def weights(mixture: dict[str, Subset], stage: str) -> dict[str, float]:
    """How often each dataset is drawn while the tokenizer or the transformer learns."""
    return {name: s.weight for name, s in mixture.items() if stage == "tokenizer" or not s.tokenizer_only}


def load_mixture(name: str) -> dict[str, Subset]:
    """`configs/mixtures/<name>.yaml`. Raises UserError."""
    file = CONFIG_DIR / "mixtures" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise UserError(f"mixture={name}: there is no {file.parent.name}/{file.name} in configs (known: {known})")
    defaults = {
        field.name: field.default for field in dataclasses.fields(Subset) if field.name not in ("weight", "step")
    }
    values = yaml.safe_load(file.read_text())
    return {key: build(Subset, defaults | subset, f"{key}.") for key, subset in values.items()}
