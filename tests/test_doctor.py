"""`python -m mbrl.doctor` says what is there and what is missing, and breaks on neither."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import envs
from mbrl.doctor import doctor


def test_report_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["task=button-press-topdown-wall", "device=cpu"])
    output = capsys.readouterr().out
    assert torch.__version__ in output
    assert "cpu, where preset=auto means small" in output
    assert "metaworld 3.1.1" in output
    assert "image of button-press-topdown-wall, fast" in output
    assert "image of button-press-topdown-wall, paper" in output
    assert "small (world_model.pretrained)" in output  # the shipped weights are there
    assert "LPIPS-VGG: not asked for" in output


def test_missing_gl_is_a_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose_backend() -> str:
        raise envs.MissingGL("no OpenGL library; install one")

    monkeypatch.setattr(doctor, "choose_backend", choose_backend)
    doctor.main([])
    assert "drawing   no OpenGL library; install one\nweights" in capsys.readouterr().out


def test_weights_are_looked_for_where_the_config_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["task=toy/reach", f"world_model.pretrained={tmp_path}"]
    doctor.main(overrides)
    assert f"not found in {tmp_path} (world_model.pretrained)" in capsys.readouterr().out
    for name in (doctor.TOKENIZER, doctor.TRANSFORMER):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    doctor.main(overrides)
    assert f"world model: found in {tmp_path} (world_model.pretrained)" in capsys.readouterr().out


def test_the_command_itself(project_root: Path) -> None:
    command = [sys.executable, "-m", "mbrl.doctor", "sed=1"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key sed; did you mean 'seed'?\n"
