"""Training: the loops, what they stand on, and the commands (`python -m mbrl.<verb>`)."""
