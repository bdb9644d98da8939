"""Training: the loops, what they stand on, and the commands (`python -m mbrl.<verb>`)."""

import sys

from mbrl.experiment import interrupts

if sys.argv[0] == "-m":  # so python calls it while it looks for the verb; a library leaves signals alone
    interrupts.before_imports()
