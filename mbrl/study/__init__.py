"""Small studies of a model: `python -m mbrl.study`."""
