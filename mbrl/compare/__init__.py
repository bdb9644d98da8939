"""Runs weighed against each other: `python -m mbrl.compare`."""
