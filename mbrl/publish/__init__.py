"""Of a run what others need: `python -m mbrl.publish`."""
