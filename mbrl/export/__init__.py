"""Episodes out for other programs: `python -m mbrl.export`."""
