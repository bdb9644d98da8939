"""Independent streams of random numbers from one seed."""

import numpy as np


def substreams(seed: int, count: int) -> list[int]:
    """Seeds of `count` independent streams; asking for more of them leaves the first ones as they are."""
    return [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(count)]
