"""A long run holds no more memory, open files or threads late than early.

A short one runs with all tests; `make test ARGS="--whole tests/test_flat.py"` trains MBPO, DrQ-v2 and DreamerV3 for
50,000 frames each and prints what was seen.
"""

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny import tiny

FRAMES, FRAMES_WHOLE = 800, 50_000
HELD = 200  # frames that the replay holds: full by a quarter of the shortest run
DREAMER = ("agent=dreamerv3", "dreamerv3.batch_length=8", "dreamerv3.batch_size=2")
GROWTH_MB = 20.0  # of a process of some 360: its allocator alone took up to 12 more in the last quarter

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


class Seen(NamedTuple):
    frame: int
    memory_mb: float  # of the process's own
    open_files: int
    threads: int


@pytest.mark.parametrize(
    "agent", [("agent=mbpo",), ("agent=drqv2",), DREAMER], ids=lambda keys: keys[0].partition("=")[2]
)
def test_a_long_run_stays_flat(tmp_path: Path, project_root: Path, whole: bool, agent: tuple[str, ...]) -> None:
    if not whole and agent != ("agent=mbpo",):
        pytest.skip("with --whole")
    frames = FRAMES_WHOLE if whole else FRAMES
    every = frames // (40 if whole else 4)
    often = (f"{key}_every_frames={every}" for key in ("eval", "checkpoint", "log"))
    overrides = tiny(tmp_path, *agent, f"num_train_frames={frames}", f"replay_buffer_frames={HELD}", *often)
    process = subprocess.Popen(
        [sys.executable, "-m", "mbrl.train", *overrides],
        cwd=project_root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[Seen] = []
    while process.poll() is None:
        if (frame := frame_of(tmp_path)) > frames // 4:
            seen.append(look(process.pid, frame))
        time.sleep(frames / 40_000)  # a checkpoint, a peak of both halves, is over in a moment
    assert process.returncode == 0
    seen = [row for row in seen if row.memory_mb]  # the last look can find a process that has ended
    early = [row for row in seen if row.frame <= frames // 2]
    late = [row for row in seen if row.frame > 3 * frames // 4]
    assert early
    assert late
    most, then = (Seen(*map(max, zip(*rows, strict=True))) for rows in (late, early))
    print(f"{agent[0]}: from {then} to {most}")
    assert most.memory_mb <= then.memory_mb + GROWTH_MB
    assert most.open_files <= then.open_files
    assert most.threads <= then.threads


def frame_of(run_root: Path) -> int:
    """The last frame in a run's train.csv; 0 where there is none yet."""
    for path in run_root.glob("**/train.csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        if rows and (frame := rows[-1]["frame"] or "").isdigit():
            return int(frame)
    return 0


def look(pid: int, frame: int) -> Seen:
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        values = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
        open_files = len(list((folder / "fd").iterdir()))
        return Seen(frame, float(values["RssAnon"]) / 1024, open_files, int(values["Threads"]))
    except (OSError, KeyError):
        return Seen(frame, 0.0, 0, 0)
