"""Video to pre-train on: `python -m mbrl.data`."""
