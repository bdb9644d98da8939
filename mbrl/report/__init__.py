"""What `make compare` is made of: results of runs in, a page and tables with intervals out (`mbrl/compare.py`)."""
