"""The processes that `benchmarks.beside` alternates. Each is run with `python -m`."""
