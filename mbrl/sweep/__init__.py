"""Many runs: `python -m mbrl.sweep`."""
