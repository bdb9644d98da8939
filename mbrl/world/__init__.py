"""The world model of a run: how it learns beside the agent, how good its dreams are, and the simulator as one."""
