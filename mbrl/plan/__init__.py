"""Planning in a world model: what candidates of actions are worth."""
