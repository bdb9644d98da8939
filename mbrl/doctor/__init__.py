"""What this machine has: `python -m mbrl.doctor`."""
