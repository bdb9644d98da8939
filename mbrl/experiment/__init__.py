"""What every run needs and no algorithm is about: settings, folder, logs, checkpoints, commands."""
