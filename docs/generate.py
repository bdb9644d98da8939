"""Write the pages that are read from the code: `make docs` makes docs/keys.md anew, `ARGS=tasks` the image too.

keys.md lists every key of every command, from `configs/` and the comments there. tasks.png shows each task of
Meta-world at the start of an episode (half a minute, with a simulator).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import envs
from mbrl.experiment.settings import CONFIG_DIR
from mbrl.experiment.usage import entries

DOCS = Path(__file__).parent
# The keys of a run, those that presets, protocols, tasks and planners change, then the other commands'.
RUN = "config.yaml"
LAYERS = ("presets", "protocols", "planners")
COLUMNS, SIZE, CAPTION = 9, 116, 11  # of the image, in pixels

INTRODUCTION = """# Keys

Every key that a command takes, its default and what it means, from the files in [configs/](../configs). With `make`
they are written `ARGS="key=value ..."`. `make train ARGS=--help` prints the same with the values of a chosen task and
preset, and says which file each comes from. `make docs` makes this page.
"""


def keys() -> str:
    """The text of keys.md."""
    parts = [INTRODUCTION, f"## A run: configs/{RUN}\n", _table(CONFIG_DIR / RUN)]
    for folder in LAYERS:
        for file in sorted((CONFIG_DIR / folder).glob("*.yaml")):
            if table := _table(file):
                parts += [f"### {folder[:-1]} {file.stem}\n", table]
    for file in sorted(CONFIG_DIR.glob("*.yaml")):
        if file.name != RUN:
            parts += [f"## make {file.stem}: configs/{file.name}\n", _table(file)]
    return "\n".join(parts)


def _table(file: Path) -> str:
    layer = file.parent != CONFIG_DIR  # over the keys of a run, whose meaning stands there
    of_run = {key: entry.comment for key, entry in entries(CONFIG_DIR / RUN)} if layer else {}
    rows = [
        f"| `{key}` | `{entry.value}` | {_escaped(entry.comment or of_run.get(key, ''))} |"
        for key, entry in entries(file)
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""]) if rows else ""


def _escaped(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;")


def sheet() -> Image.Image:
    """Every task of Meta-world at the start of its first episode."""
    names = [name for name in envs.task_names() if "/" not in name]
    rows = -(-len(names) // COLUMNS)
    image = Image.new("RGB", (COLUMNS * SIZE, rows * (SIZE + CAPTION)), "white")
    draw = ImageDraw.Draw(image)
    for number, name in enumerate(names):
        env = envs.make(name, 1, frame_stack=1, image_size=SIZE, camera="corner", render_quality="paper")
        frame = env.reset(seed=1)[0]
        env.close()
        left, top = number % COLUMNS * SIZE, number // COLUMNS * (SIZE + CAPTION)
        image.paste(Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))), (left, top))
        draw.text((left + 2, top + SIZE - 1), name, fill="black", font_size=9)
    return image


if __name__ == "__main__":
    (DOCS / "keys.md").write_text(keys(), encoding="utf-8")
    if sys.argv[1:] == ["tasks"]:
        sheet().quantize(128).save(DOCS / "tasks.png", optimize=True)
