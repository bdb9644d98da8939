"""The picture of published curves."""

from pathlib import Path

import pytest

from mbrl.curves import main, read
from mbrl.settings import UserError

HEAD = "frame,episode_return,success_rate,episodes,wall_time_s\n"


def test_a_picture_of_two_runs(tmp_path: Path) -> None:
    folders = [tmp_path / agent / "1" for agent in ("mbpo", "drqv2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "eval.csv").write_text(HEAD + "2000,10,0.5,20,60\n4000,20,1,20,120\n")
    assert read(folders[0])["success_rate"] == [0.5, 1.0]
    main([str(tmp_path / "out.png"), *map(str, folders)])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "line"), [(None, "no run folder"), (HEAD, "no evaluation yet"), (HEAD + "2000,1\n", "damaged line")]
)
def test_what_cannot_be_drawn_is_said(text: str | None, line: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "eval.csv").write_text(text)
    with pytest.raises(UserError, match=line):
        main([str(tmp_path / "out.png"), str(tmp_path)])
    assert not (tmp_path / "out.png").exists()
