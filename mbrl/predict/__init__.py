"""Prediction of recorded video, with metrics: `python -m mbrl.predict`."""
