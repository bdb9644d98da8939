"""A page on which a person drives the dream, with the simulator beside it."""
