"""Whatever is typed and whatever lies on the disk: a result, or one line. The cases are those of `tests/fuzzing`.

A part of them runs with all tests; `make test ARGS="tests/test_fuzz.py --whole"` runs about 3,000.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest

LEAST, LEAST_WHOLE = 600, 3000


@pytest.fixture(scope="module")
def scene(cut_off: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzzing.Scene]:
    """In an empty folder, which is the present one while these tests run."""
    root, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    (root / "here").mkdir()
    os.chdir(root / "here")
    yield fuzzing.make_scene(root / "scene", cut_off)
    os.chdir(before)


def test_nothing_ends_in_a_traceback(scene: fuzzing.Scene, whole: bool) -> None:
    outside = sorted(Path("..").iterdir())
    tried, complaints = 0, []
    for case in fuzzing.cases(scene, random.Random(0), each=8 if whole else 1):
        tried += 1
        if complaint := fuzzing.judge(case):
            complaints.append(f"{case.name}: {complaint}")
    assert not complaints, "\n".join(complaints)
    assert tried >= (LEAST_WHOLE if whole else LEAST)
    assert sorted(Path("..").iterdir()) == outside, "nothing was written beside the present folder"
