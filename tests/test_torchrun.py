"""Pre-training under torchrun: two processes on the CPU are one with the joined batch, and continue after a kill."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import final_weights, moving_square, words

from world_model.data import write_shard

UPDATES = 10
KEYS = [
    "tokenizer_updates=5",
    "transformer_updates=5",
    "validate_every_updates=100",
    "horizon=1",
    "learner.batch_size=4",
    "learner.tokenizer_batch_size=4",
    "learner.sampled_future_frames=2",
    "learner.segment_length=6",
    "learner.precision=fp32",
    "augmentation.crop_scale=[0.8,1.0]",
    "augmentation.brightness=0.1",
    "augmentation.hue=0.05",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_shard(folder, "squares", [moving_square(i) for i in range(20)], "squares")
    return folder


@pytest.fixture
def pretrained(project_root, data):
    def run(processes, kind, stop, out, *more):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = [project_root / "tests/every_update.py", kind, str(stop)]
        line = [sys.executable, *(torchrun if processes > 1 else []), *script, *words(data, out, *KEYS, *more)]
        env = os.environ | {"PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, cwd=project_root, env=env, capture_output=True, text=True)

    return run


def losses(folder):
    """What was logged of every update of the learner."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chosen = [{k: v for k, v in line.items() if k.startswith("world_model/")} for line in lines]
    return [line for line in chosen if line]


def test_two_processes_equal_one(pretrained, tmp_path):
    for processes in (1, 2):
        done = pretrained(processes, "fixed", 0, tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == UPDATES
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            limit = 1e-3 if name.endswith("grad_norm") else 1e-5  # norms are worse conditioned
            assert b[name] == pytest.approx(value, rel=limit, abs=limit), name
    tokens = [load_file(tmp_path / name / "tokens.safetensors") for name in ("1", "2")]
    assert all(torch.equal(value, tokens[1][name]) for name, value in tokens[0].items())


def test_two_processes_that_were_killed_continue_bit_for_bit(pretrained, tmp_path):
    """With shares of the transformer and with dropout, of which each process has a stream of its own.

    There is a checkpoint every two updates; the kill is in the eighth, the third of the transformer.
    """
    assert pretrained(2, "plain", 0, tmp_path / "whole", "sharded=true").returncode == 0
    assert pretrained(2, "plain", 8, tmp_path / "cut", "sharded=true").returncode != 0
    assert not (tmp_path / "cut/model").exists()
    done = pretrained(2, "plain", 0, tmp_path / "cut", "sharded=true")
    assert done.returncode == 0, done.stderr
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
