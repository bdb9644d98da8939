"""Pre-training of a world model: `python -m mbrl.pretrain`."""
