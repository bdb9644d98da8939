"""Pre-training by two processes on the CPU: it is one with the joined batch, and continues after a kill."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import final_weights, moving_square, overrides
from together import Steady, free_port, pretrain_together, together
from torch.multiprocessing.spawn import ProcessExitedException

from mbrl.pretrain import pretrain
from world_model.data import write_shard

UPDATES = 10
KEYS = [
    f"tokenizer_updates={UPDATES}",
    f"transformer_updates={UPDATES}",
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


def losses(folder):
    """What was logged of every update of the learner."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chosen = [{k: v for k, v in line.items() if k.startswith("world_model/")} for line in lines]
    return [line for line in chosen if line]


# One stage at a time, and no codes while the tokenizer learns: which of two nearly equal codes a frame gets hangs on
# the last bits, and those differ. test_parallel.py learns with codes.
@pytest.mark.parametrize(("stage", "quantize_after"), [("tokenizer", UPDATES), ("transformer", 0)])
def test_two_processes_of_torchrun_equal_one(project_root, data, tmp_path, monkeypatch, stage, quantize_after):
    keys = [*KEYS, f"stage={stage}", f"learner.quantize_after={quantize_after}"]
    monkeypatch.setattr(pretrain, "LOG_UPDATES", 1)
    monkeypatch.setattr(pretrain, "WorldModelLearner", Steady)
    pretrain.main(overrides(data, tmp_path / "one", *keys))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [*torchrun, project_root / "tests/pretrain_logged.py", *overrides(data, tmp_path / "two", *keys)]
    env = os.environ | {"PYTHONPATH": str(project_root)}
    done = subprocess.run(line, cwd=project_root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == UPDATES
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            limit = 1e-3 if name.endswith("grad_norm") else 1e-5  # norms are worse conditioned
            assert b[name] == pytest.approx(value, rel=limit, abs=limit), name
    if stage == "transformer":  # each process tokenizes a part of the clips
        tokens = [load_file(tmp_path / name / "tokens.safetensors") for name in ("one", "two")]
        assert all(torch.equal(value, tokens[1][name]) for name, value in tokens[0].items())


def test_two_processes_that_were_killed_continue_bit_for_bit(data, tmp_path):
    """With shares of the transformer, and with dropout, of which each process has a stream of its own.

    There is a checkpoint every two updates; the kill is in the fifth, the second of the transformer.
    """
    keys = [*KEYS, "sharded=true", "learner.embed_codes=false", "tokenizer_updates=3", "transformer_updates=3"]

    def run(name, stop):
        together(pretrain_together, free_port(), overrides(data, tmp_path / name, *keys), stop)

    run("whole", 0)
    with pytest.raises(ProcessExitedException):
        run("cut", 5)
    assert not (tmp_path / "cut/model").exists()
    run("cut", 0)
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
